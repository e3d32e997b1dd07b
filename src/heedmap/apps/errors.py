"""Every error as JSON of one shape, ``{"error": sentence}``; tracebacks go to the terminal alone."""

import reprlib
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from heedmap.apps.limits import RequestError
from heedmap.errors import HeedmapError, nearest


class ErrorResponse(BaseModel):
    """Every error: one sentence."""

    error: str


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response of an error."""
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Let an application report every error but its own defects; see :func:`heedmap.apps.base.new_app`."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return error_response(error.status, str(error), error.headers)

    @app.exception_handler(HeedmapError)
    async def unusable(_: Request, error: HeedmapError) -> JSONResponse:
        return error_response(400, str(error))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            hint = nearest(request.url.path, app.openapi()["paths"])
            message = f"There is no {request.url.path!r} here; /docs lists what there is.{hint}"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"{request.url.path} does not take {request.method}."
        return error_response(error.status_code, message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, _first_problem(error, _parameters(app, request)))


def _parameters(app: FastAPI, request: Request) -> list[str]:
    operation = app.openapi()["paths"].get(request.scope["route"].path, {}).get(request.method.lower(), {})
    return [parameter["name"] for parameter in operation.get("parameters", ())]


def _first_problem(error: RequestValidationError, parameters: list[str]) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "body"
    if first["type"] == "extra_forbidden":
        known = f"; there are {', '.join(parameters)}" if parameters else ""
        return f"Unknown parameter {name!r}{known}.{nearest(name, parameters)}"
    return f"Parameter {name!r} cannot be {reprlib.repr(first['input'])}: {first['msg']}."

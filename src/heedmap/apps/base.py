"""The FastAPI application that the explorer and the server are built on: guard, errors, page files, documentation.

A page on the web can make a visitor's browser send requests to 127.0.0.1, and with DNS rebinding can even read the
responses: its own name is made to point to 127.0.0.1, and then the Host header carries that name. So Host has to be
accepted by the address, and a request that a page makes has to come from a page of the same host.

FastAPI's own page at ``/docs`` loads Swagger UI from a CDN and starts it by an inline script. Pages here load nothing
from elsewhere and run no inline script, and a copy of Swagger UI would be 1.5 MB for a handful of routes; so ``/docs``
is a plain page rendered from the schema that FastAPI serves at ``/openapi.json``.
"""

import reprlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from importlib import resources
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heedmap._version import __version__
from heedmap.apps.address import Address
from heedmap.apps.limits import RequestError
from heedmap.errors import HeedmapError, nearest

_SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html; charset=utf-8", ".svg": "image/svg+xml"}


class ErrorResponse(BaseModel):
    """Every error: one sentence."""

    error: str


def error_responses(sentences: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return errors, given as status -> sentence, for the schema."""
    return {status: {"model": ErrorResponse, "description": sentence} for status, sentence in sentences.items()}


def new_app(
    package: str,
    title: str,
    description: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    address: Address | None,
) -> FastAPI:
    """Return an application with its pages and no other routes yet.

    Args:
        package: whose folder ``page`` holds ``page.html`` and the files that it loads.
        title, description: for the documentation.
        lifespan: what starts and stops with the application.
        address: what it listens on; None accepts any Host, for an app that is mounted in a server of its own.
    """
    errors = {
        403: "The Host or Origin header is not this app's.",
        422: "A parameter is unknown or out of range.",
        500: "A defect; the terminal or log shows more.",
    }
    about: dict[str, Any] = {"title": title, "version": __version__, "description": description}
    app = FastAPI(**about, docs_url=None, redoc_url=None, lifespan=lifespan, responses=error_responses(errors))
    app.add_middleware(_Guard, address=address)
    _add_error_handlers(app)
    _add_pages(app, package)
    return app


class _Guard:
    """Middleware: refuse requests with a foreign Host or Origin, and set the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, address: Address | None) -> None:
        self._app, self._address = app, address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        app = self._app if refusal is None else _error(403, refusal)
        await app(scope, receive, send_guarded)

    def _refusal(self, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        host = hosts[0] if hosts else ""
        if self._address is not None and (len(hosts) != 1 or not self._address.accepts(host)):
            return f"The host name {host!r} is not this machine's; use its address, or allow the name by --allow-host."
        if any(urlsplit(origin).netloc != host for origin in headers.getlist("origin")):
            return "Pages of other sites may not send requests here."
        return None


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


def _add_error_handlers(app: FastAPI) -> None:
    """Report every error as JSON of one shape; tracebacks go to the terminal alone."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return _error(error.status, str(error), error.headers)

    @app.exception_handler(HeedmapError)
    async def unusable(_: Request, error: HeedmapError) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            hint = nearest(request.url.path, app.openapi()["paths"])
            message = f"There is no {request.url.path!r} here; /docs lists what there is.{hint}"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"{request.url.path} does not take {request.method}."
        return _error(error.status_code, message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        operation = app.openapi()["paths"].get(request.scope["route"].path, {}).get(request.method.lower(), {})
        first, known = error.errors()[0], [parameter["name"] for parameter in operation.get("parameters", ())]
        name = ".".join(str(part) for part in first["loc"][1:]) or "body"
        if first["type"] == "extra_forbidden":
            listed = f"; there are {', '.join(known)}" if known else ""
            return _error(422, f"Unknown parameter {name!r}{listed}.{nearest(name, known)}")
        return _error(422, f"Parameter {name!r} cannot be {reprlib.repr(first['input'])}: {first['msg']}.")

    @app.exception_handler(Exception)  # outside of the guard; the server logs the traceback
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return _error(500, "This request failed; the terminal or log of the server shows why.", _SECURITY_HEADERS)


def _add_pages(app: FastAPI, package: str) -> None:
    files = {
        entry.name: entry.read_bytes()
        for folder in ("heedmap.apps", package)
        for entry in resources.files(folder).joinpath("page").iterdir()
    }
    template = files["docs.html.jinja"].decode()
    documentation = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)

    @app.get("/page/{name}", include_in_schema=False)
    async def part_of_page(name: str) -> Response:
        suffix = PurePosixPath(name).suffix
        if name not in files or suffix not in _TYPES:
            raise RequestError(404, f"The page has no file {name!r}.")
        return Response(files[name], media_type=_TYPES[suffix])

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return await part_of_page("page.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(documentation.render(app.openapi()))

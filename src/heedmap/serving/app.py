"""The addresses of the service, as a FastAPI application."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from heedmap import __version__
from heedmap.errors import nearest
from heedmap.serving.batching import Batcher
from heedmap.serving.bodies import FIELD, Held, check_kind, picture_in
from heedmap.serving.limits import Limits, Refusal
from heedmap.serving.pictures import Picture, read_bytes
from heedmap.serving.predictors import Predictor
from heedmap.serving.replies import (
    MEDIA,
    Asked,
    Form,
    Health,
    Known,
    Prediction,
    Trouble,
    chosen_form,
    drawn_map,
    map_headers,
    prediction,
)
from heedmap.visualize import Answer

_DECODERS = 2

_PICTURE_KINDS = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
_BODY = {
    "required": True,
    "description": "A picture: JPEG, PNG, WebP, GIF, BMP, TIFF or PNM.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "additionalProperties": False,
                "properties": {FIELD: {"type": "string", "format": "binary"}},
            }
        },
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in _PICTURE_KINDS},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_REFUSALS = {
    400: "The request cannot be read.",
    406: "Nothing that the Accept header takes can be given.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, or too many pixels.",
    415: "Not a picture that heedmap reads.",
    422: "A damaged picture, or a parameter that is unknown or out of range.",
    500: "The classifier failed; the service's log says more.",
    503: "Too many requests are waiting, or the answer took too long.",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Trouble, "description": _REFUSALS[status]} for status in statuses}


class Service:
    """What the addresses share: the classifier behind its queue, the decoding threads, the bounds."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.batcher, self.held = Batcher(predictor, limits), Held(limits)
        self._decoders = ThreadPoolExecutor(_DECODERS, "decoder")

    @contextlib.asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Start and stop with the application."""
        self.batcher.start()
        try:
            yield
        finally:
            await self.batcher.stop()
            self._decoders.shutdown(cancel_futures=True)

    async def answer(self, content: bytes, draw_at: int | None) -> tuple[Picture, Answer]:
        """Decode a picture and ask the classifier, within the time.

        Raises:
            Refusal: no place, no picture, or too late.
        """
        with self.batcher.place():
            try:
                async with asyncio.timeout(self.limits.timeout):
                    picture = await self._in_thread(
                        read_bytes, content, self.predictor.image_size, self.limits, draw_at
                    )
                    return picture, await self.batcher.ask(picture.image)
            except TimeoutError:
                sentence = f"The answer took longer than {self.limits.timeout:g} s; ask again later."
                raise Refusal(503, sentence, {"Retry-After": "10"}) from None

    async def file(self, picture: Picture, answer: Answer, form: Form, asked: Asked) -> Response:
        """Draw the map that was asked for."""
        drawn = answer.maps[self.tap(asked.tap)]
        content = await self._in_thread(drawn_map, drawn, picture.view, form, asked)
        return Response(content, media_type=MEDIA[form], headers=map_headers(answer, drawn, self.predictor.classes))

    def tap(self, name: str | None) -> str:
        """Return the name of a map: ``combined``, or the only one, where none is asked for.

        Raises:
            Refusal: 422 for a name that there is not.
        """
        taps = self.predictor.taps
        if name is not None and name not in taps:
            raise Refusal(422, f"Unknown tap {name!r}; there are {', '.join(taps)}.{nearest(name, taps)}")
        return name or ("combined" if "combined" in taps else taps[0])

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        call = functools.partial(function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, call)


def make_app(predictor: Predictor, limits: Limits) -> FastAPI:
    """Return the application; its documentation page is its own, since FastAPI's loads scripts from elsewhere."""
    service = Service(predictor, limits)
    app = FastAPI(
        title=f"heedmap: {predictor.name}",
        version=__version__,
        description="Send a picture; get its class, and where the classifier looked.",
        docs_url=None,
        redoc_url=None,
        lifespan=service.running,
    )
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_there)
    app.add_exception_handler(RequestValidationError, _out_of_range)
    app.add_exception_handler(Exception, _failed)
    _add_predict(app, service)
    _add_reading(app, service)
    _name_taps(app, predictor.taps)
    return app


def _name_taps(app: FastAPI, taps: tuple[str, ...]) -> None:
    """Let the schema list the maps that this classifier has; they are not known when the shapes are written."""
    for parameter in app.openapi()["paths"]["/predict"]["post"]["parameters"]:
        if parameter["name"] == "tap":
            parameter["schema"]["anyOf"][0]["enum"] = list(taps)


def _add_predict(app: FastAPI, service: Service) -> None:
    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "model": Prediction,
            "description": "The answer.",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "application/x-npy")
            },
        }
    }

    @app.post(
        "/predict",
        summary="Class, probabilities and map of a picture",
        responses=answers | _refusals(400, 406, 408, 413, 415, 422, 500, 503),
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        form = chosen_form(asked.format, request.headers.get("accept"))
        service.tap(asked.tap)
        check_kind(request)
        service.batcher.refuse_when_full()  # before a body is read in vain
        async with service.held.body(request) as body:
            content = await picture_in(request, body)
            picture, answer = await service.answer(content, asked.size if form == "overlay" else None)
        if form != "json":
            return await service.file(picture, answer, form, asked)
        asks = service.predictor
        return JSONResponse(prediction(answer, asks.classes, picture.size, asks.image_size, asked))


def _add_reading(app: FastAPI, service: Service) -> None:
    """The addresses that take nothing."""
    predictor = service.predictor
    page = resources.files("heedmap.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/health", summary="Whether the service answers", response_model=Health)
    async def health() -> Health:
        batcher = service.batcher
        return Health(
            status="ok",
            model=predictor.name,
            waiting=batcher.waiting,
            answered=batcher.answered,
            batches=batcher.batches,
        )

    @app.get("/classes", summary="What the classifier can say", response_model=Known)
    async def classes() -> Known:
        return Known(classes=list(predictor.classes), taps=list(predictor.taps), image_size=predictor.image_size)

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _NOTHING_FROM_ELSEWHERE})


_NOTHING_FROM_ELSEWHERE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _trouble(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(sentence.split())}, status, dict(headers or {}))


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return _trouble(error.status, error.sentence, error.headers)


async def _not_there(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentence = str(error.detail)
    if error.status_code == 404:
        sentence = f"There is no {request.url.path!r} here; there are /predict, /classes, /health and /openapi.json."
    elif error.status_code == 405:
        sentence = f"{request.url.path} does not take {request.method}."
    return _trouble(error.status_code, sentence, error.headers)


async def _out_of_range(_: Request, error: Exception) -> JSONResponse:
    """Name the first parameter that does not fit."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        known = tuple(Asked.model_fields)
        return _trouble(422, f"Unknown parameter {name!r}; there are {', '.join(known)}.{nearest(name, known)}")
    return _trouble(422, f"Parameter {name!r} cannot be {first['input']!r}: {first['msg']}.")


async def _failed(_: Request, error: Exception) -> JSONResponse:  # the server logs it with its traceback
    return _trouble(500, "The classifier failed on this picture; the service's log says more.")

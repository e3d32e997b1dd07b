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

from heedmap._version import __version__
from heedmap.apps.server.batching import Batcher
from heedmap.apps.server.bodies import FIELD, Held, check_kind, image_in
from heedmap.apps.server.images import read_bytes
from heedmap.apps.server.limits import Limits, Refusal
from heedmap.apps.server.replies import (
    MEDIA,
    ErrorReply,
    Form,
    HealthReply,
    ModelReply,
    PredictionReply,
    PredictRequest,
    chosen_form,
    drawn_map,
    map_headers,
    prediction_reply,
)
from heedmap.errors import nearest
from heedmap.inference.predictor import Prediction, Predictor
from heedmap.inference.reading import DecodedImage

_DECODERS = 2

_IMAGE_KINDS = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
_BODY = {
    "required": True,
    "description": "An image: JPEG, PNG, WebP, GIF, BMP, TIFF or PNM.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "additionalProperties": False,
                "properties": {FIELD: {"type": "string", "format": "binary"}},
            }
        },
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in _IMAGE_KINDS},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_REFUSALS = {
    400: "The request cannot be read.",
    406: "Nothing that the Accept header takes can be given.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, or too many pixels.",
    415: "Not an image that heedmap reads.",
    422: "A damaged image, or a parameter that is unknown or out of range.",
    500: "The classifier failed; the service's log says more.",
    503: "Too many requests are waiting, or the answer took too long.",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReply, "description": _REFUSALS[status]} for status in statuses}


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

    async def answer(self, content: bytes, draw_at: int | None) -> tuple[DecodedImage, Prediction]:
        """Decode an image and ask the classifier, within the time.

        Raises:
            Refusal: no place, no image, or too late.
        """
        with self.batcher.place():
            try:
                async with asyncio.timeout(self.limits.timeout):
                    image = await self._in_thread(read_bytes, content, self.predictor.image_size, self.limits, draw_at)
                    return image, await self.batcher.ask(image.pixels)
            except TimeoutError:
                sentence = f"The answer took longer than {self.limits.timeout:g} s; ask again later."
                raise Refusal(503, sentence, {"Retry-After": "10"}) from None

    async def file(self, image: DecodedImage, answer: Prediction, form: Form, asked: PredictRequest) -> Response:
        """Draw the map that was asked for."""
        drawn = answer.maps[self.tap(asked.tap)]
        content = await self._in_thread(drawn_map, drawn, image.view, form, asked)
        return Response(content, media_type=MEDIA[form], headers=map_headers(answer, drawn, self.predictor.classes))

    def tap(self, name: str | None) -> str:
        """Return the name of a map: ``combined``, or the only one, where none is asked for.

        Raises:
            Refusal: 422 for a name that there is not.
        """
        taps = self.predictor.maps
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
        description="Send an image; get its class, and where the classifier looked.",
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
    _name_taps(app, predictor.maps)
    return app


def _name_taps(app: FastAPI, taps: tuple[str, ...]) -> None:
    """Let the schema list the maps that this classifier has; they are not known when the shapes are written."""
    for parameter in app.openapi()["paths"]["/predict"]["post"]["parameters"]:
        if parameter["name"] == "tap":
            parameter["schema"]["anyOf"][0]["enum"] = list(taps)


def _add_predict(app: FastAPI, service: Service) -> None:
    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "model": PredictionReply,
            "description": "The answer.",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "application/x-npy")
            },
        }
    }

    @app.post(
        "/predict",
        summary="Class, probabilities and map of an image",
        responses=answers | _refusals(400, 406, 408, 413, 415, 422, 500, 503),
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(request: Request, asked: Annotated[PredictRequest, Query()]) -> Response:
        form = chosen_form(asked.format, request.headers.get("accept"))
        service.tap(asked.tap)
        check_kind(request)
        service.batcher.refuse_when_full()  # before a body is read in vain
        async with service.held.body(request) as body:
            content = await image_in(request, body)
            image, answer = await service.answer(content, asked.size if form == "overlay" else None)
        if form != "json":
            return await service.file(image, answer, form, asked)
        asks = service.predictor
        return JSONResponse(prediction_reply(answer, asks.classes, image.size, asks.image_size, asked))


def _add_reading(app: FastAPI, service: Service) -> None:
    """The addresses that take nothing."""
    predictor = service.predictor
    page = resources.files("heedmap.apps.server").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/health", summary="Whether the service answers", response_model=HealthReply)
    async def health() -> HealthReply:
        batcher = service.batcher
        return HealthReply(
            status="ok",
            model=predictor.name,
            waiting=batcher.waiting,
            answered=batcher.answered,
            batches=batcher.batches,
        )

    @app.get("/classes", summary="What the classifier can say", response_model=ModelReply)
    async def classes() -> ModelReply:
        return ModelReply(classes=list(predictor.classes), taps=list(predictor.maps), image_size=predictor.image_size)

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
        known = tuple(PredictRequest.model_fields)
        return _trouble(422, f"Unknown parameter {name!r}; there are {', '.join(known)}.{nearest(name, known)}")
    return _trouble(422, f"Parameter {name!r} cannot be {first['input']!r}: {first['msg']}.")


async def _failed(_: Request, error: Exception) -> JSONResponse:  # the server logs it with its traceback
    return _trouble(500, "The classifier failed on this image; the service's log says more.")

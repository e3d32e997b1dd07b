"""The routes of the service, as a FastAPI application."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from heedmap.apps.address import Address
from heedmap.apps.base import error_responses, new_app
from heedmap.apps.limits import Limits, RequestError
from heedmap.apps.server.batching import Batcher
from heedmap.apps.server.responses import (
    MEDIA_TYPES,
    HealthResponse,
    ModelResponse,
    PredictionResponse,
    PredictParameters,
    choose_format,
    map_file,
    map_headers,
    prediction_response,
)
from heedmap.apps.uploads import BINARY, FIELD, Bodies, check_content_type, decode_upload, image_file
from heedmap.errors import nearest
from heedmap.inference.predictor import Prediction, Predictor
from heedmap.inference.reading import DecodedImage

_DECODERS = 2

_FORM = {"type": "object", "required": [FIELD], "additionalProperties": False, "properties": {FIELD: BINARY["schema"]}}
_IMAGE_KINDS = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
_FILES = dict.fromkeys((*_IMAGE_KINDS, "application/octet-stream"), BINARY)
_BODY = {
    "required": True,
    "description": "An image: JPEG, PNG, WebP, GIF, BMP, TIFF or PNM.",
    "content": {"multipart/form-data": {"schema": _FORM}, **_FILES},
}
_ERRORS = {
    400: "The request cannot be read.",
    406: "Nothing that the Accept header names can be given.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, or too many pixels.",
    415: "Not an image that heedmap reads.",
    422: "A damaged image, or a parameter that is unknown or out of range.",
    503: "Too many requests are waiting, or the prediction took too long.",
}
_FILES_OF_MAPS = dict.fromkeys(("image/png", "application/x-npy"), BINARY)
_PREDICTION = {"model": PredictionResponse, "description": "The prediction.", "content": _FILES_OF_MAPS}


class _Service:
    """What the routes share: the classifier behind its queue, the decoding threads, the limits."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.batcher, self.bodies = Batcher(predictor, limits), Bodies(limits)
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

    async def predict(self, content: bytes, draw_at: int | None) -> tuple[DecodedImage, Prediction]:
        """Decode an image and run the classifier, within the time."""
        with self.batcher.waiting.place():
            try:
                async with asyncio.timeout(self.limits.timeout):
                    side = self.predictor.image_size
                    image = await self.in_thread(decode_upload, content, side, self.limits, draw_at)
                    return image, await self.batcher.predict(image.pixels)
            except TimeoutError:
                message = f"The prediction took longer than {self.limits.timeout:g} s; try again later."
                raise RequestError(503, message, {"Retry-After": "10"}) from None

    def tap(self, name: str | None) -> str:
        """Return the name of a map: ``combined``, or the only one, where none is named."""
        taps = self.predictor.maps
        if name is not None and name not in taps:
            raise RequestError(422, f"Unknown tap {name!r}; there are {', '.join(taps)}.{nearest(name, taps)}")
        return name or ("combined" if "combined" in taps else taps[0])

    async def in_thread(self, function: Any, *arguments: Any) -> Any:
        """Run a function in one of the decoding threads."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)


def server_app(predictor: Predictor, limits: Limits, address: Address | None) -> FastAPI:
    """Return the application; see :func:`heedmap.apps.server.build_app`."""
    service = _Service(predictor, limits)
    description = "Send an image; get its class, and where the classifier looked."
    app = new_app("heedmap.apps.server", f"heedmap: {predictor.name}", description, service.running, address)
    _add_predict(app, service)
    _add_state(app, service)
    # The schema lists the maps that this classifier has; they are not known when the shapes are written.
    for parameter in app.openapi()["paths"]["/predict"]["post"]["parameters"]:
        if parameter["name"] == "tap":
            parameter["schema"]["anyOf"][0]["enum"] = list(predictor.maps)
    return app


def _add_predict(app: FastAPI, service: _Service) -> None:
    @app.post(
        "/predict",
        summary="Class, probabilities and map of an image",
        responses={200: _PREDICTION, **error_responses(_ERRORS)},
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(request: Request, parameters: Annotated[PredictParameters, Query()]) -> Response:
        form = choose_format(parameters.format, request.headers.get("accept"))
        tap = service.tap(parameters.tap)
        check_content_type(request)
        service.batcher.waiting.refuse_when_full()  # before a body is read in vain
        async with service.bodies.read(request) as body:
            content = await image_file(request, body)
            image, prediction = await service.predict(content, parameters.size if form == "overlay" else None)
        predictor = service.predictor
        if form == "json":
            return JSONResponse(
                prediction_response(prediction, predictor.classes, image.size, predictor.image_size, parameters)
            )
        drawn = prediction.maps[tap]
        file = await service.in_thread(map_file, drawn, image.view, form, parameters.opacity)
        return Response(file, media_type=MEDIA_TYPES[form], headers=map_headers(prediction, drawn, predictor.classes))


def _add_state(app: FastAPI, service: _Service) -> None:
    predictor, batcher = service.predictor, service.batcher

    @app.get("/health", summary="Whether the service runs, and what it has done")
    async def health() -> HealthResponse:
        counts = {"waiting": batcher.waiting.count, "images": batcher.images, "batches": batcher.batches}
        return HealthResponse(status="ok", model=predictor.name, **counts)

    @app.get("/classes", summary="The names of classes and maps")
    async def classes() -> ModelResponse:
        names = {"classes": list(predictor.classes), "taps": list(predictor.maps)}
        return ModelResponse(**names, image_size=predictor.image_size)

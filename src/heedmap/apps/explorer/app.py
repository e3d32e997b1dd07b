"""The explorer's application, of runs and images: one page, and the few things that it requests.

Maps travel as the float32 numbers that the network used.
"""

import base64
import io
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from heedmap.apps.address import Address
from heedmap.apps.base import new_app
from heedmap.apps.explorer.gallery import THUMBNAIL, Gallery, GalleryImage, ImageSource
from heedmap.apps.explorer.network import LEARNED, Network, QueryPoint, QueryResult
from heedmap.apps.explorer.ranking import Ranking
from heedmap.apps.limits import Limits, RequestError, Waiting
from heedmap.apps.uploads import BINARY, Bodies
from heedmap.attribution import METHODS
from heedmap.data.decoding import MAX_PIXELS
from heedmap.errors import HeedmapError
from heedmap.files import printable
from heedmap.inference.torch_predictor import why_no_query
from heedmap.runs import Run
from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import COLOURS
from heedmap.workflows.evaluate.data import open_run_data

LIMITS = Limits(max_pixels=MAX_PIXELS, timeout=60.0, connections=256)
_JPEG: dict[int | str, dict[str, Any]] = {200: {"description": "JPEG.", "content": {"image/jpeg": BINARY}}}
_UPLOAD = {"requestBody": {"required": True, "content": {"application/octet-stream": BINARY}}}
Reference = Annotated[str, Field(max_length=64)]


class MapRequest(BaseModel):
    """The image to predict, and which map of which run."""

    model_config = ConfigDict(extra="forbid")
    image: Reference
    run: int = Field(0, ge=0)
    method: str = Field(LEARNED, max_length=64)
    target: int | None = Field(None, ge=0)
    query: QueryPoint | Reference | None = None


class _Explorer:
    """What the routes share."""

    def __init__(self, networks: list[Network], gallery: Gallery, limits: Limits) -> None:
        self.networks, self.gallery, self.limits = networks, gallery, limits
        self.bodies, self.waiting = Bodies(limits), Waiting(limits.waiting)
        self._rankings: dict[tuple[int, int], Ranking] = {}
        self._lock = threading.Lock()

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Stop with the application."""
        yield
        for ranking in self._rankings.values():
            ranking.stop()
        for network in self.networks:
            network.close()

    def image(self, reference: str) -> GalleryImage:
        try:
            return self.gallery.image(reference)
        except KeyError:
            is_upload = reference.startswith("u-")
            reason = "it is not cached any more; drop it again" if is_upload else "there is no such image"
            raise RequestError(404, f"Image {reference!r}: {reason}.") from None

    def network(self, run: int) -> Network:
        if not 0 <= run < len(self.networks):
            raise RequestError(404, f"There is no run {run}; the explorer has {len(self.networks)}.")
        return self.networks[run]

    async def predict(self, request: MapRequest) -> tuple[Network, GalleryImage, QueryResult]:
        with self.waiting.place():
            network, image, result = await run_in_threadpool(self._predict, request)
        self.waiting.took(result.seconds)
        return network, image, result

    def _predict(self, request: MapRequest) -> tuple[Network, GalleryImage, QueryResult]:
        network, image, query = self.network(request.run), self.image(request.image), request.query
        if request.target is not None and request.target >= (count := len(network.classifier.classes)):
            raise RequestError(422, f"There is no class {request.target}; {network.name} has {count}.")
        of = self.image(query) if isinstance(query, str) else query
        return network, image, network.predict(image, request.method, request.target, of)

    def ranking(self, run: int, source: int) -> Ranking:
        network, sources = self.network(run), self.gallery.sources
        if not 0 <= source < len(sources):
            raise RequestError(404, f"There is no source {source}; the explorer has {len(sources)}.")
        with self._lock:
            if (run, source) not in self._rankings:
                self._rankings[run, source] = Ranking(network, sources[source])
            return self._rankings[run, source]


def build_explorer(
    runs: Sequence[Run],
    images: Iterable[str | Path] = (),
    *,
    device: str | torch.device = "cpu",
    address: Address | None = None,
    limits: Limits = LIMITS,
) -> tuple[FastAPI, tuple[str, ...]]:
    """Return the application, and sentences about what it will not show, such as a test set whose data is missing.

    The arguments are those of :func:`heedmap.apps.explorer.explore`, and what requests may take.

    Raises:
        DataError, RunError: a folder that is not there or holds no images, or a run that cannot be used.
    """
    networks = [Network(run, device) for run in runs]
    classes = dict.fromkeys(name for network in networks for name in network.classifier.classes)
    sources = [ImageSource.of_folder(path, classes) for path in images]
    test, missing = _test_source(runs[0])
    sources += test
    gallery = Gallery(sources, (network.image_size for network in networks), limits.max_pixels)
    explorer = _Explorer(networks, gallery, limits)
    description = "Look into runs: images in; predictions, maps and rankings out."
    app = new_app("heedmap.apps.explorer", "heedmap explorer", description, explorer.running, address or Address())
    _add_images(app, explorer)
    _add_predictions(app, explorer)
    return app, missing + tuple(note for source in sources for note in source.notes)


def _test_source(run: Run) -> tuple[list[ImageSource], tuple[str, ...]]:
    """Return the run's test set, or the reason why it cannot be shown. Nothing is downloaded."""
    title = f"{Path(run.options.data).name}, test set"
    try:
        test = open_run_data(run).test
    except HeedmapError as error:
        return [], (f"The run's test set is not shown: {error}",)
    if test is None:
        return [], (f"{title}: there is none.",)
    source = ImageSource.of_dataset(title, test)
    return ([source], ()) if source.names else ([], source.notes)


def _add_images(app: FastAPI, explorer: _Explorer) -> None:
    def jpeg(image: Image.Image, quality: int) -> Response:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality, subsampling=0)
        # A reference stands for one image as long as the explorer runs; the page need not load it twice.
        return Response(content.getvalue(), media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    @app.get("/api/images/{reference}/view", summary="What the networks see", response_class=Response, responses=_JPEG)
    def view(reference: str) -> Response:
        return jpeg(explorer.image(reference).view, 94)

    @app.get("/api/images/{reference}/thumbnail", summary="The same, small", response_class=Response, responses=_JPEG)
    def thumbnail(reference: str) -> Response:
        large = explorer.image(reference).view
        return jpeg(large.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2), 85)

    @app.get("/api/images/{reference}", summary="Name, label and the object's box of an image")
    def facts(reference: str) -> dict[str, Any]:
        image = explorer.image(reference)
        names = {"name": printable(image.name), "label": printable(image.label)}
        return {"reference": reference, **names, "box": image.box}

    @app.post("/api/uploads", summary="Keep an image to show: its bytes are the body", openapi_extra=_UPLOAD)
    async def upload(request: Request, name: Annotated[str, Query(max_length=1000)] = "image") -> dict[str, Any]:
        async with explorer.bodies.read(request) as body:
            reference = await run_in_threadpool(explorer.gallery.upload, body, name)
        return facts(reference)


def _add_predictions(app: FastAPI, explorer: _Explorer) -> None:
    @app.get("/api/about", summary="Runs, sources of images, map methods, colours and limits")
    def about() -> dict[str, Any]:
        return {
            "runs": [run_facts(network) for network in explorer.networks],
            "sources": [source_facts(source) for source in explorer.gallery.sources],
            "methods": method_facts(),
            "colours": COLOURS.tobytes().hex(),
            "limits": {"bytes": explorer.limits.max_bytes, "pixels": explorer.limits.max_pixels},
        }

    @app.post("/api/predict", summary="Probabilities and maps of an image")
    async def predict(request: MapRequest) -> dict[str, Any]:
        network, _, result = await explorer.predict(request)
        return prediction_facts(network, result)

    @app.post("/api/npz", summary="The same as arrays in an .npz file", response_class=Response)
    async def arrays(request: MapRequest) -> Response:
        content = npz(*await explorer.predict(request))
        return Response(content, media_type="application/octet-stream")

    @app.get("/api/rankings/{run}/{source}", summary="The ranking of a source's images by a run, as far as it is made")
    def ranking(run: int, source: int) -> dict[str, Any]:
        return explorer.ranking(run, source).state()


# ---- what the routes return


def run_facts(network: Network) -> dict[str, Any]:
    """Return a run, before its first prediction."""
    classifier = network.classifier
    return {
        "name": network.name,
        "classes": classifier.classes,
        "attention": f"{classifier.attention_name}, {classifier.attention_weights}",
        "model": network.run.architecture.model,
        "image_size": network.image_size,
        "uses_query": classifier.uses_query,
        "query_note": "" if classifier.uses_query else why_no_query(classifier),
    }


def source_facts(source: ImageSource) -> dict[str, Any]:
    """Return a source of images."""
    return {
        "title": printable(source.title),
        "names": list(map(printable, source.names)),
        "labels": [printable(label) for label in source.labels],
        "notes": list(map(printable, source.notes)),
    }


def method_facts() -> list[dict[str, str]]:
    """Return the methods; learned attention comes first."""
    return [
        {"key": key, "sentence": METHODS[key].sentence, "cost": METHODS[key].cost, "warning": METHODS[key].warning}
        for key in sorted(METHODS, key=lambda key: key != LEARNED)
    ]


def prediction_facts(network: Network, result: QueryResult) -> dict[str, Any]:
    """Return a prediction; probabilities in the order of the run's classes."""
    prediction = result.prediction
    maps = [_map_facts(drawn, "map") for drawn in prediction.maps.values()]
    maps += [_map_facts(drawn, "features") for drawn in prediction.features.values()]
    return {
        "run": network.name,
        "probabilities": [float(share) for share in prediction.probabilities],
        "predicted": prediction.predicted,
        "maps": maps,
        "note": result.note,
        "query_box": result.box,
        "follows_query": result.follows,
        "seconds": result.seconds,
    }


def _map_facts(drawn: AttentionMap, kind: str) -> dict[str, Any]:
    """Return a map, or features, drawn alone; ``values`` are float32, little-endian, row by row, in base64."""
    values = np.asarray(drawn.values)
    height, width = values.shape
    return {
        "name": drawn.tap,
        "kind": kind,
        "method": drawn.method,
        "target": drawn.target,
        "height": height,
        "width": width,
        "low": drawn.low,
        "high": drawn.high if drawn.high > drawn.low else drawn.low + 1.0,  # a map of zeros is drawn cold
        "values": base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii"),
    }


def npz(network: Network, image: GalleryImage, result: QueryResult) -> bytes:
    """Return the raw maps and probabilities as an ``.npz`` file, named as ``heedmap visualize`` names them."""
    facts = {"predicted": result.prediction.predicted, "classes": network.classifier.classes, "image": image.name}
    facts |= {"run": network.name, "query": result.note}
    arrays = result.prediction.packed() | {name: np.array(fact) for name, fact in facts.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # numpy takes no array named allow_pickle
    return content.getvalue()

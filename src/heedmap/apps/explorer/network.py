"""Run a network on an image: its prediction, its maps, and what a query does to them.

Each network has one thread, and every call goes through it: requests wait in line, images are predicted one at a time,
and no two requests meet inside the network.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from heedmap.apps.explorer.gallery import VIEW, GalleryImage
from heedmap.attribution import METHODS, explain
from heedmap.data import to_tensor
from heedmap.data.decoding import plain
from heedmap.inference.predictor import Prediction
from heedmap.inference.torch_predictor import prediction_of, why_no_query
from heedmap.models.classifier import AttentionClassifier
from heedmap.runs import Run
from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import scale_of

LEARNED = "attention"
CROP = 0.3  # side of the crop that stands for a place, as a share of the image, where no local feature can
ShareBox = tuple[float, float, float, float]  # (left, top, right, bottom) as shares of the square that the network sees
T = TypeVar("T")


class QueryPoint(BaseModel):
    """A place in the image itself as the query, as shares of its width and height."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class QueryResult:
    """A prediction, and which query its maps were made with.

    Attributes:
        note: for the page: what the map is, what was taken as the query, or why none can change the map.
        box: the part of the image that the query came from; None where it is no part of it.
        follows: the maps were made with the requested query.
        seconds: of computing.
    """

    prediction: Prediction
    note: str
    box: ShareBox | None
    follows: bool
    seconds: float


class Network:
    """A run's classifier, in eval mode, behind its own thread."""

    def __init__(self, run: Run, device: str | torch.device = "cpu") -> None:
        self.run, self.name = run, Path(run.path).resolve().name
        self.device = torch.device(device)
        self.classifier = run.classifier().to(self.device).eval()
        self.image_size = self.classifier.image_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Put work in line for the network's thread."""
        return self._thread.submit(work)

    def close(self) -> None:
        """Finish what is being computed and drop what waits."""
        self._thread.shutdown(cancel_futures=True)

    def predict(
        self,
        image: GalleryImage,
        method: str = LEARNED,
        target: int | None = None,
        query: QueryPoint | GalleryImage | None = None,
    ) -> QueryResult:
        """Predict in the network's thread.

        ``method`` is a key of :data:`heedmap.attribution.METHODS`; ``target`` the class to explain, None the predicted
        one (learned attention belongs to none); ``query`` is a place, another image, or None for the image's own.

        Raises:
            OptionError, ModelError: there is no such method, or it cannot explain this network.
        """
        return self.submit(lambda: self._predict(image, method, target, query)).result()

    def images(self, image: GalleryImage) -> Tensor:
        """Return the network's input, (1, 3, S, S) in [0, 1]."""
        return plain(image.images[self.image_size][None]).to(self.device)

    @torch.no_grad()
    def _predict(
        self, image: GalleryImage, method: str, target: int | None, query: QueryPoint | GalleryImage | None
    ) -> QueryResult:
        began, images = time.perf_counter(), self.images(image)
        note, follows = "", query is not None and method == LEARNED and self.classifier.uses_query
        vector: Tensor | None = None
        box: ShareBox | None = None
        if isinstance(query, GalleryImage) and follows:
            note = f"The query is the global feature of {query.name}."
            vector = self.classifier.query(self.images(query))
        elif isinstance(query, QueryPoint) and follows:
            vector, note, box = local_query(self, images, query) or crop_query(self, image, query)
        elif query is not None and method == LEARNED:
            note = why_no_query(self.classifier)
        if method == LEARNED:
            prediction = prediction_of(self.classifier, self.classifier(images, query=vector), 0)
        else:
            prediction, note = _compute_map(self.classifier, images, method, target)
            note += "" if query is None else " It is of the image's own query: this method takes no other."
        return QueryResult(prediction, note, box, follows, time.perf_counter() - began)


def local_query(network: Network, images: Tensor, point: QueryPoint) -> tuple[Tensor, str, ShareBox] | None:
    """Return the local feature at a place as a query; None where it is not of the kind that queries are.

    Most backbones' global feature is the mean of the last stage's local features. There, and only there, one of those
    features is itself something that the classifier's query projection was trained on; it is checked on this image.
    """
    backbone = network.classifier.backbone
    last = backbone.stages[-1]
    if last.channels != backbone.query_channels:
        return None
    normalised = (images - network.classifier.mean) / network.classifier.std
    trunk = backbone(normalised, (last.name,), True)
    features, whole = trunk.features[last.name], trunk.query
    if whole is None or not torch.allclose(features.mean((2, 3)), whole, rtol=1e-3, atol=1e-4):
        return None
    height, width = features.shape[2:]
    row, column = min(int(point.y * height), height - 1), min(int(point.x * width), width - 1)
    place = f"row {row + 1}, column {column + 1} of {height} x {width}"
    note = f"The query is the local feature of {last.name} at {place}; the image's own query is the mean of these."
    box = (column / width, row / height, (column + 1) / width, (row + 1) / height)
    return features[:, :, row, column], note, box


def crop_query(network: Network, image: GalleryImage, point: QueryPoint) -> tuple[Tensor, str, ShareBox]:
    """Return the global feature of a crop around a place, enlarged to the network's size."""
    left, top = (min(max(centre - CROP / 2, 0.0), 1 - CROP) for centre in (point.x, point.y))
    pixels = (left * VIEW, top * VIEW, (left + CROP) * VIEW, (top + CROP) * VIEW)
    side = (network.image_size, network.image_size)
    crop = image.view.resize(side, Image.Resampling.BILINEAR, box=pixels)
    vector = network.classifier.query(plain(to_tensor(crop)[None]).to(network.device))
    note = "The query is the global feature of the crop in the frame: no local feature of this network can be a query."
    return vector, note, (left, top, left + CROP, top + CROP)


def _compute_map(
    classifier: AttentionClassifier, images: Tensor, method: str, target: int | None
) -> tuple[Prediction, str]:
    """Compute a map of one class by a method of the registry, with a sentence about it."""
    result = explain(classifier, images, method, target)
    explained, values = int(result.targets[0, 0]), result.values[0, 0].cpu()
    low, high = scale_of(values)
    drawn = AttentionMap(values, method, method, low, high, explained)
    layer = f" (layer {result.layer})" if result.layer else ""
    signed = " Values below zero speak against the class." if result.signed else ""
    warning = f" {METHODS[method].warning}" if METHODS[method].warning else ""
    note = f"{method} for {classifier.classes[explained]}{layer}: {METHODS[method].sentence}.{signed}{warning}"
    return Prediction(result.logits[0].softmax(0).cpu().numpy(), {method: drawn}, {}), note

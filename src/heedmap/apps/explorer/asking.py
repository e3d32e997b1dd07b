"""Ask a run's network about an image: its answer, its maps, and what a query does to them.

Each network has one thread, and every call goes through it: requests wait in line, images are asked about one at a
time, and no two people meet inside the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from heedmap.apps.explorer.gallery import VIEW, Seen
from heedmap.apps.explorer.methods import LEARNED, check_method, computed
from heedmap.data import to_tensor
from heedmap.data.transforms import plain
from heedmap.inference.torch_predictor import prediction_of, why_no_query
from heedmap.runs import Run
from heedmap.workflows.visualize import Prediction

CROP = 0.3
"""Side of the crop that stands for a place, as a share of the image, where no local feature can."""

T = TypeVar("T")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """A place in the image itself as the query, as shares of its width and height, 0 to 1."""

    x: float
    y: float


@dataclass(frozen=True)
class MapRequest:
    """What is asked about an image.

    Attributes:
        method: a key of :data:`heedmap.attribution.METHODS`.
        target: the class asked about; None takes the predicted one. Learned attention asks about no class.
        query: a place, another image, or None for the image's own.
    """

    method: str = LEARNED
    target: int | None = None
    query: Point | Seen | None = None


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        answer: probabilities and maps.
        said: for the page: what the map is, what was taken as the query, or why none can change the map.
        box: the part of the image that the query came from, as shares of the image; None where it is no part of it.
        follows: the maps were made with the query that was asked for.
        seconds: of computing.
    """

    answer: Prediction
    said: str
    box: Box | None
    follows: bool
    seconds: float


class Network:
    """A run's classifier behind its own thread.

    Attributes:
        name: of the run.
        classifier: in eval mode.
    """

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

    def ask(self, seen: Seen, request: MapRequest) -> Reply:
        """Answer in the network's thread.

        Raises:
            OptionError: there is no such method.
            ModelError: the method cannot explain this network.
        """
        check_method(request.method)
        return self.submit(lambda: self._reply(seen, request)).result()

    def images(self, seen: Seen) -> Tensor:
        """The network's input, (1, 3, S, S) in [0, 1]."""
        return plain(seen.images[self.image_size][None]).to(self.device)

    @torch.no_grad()
    def _reply(self, seen: Seen, request: MapRequest) -> Reply:
        began = time.perf_counter()
        images = self.images(seen)
        if request.method != LEARNED:
            answer, said = computed(self.classifier, images, request.method, request.target)
            box, follows = None, False
            if request.query is not None:
                said += " It is of the image's own query: this method takes no other."
        elif request.query is None:
            answer, said, box, follows = self._answer(images, None), "", None, False
        elif not self.classifier.uses_query:
            answer, said, box, follows = self._answer(images, None), why_no_query(self.classifier), None, False
        else:
            vector, said, box = self._query(images, seen, request.query)
            answer, follows = self._answer(images, vector), True
        return Reply(answer, said, box, follows, time.perf_counter() - began)

    def _answer(self, images: Tensor, query: Tensor | None) -> Prediction:
        return prediction_of(self.classifier, self.classifier(images, query=query), 0)

    def _query(self, images: Tensor, seen: Seen, asked: Point | Seen) -> tuple[Tensor, str, Box | None]:
        if isinstance(asked, Seen):
            said = f"The query is the global feature of {asked.name}."
            return self.classifier.query(self.images(asked)), said, None
        return local_query(self, images, asked) or crop_query(self, seen, asked)


def local_query(network: Network, images: Tensor, place: Point) -> tuple[Tensor, str, Box] | None:
    """The local feature at a place, as a query; None where it does not live where queries do.

    Most backbones' global feature is the mean of the last stage's local features. There, and only there, one of those
    features is itself a thing that the classifier's query projection was trained on; it is checked on this image.
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
    row, column = min(int(place.y * height), height - 1), min(int(place.x * width), width - 1)
    said = (
        f"The query is the local feature of {last.name} at row {row + 1}, column {column + 1} of {height} x {width}; "
        "the image's own query is the mean of these features."
    )
    box = (column / width, row / height, (column + 1) / width, (row + 1) / height)
    return features[:, :, row, column], said, box


def crop_query(network: Network, seen: Seen, place: Point) -> tuple[Tensor, str, Box]:
    """The global feature of a crop around a place, enlarged to the network's size."""
    left, top = (min(max(centre - CROP / 2, 0.0), 1 - CROP) for centre in (place.x, place.y))
    pixels = (left * VIEW, top * VIEW, (left + CROP) * VIEW, (top + CROP) * VIEW)
    side = (network.image_size, network.image_size)
    crop = seen.view.resize(side, Image.Resampling.BILINEAR, box=pixels)
    vector = network.classifier.query(plain(to_tensor(crop)[None]).to(network.device))
    said = (
        "The query is the global feature of the crop in the frame: in this network a local feature does not fit where "
        "the query goes."
    )
    return vector, said, (left, top, left + CROP, top + CROP)

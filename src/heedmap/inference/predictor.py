"""Who is asked about the images: a network in torch, or an exported file without it.

Everything that is drawn and written goes through this one wall, and nothing above it knows torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heedmap.inference.prediction import Prediction


@dataclass(frozen=True)
class OtherQuery:
    """The other image of query switching.

    Attributes:
        name: of its file.
        view: its square.
        remark: why it cannot change the map; empty where it can, and then each image has a second answer.
    """

    name: str
    view: Image.Image
    remark: str


class Predictor(Protocol):
    """What answers.

    Attributes:
        classes: the K class names.
        image_size: side in pixels of the square views that it takes.
        method: what the attention is, for the page.
        maps: the names of all maps of an answer, in their order.
        query: another image to attend with.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def maps(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def query(self) -> OtherQuery | None: ...  # noqa: D102

    def __call__(self, images: NDArray[np.uint8]) -> tuple[list[Prediction], list[Prediction] | None]:
        """Answer square views, uint8 RGB (B, 3, S, S): with their own query, and with the other where that matters."""

    def lines(self, answer: Prediction) -> Iterable[str]:
        """Say of each map that was computed afterwards what it is."""

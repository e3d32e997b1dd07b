"""What answers: a run's network, or an exported file, behind one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from heedmap.inference.onnx import OnnxClassifier
from heedmap.inference.onnx_predictor import OnnxPredictor
from heedmap.workflows.visualize import Prediction

if TYPE_CHECKING:
    import torch


class Served(Protocol):
    """A classifier as the service sees it.

    Attributes:
        name: for people, such as the run's folder.
        classes: the K class names.
        image_size: side in pixels of the square views it takes.
        taps: the names of its maps.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def taps(self) -> tuple[str, ...]: ...  # noqa: D102

    def __call__(self, views: NDArray[np.uint8]) -> list[Prediction]:
        """Answer square views, uint8 RGB (B, 3, S, S); called by one thread at a time."""


class ServedFile:
    """An exported file; its gradient maps, where it has any, are about the predicted class. See :class:`Predictor`.

    Args:
        classifier: the file.
    """

    def __init__(self, classifier: OnnxClassifier) -> None:
        self._predictor = OnnxPredictor(classifier)
        self.name = classifier.path.name
        self.classes, self.image_size, self.taps = classifier.classes, classifier.image_size, self._predictor.maps

    def __call__(self, views: NDArray[np.uint8]) -> list[Prediction]:
        """Answer views as ``heedmap visualize`` does of a file."""
        return self._predictor(views)[0]


def open_predictor(source: str | Path, device: str | torch.device = "cpu") -> Served:
    """Open a run folder, or a file that ``heedmap export --to onnx`` wrote.

    Args:
        source: the folder or the file.
        device: where a run's network computes; a file computes on the CPU.

    Raises:
        RunError: no run, or one that cannot be used.
        ModelError: a file that cannot be run, or onnxruntime is missing.
    """
    path = Path(source)
    if path.suffix.lower() == ".onnx" or path.is_file():
        return ServedFile(OnnxClassifier(path))
    # Here, because a file is served where there is no torch.
    from heedmap.apps.server.network import ServedRun
    from heedmap.runs import Run

    return ServedRun(Run.open(path).classifier(), path.resolve().name, device)

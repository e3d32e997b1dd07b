"""Comparison of an exported file with its model, on the same images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heedmap.data.decoding import square
from heedmap.inference.onnx import MAP

BATCHES = (1, 3, 16)
LIMIT = 1e-5
JUMPING = ("map_grad_cam", "map_saliency")
"""Maps of gradients: those of a network with ReLUs are not continuous, so they cannot agree everywhere."""

_JUMPS = 0.01
Named: TypeAlias = dict[str, NDArray[np.float32]]
Prediction: TypeAlias = Callable[[NDArray[np.uint8]], Named]


@dataclass(frozen=True)
class Parity:
    """How far the file's outputs lie from the model's; by output, where that is meant.

    ``resized`` are differences where the file is given images in their full size and resizes them itself, against the
    model after Pillow. They are not limited: rounding to whole levels may differ by one.
    """

    images: int  # that were compared
    batches: tuple[int, ...]  # sizes of batch tried
    limit: float  # the largest difference allowed, for values up to one; for larger ones it grows with the largest
    differences: dict[str, float]  # the largest, absolute, over all images and batches
    beyond: dict[str, float]  # share of the values that differ by more than is allowed
    resized: dict[str, float]
    agreement: float  # share of the images for which file and model predict the same class

    @property
    def failures(self) -> tuple[str, ...]:
        """The outputs of which any value differs by more than is allowed, or is NaN.

        Of :data:`JUMPING` maps one value in a hundred may: where a unit's input is zero to rounding, a ReLU or a
        maximum of the model goes one way and that of the file the other, and each is the gradient of what it computed.
        """
        return tuple(name for name, share in self.beyond.items() if share > _JUMPS * (name in JUMPING))


def compare_outputs(
    file: Prediction, model: Prediction, images: Sequence[Image.Image], size: int, limit: float
) -> Parity:
    """Compare the outputs of file and model for the same RGB images, in batches of each size, squared by either.

    Both take uint8 (B, H, W, 3) and return arrays with B rows; the model takes squares of ``size`` only.
    """
    squares = np.stack([np.asarray(square(image, size)) for image in images])
    expected = model(squares)
    allowed = {name: _allowed(name, values, limit) for name, values in expected.items()}
    worst = dict.fromkeys(expected, 0.0)
    beyond: dict[str, list[float]] = {name: [] for name in expected}
    for batch in BATCHES:
        for start in range(0, len(squares), batch):
            # The last batch is filled up from the front, so that each size is tried however few images there are.
            rows = np.arange(start, start + batch) % len(squares)
            outputs, reference = file(squares[rows]), {name: values[rows] for name, values in expected.items()}
            _worsen(worst, outputs, reference)
            for name, values in reference.items():  # NaN is within no limit
                beyond[name].append(1.0 - float((np.abs(outputs[name] - values) <= allowed[name]).mean()))
    alone = [file(np.asarray(image)[None]) for image in images]
    resized = dict.fromkeys(expected, 0.0)
    for row, outputs in enumerate(alone):
        _worsen(resized, outputs, {name: values[row : row + 1] for name, values in expected.items()})
    same = [outputs["logits"].argmax() == row.argmax() for outputs, row in zip(alone, expected["logits"], strict=True)]
    shares = {name: float(np.mean(values)) for name, values in beyond.items()}
    return Parity(len(images), BATCHES, limit, worst, shares, resized, float(np.mean(same)))


def _allowed(name: str, values: NDArray[np.float32], limit: float) -> float:
    """Return the largest difference allowed.

    A softmax map of many positions has small values, all below any absolute limit, so a map is held to a share of
    its largest value too: a hundred times the limit.
    """
    largest = max(float(np.abs(values).max()), 1e-6)
    return min(max(1.0, largest), 100 * largest if name.startswith(MAP) else np.inf) * limit


def _worsen(worst: dict[str, float], outputs: Named, expected: Named) -> None:
    for name, values in expected.items():
        # NaN passes any comparison but this one: np.maximum keeps it.
        worst[name] = float(np.maximum(worst[name], np.abs(outputs[name] - values).max()))

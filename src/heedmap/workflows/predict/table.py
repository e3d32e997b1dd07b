"""What is told of an image in the table: class, probability, and where the attention lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heedmap.data.decoding import crop_box
from heedmap.errors import OptionError
from heedmap.files import printable
from heedmap.inference.boxes import Box, boxes_of
from heedmap.metrics.localization.pointing_game import hottest_points
from heedmap.models.classifier import AttentionClassifier, combined_map
from heedmap.types import Output
from heedmap.visualization.heatmap import FLAT
from heedmap.workflows.predict.reading import DecodedImage

MapKind = Literal["none", "float16", "float32"]

Row = dict[str, Any]


@dataclass(frozen=True)
class TableOptions:
    """What the table is to tell.

    Attributes:
        threshold: share of a map's largest value from which a place counts as attended to.
        probabilities: those of all classes too.
        maps: the maps themselves too, in this type.
    """

    threshold: float = 0.5
    probabilities: bool = False
    maps: MapKind = "none"


def map_shapes(classifier: AttentionClassifier) -> dict[str, tuple[int, int]]:
    """Return name -> (h, w) of the maps of one image: each tap's, then ``combined`` where there are several."""
    size = classifier.image_size
    device = next(classifier.parameters()).device
    with torch.inference_mode():
        found = classifier(torch.zeros(1, 3, size, size, device=device)).attention
    shapes = {tap: (int(values.shape[2]), int(values.shape[3])) for tap, values in found.items()}
    if len(shapes) > 1:
        shapes["combined"] = max(shapes.values(), key=lambda shape: shape[0] * shape[1])
    return shapes


def schemas(classifier: AttentionClassifier, request: TableOptions) -> tuple[Any, Any]:
    """Return the two tables' Arrow schemas: predictions, and what could not be read.

    Raises:
        OptionError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise OptionError("heedmap predict needs pyarrow: pip install 'heedmap[predict]'.") from None
    where = [("path", pa.string()), ("key", pa.string()), ("member", pa.string())]
    columns = [*where, ("width", pa.int32()), ("height", pa.int32())]
    columns += [("predicted", pa.string()), ("probability", pa.float32())]
    if request.probabilities:
        columns.append(("probabilities", pa.list_(pa.float32(), len(classifier.classes))))
    shapes = map_shapes(classifier)
    for name in shapes:
        columns += [(f"{name}_{what}", pa.float32()) for what in ("peak", "entropy", "x", "y", "above")]
    ends = [(side, pa.float32()) for side in ("left", "top", "right", "bottom", "share")]
    columns.append(("boxes", pa.list_(pa.struct(ends))))
    if request.maps != "none":
        kind = pa.float16() if request.maps == "float16" else pa.float32()
        columns += [(f"{name}_map", pa.fixed_shape_tensor(kind, shape)) for name, shape in shapes.items()]
    told = {b"classes": "\n".join(classifier.classes).encode(), b"threshold": str(request.threshold).encode()}
    return pa.schema(columns, metadata=told), pa.schema([*where, ("reason", pa.string())])


def rows_of(
    classifier: AttentionClassifier, output: Output, images: Sequence[DecodedImage], request: TableOptions
) -> list[Row]:
    """Return a row for each image of a batch; places are pixels of the original, upright image."""
    probabilities = output.probabilities.float()
    best, predicted = (each.cpu().tolist() for each in probabilities.max(dim=1))
    rows: list[Row] = []
    for place, image in enumerate(images):
        item = image.item
        rows.append(
            {
                **{"path": printable(item.path), "key": printable(item.key), "member": printable(item.member)},
                **{"width": image.size[0], "height": image.size[1]},
                **{"predicted": classifier.classes[predicted[place]], "probability": best[place]},
            }
        )
    if request.probabilities:
        _set(rows, "probabilities", probabilities.cpu().numpy())
    attention = {name: values.float() for name, values in output.attention.items()}
    if len(attention) > 1:
        attention["combined"] = combined_map(attention, output.shares)
    squares = np.array([crop_box(*image.size) for image in images], dtype=np.float64)
    for name, values in attention.items():
        for what, column in map_columns(values, squares, request.threshold).items():
            _set(rows, f"{name}_{what}", column)
        if request.maps != "none":
            _set(rows, f"{name}_map", values[:, 0].cpu().numpy().astype(request.maps))
    last = attention[next(reversed(attention))]  # the combined map, or the only one
    told = boxes_of(last[:, 0].cpu().numpy(), request.threshold, classifier.image_size)
    for row, found, square in zip(rows, told, squares, strict=True):
        row["boxes"] = [_in_pixels(box, square) for box in found]
    return rows


def _set(rows: list[Row], name: str, column: NDArray[Any] | list[Any]) -> None:
    for row, value in zip(rows, column, strict=True):
        row[name] = value


def map_columns(values: Tensor, squares: NDArray[np.float64], threshold: float) -> dict[str, list[float | None]]:
    """Return what is told of a batch of maps.

    Args:
        values: (B, 1, h, w), not negative.
        squares: (B, 4) left, top, right, bottom in pixels: what of the image the map covers.
        threshold: share of the map's largest value.

    Returns:
        ``peak``: the largest value, as the network used it. ``entropy``: that of the map, scaled to sum one, over its
        largest possible value log(h * w): 0 is one point, 1 is even. ``x``, ``y``: the centre of the hottest cell, None
        where the map is even to rounding. ``above``: share of the cells that reach the threshold.
    """
    flat = values.flatten(1).double()
    peak = flat.amax(1)
    share = flat / flat.sum(1, keepdim=True).clamp_min(1e-300)
    entropy = torch.special.entr(share).sum(1) / max(float(np.log(flat.shape[1])), 1e-300)
    above = (flat >= threshold * peak[:, None]).double().mean(1)
    is_flat = (peak < FLAT * flat.mean(1)).tolist()
    points = hottest_points(values.cpu()).double().numpy()
    pixels = squares[:, :2] + points * (squares[:, 2:] - squares[:, :2])
    return {
        "peak": peak.tolist(),
        "entropy": entropy.clamp(0, 1).tolist(),
        "x": [None if even else float(x) for even, x in zip(is_flat, pixels[:, 0], strict=True)],
        "y": [None if even else float(y) for even, y in zip(is_flat, pixels[:, 1], strict=True)],
        "above": above.tolist(),
    }


def _in_pixels(box: Box, square: NDArray[np.float64]) -> Box:
    left, top, side = float(square[0]), float(square[1]), float(square[2] - square[0])
    moved = {"left": left + box["left"] * side, "right": left + box["right"] * side}
    return {**box, **moved, "top": top + box["top"] * side, "bottom": top + box["bottom"] * side}

"""The columns of the table: class, probability, and where the attention lies."""

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
from heedmap.inference.predictor import Predictions, Predictor
from heedmap.inference.reading import DecodedImage, Item
from heedmap.metrics.localization.pointing_game import hottest_points
from heedmap.visualization.heatmap import FLAT

MapKind = Literal["none", "float16", "float32"]

Row = dict[str, Any]


@dataclass(frozen=True)
class TableOptions:
    """What the table holds. OptionError for a threshold out of range."""

    threshold: float = 0.5  # share of a map's largest value from which a cell counts as attended to, in (0, 1]
    probabilities: bool = False  # those of all classes too
    maps: MapKind = "none"  # the maps too, in this type

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise OptionError(f"threshold {self.threshold} must lie above 0 and not above 1.")


def map_shapes(predictor: Predictor) -> dict[str, tuple[int, int]]:
    """Return name -> (h, w) of the maps of one image, found by predicting a black one."""
    black = np.zeros((1, 3, predictor.image_size, predictor.image_size), np.uint8)
    return {name: (values.shape[1], values.shape[2]) for name, values in predictor(black).maps.items()}


def schemas(predictor: Predictor, options: TableOptions) -> tuple[Any, Any]:
    """Return the Arrow schemas of predictions and of unreadable images; OptionError where pyarrow is missing."""
    try:
        import pyarrow as pa
    except ImportError:
        raise OptionError("heedmap predict needs pyarrow: pip install 'heedmap[predict]'.") from None
    where = [(name, pa.string()) for name in ("path", "key", "member")]
    columns = [*where, ("width", pa.int32()), ("height", pa.int32())]
    columns += [("predicted", pa.string()), ("probability", pa.float32())]
    if options.probabilities:
        columns.append(("probabilities", pa.list_(pa.float32(), len(predictor.classes))))
    shapes = map_shapes(predictor)
    for name in shapes:
        columns += [(f"{name}_{what}", pa.float32()) for what in ("peak", "entropy", "x", "y", "above")]
    box = pa.struct([(side, pa.float32()) for side in ("left", "top", "right", "bottom", "share")])
    columns.append(("boxes", pa.list_(box)))
    if options.maps != "none":
        kind = pa.float16() if options.maps == "float16" else pa.float32()
        columns += [(f"{name}_map", pa.fixed_shape_tensor(kind, shape)) for name, shape in shapes.items()]
    metadata = {b"classes": "\n".join(predictor.classes).encode(), b"threshold": str(options.threshold).encode()}
    return pa.schema(columns, metadata=metadata), pa.schema([*where, ("reason", pa.string())])


def place_of(item: Item) -> Row:
    """Return the columns ``path``, ``key`` and ``member`` of an image."""
    return {name: printable(getattr(item, name)) for name in ("path", "key", "member")}


def rows_of(
    predictions: Predictions, images: Sequence[DecodedImage], image_size: int, options: TableOptions
) -> list[Row]:
    """Return a row for each image of a batch; places are pixels of the original, upright image."""
    rows: list[Row] = []
    for image, probabilities in zip(images, predictions.probabilities, strict=True):
        item, best = image.item, int(probabilities.argmax())
        assert item is not None
        row = {**place_of(item), "width": image.size[0], "height": image.size[1]}
        rows.append({**row, "predicted": predictions.classes[best], "probability": float(probabilities[best])})
    if options.probabilities:
        _set(rows, "probabilities", predictions.probabilities)
    squares = np.array([crop_box(*image.size) for image in images], dtype=np.float64)
    for name, values in predictions.maps.items():
        for what, column in map_columns(torch.from_numpy(values)[:, None], squares, options.threshold).items():
            _set(rows, f"{name}_{what}", column)
        if options.maps != "none":
            _set(rows, f"{name}_map", values.astype(options.maps))
    # Boxes are those of the combined map, or of the only one.
    attention = next(reversed([name for name, source in predictions.sources.items() if not source.sentence]))
    boxes = boxes_of(predictions.maps[attention], options.threshold, image_size)
    for row, of_image, square in zip(rows, boxes, squares, strict=True):
        row["boxes"] = [_in_pixels(box, square) for box in of_image]
    return rows


def _set(rows: list[Row], name: str, column: NDArray[Any] | list[Any]) -> None:
    for row, value in zip(rows, column, strict=True):
        row[name] = value


def map_columns(values: Tensor, squares: NDArray[np.float64], threshold: float) -> dict[str, list[float | None]]:
    """Return the columns that describe a batch of maps.

    Args:
        values: (B, 1, h, w), not negative.
        squares: (B, 4) left, top, right, bottom in pixels: what of the image the map covers.
        threshold: share of the map's largest value.

    Returns:
        ``peak``: the largest value, as the network used it. ``entropy``: that of the map, scaled to sum one, over its
        largest possible value log(h * w): 0 is one point, 1 is uniform. ``x``, ``y``: the centre of the hottest cell,
        None where the map is uniform to rounding. ``above``: share of the cells that reach the threshold.
    """
    flat = values.flatten(1).double()
    peak = flat.amax(1)
    share = flat / flat.sum(1, keepdim=True).clamp_min(1e-300)
    entropy = torch.special.entr(share).sum(1) / max(float(np.log(flat.shape[1])), 1e-300)
    above = (flat >= threshold * peak[:, None]).double().mean(1)
    is_flat = (peak < FLAT * flat.mean(1)).tolist()
    points = hottest_points(values).double().numpy()
    pixels = squares[:, :2] + points * (squares[:, 2:] - squares[:, :2])
    return {
        "peak": peak.tolist(),
        "entropy": entropy.clamp(0, 1).tolist(),
        "x": [None if uniform else float(x) for uniform, x in zip(is_flat, pixels[:, 0], strict=True)],
        "y": [None if uniform else float(y) for uniform, y in zip(is_flat, pixels[:, 1], strict=True)],
        "above": above.tolist(),
    }


def _in_pixels(box: Box, square: NDArray[np.float64]) -> Box:
    left, top, side = float(square[0]), float(square[1]), float(square[2] - square[0])
    moved = {"left": left + box["left"] * side, "right": left + box["right"] * side}
    return {**box, **moved, "top": top + box["top"] * side, "bottom": top + box["bottom"] * side}

"""The answer as JSON, as an image of the map, or as its raw values; and the shapes of all that, for OpenAPI."""

from __future__ import annotations

import io
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from heedmap.apps.server.limits import Refusal
from heedmap.data.decoding import crop_box
from heedmap.inference.boxes import boxes_of
from heedmap.inference.predictor import Prediction
from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import grid_of, hottest, is_flat, overlay

Form: TypeAlias = Literal["json", "overlay", "grey", "npy"]
MEDIA = {"json": "application/json", "overlay": "image/png", "grey": "image/png", "npy": "application/x-npy"}
_BY_ACCEPT: dict[str, Form] = {
    "application/json": "json",
    "application/*": "json",
    "*/*": "json",
    "image/png": "overlay",
    "image/*": "overlay",
    "application/x-npy": "npy",
}


class PredictRequest(BaseModel):
    """What a request to /predict may ask for."""

    model_config = ConfigDict(extra="forbid")

    format: Form | None = Field(
        None,
        description="json; overlay: PNG of the map over the image's centred square; grey: 16-bit grey PNG of the map "
        "on its own grid, 0 at X-Heedmap-Low and 65535 at X-Heedmap-High; npy: its float32 values. Without it the "
        "Accept header decides: application/json, image/png (overlay), application/x-npy.",
    )
    tap: str | None = Field(
        None, description="The map that overlay, grey and npy give, see /classes. Default: combined, or the only one."
    )
    top: int = Field(5, ge=1, le=100_000, description="How many of the likeliest classes the JSON has.")
    threshold: float = Field(
        0.5, gt=0, le=1, description="A box goes round a place of at least this share of the map's largest value."
    )
    values: bool = Field(False, description="Put the raw values of each map into the JSON.")
    size: int = Field(512, ge=32, le=2048, description="Side of the overlay in pixels.")
    opacity: float = Field(0.8, ge=0, le=1, description="How much of the image the hottest colour of overlay hides.")


class Likely(BaseModel):
    """A class and how likely it is."""

    name: str
    index: int = Field(description="Its place in /classes.")
    probability: float


class Point(BaseModel):
    """A place in pixels of the original image, upright, and the map's value there."""

    x: float
    y: float
    value: float


class Box(BaseModel):
    """Edges in pixels of the original image, upright."""

    left: float
    top: float
    right: float
    bottom: float


class Region(Box):
    """A box round a place that is attended to."""

    share: float = Field(description="The part of the map's sum that lies in the place.")


class Size(BaseModel):
    """Of the original image in pixels, upright."""

    width: int
    height: int


class MapReply(BaseModel):
    """One attention map. It shows where, not why."""

    method: str
    grid: list[int] = Field(description="Rows and columns.", min_length=2, max_length=2)
    low: float = Field(description="The value that is drawn coldest.")
    high: float = Field(description="The value that is drawn hottest.")
    hottest: Point | None = Field(description="The centre of the hottest cell; null where the map is flat.")
    boxes: list[Region] = Field(
        description="Round the places that reach the threshold, at most eight, most attention first; none where the "
        "map is flat."
    )
    values: list[list[float]] | None = Field(description="Row by row, as the network used them; null unless asked for.")


class PredictionReply(BaseModel):
    """The answer to an image."""

    predicted: Likely
    top: list[Likely] = Field(description="Likeliest first.")
    size: Size
    seen: Box = Field(description="The centred square that the classifier sees; the maps cover it.")
    maps: dict[str, MapReply] = Field(
        description="By tap; combined, where there are several, is their (weighted) geometric mean."
    )


class ModelReply(BaseModel):
    """What the classifier can say."""

    classes: list[str]
    taps: list[str] = Field(description="The names of its maps.")
    image_size: int = Field(description="Side in pixels of the square that it sees.")


class HealthReply(BaseModel):
    """How the service is."""

    status: Literal["ok"]
    model: str
    waiting: int = Field(description="Requests that wait for the classifier or are in it.")
    answered: int = Field(description="Images since the start.")
    batches: int = Field(description="In which they were answered.")


class ErrorReply(BaseModel):
    """Every error: one sentence."""

    error: str


def chosen_form(asked: Form | None, accept: str | None) -> Form:
    """Return what to answer with: what was asked for by name, or the first in the Accept header that there is.

    Raises:
        Refusal: 406 where nothing that the client takes can be given.
    """
    if asked is not None:
        return asked
    ranges = []
    for place, part in enumerate((accept or "*/*").split(",")):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((_weight(each[2:]) for each in parameters if each.startswith("q=")), 1.0)
        if weight > 0:
            ranges.append((-weight, place, kind))
    for _, _, kind in sorted(ranges):
        if kind in _BY_ACCEPT:
            return _BY_ACCEPT[kind]
    raise Refusal(406, f"None of {accept!r} can be given; there are {', '.join(sorted(set(MEDIA.values())))}.")


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


def prediction_reply(
    answer: Prediction, classes: tuple[str, ...], size: tuple[int, int], image_size: int, asked: PredictRequest
) -> dict[str, Any]:
    """Return what :class:`Prediction` describes.

    Args:
        answer: of the classifier.
        classes: the K class names.
        size: (width, height) of the original, upright.
        image_size: side of the classifier's view, on whose pixels boxes are found.
        asked: ``top``, ``threshold`` and ``values`` hold here.
    """
    order = np.argsort(-answer.probabilities, kind="stable")[: asked.top].tolist()
    top = [{"name": classes[i], "index": i, "probability": float(answer.probabilities[i])} for i in order]
    seen = crop_box(*size)
    return {
        "predicted": top[0],
        "top": top,
        "size": {"width": size[0], "height": size[1]},
        "seen": dict(zip(("left", "top", "right", "bottom"), seen, strict=True)),
        "maps": {name: _map(drawn, seen, image_size, asked) for name, drawn in answer.maps.items()},
    }


def _map(
    drawn: AttentionMap, seen: tuple[int, int, int, int], image_size: int, asked: PredictRequest
) -> dict[str, Any]:
    values, side = drawn.values, seen[2] - seen[0]
    point = None
    if not is_flat(values):  # rounding alone would choose the place
        x, y = hottest(values)
        point = {"x": seen[0] + x * side, "y": seen[1] + y * side, "value": float(values.max())}
    return {
        "method": drawn.method,
        "grid": list(values.shape),
        "low": drawn.low,
        "high": drawn.high,
        "hottest": point,
        "boxes": [
            {
                "left": seen[0] + box["left"] * side,
                "top": seen[1] + box["top"] * side,
                "right": seen[0] + box["right"] * side,
                "bottom": seen[1] + box["bottom"] * side,
                "share": box["share"],
            }
            for box in boxes_of(np.asarray(values)[None], asked.threshold, image_size)[0]
        ],
        "values": values.tolist() if asked.values else None,
    }


def drawn_map(drawn: AttentionMap, view: Image.Image | None, form: Form, asked: PredictRequest) -> bytes:
    """Return the map's file: PNG over ``view``, 16-bit grey PNG, or ``.npy``."""
    file = io.BytesIO()
    if form == "npy":
        np.save(file, np.asarray(drawn.values), allow_pickle=False)
    elif form == "grey":
        heat = ((grid_of(drawn.values) - drawn.low) / (drawn.high - drawn.low)).clip(0, 1)
        Image.fromarray((heat * 65535).round().astype(np.uint16)).save(file, "PNG")
    else:
        assert view is not None  # read for this form
        overlay(view, drawn.values, drawn.low, drawn.high, asked.opacity).save(file, "PNG", compress_level=3)
    return file.getvalue()


def map_headers(answer: Prediction, drawn: AttentionMap, classes: tuple[str, ...]) -> dict[str, str]:
    """Say beside a map's file what the JSON would: class (percent-encoded UTF-8), probability, tap and scale."""
    return {
        "X-Heedmap-Class": quote(classes[answer.predicted]),
        "X-Heedmap-Probability": f"{answer.probabilities.max():.6f}",
        "X-Heedmap-Tap": quote(drawn.tap),
        "X-Heedmap-Low": repr(drawn.low),
        "X-Heedmap-High": repr(drawn.high),
    }

"""The prediction as JSON, as an image of the map, or as its raw values; and the shapes of all that, for OpenAPI."""

import contextlib
import io
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from heedmap.apps.limits import RequestError
from heedmap.data.decoding import crop_box
from heedmap.inference.boxes import boxes_of
from heedmap.inference.predictor import Prediction
from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import grid_of, hottest, is_flat, overlay

Format: TypeAlias = Literal["json", "overlay", "grey", "npy"]
MEDIA_TYPES = {"json": "application/json", "overlay": "image/png", "grey": "image/png", "npy": "application/x-npy"}
_BY_ACCEPT: dict[str, Format] = {"application/json": "json", "application/*": "json", "*/*": "json"}
_BY_ACCEPT |= {"image/png": "overlay", "image/*": "overlay", "application/x-npy": "npy"}


class PredictParameters(BaseModel):
    """The parameters of /predict."""

    model_config = ConfigDict(extra="forbid")

    format: Format | None = Field(
        None,
        description="json; overlay: PNG of the map over the image's centred square; grey: 16-bit PNG of the map's own "
        "grid, from X-Heedmap-Low to X-Heedmap-High; npy: its float32 values. Without it the Accept header decides: "
        "application/json, image/png (overlay), application/x-npy.",
    )
    tap: str | None = Field(None, description="The map of overlay, grey and npy. Default: combined, or the only one.")
    top: int = Field(5, ge=1, le=100_000, description="How many of the most probable classes the JSON has.")
    threshold: float = Field(0.5, gt=0, le=1, description="Boxes go round what reaches this share of the maximum.")
    values: bool = Field(False, description="Put the raw values of each map into the JSON.")
    size: int = Field(512, ge=32, le=2048, description="Side of the overlay in pixels.")
    opacity: float = Field(0.8, ge=0, le=1, description="How much of the image the hottest colour of overlay hides.")


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str
    index: int = Field(description="Its position in /classes.")
    probability: float


class HottestPoint(BaseModel):
    """A point in pixels of the original image, upright, and the map's value there."""

    x: float
    y: float
    value: float


class PixelBox(BaseModel):
    """Edges in pixels of the original image, upright."""

    left: float
    top: float
    right: float
    bottom: float


class AttendedBox(PixelBox):
    """A box round an attended region."""

    share: float = Field(description="The part of the map's sum that lies in the region.")


class ImageSize(BaseModel):
    """Of the original image in pixels, upright."""

    width: int
    height: int


class MapResponse(BaseModel):
    """One attention map. It shows where, not why."""

    method: str
    grid: list[int] = Field(description="Rows and columns.", min_length=2, max_length=2)
    low: float = Field(description="The value that is drawn coldest.")
    high: float = Field(description="The value that is drawn hottest.")
    hottest: HottestPoint | None = Field(description="The centre of the hottest cell; null where the map is flat.")
    boxes: list[AttendedBox] = Field(description="At most eight, most attention first; none where the map is flat.")
    values: list[list[float]] | None = Field(description="Row by row, as the network used them; null by default.")


class PredictionResponse(BaseModel):
    """The prediction for an image."""

    predicted: ClassProbability
    top: list[ClassProbability] = Field(description="Most probable first.")
    size: ImageSize
    crop: PixelBox = Field(description="The centred square that the classifier sees; the maps cover it.")
    maps: dict[str, MapResponse] = Field(description="By tap; combined is the (weighted) geometric mean of several.")


class ModelResponse(BaseModel):
    """The classes and maps of the classifier."""

    classes: list[str]
    taps: list[str] = Field(description="The names of its maps.")
    image_size: int = Field(description="Side in pixels of the square that it sees.")


class HealthResponse(BaseModel):
    """The state of the service."""

    status: Literal["ok"]
    model: str
    waiting: int = Field(description="Requests that wait for the classifier or are in it.")
    images: int = Field(description="Predicted since the start.")
    batches: int = Field(description="In which they were predicted.")


def choose_format(requested: Format | None, accept: str | None) -> Format:
    """Return the requested format, or the first of the Accept header; a RequestError 406 if none can be given."""
    if requested is not None:
        return requested
    ranges = []
    for position, part in enumerate((accept or "*/*").split(",")):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        with contextlib.suppress(ValueError):
            weight = next((float(text[2:]) for text in parameters if text.startswith("q=")), 1.0)
        if weight > 0:
            ranges.append((-weight, position, kind))
    for _, _, kind in sorted(ranges):
        if kind in _BY_ACCEPT:
            return _BY_ACCEPT[kind]
    kinds = ", ".join(sorted(set(MEDIA_TYPES.values())))
    raise RequestError(406, f"None of {accept!r} can be given; there are {kinds}.")


def prediction_response(
    prediction: Prediction,
    classes: tuple[str, ...],
    size: tuple[int, int],
    image_size: int,
    parameters: PredictParameters,
) -> dict[str, Any]:
    """Return what :class:`PredictionResponse` describes.

    Args:
        prediction, classes: of the classifier, for K classes.
        size: (width, height) of the original, upright.
        image_size: side of the classifier's view, on whose pixels boxes are drawn.
        parameters: ``top``, ``threshold`` and ``values`` hold here.
    """
    order = np.argsort(-prediction.probabilities, kind="stable")[: parameters.top].tolist()
    top = [{"name": classes[i], "index": i, "probability": float(prediction.probabilities[i])} for i in order]
    crop = crop_box(*size)
    return {
        "predicted": top[0],
        "top": top,
        "size": {"width": size[0], "height": size[1]},
        "crop": dict(zip(("left", "top", "right", "bottom"), crop, strict=True)),
        "maps": {tap: _map(drawn, crop, image_size, parameters) for tap, drawn in prediction.maps.items()},
    }


def _map(
    drawn: AttentionMap, crop: tuple[int, int, int, int], image_size: int, parameters: PredictParameters
) -> dict[str, Any]:
    values, (left, top, right, _) = drawn.values, crop
    side, starts, point = right - left, {"left": left, "top": top, "right": left, "bottom": top}, None
    if not is_flat(values):  # rounding alone would choose the place
        x, y = hottest(values)
        point = {"x": left + x * side, "y": top + y * side, "value": float(values.max())}
    return {
        "method": drawn.method,
        "grid": list(values.shape),
        "low": drawn.low,
        "high": drawn.high,
        "hottest": point,
        "boxes": [
            {edge: start + box[edge] * side for edge, start in starts.items()} | {"share": box["share"]}
            for box in boxes_of(np.asarray(values)[None], parameters.threshold, image_size)[0]
        ],
        "values": values.tolist() if parameters.values else None,
    }


def map_file(drawn: AttentionMap, view: Image.Image | None, form: Format, opacity: float) -> bytes:
    """Return the map's file: PNG over ``view``, 16-bit grey PNG, or ``.npy``."""
    file = io.BytesIO()
    if form == "npy":
        np.save(file, np.asarray(drawn.values), allow_pickle=False)
    elif form == "grey":
        heat = ((grid_of(drawn.values) - drawn.low) / (drawn.high - drawn.low)).clip(0, 1)
        Image.fromarray((heat * 65535).round().astype(np.uint16)).save(file, "PNG")
    else:
        assert view is not None  # read for this form
        overlay(view, drawn.values, drawn.low, drawn.high, opacity).save(file, "PNG", compress_level=3)
    return file.getvalue()


def map_headers(prediction: Prediction, drawn: AttentionMap, classes: tuple[str, ...]) -> dict[str, str]:
    """Return headers of a map's file: class (percent-encoded UTF-8), probability, tap and scale."""
    return {
        "X-Heedmap-Class": quote(classes[prediction.predicted]),
        "X-Heedmap-Probability": f"{prediction.probabilities.max():.6f}",
        "X-Heedmap-Tap": quote(drawn.tap),
        "X-Heedmap-Low": repr(drawn.low),
        "X-Heedmap-High": repr(drawn.high),
    }

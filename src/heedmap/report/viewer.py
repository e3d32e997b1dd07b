"""The images behind the figures, small enough that a thousand of them fit into a page of a few megabytes.

An image is a WebP thumbnail, and each of its maps one byte a cell; the browser draws the maps over it, with the
colours and the interpolation of :mod:`heedmap.visualization.heatmap`.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from heedmap.data.dataset import ImageDataset
from heedmap.data.decoding import plain
from heedmap.metrics.prediction import DatasetPredictions
from heedmap.models.classifier import AttentionClassifier, attention_maps
from heedmap.visualization.heatmap import COLOURS, grid_of

MOST_IMAGES = 1000
THUMBNAIL = 128  # side of an image on the page in pixels
MOST_BYTES = 9_000_000  # of all images with their maps; where fine maps or busy images need more, fewer are shown
_QUALITY, _BATCH = 60, 50


@dataclass(frozen=True)
class ViewerImage:
    """One image with its prediction (indices of classes, and the probability of the predicted one) and its maps.

    Attributes:
        loss: negative log-likelihood of the truth, in nats.
        view: uint8 RGB (S, S, 3), the square that the classifier sees.
        maps: tap -> (h, w), not negative, the same taps for all images; drawn from zero to ``ends``.
        ends: tap -> the value that is drawn hottest.
    """

    name: str
    truth: int
    predicted: int
    probability: float
    loss: float
    view: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.float32]]
    ends: Mapping[str, float]


def choose_rows(is_right: Sequence[bool], most: int = MOST_IMAGES) -> list[int]:
    """Choose which images the page shows, in order: all where there is room, else wrong ones first, evenly spread."""
    wrong = [row for row, right in enumerate(is_right) if not right]
    right = [row for row, right in enumerate(is_right) if right]
    # Half of the room is enough for mistakes where there are many: correct predictions are worth seeing too.
    chosen = _spread(wrong, max(most // 2, most - len(right)))
    return sorted(chosen + _spread(right, most - len(chosen)))


def _spread(rows: list[int], most: int) -> list[int]:
    if len(rows) <= most:
        return rows
    return [rows[int(place)] for place in np.linspace(0, len(rows) - 1, most)]


@torch.no_grad()
def viewer_images(
    classifier: AttentionClassifier, images: ImageDataset, predictions: DatasetPredictions
) -> list[ViewerImage]:
    """Return the images that the page shows of an evaluated part, as thumbnails, each with its maps.

    The classifier, in eval mode, runs again for the maps, which are not held for all images.
    """
    predicted = predictions.logits.argmax(1)
    probabilities = predictions.logits.softmax(1).amax(1)
    losses = F.cross_entropy(predictions.logits, predictions.labels, reduction="none")
    side, shown = min(THUMBNAIL, classifier.image_size), []
    rows = choose_rows(predictions.correct.tolist())
    for start in range(0, len(rows), _BATCH):
        chosen = rows[start : start + _BATCH]
        views = torch.stack([images.load(row, classifier.image_size) for row in chosen])
        output = classifier(plain(views).to(classifier.mean.device))
        for place, row in enumerate(chosen):
            maps = attention_maps(classifier, output, place)
            view = Image.fromarray(views[place].permute(1, 2, 0).numpy())
            shown.append(
                ViewerImage(
                    name=images.names[row],
                    truth=int(predictions.labels[row]),
                    predicted=int(predicted[row]),
                    probability=float(probabilities[row]),
                    loss=float(losses[row]),
                    view=np.asarray(view.resize((side, side), Image.Resampling.BILINEAR)),
                    maps={name: np.asarray(drawn.values) for name, drawn in maps.items()},
                    ends={name: drawn.high for name, drawn in maps.items()},
                )
            )
    return shown


def viewer_json(images: Sequence[ViewerImage], classes: Sequence[str]) -> tuple[str, int]:
    """Return the data of the page's script, safe inside a ``script`` element, and how many images are in it."""
    taps = list(images[0].maps)
    entries = [_entry(image, taps) for image in images]
    size = sum(len(json.dumps(entry)) for entry in entries)
    if size > MOST_BYTES:
        is_right = [image.truth == image.predicted for image in images]
        entries = [entries[row] for row in choose_rows(is_right, max(1, len(entries) * MOST_BYTES // size))]
    content = {"classes": list(classes), "taps": taps, "colours": _text(COLOURS.tobytes()), "images": entries}
    return json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c"), len(entries)


def _entry(image: ViewerImage, taps: Sequence[str]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image.view).save(file, "WEBP", quality=_QUALITY, method=4)
    return {
        "n": image.name.encode("utf-8", "replace").decode(),  # a file's name may hold bytes that are no letters
        "t": image.truth,
        "p": image.predicted,
        "q": round(image.probability, 4),
        "l": round(min(image.loss, 1e6), 4),
        "i": _text(file.getvalue()),
        "m": [_packed(image.maps[tap], image.ends[tap]) for tap in taps],
    }


def _packed(values: NDArray[np.float32], high: float) -> list[Any]:
    """Return height, width, the value of 255, and the cells row by row, one byte each."""
    heat = (grid_of(values) / (high if high > 0 else 1.0)).clip(0, 1)
    return [*values.shape, float(f"{high:.4g}"), _text((heat * 255).round().astype(np.uint8).tobytes())]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")

"""What the classifier said of an image: as numbers in a file, and as a panel to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heedmap.errors import OptionError, nearest
from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import Box, Caption, Row, Values, grid_of, is_flat, panel, scale_of

Scale: TypeAlias = Literal["image", "range", "set"] | tuple[float, float]


def check_scale(scale: Scale) -> None:
    """Check that a scale is one of the words, or two numbers that rise.

    Raises:
        OptionError: it is neither.
    """
    words = ("image", "range", "set")
    if scale in words or (isinstance(scale, tuple) and len(scale) == 2 and scale[0] < scale[1]):
        return
    hint = nearest(scale, words) if isinstance(scale, str) else ""
    raise OptionError(f"scale = {scale!r} is none of {', '.join(words)}, nor (low, high) with low below high.{hint}")


Ends: TypeAlias = dict[str, tuple[float, float]]

TILE = 256
"""Side in pixels of each square of a panel."""

_MEANINGS = {
    "softmax": "share of the attention that each position gets (a map sums to 1)",
    "sigmoid": "gate of each position, between 0 and 1",
    "feature": "gate, mean over channels; an even gate is 0.5 with sigmoid, 1 with softmax",
    "none": "every position weighs the same (the control without attention)",
}


@dataclass(frozen=True)
class Prediction:
    """What the classifier said of one image, on the CPU.

    Attributes:
        probabilities: (K,) float32.
        maps: tap -> map, then ``combined`` where there are several taps.
        features: ``before`` and ``after`` the gate, on one scale; empty but for soft feature attention.
    """

    probabilities: NDArray[np.float32]
    maps: dict[str, AttentionMap]
    features: dict[str, AttentionMap]

    @property
    def predicted(self) -> int:
        """The class with the largest probability; the first among equals."""
        return int(self.probabilities.argmax())

    def top(self, classes: Sequence[str], count: int = 3) -> tuple[tuple[str, float], ...]:
        """Return the likeliest classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return tuple((classes[place], float(self.probabilities[place])) for place in order)


@dataclass(frozen=True)
class Switched:
    """The same image attended to with another image's query: that image (square), its name, and the answer."""

    image: Image.Image
    name: str
    answer: Prediction


def feature_maps(values: Mapping[str, Values]) -> dict[str, AttentionMap]:
    """Return the images of features, name -> (h, w), on one scale for all of them."""
    ends = [scale_of(each) for each in values.values()]
    low, high = min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=1.0)
    scale = ("largest channel", low, high, None, "features")
    return {name: AttentionMap(each, name, *scale) for name, each in values.items()}


def computed_map(
    name: str, values: Values, place: str, *, target: int | None, has_offset: bool = False, is_peaked: bool = False
) -> AttentionMap:
    """Return a map that was computed afterwards, on the scale that shows it.

    Below zero speaks against the class and is drawn cold; an offset that even an idle map has is left out; and one
    pixel in a hundred may be hotter than the scale, or it alone would be seen.

    Args:
        name: of the method.
        values: (h, w).
        place: what stands behind the name in the legend, such as `` at layer4 for cat``.
        target: the class asked about, None where the map belongs to no class.
        has_offset, is_peaked: as in :class:`heedmap.attribution.Method`.
    """
    grid = grid_of(values)
    low = float(grid.min()) if has_offset else 0.0
    high = float(np.quantile(grid, 0.99) if is_peaked else grid.max())
    return AttentionMap(values, name, f"{name}{place}", low, high if high > low else low + 1.0, target, "attribution")


def is_computed(drawn: AttentionMap) -> bool:
    """Whether a map was computed afterwards: its method begins with its own name, not with that of an attention."""
    return drawn.method.split(" ")[0] == drawn.tap


def computed_line(drawn: AttentionMap, sentence: str, is_peaked: bool, more: str = "") -> str:
    """Say what a map that was computed afterwards shows, and what to know of it."""
    peaked = " Drawn up to its 99th percentile." * is_peaked
    return f"{drawn.method}, computed afterwards: {sentence}.{peaked}{more.rstrip()}"


def common_ends(answers: Iterable[Prediction]) -> Ends:
    """Return for each map the scale that holds it in all of the answers."""
    ends: Ends = {}
    for answer in answers:
        for name, drawn in answer.maps.items():
            low, high = ends.get(name, (drawn.low, drawn.high))
            ends[name] = (min(low, drawn.low), max(high, drawn.high))
    return ends


def rescaled(answers: Sequence[Prediction], scale: Scale) -> list[Prediction]:
    """Return the answers of one panel with the ends that the rule gives, the same for all of them."""
    return [on_scale(each, _ends(answers, scale)) for each in answers]


def _ends(answers: Sequence[Prediction], scale: Scale) -> Ends:
    if isinstance(scale, tuple):
        return dict.fromkeys(answers[0].maps, scale)
    if scale == "range":
        values = {
            name: np.stack([grid_of(each.maps[name].values) for each in answers if name in each.maps])
            for name in answers[0].maps
        }
        return {name: _apart(float(stack.min()), float(stack.max())) for name, stack in values.items()}
    return common_ends(answers)


def _apart(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low, low + 1.0)


def on_scale(answer: Prediction, ends: Ends) -> Prediction:
    """Return the answer with its maps on other scales; the values stay as they are."""
    maps = {name: replace(drawn, low=ends[name][0], high=ends[name][1]) for name, drawn in answer.maps.items()}
    return replace(answer, maps=maps)


def prediction_panel(
    image: Image.Image,
    answer: Prediction,
    classes: Sequence[str],
    *,
    label: str | None = None,
    name: str = "",
    boxes: Sequence[Box] = (),
    scale: Scale = "image",
    switched: Switched | None = None,
    remark: str = "",
    notes: Iterable[str] = (),
) -> Image.Image:
    """Draw the panel of one image.

    Args:
        image: the square view, RGB, of any size; shown at ``TILE`` pixels.
        answer: its maps carry the ends of their scales.
        classes: the K class names.
        label: the truth, where it is known.
        name: printed small in the headline.
        boxes: outlined on the image and on its maps.
        scale: ``image`` keeps the ends that the maps carry; ``range`` runs from the smallest to the largest value of
            each map; ``(low, high)`` is fixed; ``set`` says that the ends carried are those of a whole set.
        switched: drawn as a second row, each map on one scale with the first row's.
        remark: one more line at the foot.
        notes: lines before it.
    """
    answers = [answer] if switched is None else [answer, switched.answer]
    answers = rescaled(answers, scale)
    rows = [_row(answers[0], image, "image" if switched is None else "image, own query", classes)]
    if switched is not None:
        row = _row(answers[1], image, f"query: {switched.name}", classes)
        rows.append(replace(row, first=switched.image))
    lines = (*footnotes(answer, scale, switched is not None), *notes, remark)
    note = "\n".join(line for line in lines if line)
    headline = Caption(classes[answer.predicted], float(answer.probabilities.max()), label, name)
    return panel(rows, headline, note, boxes=boxes, tile=TILE)


def _row(answer: Prediction, image: Image.Image, title: str, classes: Sequence[str]) -> Row:
    maps = list(answer.maps.values())
    if answer.features:
        maps = [drawn if is_computed(drawn) else replace(drawn, tap=f"gate at {drawn.tap}") for drawn in maps]
    features = [replace(drawn, tap=f"features {drawn.tap}") for drawn in answer.features.values()]
    return Row(image, title, tuple(maps), tuple(features), top=answer.top(classes))


def footnotes(answer: Prediction, scale: Scale, is_switched: bool = False) -> tuple[str, ...]:
    """Say what the colours of a panel mean: the quantity, the scale, how it is drawn."""
    method = next(iter(answer.maps.values())).method
    name, _, weights = method.partition(", ")
    kind = "feature" if name.startswith("feature") else "none" if name == "none" else weights
    first = f"Colour ({method}): {_MEANINGS.get(kind, 'weight of each position')}. {_rule(answer, scale, is_switched)}"
    second = "Drawn bilinearly between the centres of the grid's cells"
    even = all(is_flat(drawn.values) for drawn in (*answer.maps.values(), *answer.features.values()))
    second += "." if even else "; the ring marks the hottest cell, where the map is not flat."
    if "combined" in answer.maps:
        second += " combined: (weighted) geometric mean of the taps on the finest grid."
    if answer.features:
        second += " features: the largest channel at each position, before and after the gate on one scale."
    return first, second


def _rule(answer: Prediction, scale: Scale, is_switched: bool) -> str:
    if isinstance(scale, tuple):
        return f"Scale: {scale[0]:g} to {scale[1]:g}, as asked."
    if scale == "set":
        return "Scale: one for all images of this folder, up to the largest value among them."
    if scale == "image" and all(drawn.high == 1.0 for drawn in answer.maps.values()):
        return "Scale: 0 to 1 for every map."
    rows = " in the two rows" if is_switched else ""
    if scale == "range":
        return f"Scale: each map from its smallest to its largest value{rows}, which makes small differences large."
    return f"Scale: each map from 0 to its largest value{rows}."


def without_values(answer: Prediction) -> Prediction:
    """Return the answer with its values left out; :func:`unpacked` fills them in from the file."""
    blank = np.zeros(0, np.float32)
    maps = {name: replace(drawn, values=blank) for name, drawn in answer.maps.items()}
    features = {name: replace(drawn, values=blank) for name, drawn in answer.features.items()}
    return Prediction(blank, maps, features)


def packed(answer: Prediction, prefix: str = "") -> dict[str, NDArray[Any]]:
    """Return the answer as named arrays for an ``.npz`` file: raw values, nothing rescaled."""
    arrays: dict[str, NDArray[Any]] = {f"{prefix}probabilities": answer.probabilities}
    arrays |= {f"{prefix}map_{name}": np.asarray(drawn.values) for name, drawn in answer.maps.items()}
    arrays |= {f"{prefix}features_{name}": np.asarray(drawn.values) for name, drawn in answer.features.items()}
    return arrays


def unpacked(arrays: Mapping[str, NDArray[Any]], like: Prediction, prefix: str = "") -> Prediction:
    """Return the answer that :func:`packed` made arrays of; ``like`` lends its scales and methods."""

    def filled(maps: dict[str, AttentionMap], kind: str) -> dict[str, AttentionMap]:
        return {name: replace(drawn, values=arrays[f"{prefix}{kind}_{name}"]) for name, drawn in maps.items()}

    features = filled(like.features, "features")
    return Prediction(arrays[f"{prefix}probabilities"], filled(like.maps, "map"), features)

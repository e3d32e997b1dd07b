"""What a classifier predicts for images, whether it runs in torch or from an exported file without it.

Everything that draws, tabulates or serves predictions goes through a :class:`Predictor`, and needs no torch for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heedmap.errors import OptionError, nearest
from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import grid_of, hottest, is_flat, scale_of
from heedmap.visualization.panel import Box, Caption, Row, Scale, draw_panel, footnotes

if TYPE_CHECKING:
    import torch

    from heedmap.inference.onnx import OnnxClassifier
    from heedmap.models.classifier import AttentionClassifier

Array: TypeAlias = NDArray[np.float32]
Ends: TypeAlias = dict[str, tuple[float, float]]  # map -> low, high

TILE = 256
"""Side in pixels of each square of a panel."""


def class_index(classes: Sequence[str], target: str | int) -> int:
    """Return the place of a class given by name or number; raise an :class:`OptionError` where there is none."""
    if isinstance(target, str):
        if target not in classes:
            some = ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
            raise OptionError(f"No class {target!r}; this classifier knows {some}.{nearest(target, classes)}")
        return list(classes).index(target)
    if not 0 <= target < len(classes):
        raise OptionError(f"Class {target} does not exist; this classifier knows {len(classes)}, from 0 on.")
    return target


@dataclass(frozen=True)
class AttributionOptions:
    """Maps to compute besides those that the classifier learned.

    Attributes:
        methods: as :func:`heedmap.attribution.method_of` reads them; of an exported file, maps that it holds.
        target: the class to explain, by name or index; None takes the one predicted for each image.
        layer: for those methods that read one; None takes the last spatial one.
    """

    methods: tuple[str, ...] = ()
    target: str | int | None = None
    layer: str | None = None


LEARNED_ONLY = AttributionOptions()


class Predictor(Protocol):
    """A classifier ready to run on images.

    Attributes:
        name: of the run folder or the file.
        image_size: side in pixels of the square views that it takes.
        method: how its attention is made, such as ``parametrised, softmax``.
        maps: the names of all maps of a prediction, in their order.
        precision: ``bf16`` or ``float32``.
        query_note: why another image's query cannot change the maps; empty where it can.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    method: str
    maps: tuple[str, ...]
    precision: str
    query_note: str

    def __call__(self, views: NDArray[np.uint8], query: Array | None = None) -> Predictions:
        """Run on square views, uint8 RGB (B, 3, S, S).

        ``query``, from :meth:`query`, replaces each image's own; then only the learned maps are given.
        """

    def query(self, view: NDArray[np.uint8]) -> Array:
        """Return the query (1, D) of a view (3, S, S); an OptionError where the classifier takes none from outside."""

    def fingerprint(self) -> str:
        """Return a digest of the weights."""


@dataclass(frozen=True)
class MapSource:
    """How a map was made, which decides its legend and its scale; the rest as in :class:`heedmap.attribution.Method`.

    Attributes:
        method: for the legend, such as ``parametrised, softmax`` or ``grad-cam at layer4``.
        high: upper end of the scale; None takes the largest value of each map.
        sentence: what a computed map shows; empty for learned attention.
    """

    method: str
    high: float | None = None
    sentence: str = ""
    warning: str = ""
    per_class: bool = False
    has_offset: bool = False
    is_peaked: bool = False


def learned_source(attention_name: str, attention_weights: str) -> MapSource:
    """Return the source of the learned maps; gates of a sigmoid are drawn from 0 to 1."""
    return MapSource(f"{attention_name}, {attention_weights}", 1.0 if attention_weights == "sigmoid" else None)


@dataclass(frozen=True)
class Predictions:
    """A batch of predictions, on the CPU.

    Attributes:
        logits, probabilities: (B, K) float32.
        maps: name -> (B, h, w) float32: each tap's, ``combined`` where there are several, then computed ones.
        features: ``before`` and ``after`` the gate, (B, h, w); empty but for soft feature attention.
        sources: name -> how that map was made.
        targets: name -> (B,) the class that a computed map explains.
    """

    classes: tuple[str, ...]
    logits: Array
    probabilities: Array
    maps: dict[str, Array]
    features: dict[str, Array]
    sources: dict[str, MapSource]
    targets: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.probabilities)

    def __iter__(self) -> Iterator[Prediction]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> Prediction:
        """Return one image's prediction, its maps with their scales."""
        maps, notes = {}, []
        for name, values in self.maps.items():
            source, target = self.sources[name], int(self.targets[name][row]) if name in self.targets else None
            if source.sentence:
                maps[name] = _computed_map(name, values[row], source, target, self.classes)
                notes.append(_note(maps[name], source))
            else:
                high = float(values[row].max()) if source.high is None else source.high
                maps[name] = AttentionMap(values[row], name, source.method, 0.0, high)
        ends = [scale_of(values[row]) for values in self.features.values()]
        low, high = min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=1.0)
        features = {
            name: AttentionMap(values[row], name, "largest channel", low, high, kind="features")
            for name, values in self.features.items()
        }
        return Prediction(self.probabilities[row], maps, features, tuple(notes))


def _computed_map(
    name: str, values: Array, source: MapSource, target: int | None, classes: Sequence[str]
) -> AttentionMap:
    # What is below zero speaks against the class and is drawn cold; an offset that all maps of a method have is left
    # out; and one pixel in a hundred may be above the scale, or it alone would be seen.
    grid = grid_of(values)
    low = float(grid.min()) if source.has_offset else 0.0
    high = float(np.quantile(grid, 0.99) if source.is_peaked else grid.max())
    target = target if source.per_class else None
    method = source.method if target is None else f"{source.method} for {classes[target]}"
    return AttentionMap(values, name, method, low, high if high > low else low + 1.0, target, "attribution")


def _note(drawn: AttentionMap, source: MapSource) -> str:
    peaked = " Drawn up to its 99th percentile." * source.is_peaked
    offset = " Drawn from its smallest value." * source.has_offset
    return f"{drawn.method}, computed afterwards: {source.sentence}.{peaked}{offset} {source.warning}".rstrip()


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, on the CPU.

    Attributes:
        probabilities: (K,) float32.
        maps: name -> map, on its own scale.
        features: ``before`` and ``after`` the gate, on one scale; empty but for soft feature attention.
        notes: a sentence for each computed map: what it shows, and what to know of it.
    """

    probabilities: Array
    maps: dict[str, AttentionMap]
    features: dict[str, AttentionMap]
    notes: tuple[str, ...] = ()

    @property
    def predicted(self) -> int:
        """The class with the largest probability; the first among equals."""
        return int(self.probabilities.argmax())

    def top(self, classes: Sequence[str], count: int = 3) -> tuple[tuple[str, float], ...]:
        """Return the likeliest classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return tuple((classes[place], float(self.probabilities[place])) for place in order)

    def table_row(self, classes: Sequence[str], box: tuple[int, ...]) -> dict[str, Any]:
        """Return columns for a table: the likeliest classes, and each map's hottest point, none on a flat map.

        ``box``, left, top, right, bottom in pixels, is the part of the image that the maps cover.
        """
        row: dict[str, Any] = {}
        prefixes = {"predicted": "", "second": "second_", "third": "third_"}
        for (place, prefix), (name, probability) in zip(prefixes.items(), self.top(classes), strict=False):
            row |= {place: name, f"{prefix}probability": f"{probability:.6f}"}
        for name, drawn in self.maps.items():
            if not is_flat(drawn.values):  # else rounding alone would choose the place
                for axis, start, end, share in zip("xy", box[:2], box[2:], hottest(drawn.values), strict=True):
                    row[f"{name}_{axis}"] = round(start + share * (end - start), 1)
        return row

    def on_scale(self, ends: Ends) -> Prediction:
        """Return the prediction with its maps on other scales; the values stay as they are."""
        maps = {name: replace(drawn, low=ends[name][0], high=ends[name][1]) for name, drawn in self.maps.items()}
        return replace(self, maps=maps)

    def packed(self, prefix: str = "") -> dict[str, NDArray[Any]]:
        """Return named arrays for an ``.npz`` file: raw values, nothing rescaled."""
        arrays: dict[str, NDArray[Any]] = {f"{prefix}probabilities": self.probabilities}
        arrays |= {f"{prefix}map_{name}": np.asarray(drawn.values) for name, drawn in self.maps.items()}
        return arrays | {f"{prefix}features_{name}": np.asarray(drawn.values) for name, drawn in self.features.items()}

    def without_values(self) -> Prediction:
        """Return the prediction without its arrays; :meth:`unpacked` fills them in from the file."""
        return self.unpacked(dict.fromkeys(self.packed(), np.zeros((0, 0), np.float32)))

    def unpacked(self, arrays: Mapping[str, NDArray[Any]], prefix: str = "") -> Prediction:
        """Return the prediction with the arrays that :meth:`packed` made."""
        maps, features = (
            {name: replace(drawn, values=arrays[f"{prefix}{kind}_{name}"]) for name, drawn in drawings.items()}
            for kind, drawings in (("map", self.maps), ("features", self.features))
        )
        return replace(self, probabilities=arrays[f"{prefix}probabilities"], maps=maps, features=features)


def open_predictor(
    source: str | Path | AttentionClassifier | OnnxClassifier,
    device: str | torch.device = "cpu",
    *,
    precision: str = "float32",
    channels_last: bool = False,
    attributions: AttributionOptions | None = None,
) -> Predictor:
    """Open what predicts: a run folder, a file that ``heedmap export --to onnx`` wrote, or a classifier in memory.

    Args:
        source: a classifier is moved to ``device`` and otherwise left as it is. An exported file is run without torch,
            on the CPU, and the maps that it holds are given in any case.
        device: where a network in torch computes.
        precision: ``auto``, ``bf16`` or ``float32``, of a network in torch.
        channels_last: the memory format of a network in torch; faster for large batches of a convolutional one.
        attributions: maps to compute besides.

    Raises:
        RunError, ModelError: a run that cannot be used; a file that cannot be run, or onnxruntime is missing.
        OptionError: an unknown method, class or precision, or something that an exported file cannot do.
    """
    # Imported here, as both build on this file; and where an exported file runs there may be no torch.
    from heedmap.inference.onnx import OnnxClassifier, OnnxPredictor

    attributions = attributions or LEARNED_ONLY
    if isinstance(source, str | Path) and (Path(source).suffix.lower() == ".onnx" or Path(source).is_file()):
        source = OnnxClassifier(source)
    if isinstance(source, OnnxClassifier):
        if precision == "bf16":
            raise OptionError(f"{source.path} computes in its own precision; leave out bf16.")
        return OnnxPredictor(source, attributions)
    from heedmap.inference.torch_predictor import TorchPredictor  # needs torch

    name = type(source).__name__
    if isinstance(source, str | Path):
        from heedmap.runs import Run  # needs torch

        name, source = Path(source).resolve().name, Run.open(source).classifier()
    return TorchPredictor(source, device, name, attributions, precision=precision, channels_last=channels_last)


def common_ends(predictions: Iterable[Prediction], ends: Ends | None = None) -> Ends:
    """Return for each map the scale that holds it in all predictions, and within ``ends``."""
    ends = dict(ends or {})
    for prediction in predictions:
        for name, drawn in prediction.maps.items():
            low, high = ends.get(name, (drawn.low, drawn.high))
            ends[name] = (min(low, drawn.low), max(high, drawn.high))
    return ends


def rescaled(predictions: Sequence[Prediction], scale: Scale) -> list[Prediction]:
    """Return the predictions of one panel on the scale that the rule gives, the same for all of them."""
    ends = common_ends(predictions)
    for name in ends:
        if isinstance(scale, tuple):
            ends[name] = scale
        elif scale == "range":
            grids = np.stack([grid_of(each.maps[name].values) for each in predictions if name in each.maps])
            low, high = float(grids.min()), float(grids.max())
            ends[name] = (low, high if high > low else low + 1.0)
    return [prediction.on_scale(ends) for prediction in predictions]


@dataclass(frozen=True)
class OtherQuery:
    """The same image attended to with another image's query: that image (square), its name, and the prediction."""

    image: Image.Image
    name: str
    prediction: Prediction


@dataclass(frozen=True)
class PanelOptions:
    """What a panel shows beside image and maps.

    Attributes:
        label: the truth, where it is known.
        name: printed small in the headline.
        boxes: outlined on the image and on its maps.
        notes: lines at the foot; empty ones are left out.
        scale: ``image`` keeps the ends that the maps carry; ``range`` runs from the smallest to the largest value of
            each map; ``(low, high)`` is fixed; ``set`` names them as those of a whole set.
        other: drawn as a second row, each map on one scale with the first row's.
    """

    label: str | None = None
    name: str = ""
    boxes: Sequence[Box] = ()
    notes: Sequence[str] = ()
    scale: Scale = "image"
    other: OtherQuery | None = None


_PLAIN = PanelOptions()


def prediction_panel(
    image: Image.Image, prediction: Prediction, classes: Sequence[str], options: PanelOptions = _PLAIN
) -> Image.Image:
    """Draw the panel of one image.

    The square view, RGB, may have any size and is shown at ``TILE`` pixels; the maps carry the ends of their scales.
    """
    other = options.other
    predictions = rescaled([prediction] if other is None else [prediction, other.prediction], options.scale)
    rows = [_row(predictions[0], image, "image" if other is None else "image, own query", classes)]
    if other is not None:
        rows.append(replace(_row(predictions[1], image, f"query: {other.name}", classes), first=other.image))
    maps, features = list(prediction.maps.values()), list(prediction.features.values())
    lines = (*footnotes(maps, features, options.scale, len(rows)), *options.notes)
    headline = Caption(*prediction.top(classes, 1)[0], options.label, options.name)
    return draw_panel(rows, headline, "\n".join(filter(None, lines)), boxes=options.boxes, tile=TILE)


def _row(prediction: Prediction, image: Image.Image, title: str, classes: Sequence[str]) -> Row:
    maps = list(prediction.maps.values())
    if prediction.features:
        # The legend of a computed map begins with its own name, that of a gate with the attention's.
        maps = [each if each.method.startswith(each.tap) else replace(each, tap=f"gate at {each.tap}") for each in maps]
    features = [replace(drawn, tap=f"features {drawn.tap}") for drawn in prediction.features.values()]
    return Row(image, title, tuple(maps), tuple(features), top=prediction.top(classes))

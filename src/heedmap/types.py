"""The records that the rooms of the package share.

Axis letters: B batch, C channels, H W rows and columns, N positions (H * W), K classes, S taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


HTML: dict[str, Callable[[Any], str]] = {}
"""Class name -> its HTML in a notebook. Filled by ``heedmap/__init__.py``, since records cannot import drawing."""


def as_html(value: object) -> str:
    """Return a value's HTML by :data:`HTML`, else its escaped ``repr``."""
    make = HTML.get(type(value).__name__)
    return f"<pre>{escape(repr(value))}</pre>" if make is None else make(value)


class Batch(NamedTuple):
    """A batch of images."""

    images: Tensor  # (B, 3, H, W) float32 RGB in [0, 1]; the normalisation is part of the model
    labels: Tensor  # (B,) int64 class indices
    indices: Tensor  # (B,) int64 places in the split that the images came from
    masks: Tensor | None = None  # (B, H, W) bool, true on the object, augmented like the images


@dataclass(frozen=True)
class Axis:
    """The leading axis of a map that has one value per position *and* label."""

    name: str  # channel, glimpse, word, query or class
    labels: tuple[str, ...] = ()  # of the planes, in order; empty where a plane's number is all there is to say


class MapBatch(NamedTuple):
    """Maps of one kind, see :class:`AttentionMap`, for a batch of images."""

    values: Tensor  # (B, A, h, w) as the network used them; h and w are 1 for a gate on channels
    kind: str
    axis: Axis | None = None  # what A counts; None where A is 1


class Output(NamedTuple):
    """The classifier's output.

    Attributes:
        logits: (B, K) float32.
        attention: tap name -> (B, 1, h, w) float32, the weights that the readout used at that tap. Softmax weights sum
            to one over positions; sigmoid weights lie in (0, 1).
        features: maps of the features around soft feature attention, name -> (B, 1, h, w): ``before`` and ``after`` the
            gate, the maximum over channels. Empty for every other attention.
        shares: (T,) how much each tap counts in the combined map, where that was learned; they sum to one.
        maps: name -> maps of every other kind, such as those of gates inside the network, by the gate's place.
    """

    logits: Tensor
    attention: dict[str, Tensor]
    features: dict[str, Tensor] = {}  # noqa: RUF012  a default that nothing changes
    shares: Tensor | None = None
    maps: dict[str, MapBatch] = {}  # noqa: RUF012

    @property
    def probabilities(self) -> Tensor:
        """(B, K) softmax of the logits."""
        return self.logits.softmax(dim=1)

    def _repr_html_(self) -> str:
        return as_html(self)


@dataclass(frozen=True)
class Stage:
    """A place in a backbone that attention can tap: its name, channels, and stride (pixels per position)."""

    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class AttentionMap:
    """One image's map as data.

    Whatever draws a map takes (h, w) and refuses an axis; give it the planes one by one, by :meth:`plane`.

    Attributes:
        values: (h, w), or (A, h, w) with an axis; float32 as the network used them, never rescaled. An array where an
            exported file gave them.
        tap: tap name, the place of a gate, or ``combined``.
        method: how it was computed, such as ``parametrised, softmax``.
        low, high: the ends of the scale on which it is to be drawn.
        target: the class that the map explains, None where it belongs to no class (learned attention).
        kind: ``readout`` (weights of a vector), ``gate`` (factor on features), ``attribution`` (computed from a trained
            network), ``features``, or that of another output of the network.
        axis: what the leading axis counts; None for (h, w).

    Raises:
        ValueError: the shape of the values does not fit the axis.
    """

    values: Tensor | NDArray[np.float32]
    tap: str
    method: str
    low: float
    high: float
    target: int | None = None
    kind: str = "readout"
    axis: Axis | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        labels = self.axis.labels if self.axis is not None else ()
        if len(shape) != (2 if self.axis is None else 3) or (labels and len(labels) != shape[0]):
            axis = "no axis" if self.axis is None else f"the axis {self.axis.name!r} of {len(labels)} labels"
            raise ValueError(f"Map {self.tap!r} has shape {shape} and {axis}; give (h, w), or (A, h, w) with A labels.")

    def plane(self, index: int) -> AttentionMap:
        """Return the (h, w) map of one label of the axis, named ``TAP LABEL``."""
        if self.axis is None:
            raise ValueError(f"Map {self.tap!r} has no axis; its values are one plane.")
        label = self.axis.labels[index] if self.axis.labels else f"{self.axis.name} {index}"
        return replace(self, values=self.values[index], tap=f"{self.tap} {label}", axis=None)

    _repr_html_ = as_html


@dataclass(frozen=True)
class StepReport:
    """Where training stands after a step; counts are totals over all processes."""

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class EpochReport:
    """The result of one epoch of training.

    Attributes:
        epoch, train_loss: 1-based; the mean over the epoch's steps.
        seconds, evaluation_seconds: of training, from the first step to the last; then of the validation images.
        images_per_second: training images per second of training, all processes together.
        validation: figure -> its value for the averaged weights on the validation images, as the task defines them;
            for classification ``accuracy`` and ``loss``. Empty without validation images.
        attention_peak: tap -> mean over images of the largest weight: of a readout's softmax 1 = one point, 1 / N =
            uniform; a sigmoid's gate is shut at 0 and open at 1.
        warnings: sentences for the user, such as a collapsed or uniform map.
        is_best: this epoch's weights are the best so far by validation.
    """

    epoch: int
    epochs: int
    train_loss: float
    learning_rate: float
    images_per_second: float
    seconds: float
    validation: dict[str, float] = field(default_factory=dict)
    attention_peak: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    is_best: bool = False
    evaluation_seconds: float = 0.0

    def as_record(self) -> dict[str, Any]:
        """Return one flat record, as metrics.jsonl keeps it: ``validation_NAME`` for each figure."""
        record = asdict(self)
        return {f"{VALIDATION}{name}": value for name, value in record.pop("validation").items()} | record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EpochReport:
        """Return the report of a record of metrics.jsonl, where null stands for what was not a number."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in record.items()}
        known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        known["validation"] = {n.removeprefix(VALIDATION): v for n, v in values.items() if n.startswith(VALIDATION)}
        return cls(**{**known, "warnings": tuple(values.get("warnings", ()))})


VALIDATION = "validation_"  # before each figure's name in a record


@dataclass(frozen=True)
class Finding:
    """One finding of the audit.

    Attributes:
        kind: ``unreadable``, ``odd``, ``exact-duplicate``, ``near-duplicate``, ``conflicting-labels``, ``imbalance``.
        splits: the splits touched, such as ``("train", "test")``; two different ones mean leakage.
        paths, note: the files, relative to the data folder; one line for the user.
    """

    kind: str
    splits: tuple[str, ...]
    paths: tuple[str, ...]
    note: str

    @property
    def sentence(self) -> str:
        """The files, the first few of many, and the note."""
        more = f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        return f"{', '.join(self.paths[:3])}{more}: {self.note}" if self.paths else self.note


@dataclass(frozen=True)
class Audit:
    """The result of an audit."""

    images: dict[str, int]  # split -> number of images looked at
    per_class: dict[str, dict[str, int]]  # split -> class -> number of images
    findings: tuple[Finding, ...]
    leaked: int  # number of test images with an exact or near duplicate in train
    seconds: float
    depth: str  # cheap (sizes, exact duplicates, counts) or full (near duplicates too)

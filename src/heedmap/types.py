"""The nouns that cross the walls between rooms.

Axis letters: B batch, C channels, H W rows and columns, N positions (H * W), K classes, S taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


HTML: dict[str, Callable[[Any], str]] = {}
"""Class name -> what a notebook shows of it. Filled from above (``heedmap/__init__.py``): a record draws nothing."""


def as_html(value: object) -> str:
    """Return what a notebook shows of a value: what is registered for its class in :data:`HTML`, else its ``repr``."""
    make = HTML.get(type(value).__name__)
    return f"<pre>{escape(repr(value))}</pre>" if make is None else make(value)


class Batch(NamedTuple):
    """Some images on their way into the classifier.

    Attributes:
        images: (B, 3, H, W) float32 RGB in [0, 1]; the normalisation is part of the model.
        labels: (B,) int64 class indices.
        indices: (B,) int64 places in the split that the images came from.
        masks: (B, H, W) bool, true on the object, varied as the images are; None where they were not asked for.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    masks: Tensor | None = None


class Attended(NamedTuple):
    """What an attention module gives back.

    Attributes:
        features: the readout vector (B, C), or for a gate the gated features (B, C, H, W).
        attention: the very weights that were used: (B, 1, H, W) for a readout, (B, C, H, W) for a gate.
    """

    features: Tensor
    attention: Tensor


class Output(NamedTuple):
    """What the classifier gives back.

    Attributes:
        logits: (B, K) float32.
        attention: tap name -> (B, 1, h, w) float32, the weights the network used at that tap. Softmax weights sum to
            one over positions; sigmoid weights lie in (0, 1).
        features: images of features for soft feature attention, name -> (B, 1, h, w): ``before`` and ``after`` the
            gate, merged by the maximum over channels. Empty for every other attention.
        shares: (T,) how much each tap counts in the combined map, where that was learned; they sum to one.
    """

    logits: Tensor
    attention: dict[str, Tensor]
    features: dict[str, Tensor] = {}  # noqa: RUF012  a default that nothing changes
    shares: Tensor | None = None

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
    """A map as data; a heatmap is its image.

    Attributes:
        values: (h, w) float32 as the network used them, never rescaled; an array where an exported file gave them.
        tap: tap name, or ``combined``.
        method: how it came about, such as ``parametrised, softmax``.
        low, high: the ends of the scale on which it is to be drawn.
        target: the class asked about, or None where the map belongs to no class (learned attention).
    """

    values: Tensor | NDArray[np.float32]
    tap: str
    method: str
    low: float
    high: float
    target: int | None = None

    def _repr_html_(self) -> str:
        return as_html(self)


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
    """What one epoch of training came to.

    Attributes:
        epoch: 1-based.
        train_loss: mean over the epoch's steps.
        validation_accuracy, validation_loss: top-1 share and cross-entropy of the averaged weights on the validation
            part, NaN where there is none.
        images_per_second: training images per second of training time, all processes together.
        seconds: of training, from the first step to the last.
        attention_peak: tap -> mean over images of the largest weight: of a readout's softmax 1 = one point, 1 / N =
            uniform; a sigmoid's gate is shut at 0 and open at 1.
        warnings: sentences for the user, such as a collapsed or uniform map.
        is_best: this epoch's weights are the best so far by validation.
        evaluation_seconds: spent on the validation part, after ``seconds``.
    """

    epoch: int
    epochs: int
    train_loss: float
    learning_rate: float
    validation_accuracy: float
    validation_loss: float
    images_per_second: float
    seconds: float
    attention_peak: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    is_best: bool = False
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class Finding:
    """One thing the audit found.

    Attributes:
        kind: ``unreadable``, ``odd``, ``exact-duplicate``, ``near-duplicate``, ``conflicting-labels``, ``imbalance``.
        splits: the splits touched, such as ``("train", "test")``; two different ones mean leakage.
        paths: the files, relative to the data folder.
        note: one line for the user.
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
    """All that the audit found, with what it looked at.

    Attributes:
        images: split -> number of images looked at.
        per_class: split -> class -> number of images.
        findings: see :class:`Finding`.
        leaked: number of test images with an exact or near duplicate in train.
        seconds: how long it took.
        depth: ``cheap`` (sizes, exact duplicates, counts) or ``full`` (near duplicates too).
    """

    images: dict[str, int]
    per_class: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]
    leaked: int
    seconds: float
    depth: str

"""Soft feature attention: a gate of the feature's own size that multiplies the features, element by element.

After the small CNN for scenes of Ugenteraan/Attention-CNN-Visualization (2021): with x the features flattened to
F = C * H * W numbers,

    gate = act(w * relu(W x + b)),   gated = gate * x

with W a full F x F matrix and w, b of length F. The original has the sigmoid only. ``softmax`` runs here over all F
numbers and is multiplied by F, so that the mean gate of an image is one and the gated features keep their scale.

Because of the inner ReLU the sigmoid gate is exactly 1/2 where a unit is off, above 1/2 only where w > 0 and below only
where w < 0, so "not looking" is 1/2, not 0. It is no probability map.

The dense matrix grows with the fourth power of the image's side (321 million weights for the original's 70 x 16 x 16
features of a 128 px image). ``form="conv"`` is the same equation at every position, with W of C x C (a 1x1
convolution) and w, b of length C, and takes any size.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from heedmap.attention.base import (
    Attended,
    AttentionOptions,
    Gate,
    Readout,
    TapFeatures,
    at_least_float32,
)
from heedmap.attention.readouts import WEIGHTS
from heedmap.errors import ModelError, checked_choice

FORMS = ("conv", "dense")
GIB = 2**30
BYTES_PER_WEIGHT = 16  # weight, gradient and Adam's two moments, 4 bytes each


class FeatureAttention(Gate):
    """An element-wise gate on the features; see the module's text for the equation.

    w starts at N(0, 0.05) as in the original, so the first gate is nearly uniform; W and b start as of a linear layer.

    Args:
        channels, height, width: C, H and W of the features; the conv form takes any H and W.
        form, weights: ``conv`` or ``dense``; ``softmax`` or ``sigmoid``.
        max_bytes: the most that the dense matrix may take in training, gradient and Adam's state included.

    Raises:
        ModelError: an unknown word, or a dense matrix beyond ``max_bytes``.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        form: str = "conv",
        weights: str = "sigmoid",
        *,
        max_bytes: int = GIB,
    ) -> None:
        super().__init__()
        self.form = checked_choice("form", form, FORMS)
        self.weights = checked_choice("weights", weights, WEIGHTS)
        self.channels, self.height, self.width = channels, height, width
        units = channels * height * width if form == "dense" else channels
        needed = BYTES_PER_WEIGHT * units * units
        if form == "dense" and needed > max_bytes:
            raise ModelError(
                f"Dense feature attention over {_size(channels, height, width)} = {units:,} features takes "
                f"{needed / GIB:.1f} GiB in training, above the limit of {max_bytes / GIB:.1f} GiB; take --attention "
                "feature (form 'conv'), or smaller images."
            )
        self.inner = nn.Linear(units, units)
        self.outer = nn.Parameter(torch.randn(units) * 0.05)

    def forward(self, features: Tensor) -> Attended:
        """Return the gated features and the gate (B, C, H, W); a ModelError where the dense form does not fit them."""
        if self.form == "dense":
            expected = (self.channels, self.height, self.width)
            if tuple(features.shape[1:]) != expected:
                raise ModelError(
                    f"Dense feature attention is for features of {_size(*expected)}, not {_size(*features.shape[1:])}; "
                    "keep the image size it was trained with, or take --attention feature (form 'conv')."
                )
            scores = (self.outer * self.inner(features.flatten(1)).relu()).view(features.shape)
        else:  # a linear layer over the last axis is the 1x1 convolution; in channels_last this moves no memory
            scores = (self.outer * self.inner(features.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)
        scores = scores.to(at_least_float32(scores.dtype))
        if self.weights == "sigmoid":
            gate = scores.sigmoid()
        else:
            gate = scores.flatten(1).softmax(1).view(scores.shape) * scores[0].numel()
        return Attended(features * gate.to(features.dtype), gate)


def _size(channels: int, height: int, width: int) -> str:
    return f"{channels} x {height} x {width}"


class GatedMean(Readout):
    """The mean of gated features over positions; its map is the gate's mean over channels."""

    is_share = False  # also under softmax, which runs over all features

    def __init__(self, gate: FeatureAttention, name: str) -> None:
        super().__init__()
        self.gate, self.name, self.weights, self.channels = gate, name, gate.weights, gate.channels
        self.takes_any_size = gate.form != "dense"

    def forward(self, features: Tensor, query: Tensor | None = None) -> Attended:
        """See :meth:`Readout.forward`; also shows the features before and after the gate."""
        gated, gate, _ = self.gate(features)
        maps = {"before": features.amax(1, keepdim=True).float(), "after": gated.amax(1, keepdim=True).float()}
        return Attended(gated.mean(dim=(2, 3)), gate.mean(1, keepdim=True), maps)


@dataclass(frozen=True)
class Feature(AttentionOptions):
    """Soft feature attention: a gate on every feature, scored by a 1x1 convolution."""

    name: ClassVar[str] = "feature"
    form: ClassVar[str] = "conv"
    KINDS_OF_WEIGHTS: ClassVar[tuple[str, ...]] = ("sigmoid", "softmax")  # the original has the sigmoid
    LAST_TAP_ONLY: ClassVar[bool] = True
    HAS_PAPER_FORM: ClassVar[bool] = False

    def build(self, tap: TapFeatures) -> Readout:
        """See :class:`AttentionOptions`."""
        assert self.weights is not None  # set when made
        return GatedMean(FeatureAttention(tap.channels, tap.height, tap.width, self.form, self.weights), self.name)


@dataclass(frozen=True)
class FeatureDense(Feature):
    """Soft feature attention as published: a full matrix over all features."""

    name: ClassVar[str] = "feature-dense"
    form: ClassVar[str] = "dense"

"""Soft feature attention: a gate of the feature's own size that multiplies the features, element by element.

After the small CNN for scenes of Ugenteraan/Attention-CNN-Visualization (2021): with x the features flattened to
F = C * H * W numbers,

    gate = act(w * relu(W x + b)),   gated = gate * x

with W a full F x F matrix and w, b of length F. The original has the sigmoid only. ``softmax`` runs here over all F
numbers and is multiplied by F, so that the mean gate of an image is one and the gated features keep their scale.

What to know when reading the gate: because of the inner ReLU the sigmoid gate is exactly 1/2 where a unit is off, above
1/2 only where w > 0 and below only where w < 0, so "not looking" is 1/2, not 0; and it says where and which channel in
one number. It is no probability map.

The dense matrix grows with the fourth power of the image's side (321 million weights for the original's 70 x 16 x 16
features of a 128 px image). ``form="conv"`` is the same equation at every position, with W of C x C (a 1x1
convolution) and w, b of length C, and takes any size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heedmap.attention.readouts import WEIGHTS, at_least_float32
from heedmap.errors import ModelError, nearest
from heedmap.types import Attended

FORMS = ("conv", "dense")
GIB = 2**30
# Weight, gradient and Adam's two moments, 4 bytes each.
BYTES_PER_WEIGHT = 16


class FeatureAttention(nn.Module):
    """An element-wise gate on the features; see the module's text for the equation.

    w starts at N(0, 0.05) as in the original, so the first gate is nearly even; W and b start as a linear layer does.

    Args:
        channels: C of the features.
        height, width: H and W of the features; the dense form is bound to them, the conv form takes any.
        form: ``conv`` or ``dense``.
        weights: ``softmax`` or ``sigmoid``.
        max_bytes: the most that the dense matrix may take in training, gradient and Adam's state included.

    Raises:
        ModelError: an unknown word, or a dense matrix beyond ``max_bytes``.
    """

    uses_query = False

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
        for what, word, known in (("form", form, FORMS), ("weights", weights, WEIGHTS)):
            if word not in known:
                raise ModelError(f"Unknown {what} {word!r}; it can be {', '.join(known)}.{nearest(word, known)}")
        if form == "dense":
            check_dense(channels, height, width, max_bytes)
        self.form, self.weights = form, weights
        self.channels, self.height, self.width = channels, height, width
        units = channels * height * width if form == "dense" else channels
        self.inner = nn.Linear(units, units)
        self.outer = nn.Parameter(torch.randn(units) * 0.05)

    def forward(self, features: Tensor, query: Tensor | None = None) -> Attended:
        """Gate the features.

        Args:
            features: (B, C, H, W).
            query: taken for the sake of one signature with the readouts, and not looked at.

        Returns:
            The gated features (B, C, H, W) and the gate (B, C, H, W), float32 also under autocast.

        Raises:
            ModelError: the dense form met features of another size than it was built for.
        """
        scores = self._dense(features) if self.form == "dense" else self._conv(features)
        scores = scores.to(at_least_float32(scores.dtype))
        if self.weights == "sigmoid":
            gate = scores.sigmoid()
        else:
            gate = scores.flatten(1).softmax(1).view(scores.shape) * scores[0].numel()
        return Attended(features * gate.to(features.dtype), gate)

    def _dense(self, features: Tensor) -> Tensor:
        expected = (self.channels, self.height, self.width)
        if tuple(features.shape[1:]) != expected:
            raise ModelError(
                f"Dense feature attention was built for features of {_size(*expected)}, not "
                f"{_size(*features.shape[1:])}; keep the image size it was trained with, or take "
                "--attention feature (form 'conv')."
            )
        scored: Tensor = self.outer * self.inner(features.flatten(1)).relu()
        return scored.view(features.shape)

    def _conv(self, features: Tensor) -> Tensor:
        # A linear layer over the last axis is the 1x1 convolution; in channels_last this moves no memory.
        scored: Tensor = self.outer * self.inner(features.permute(0, 2, 3, 1)).relu()
        return scored.permute(0, 3, 1, 2)


def check_dense(channels: int, height: int, width: int, max_bytes: int = GIB) -> None:
    """Check that the dense matrix for features of this size fits.

    Raises:
        ModelError: it would take more than ``max_bytes`` in training; the message says how much and what to do.
    """
    units = channels * height * width
    needed = BYTES_PER_WEIGHT * units * units
    if needed > max_bytes:
        raise ModelError(
            f"Dense feature attention over {_size(channels, height, width)} = {units:,} features takes "
            f"{needed / GIB:.1f} GiB in training, above the limit of {max_bytes / GIB:.1f} GiB; take --attention "
            "feature (form 'conv'), or smaller images."
        )


def _size(channels: int, height: int, width: int) -> str:
    return f"{channels} x {height} x {width}"

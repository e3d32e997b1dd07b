"""Heads: from the vectors that the readouts return to logits.

In "Learn To Pay Attention" the classifier sees the vectors alone; the global feature is only the query. The published
code puts BatchNorm-ReLU-Dropout(0.5) on each vector (``normalise="paper"``); most ports do not.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heedmap.errors import ModelError, checked_choice

NORMALISES = ("paper", "batch-norm", "layer-norm")


class ReadoutHead(nn.Module):
    """Base of the heads: normalises each tap's vector by itself.

    Batch norm cannot train on a batch of one image; layer norm can.

    Args:
        channels: tap name -> width of the vector read there; the order is the order of concatenation.
        num_classes: K.
        normalise: ``paper`` (BatchNorm-ReLU-Dropout), ``batch-norm`` or ``layer-norm`` (nothing after either); None is
            :attr:`usual`.
        dropout: share dropped by ``paper``: 0.5 in the VGG variant, 0.3 in the ResNet variant.

    Raises:
        ModelError: an unknown ``normalise``, or no tap.
    """

    usual = "batch-norm"

    def __init__(
        self, channels: Mapping[str, int], num_classes: int, normalise: str | None = None, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if not channels:
            raise ModelError("A head needs at least one tap; name one.")
        normalise = checked_choice("normalise", normalise or self.usual, NORMALISES)
        self.taps = tuple(channels)
        # A list, since a tap's name may hold a dot ("layer4.1"), which no module name may.
        self.norms = nn.ModuleList(_norm(width, normalise, dropout) for width in channels.values())
        self.build(tuple(channels.values()), num_classes)

    def build(self, widths: tuple[int, ...], num_classes: int) -> None:
        """Add the layers behind the normalisations: one linear layer on all vectors side by side."""
        self.linear = nn.Linear(sum(widths), num_classes)

    def normalised(self, readouts: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the vectors (B, C) in order of the taps, each normalised."""
        return [norm(readouts[tap]) for tap, norm in zip(self.taps, self.norms, strict=True)]


class ConcatHead(ReadoutHead):
    """Concat: one linear layer on all vectors side by side."""

    def forward(self, readouts: Mapping[str, Tensor]) -> Tensor:
        """Map tap name -> (B, C) to logits (B, K)."""
        logits: Tensor = self.linear(torch.cat(self.normalised(readouts), dim=1))
        return logits


class IndepHead(ReadoutHead):
    """Indep: one linear layer per tap, and the mean of their class probabilities.

    The sources read "indep" in three ways: the mean probability (the paper's text), the sum of log-probabilities, the
    sum of logits (the published code, at two and three levels). This is the first. The logits returned are the log of
    the mean probability, so that their softmax is the mean probability and cross-entropy on them is its negative
    log-likelihood.
    """

    def build(self, widths: tuple[int, ...], num_classes: int) -> None:
        """Add one linear layer per tap."""
        self.linears = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)

    def forward(self, readouts: Mapping[str, Tensor]) -> Tensor:
        """Map tap name -> (B, C) to log-probabilities (B, K), at least float32."""
        logits = [linear(vector) for linear, vector in zip(self.linears, self.normalised(readouts), strict=True)]
        precise = torch.promote_types(logits[0].dtype, torch.float32)
        by_tap = torch.stack(logits).to(precise).log_softmax(2)
        return by_tap.logsumexp(0) - math.log(len(logits))


class ResidualHead(ReadoutHead):
    """For networks that are already trained: their own logits, plus a linear layer that starts at zero.

    Before the first step the logits are the network's own to the last bit. Layer norm is the default since such
    networks are often trained on a few images at a time.
    """

    usual = "layer-norm"

    def build(self, widths: tuple[int, ...], num_classes: int) -> None:
        """Add the linear layer of zeros."""
        super().build(widths, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, readouts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        """Map tap name -> (B, C) and the network's own logits (B, K) to logits (B, K)."""
        branch: Tensor = self.linear(torch.cat(self.normalised(readouts), dim=1))
        return base + branch


def _norm(channels: int, normalise: str, dropout: float) -> nn.Module:
    if normalise == "paper":
        return nn.Sequential(nn.BatchNorm1d(channels), nn.ReLU(), nn.Dropout(dropout))
    return nn.LayerNorm(channels) if normalise == "layer-norm" else nn.BatchNorm1d(channels)


HEADS: dict[str, type[ReadoutHead]] = {"concat": ConcatHead, "indep": IndepHead, "residual": ResidualHead}

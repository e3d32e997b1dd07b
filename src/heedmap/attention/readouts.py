"""Readouts: local features and a query in, one vector and the map behind it out.

"Learn To Pay Attention" (Jetley, Lord, Lee, Torr, ICLR 2018, arXiv 1804.02391). With l_i the local features of a tap
at position i of N, and g the query (the global feature of the image), a score c_i measures their compatibility:

    parametrised   c_i = <u, l_i + g>             one learned u per tap
    dot            c_i = <l_i, g>
    additive       c_i = <v, tanh(W l_i + U g)>   not in the paper; the query-aware sibling of parametrised

    softmax        a_i = exp(c_i) / sum_j exp(c_j)     vector = sum_i a_i l_i
    sigmoid        a_i = 1 / (1 + exp(-c_i))           vector = sum_i a_i l_i / N

Softmax weights sum to one over positions. Sigmoid weights are gates in (0, 1); dividing by N keeps the vector on the
scale of a local feature at any image size. Two choices that the sources leave open:

*Which side is projected where C and D differ.* ``project="query"`` brings g down to l and leaves l alone, as the
published weights do. ``project="features"`` brings l up to g and sums the lifted l. The lifted map is never built:
<s, P l_i> = <P^T s, l_i> and sum_i a_i P l_i = P sum_i a_i l_i save 134 million multiplications per image in the
paper's net.

*Parametrised softmax does not use the query.* <u, l_i + g> = <u, l_i> + <u, g>, and the second term is the same
at every position, so the softmax cancels it; it is left out, and ``uses_query`` is False. A bias of u cancels likewise.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from heedmap.attention.base import Attended, AttentionOptions, Readout, TapFeatures, at_least_float32
from heedmap.errors import ModelError, checked_choice

SCORES = ("parametrised", "dot", "additive")
WEIGHTS = ("softmax", "sigmoid")
PROJECTS = ("query", "features")


class MeanReadout(Readout):
    """The baseline without attention ("matched control"): every position weighs 1 / N, and nothing is learned."""

    name = "none"
    is_constant = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, features: Tensor, query: Tensor | None = None) -> Attended:
        """Average over positions; see :meth:`Readout.forward`."""
        batch, _, height, width = features.shape
        precise = at_least_float32(features.dtype)
        attention = features.new_full((batch, 1, height, width), 1 / (height * width), dtype=precise)
        # A product as attention's: the gradient of mean() has another layout than channels_last features, which cost
        # the paper's VGG 8 % of a training step. Ones, since 1 / N is not exact in bfloat16.
        summed = torch.bmm(features.new_ones(batch, 1, height * width), features.flatten(2).transpose(1, 2))[:, 0]
        return Attended(summed.to(precise) / (height * width), attention)


class CompatibilityReadout(Readout):
    """Attention by the compatibility of each local feature with a query; see the module's text for the equations.

    Every score starts at zero (u, v and the dot's query map do), so the first map is uniform and the network starts as
    its baseline without attention; their gradient is not zero there. The published code draws u from N(0, 1.4), which
    makes the first maps nearly one-hot. The dot has a query map also where C equals D, and its score is divided by the
    root of the width, as every score under a sigmoid is: these only change how fast the score learns. A part common to
    all positions cancels in a softmax, but shuts gates: without the division all shut on the digit scenes
    (experiments/LOG.md).

    ``paper=True`` is the published form: on the query, where C and D differ, BN-ReLU-Dropout(0.5) and Linear(D, C) for
    ``project="query"``; where they agree, nothing; the dot is the plain <l_i, g>; u has a bias, and P of
    ``project="features"`` has one. What is inert under softmax (u's bias, and the query's projection of a parametrised
    score) is there for the parameter count, frozen and never run.

    Args:
        channels, query_channels: C of the features and D of the query.
        score, weights: one of :data:`SCORES` and of :data:`WEIGHTS`.
        project: ``query`` or ``features``, the side that is projected. The additive score projects both itself.
        paper: take the published form rather than ours.
        rescale: divide the features by their root mean square over the image before they are scored, and a dot product
            by the root of the width. For backbones of any feature scale: at ten instead of one, a few steps of the
            optimiser narrow the map to one point (experiments/LOG.md).

    Raises:
        ModelError: an unknown word, or ``project="features"`` with the additive score.
    """

    def __init__(
        self,
        channels: int,
        query_channels: int,
        score: str = "parametrised",
        weights: str = "softmax",
        project: str = "query",
        *,
        paper: bool = False,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        self.name = self.score = checked_choice("score", score, SCORES)
        self.weights, self.is_share = checked_choice("weights", weights, WEIGHTS), weights == "softmax"
        checked_choice("project", project, PROJECTS)
        if score == "additive" and project == "features":
            raise ModelError("The additive score projects features and query itself; leave project at 'query'.")
        self.rescale = rescale
        self.channels = channels if project == "query" else query_channels
        self.uses_query = score != "parametrised" or weights == "sigmoid"
        self.scale = self.channels**-0.5 if (score == "dot" or weights == "sigmoid") and not paper else 1.0
        self.projection = nn.Linear(channels, self.channels, bias=paper) if self.channels != channels else None
        self.query_map = self._query_map(query_channels, paper)
        self.scorer: nn.Linear | None = None
        self.feature_map = nn.Linear(channels, channels, bias=False) if score == "additive" else None
        if score != "dot":
            self.scorer = nn.Linear(self.channels, 1, bias=paper or weights == "sigmoid")
            nn.init.zeros_(self.scorer.weight)
            if self.scorer.bias is not None:
                nn.init.zeros_(self.scorer.bias).requires_grad_(weights == "sigmoid")

    def _query_map(self, query_channels: int, paper: bool) -> nn.Module | None:
        """The query's projection before the score; None where ours would be inert."""
        if self.score == "additive":
            return nn.Linear(query_channels, self.channels)
        same = query_channels == self.channels
        if paper:  # as in the published code: normalised where a level's size differs from g's
            is_level = self.projection is not None or not same
            normalised = [nn.BatchNorm1d(query_channels), nn.ReLU(), nn.Dropout(0.5)] if is_level else []
            linear = [] if same or self.projection is not None else [nn.Linear(query_channels, self.channels)]
            return nn.Sequential(*normalised, *linear).requires_grad_(self.uses_query)
        if not self.uses_query:
            return None
        if same and self.score != "dot":
            return nn.Identity()
        linear_map = nn.Linear(query_channels, self.channels, bias=False)
        if self.score == "dot":
            nn.init.zeros_(linear_map.weight)
        return linear_map

    def forward(self, features: Tensor, query: Tensor | None = None) -> Attended:
        """Attend; see :meth:`Readout.forward`. A ModelError where the score needs a query and there is none."""
        batch, _, height, width = features.shape
        flat, mapped = features.flatten(2), None
        if self.uses_query:
            if query is None or self.query_map is None:
                raise ModelError(f"The {self.score} score with {self.weights} weights needs a query; pass one.")
            mapped = self.query_map(query).expand(batch, -1)
        scores = self._scores(flat, mapped)
        scores = scores.to(at_least_float32(scores.dtype))  # a softmax in bfloat16 does not sum to one
        attention = scores.softmax(1) if self.weights == "softmax" else scores.sigmoid()
        used = attention if self.weights == "softmax" else attention / attention.shape[1]
        # Weights first: with channels_last features this order reads memory in a row, and is 4 x faster on a CPU.
        vector = torch.bmm(used.to(flat.dtype)[:, None], flat.transpose(1, 2))[:, 0].to(attention.dtype)
        return Attended(self._lifted(vector, used), attention.view(batch, 1, height, width))

    def _scores(self, flat: Tensor, query: Tensor | None) -> Tensor:
        """(B, N) scores of the features (B, C, N), with the mapped query (B, channels) where it is used."""
        if self.feature_map is not None and self.scorer is not None and query is not None:
            hidden = functional.linear(flat.transpose(1, 2), self.feature_map.weight)
            if self.rescale:
                hidden = (hidden / rms(flat)[:, :, None]).to(hidden.dtype)
            hidden += query[:, None]  # in place: each copy of it is as large as the features
            return self._scored(hidden.tanh_())[:, :, 0]
        if self.scorer is None:
            assert query is not None  # a dot always uses the query
            return self._compared(flat, query * self.scale)
        scores = self._compared(flat, self.scorer.weight * self.scale)
        return scores if query is None else scores + self._scored(query)

    def _scored(self, vectors: Tensor) -> Tensor:
        """(..., 1) scores of vectors (..., channels)."""
        assert self.scorer is not None
        return functional.linear(vectors, self.scorer.weight * self.scale, self.scorer.bias)

    def _compared(self, flat: Tensor, direction: Tensor) -> Tensor:
        """(B, N) dot products of the (lifted) features with a direction: (1, channels) for all, or (B, channels)."""
        offset = None
        if self.projection is not None:
            offset = None if self.projection.bias is None else direction @ self.projection.bias
            direction = direction @ self.projection.weight
        if self.scorer is not None:
            # One product for the whole batch: its gradient has the layout of channels_last features. That of a product
            # an image has not, and was 1.4 % of a training step of the paper's VGG.
            scores = functional.linear(flat.transpose(1, 2), direction.to(flat.dtype))[:, :, 0]
            if self.rescale:  # under a sigmoid the root of the width is in the direction
                scores = scores / (rms(flat) * (1.0 if self.weights == "sigmoid" else flat.shape[1] ** 0.5))
        else:
            direction = direction / (rms(flat) * flat.shape[1] ** 0.5) if self.rescale else direction
            scores = torch.bmm(direction.to(flat.dtype)[:, None], flat)[:, 0]
        return scores if offset is None else scores + offset[:, None]

    def _lifted(self, vector: Tensor, used: Tensor) -> Tensor:
        """The weighted sum of the lifted features, from the weighted sum of the features themselves."""
        if self.projection is None:
            return vector
        lifted, bias = functional.linear(vector, self.projection.weight), self.projection.bias
        return (lifted if bias is None else lifted + used.sum(1, keepdim=True) * bias).to(used.dtype)


def rms(flat: Tensor) -> Tensor:
    """Root mean square (B, 1) of features (B, C, N) over channels and positions, at least float32."""
    precise = flat.to(at_least_float32(flat.dtype))
    return precise.square().mean((1, 2)).sqrt().clamp_min(1e-6)[:, None]


@dataclass(frozen=True)
class Parametrised(AttentionOptions):
    """Score <u, l + g> with a learned u (Learn to Pay Attention, pc)."""

    name: ClassVar[str] = "parametrised"

    def build(self, tap: TapFeatures) -> Readout:
        """See :class:`AttentionOptions`; so for the others."""
        assert self.weights is not None  # set when made
        widths, form = (tap.channels, tap.query_channels), {"paper": tap.paper, "rescale": tap.rescale}
        return CompatibilityReadout(*widths, self.name, self.weights, tap.project, **form)


@dataclass(frozen=True)
class Dot(Parametrised):
    """Score <l, g>: how well a place agrees with the whole image (Learn to Pay Attention, dp)."""

    name: ClassVar[str] = "dot"


@dataclass(frozen=True)
class Additive(Parametrised):
    """Score <v, tanh(W l + U g)>: learned, and aware of the query under softmax too."""

    name: ClassVar[str] = "additive"


@dataclass(frozen=True)
class NoAttention(AttentionOptions):
    """No attention: the same taps averaged, the matched control."""

    name: ClassVar[str] = "none"
    KINDS_OF_WEIGHTS: ClassVar[tuple[str, ...]] = ("softmax",)

    def build(self, tap: TapFeatures) -> Readout:
        """Build the average over positions."""
        return MeanReadout(tap.channels)

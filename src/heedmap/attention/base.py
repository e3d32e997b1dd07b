"""The contracts of attention: a readout returns a vector, a gate returns features; both return the map they used."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from heedmap.errors import ModelError


class Attended(NamedTuple):
    """The output of a readout or gate.

    Attributes:
        features: the readout's vector (B, C), or the gated features (B, C, H, W).
        attention: the weights that were used, float32 also under autocast: (B, 1, H, W) for a readout; for a gate the
            factor, (B, C, H, W), (B, 1, H, W) or (B, C, 1, 1).
        shown: further maps (B, 1, H, W) by name, for :attr:`heedmap.types.Output.features`.
    """

    features: Tensor
    attention: Tensor
    shown: dict[str, Tensor] = {}  # noqa: RUF012  a default that nothing changes


class Readout(nn.Module):
    """Base of all readouts: local features and a query in, one vector out; read after the loop over stages.

    Attributes:
        name, weights: how legends name it: its name in the registry, and ``softmax`` or ``sigmoid``.
        channels: width of the vector that :meth:`forward` returns.
        uses_query: the map depends on the query; where it does not, the query may be None and is ignored.
        is_constant: the map depends on nothing, so that there is nothing to learn or to watch.
        takes_any_size: it takes features of another size than it was built for.
        is_share: the weights are shares, which sum to one over positions; else they are gates.
    """

    name: str = "custom"
    weights: str = "softmax"
    channels: int
    uses_query: bool = False
    is_constant: bool = False
    takes_any_size: bool = True
    is_share: bool = True

    def forward(self, features: Tensor, query: Tensor | None = None) -> Attended:
        """Return the vector (B, channels) of the local features (B, C, H, W), and the weights used (B, 1, H, W).

        The query is (B, D) global features, or (1, D) to attend to every image with the same one.
        """
        raise NotImplementedError


class Gate(nn.Module):
    """Base of all gates: features in, gated features of the same shape out; may stand inside the loop over stages."""

    def forward(self, features: Tensor) -> Attended:
        """Return the gated features (B, C, H, W) and the factor, which broadcasts to them."""
        raise NotImplementedError


@dataclass(frozen=True)
class TapFeatures:
    """What an attention is built for.

    Attributes:
        channels, height, width: of the tapped features; only attentions bound to a size need height and width.
        query_channels: width D of the query.
        rescale, paper, project: see :class:`heedmap.attention.readouts.CompatibilityReadout`; the first for features of
            a scale that heedmap did not choose, the others for the networks of "Learn To Pay Attention".
    """

    channels: int
    query_channels: int
    height: int = 1
    width: int = 1
    rescale: bool = False
    paper: bool = False
    project: str = "query"


@dataclass(frozen=True)
class AttentionOptions:
    """Base of the registry's classes: the options of one attention, checked when made, and how it is built.

    The first line of a subclass's docstring is its sentence in ``heedmap list``. ``weights`` is what the scores become,
    among :attr:`KINDS_OF_WEIGHTS`; None takes the first.
    """

    weights: str | None = None

    name: ClassVar[str]
    KINDS_OF_WEIGHTS: ClassVar[tuple[str, ...]] = ("softmax", "sigmoid")
    LAST_TAP_ONLY: ClassVar[bool] = False  # where no taps are named
    HAS_PAPER_FORM: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, "weights", self.KINDS_OF_WEIGHTS[0])
        if self.weights not in self.KINDS_OF_WEIGHTS:
            known = ", ".join(self.KINDS_OF_WEIGHTS)
            raise ModelError(f"Attention {self.name!r} has no weights {self.weights!r}; it can be {known}.")

    @classmethod
    def sentence(cls) -> str:
        """Return what the attention does, in one line."""
        return (cls.__doc__ or "").splitlines()[0].rstrip(".")

    def build(self, tap: TapFeatures) -> Readout:
        """Build the readout for one tap, or raise a ModelError where it cannot be built for such features."""
        raise NotImplementedError


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return ``dtype``, or float32 where that is more precise."""
    return torch.promote_types(dtype, torch.float32)

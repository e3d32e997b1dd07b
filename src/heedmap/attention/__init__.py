"""Attention: modules that take features and give back what they made of them, with the very map that they used.

Two kinds, not forced through one meaning. A *readout* turns features (and a query) into a vector; its map is
(B, 1, H, W). A *gate* multiplies the features; its map is the factor, (B, C, H, W). Both return
:class:`heedmap.types.Attended`. :data:`ATTENTIONS` lists all that the command line knows by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from heedmap.attention.feature_gate import FeatureAttention
from heedmap.attention.readouts import SCORES, WEIGHTS, CompatibilityReadout, MeanReadout, Readout
from heedmap.errors import ModelError, nearest

__all__ = [
    "ATTENTIONS",
    "SCORES",
    "WEIGHTS",
    "AttentionKind",
    "CompatibilityReadout",
    "FeatureAttention",
    "MeanReadout",
    "Readout",
    "attention_kind",
    "build_attention",
    "check_attention_weights",
]


@dataclass(frozen=True)
class AttentionKind:
    """One line of the table of attentions.

    Attributes:
        sentence: what it does, for ``heedmap list``.
        is_gate: it multiplies the features (one map a channel) rather than reading them into a vector.
        weights: the weights it can make of its scores; the first is the default.
    """

    sentence: str
    is_gate: bool = False
    weights: tuple[str, ...] = WEIGHTS


# The original of soft feature attention has the sigmoid.
GATE_WEIGHTS = ("sigmoid", "softmax")

ATTENTIONS: dict[str, AttentionKind] = {
    "parametrised": AttentionKind("score <u, l + g> with a learned u (Learn to Pay Attention, pc)"),
    "dot": AttentionKind("score <l, g>: how well a place agrees with the whole image (Learn to Pay Attention, dp)"),
    "additive": AttentionKind("score <v, tanh(W l + U g)>: learned, and aware of the query under softmax too"),
    "feature": AttentionKind(
        "soft feature attention: a gate on every feature, scored by a 1x1 convolution", True, GATE_WEIGHTS
    ),
    "feature-dense": AttentionKind(
        "soft feature attention as published: a full matrix over all features", True, GATE_WEIGHTS
    ),
    "none": AttentionKind("no attention: the same taps averaged, the matched control", weights=("softmax",)),
}


def attention_kind(name: str) -> AttentionKind:
    """Return the table's line for ``name``.

    Raises:
        ModelError: there is none; the message lists those that exist.
    """
    if name not in ATTENTIONS:
        raise ModelError(f"Unknown attention {name!r}; it can be {', '.join(ATTENTIONS)}.{nearest(name, ATTENTIONS)}")
    return ATTENTIONS[name]


def check_attention_weights(name: str, weights: str | None) -> None:
    """Check that the attention can make such weights of its scores; None is its default.

    Raises:
        ModelError: an unknown name, or weights that this attention does not have.
    """
    known = attention_kind(name).weights
    if weights is not None and weights not in known:
        raise ModelError(f"Attention {name!r} has no weights {weights!r}; it can be {', '.join(known)}.")


def build_attention(
    name: str,
    channels: int,
    query_channels: int,
    *,
    height: int = 1,
    width: int = 1,
    weights: str | None = None,
    level: bool = False,
) -> Readout | FeatureAttention:
    """Build the attention of that name for one tap.

    Args:
        name: a key of :data:`ATTENTIONS`.
        channels: C of the tapped features.
        query_channels: D of the query.
        height: H of the tapped features; only ``feature-dense`` is bound to the size.
        width: W of the tapped features.
        weights: ``softmax`` or ``sigmoid``; None takes the default of that attention.
        level: see :class:`CompatibilityReadout`; for features on a scale that heedmap did not choose.

    Raises:
        ModelError: an unknown name, weights that this attention does not have, or a dense matrix that does not fit.
    """
    check_attention_weights(name, weights)
    weights = weights or attention_kind(name).weights[0]
    if name == "none":
        return MeanReadout(channels)
    if name in ("feature", "feature-dense"):
        return FeatureAttention(channels, height, width, "conv" if name == "feature" else "dense", weights)
    return CompatibilityReadout(channels, query_channels, score=name, weights=weights, level=level)

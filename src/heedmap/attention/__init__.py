"""Attention: modules that take features and return what they made of them, with the map that they used.

:mod:`~heedmap.attention.base` holds the two contracts, readout and gate. :data:`ATTENTIONS` lists the readouts that
the command line knows by name; another one is a class of :class:`AttentionOptions`, and a line there.
"""

from heedmap.attention.base import Attended, AttentionOptions, Gate, Readout, TapFeatures
from heedmap.attention.feature_gate import Feature, FeatureAttention, FeatureDense, GatedMean
from heedmap.attention.readouts import Additive, CompatibilityReadout, Dot, MeanReadout, NoAttention, Parametrised
from heedmap.errors import checked_choice

__all__ = [
    "ATTENTIONS",
    "Attended",
    "AttentionOptions",
    "CompatibilityReadout",
    "FeatureAttention",
    "Gate",
    "GatedMean",
    "MeanReadout",
    "Readout",
    "TapFeatures",
    "attention_options",
]

ATTENTIONS: dict[str, type[AttentionOptions]] = {
    options.name: options for options in (Parametrised, Dot, Additive, Feature, FeatureDense, NoAttention)
}


def attention_options(name: str, weights: str | None = None) -> AttentionOptions:
    """Return the options of an attention; a ModelError for an unknown name, or for weights that it does not have."""
    return ATTENTIONS[checked_choice("attention", name, ATTENTIONS)](weights)

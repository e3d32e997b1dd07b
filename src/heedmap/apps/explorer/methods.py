"""The map methods that the page offers: learned attention by tap, and all that :mod:`heedmap.attribution` computes."""

from __future__ import annotations

from torch import Tensor

from heedmap.attribution import METHODS, explain
from heedmap.inference.prediction import Prediction
from heedmap.models.classifier import AttentionClassifier
from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import scale_of

LEARNED = "attention"


def method_facts() -> list[dict[str, str]]:
    """Return what the page needs to know of each method; learned attention comes first."""
    ordered = [LEARNED, *(key for key in METHODS if key != LEARNED)]
    return [
        {"key": key, "sentence": METHODS[key].sentence, "cost": METHODS[key].cost, "warning": METHODS[key].warning}
        for key in ordered
    ]


def compute_map(
    classifier: AttentionClassifier, images: Tensor, method: str, target: int | None
) -> tuple[Prediction, str]:
    """Compute a map of one class after the prediction, with a sentence about it.

    Args:
        classifier: in eval mode.
        images: (1, 3, S, S) in [0, 1].
        method: a key of the registry, not ``attention``.
        target: the class to explain; None takes the predicted one.

    Raises:
        OptionError: there is no such method.
        ModelError: this method cannot explain this classifier.
    """
    result = explain(classifier, images, method, target)
    explained, values = int(result.targets[0, 0]), result.values[0, 0].cpu()
    low, high = scale_of(values)
    drawn = AttentionMap(values, method, method, low, high, explained)
    layer = f" (layer {result.layer})" if result.layer else ""
    signed = " Values below zero speak against the class." if result.signed else ""
    warning = f" {METHODS[method].warning}" if METHODS[method].warning else ""
    note = f"{method} for {classifier.classes[explained]}{layer}: {METHODS[method].sentence}.{signed}{warning}"
    return Prediction(result.logits[0].softmax(0).cpu().numpy(), {method: drawn}, {}), note

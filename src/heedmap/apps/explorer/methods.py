"""The map methods that the page offers: learned attention by tap, and all that :mod:`heedmap.attribution` computes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from heedmap.attribution import METHODS, explain
from heedmap.errors import OptionError, nearest
from heedmap.models.classifier import AttentionClassifier
from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import scale_of
from heedmap.workflows.visualize import Prediction

LEARNED = "attention"


def method_facts() -> list[dict[str, Any]]:
    """What the page has to know of each method; learned attention comes first."""
    ordered = [LEARNED, *(key for key in METHODS if key != LEARNED)]
    return [
        {"key": key, "sentence": METHODS[key].sentence, "cost": METHODS[key].cost, "warning": METHODS[key].warning}
        for key in ordered
    ]


def check_method(name: str) -> None:
    """Check that there is such a method.

    Raises:
        OptionError: there is none; the message lists those that exist.
    """
    if name not in METHODS:
        raise OptionError(f"No map method {name!r}; it can be {', '.join(METHODS)}.{nearest(name, METHODS)}")


def computed(
    classifier: AttentionClassifier, images: Tensor, method: str, target: int | None
) -> tuple[Prediction, str]:
    """A map that is computed afterwards, for one class, with a sentence about it.

    Args:
        classifier: in eval mode.
        images: (1, 3, S, S) in [0, 1].
        method: a key of the table, not ``attention``.
        target: the class asked about; None takes the predicted one.

    Raises:
        ModelError: this method cannot explain this classifier.
    """
    found = explain(classifier, images, method, target)
    asked, values = int(found.targets[0, 0]), found.values[0, 0].cpu()
    low, high = scale_of(values)
    drawn = AttentionMap(values, method, method, low, high, asked, "attribution")
    layer = f" (layer {found.layer})" if found.layer else ""
    signed = " Values below zero speak against the class." if found.signed else ""
    warning = f" {METHODS[method].warning}" if METHODS[method].warning else ""
    said = f"{method} for {classifier.classes[asked]}{layer}: {METHODS[method].sentence}.{signed}{warning}"
    return Prediction(found.logits[0].softmax(0).cpu().numpy(), {method: drawn}, {}), said

"""Maps computed afterwards, drawn beside those that the classifier learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from heedmap.attribution import METHODS, Explanation, explain, method_of
from heedmap.errors import OptionError
from heedmap.inference.classes import class_index
from heedmap.inference.prediction import Prediction, computed_line, computed_map
from heedmap.models.classifier import AttentionClassifier
from heedmap.types import AttentionMap


@dataclass(frozen=True)
class AttributionOptions:
    """What is to be computed besides.

    Attributes:
        methods: as :func:`heedmap.attribution.method_of` reads them.
        target: the class asked about; None is the one predicted for each image.
        layer: for those methods that read one; None takes the last spatial one.
    """

    methods: tuple[str, ...] = ()
    target: int | None = None
    layer: str | None = None


def check_methods(methods: Sequence[str], target: str | int | None, layer: str | None) -> tuple[str, ...]:
    """Check names before anything is loaded; returns the methods, each once.

    Raises:
        OptionError: an unknown method, ``attention`` itself, or a target or layer that no method would read.
    """
    keys = [method_of(words)[0] for words in methods]
    if "attention" in keys:
        raise OptionError("The learned attention is drawn in any case; leave attention out of the methods.")
    if target is not None and not methods:
        raise OptionError("The learned attention belongs to no class; name a method with the target, such as grad-cam.")
    if layer is not None and not any(METHODS[key].needs_layer for key in keys):
        raise OptionError(f"Layer {layer!r} would change nothing; name a method that reads one, such as grad-cam.")
    return tuple(dict.fromkeys(methods))


def attribution_options(
    classes: Sequence[str], methods: Sequence[str], target: str | int | None = None, layer: str | None = None
) -> AttributionOptions:
    """Turn names into what is asked; ``target`` is the name of a class or its index.

    Raises:
        OptionError: see :func:`check_methods`; or a class that the classifier does not know.
    """
    checked = check_methods(methods, target, layer)
    return AttributionOptions(checked, None if target is None else class_index(classes, target), layer)


def with_computed(
    classifier: AttentionClassifier, images: Tensor, answers: Sequence[Prediction], asked: AttributionOptions
) -> list[Prediction]:
    """Return the answers of a batch with one more map for each method, named as it was asked for."""
    found = {}
    for words in asked.methods:
        key, settings = method_of(words)
        layer = asked.layer if METHODS[key].needs_layer else None
        found[words] = explain(classifier, images, key, asked.target, layer, settings)
    return [
        replace(
            answer,
            maps=answer.maps | {words: _as_map(words, each, row, classifier.classes) for words, each in found.items()},
        )
        for row, answer in enumerate(answers)
    ]


def _as_map(name: str, found: Explanation, row: int, classes: Sequence[str]) -> AttentionMap:
    values, target = found.values[row, 0].cpu(), int(found.targets[row, 0])
    line = METHODS[found.method]
    where = f" at {found.layer}" if found.layer else ""
    whose = f" for {classes[target]}" if line.per_class else ""
    asked = target if line.per_class else None
    return computed_map(
        *(name, values, f"{where}{whose}"), target=asked, has_offset=line.has_offset, is_peaked=line.is_peaked
    )


def computed_lines(answer: Prediction) -> Iterator[str]:
    """One line for each map that was computed: what it is, and what to know of it."""
    for name, drawn in answer.maps.items():
        key = name.partition(":")[0]
        if key in METHODS:
            line = METHODS[key]
            offset = " Drawn from its smallest value." * line.has_offset
            yield computed_line(drawn, line.sentence, line.is_peaked, f"{offset} {line.warning}")

"""Ask an exported file: numpy and onnxruntime, and no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heedmap.errors import OptionError, nearest
from heedmap.inference.classes import class_index
from heedmap.inference.onnx import OnnxClassifier, OnnxOutput
from heedmap.inference.prediction import Prediction, computed_line, computed_map, feature_maps
from heedmap.types import AttentionMap


class OnnxPredictor:
    """An exported file; see :class:`heedmap.inference.predictor.Predictor`. All maps that it holds are given.

    Args:
        classifier: the file.
        target: the class that its maps of gradients are asked about; None is the one predicted for each image.
    """

    query = None

    def __init__(self, classifier: OnnxClassifier, target: int | None = None) -> None:
        self._classifier, self._target = classifier, target
        self._made: dict[str, dict[str, Any]] = classifier.metadata.get("methods", {})
        self.classes, self.image_size = classifier.classes, classifier.image_size
        self.method = f"{classifier.attention_name}, {classifier.attention_weights}"
        self._names = {name: self._made.get(name, {}).get("method", name) for name in classifier.maps}
        self.maps = tuple(self._names.values())

    def __call__(self, images: NDArray[np.uint8]) -> tuple[list[Prediction], None]:
        """Ask the file once; a square of the right size passes its own resizing untouched."""
        channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        found = self._classifier(channels_last, self._target)
        return [self._answer(found, row) for row in range(len(images))], None

    def lines(self, answer: Prediction) -> Iterator[str]:
        """Say of each map that was computed afterwards what it is, in the words that the file brought along."""
        for name, made in self._made.items():
            yield computed_line(answer.maps[self._names[name]], made["sentence"], made["is_peaked"])

    def _answer(self, found: OnnxOutput, row: int) -> Prediction:
        probabilities = found["probabilities"][row]
        predicted = int(probabilities.argmax())
        maps = {self._names[name]: self._map(name, values[row, 0], predicted) for name, values in found["maps"].items()}
        features = feature_maps({name: values[row, 0] for name, values in found["features"].items()})
        return Prediction(probabilities, maps, features)

    def _map(self, name: str, values: NDArray[np.float32], predicted: int) -> AttentionMap:
        if name in (*self._classifier.taps, "combined"):
            high = 1.0 if self._classifier.attention_weights == "sigmoid" else float(values.max())
            return AttentionMap(values, name, self.method, 0.0, high)
        target = predicted if self._target is None else self._target
        made = self._made.get(name, {})
        where = f" at {made['layer']}" if made.get("layer") else ""
        place = f"{where} for {self.classes[target]}"
        return computed_map(self._names[name], values, place, target=target, is_peaked=made.get("is_peaked", False))


def onnx_predictor(
    classifier: OnnxClassifier,
    query: str | Path | None,
    methods: Sequence[str],
    target: str | int | None,
    layer: str | None,
) -> OnnxPredictor:
    """Check what is asked against what the file can answer.

    Raises:
        OptionError: another query or layer, which a file has not inside; a method that it does not hold; a target
            where no map asks for one, or an unknown class.
    """
    if query is not None:
        raise OptionError(f"{classifier.path} attends with each image's own query; name the run for another one.")
    if layer is not None:
        raise OptionError(f"{classifier.path} has its layer inside; name the run for {layer}.")
    predictor = OnnxPredictor(classifier, None if target is None else class_index(classifier.classes, target))
    for name in methods:
        if name not in predictor.maps:
            raise OptionError(
                f"{classifier.path} holds no map {name!r}; it holds {', '.join(predictor.maps)}."
                f"{nearest(name, predictor.maps)} `heedmap export --include` puts grad_cam and saliency inside."
            )
    if target is not None and not classifier.takes_target:
        raise OptionError(f"{classifier.path} holds no maps of a class; export it with --include grad_cam or saliency.")
    return predictor

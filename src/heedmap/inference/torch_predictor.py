"""Predict with a network in torch."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from heedmap.attribution import METHODS, explain, method_of
from heedmap.errors import OptionError
from heedmap.inference.predictor import (
    LEARNED_ONLY,
    Array,
    AttributionOptions,
    MapSource,
    Prediction,
    Predictions,
    class_index,
    learned_source,
)
from heedmap.models.classifier import AttentionClassifier, combined_map
from heedmap.modules import evaluation_mode, home_of
from heedmap.training.precision import resolve
from heedmap.types import Output


class TorchPredictor:
    """A classifier in torch; see :class:`heedmap.inference.predictor.Predictor`.

    It runs in evaluation mode during a call only; its train/eval flags are left as they are.

    Args:
        classifier: moved to ``device``.
        device, precision, channels_last, attributions: see :func:`heedmap.inference.predictor.open_predictor`.
        name: to report.

    Raises:
        OptionError: an unknown method or class, a target or layer that no method would read, or a precision.
    """

    def __init__(
        self,
        classifier: AttentionClassifier,
        device: str | torch.device = "cpu",
        name: str = "",
        attributions: AttributionOptions = LEARNED_ONLY,
        *,
        precision: str = "float32",
        channels_last: bool = False,
    ) -> None:
        self.classes, self.image_size, self.name = tuple(classifier.classes), classifier.image_size, name
        self._methods = checked_methods(attributions)
        self._layer, target = attributions.layer, attributions.target
        self._target = None if target is None else class_index(self.classes, target)
        self.device = torch.device(device)
        self.precision = precision if precision == "float32" else resolve(precision, self.device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.classifier = classifier.to(self.device)
        if channels_last:
            self.classifier.to(memory_format=torch.channels_last)
        self.method = _source(classifier).method
        self.maps = (*classifier.taps, *(("combined",) if len(classifier.taps) > 1 else ()), *self._methods)
        self.query_note = "" if classifier.uses_query else why_no_query(classifier)

    def __call__(self, views: NDArray[np.uint8], query: Array | None = None) -> Predictions:
        """Run once, and once for each method."""
        images = self._images(views)
        with self._running():
            if query is not None:
                vector = torch.from_numpy(query).to(*home_of(self.classifier))
                return predictions_of(self.classifier, self.classifier(images, query=vector))
            predictions = predictions_of(self.classifier, self.classifier(images))
        return self._with_computed(images, predictions) if self._methods else predictions

    def query(self, view: NDArray[np.uint8]) -> Array:
        """Return the global feature of a view as a query (1, D)."""
        if self.query_note:
            raise OptionError(self.query_note)
        with self._running():
            vector: Array = self.classifier.query(self._images(view[None])).float().cpu().numpy()
        return vector

    def fingerprint(self) -> str:
        """Return a digest of the weights."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.classifier.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @contextmanager
    def _running(self) -> Iterator[None]:
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with evaluation_mode(self.classifier), torch.inference_mode(), autocast:
            yield

    def _images(self, views: NDArray[np.uint8]) -> torch.Tensor:
        return (torch.from_numpy(views).to(self.device).float() / 255).contiguous(memory_format=self._format)

    def _with_computed(self, images: torch.Tensor, predictions: Predictions) -> Predictions:
        maps, targets, sources = dict(predictions.maps), {}, dict(predictions.sources)
        for words in self._methods:
            key, settings = method_of(words)
            method = METHODS[key]
            layer = self._layer if method.needs_layer else None
            explanation = explain(self.classifier, images, key, self._target, layer, settings)
            maps[words] = explanation.values[:, 0].cpu().numpy()
            targets[words] = explanation.targets[:, 0].cpu().numpy()
            fields = ("sentence", "warning", "per_class", "has_offset", "is_peaked")
            sources[words] = MapSource(
                f"{words} at {explanation.layer}" if explanation.layer else words,
                **{field: getattr(method, field) for field in fields},
            )
        return replace(predictions, maps=maps, targets=targets, sources=sources)


def checked_methods(attributions: AttributionOptions) -> tuple[str, ...]:
    """Check names before anything is loaded; return the methods, each once.

    Raises:
        OptionError: an unknown method, ``attention`` itself, or a target or layer that no method would read.
    """
    methods, target, layer = attributions.methods, attributions.target, attributions.layer
    keys = [method_of(words)[0] for words in methods]
    if "attention" in keys:
        raise OptionError("The learned attention is drawn in any case; leave attention out of the methods.")
    if target is not None and not methods:
        raise OptionError("The learned attention belongs to no class; name a method with the target, such as grad-cam.")
    if layer is not None and not any(METHODS[key].needs_layer for key in keys):
        raise OptionError(f"Layer {layer!r} would change nothing; name a method that reads one, such as grad-cam.")
    return tuple(dict.fromkeys(methods))


def predictions_of(classifier: AttentionClassifier, output: Output) -> Predictions:
    """Return a batch's output as arrays on the CPU."""
    attention = dict(output.attention)
    if len(attention) > 1:
        attention["combined"] = combined_map(output.attention, output.shares)
    return Predictions(
        tuple(classifier.classes),
        _array(output.logits),
        _array(output.logits.softmax(1)),
        {name: _array(values[:, 0]) for name, values in attention.items()},
        {name: _array(values[:, 0]) for name, values in output.features.items()},
        dict.fromkeys(attention, _source(classifier)),
    )


def prediction_of(classifier: AttentionClassifier, output: Output, row: int) -> Prediction:
    """Return the prediction for one image of a batch."""
    return predictions_of(classifier, output)[row]


def _array(values: torch.Tensor) -> Array:
    array: Array = values.detach().float().cpu().numpy()
    return array


def _source(classifier: AttentionClassifier) -> MapSource:
    return learned_source(classifier.attention_name, classifier.attention_weights)


def why_no_query(classifier: AttentionClassifier) -> str:
    """Explain why no query can change the map of a classifier that does not use one."""
    reason = f"attention '{classifier.attention_name}' uses no query."
    if classifier.attention_name == "parametrised":
        reason = (
            "in the parametrised score <u, l + g> it adds the same number <u, g> at every position, and the softmax "
            "over positions cancels it."
        )
    return f"The query cannot change this map: {reason}"

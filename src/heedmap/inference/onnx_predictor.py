"""Predict with an exported file: numpy and onnxruntime, and no torch."""

import hashlib
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from heedmap.errors import OptionError, nearest
from heedmap.inference.classes import class_index
from heedmap.inference.onnx import OnnxClassifier
from heedmap.inference.predictor import Array, AttributionOptions, MapSource, Predictions

_NONE = AttributionOptions()


class OnnxPredictor:
    """An exported file; see :class:`heedmap.inference.predictor.Predictor`. All maps that it holds are given.

    Args:
        classifier: the file.
        attributions: ``target`` is the class that its gradient maps explain; ``methods`` must be in the file.

    Raises:
        OptionError: a layer, for the file has its own inside; a method that it does not hold; a target where no map
            takes one, or an unknown class.
    """

    def __init__(self, classifier: OnnxClassifier, attributions: AttributionOptions = _NONE) -> None:
        self._classifier, path = classifier, classifier.path
        computed: dict[str, dict[str, Any]] = classifier.metadata.get("methods", {})
        self.name, self.classes, self.image_size = path.name, classifier.classes, classifier.image_size
        self.method = f"{classifier.attention_name}, {classifier.attention_weights}"
        self.query_note = ""
        self._names = {name: computed.get(name, {}).get("method", name) for name in classifier.maps}
        self.maps, self.precision = tuple(self._names.values()), "float32"
        learned = MapSource(self.method, 1.0 if classifier.attention_weights == "sigmoid" else None)
        self._sources = {
            name: _source(name, computed[key]) if key in computed else learned for key, name in self._names.items()
        }
        if attributions.layer is not None:
            raise OptionError(f"{path} has its layer inside; name the run for {attributions.layer}.")
        target = attributions.target
        self._target = None if target is None else class_index(self.classes, target)
        for name in attributions.methods:
            if name not in self.maps:
                raise OptionError(
                    f"{path} holds no map {name!r}; it holds {', '.join(self.maps)}.{nearest(name, self.maps)} "
                    "`heedmap export --include` puts grad_cam and saliency inside."
                )
        if target is not None and not classifier.takes_target:
            raise OptionError(f"{path} holds no maps of a class; export it with --include grad_cam or saliency.")

    def __call__(self, views: NDArray[np.uint8], query: Array | None = None) -> Predictions:
        """Run the file once; a square of the right size passes its own resizing untouched."""
        if query is not None:
            self.query(views[0])
        output = self._classifier(np.ascontiguousarray(views.transpose(0, 2, 3, 1)), self._target)
        probabilities = output["probabilities"]
        predicted = probabilities.argmax(1) if self._target is None else np.full(len(views), self._target)
        return Predictions(
            self.classes,
            output["logits"],
            probabilities,
            {self._names[name]: values[:, 0] for name, values in output["maps"].items()},
            {name: values[:, 0] for name, values in output["features"].items()},
            self._sources,
            {name: predicted for name, source in self._sources.items() if source.sentence},
        )

    def query(self, view: NDArray[np.uint8]) -> NoReturn:
        """Refuse: the file has its query inside.

        Raises:
            OptionError: always.
        """
        raise OptionError(f"{self._classifier.path} attends with each image's own query; name the run for another one.")

    def fingerprint(self) -> str:
        """Return a digest of the file."""
        with self._classifier.path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _source(name: str, computed: dict[str, Any]) -> MapSource:
    """How a map inside the file was made, in the words that the export wrote into it."""
    method = f"{name} at {computed['layer']}" if computed.get("layer") else name
    return MapSource(method, sentence=computed["sentence"], per_class=True, is_peaked=computed["is_peaked"])

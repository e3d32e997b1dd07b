"""Run a file that ``heedmap export --to onnx`` wrote, by onnxruntime and numpy: no torch is imported.

Class names, image size, and which outputs are maps and of what kind are read from the file. Resizing and
normalisation are inside the graph, so an image goes in as it was decoded.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import numpy as np
from numpy.typing import NDArray

from heedmap.errors import ModelError, OptionError, nearest
from heedmap.files import what_file
from heedmap.inference.predictor import (
    LEARNED_ONLY,
    Array,
    AttributionOptions,
    MapSource,
    Predictions,
    class_index,
    learned_source,
)

KEY = "heedmap"
"""Under this name the file's metadata hold one JSON object; ``heedmap.export`` writes it."""

SCHEMA = 1
MAP, FEATURES = "map_", "features_"


class OnnxOutput(TypedDict):
    """The model's outputs for B images, all float32.

    Attributes:
        logits, probabilities: (B, K); each row of the latter sums to one.
        maps: tap -> (B, 1, h, w), then ``combined`` where there are several taps; ``grad_cam`` and ``saliency`` where
            the file was exported with them.
        features: ``before`` and ``after`` the gate, (B, 1, h, w); empty but for soft feature attention.
    """

    logits: Array
    probabilities: Array
    maps: dict[str, Array]
    features: dict[str, Array]


class OnnxClassifier:
    """A classifier in an ONNX file; it may be called from several threads.

    Args:
        path: a file that ``heedmap export`` wrote.
        threads: that the network computes with; None takes one for each core.

    Attributes:
        classes: class names; a column of the logits is a place in this tuple.
        image_size: side in pixels of the square that the network sees.
        taps: where attention was read, in the order of the maps.
        attention_name, attention_weights: as in :class:`heedmap.models.classifier.AttentionClassifier`, for legends.
        maps: names of all maps that the file gives, attention first.
        takes_target: whether it has maps of a target class (``grad_cam`` and ``saliency``).
        metadata: all that is stored about the model, the parity with torch included.

    Raises:
        ModelError: onnxruntime is missing, or the file is missing, damaged, no export of heedmap, or from a newer one.
    """

    uses_query = False

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        self.session = _session(self.path, threads)
        self.metadata = _metadata(self.session, self.path)
        self.classes: tuple[str, ...] = tuple(self.metadata["classes"])
        self.image_size: int = self.metadata["image_size"]
        self.taps: tuple[str, ...] = tuple(self.metadata["taps"])
        self.attention_name: str = self.metadata["attention"]
        self.attention_weights: str = self.metadata["attention_weights"]
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.maps = tuple(name.removeprefix(MAP) for name in self._outputs if name.startswith(MAP))
        self.takes_target = "target" in {node.name for node in self.session.get_inputs()}

    def __call__(self, images: NDArray[np.uint8], target: int | Sequence[int] | None = None) -> OnnxOutput:
        """Run the model on images of one size.

        Args:
            images: uint8 RGB (B, H, W, 3), upright; the centred square is taken, and resized to ``image_size``.
            target: the class, or one for each image, that ``grad_cam`` and ``saliency`` explain; None takes the
                predicted ones.

        Raises:
            ModelError: an array of another form, a class that does not exist, or a target where no map takes one.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise ModelError(f"Images are uint8 RGB of the shape (B, H, W, 3), not {images.dtype} {images.shape}.")
        feed: dict[str, NDArray[Any]] = {"images": np.ascontiguousarray(images)}
        if self.takes_target:
            feed["target"] = self._target(target, len(images))
        elif target is not None:
            raise ModelError(f"{self.path} has no maps of a target; export it with --include grad_cam or saliency.")
        outputs = dict(zip(self._outputs, self.session.run(None, feed), strict=True))
        maps, features = (
            {name.removeprefix(kind): values for name, values in outputs.items() if name.startswith(kind)}
            for kind in (MAP, FEATURES)
        )
        return OnnxOutput(
            logits=outputs["logits"], probabilities=outputs["probabilities"], maps=maps, features=features
        )

    def _target(self, target: int | Sequence[int] | None, count: int) -> NDArray[np.int64]:
        places = np.full(count, -1) if target is None else np.broadcast_to(np.asarray(target, np.int64), (count,))
        if target is not None and not (places.min() >= 0 and places.max() < len(self.classes)):
            raise ModelError(f"target {target} is no class; they are numbered 0 to {len(self.classes) - 1}.")
        return np.ascontiguousarray(places, np.int64)


def _session(path: Path, threads: int | None) -> Any:
    if not path.is_file():
        raise ModelError(f"There is no file {path}; `heedmap export RUN --to onnx` makes one.")
    if path.suffix.lower() == ".pt2":
        raise ModelError(f"{path} is {what_file(path)}")
    try:
        import onnxruntime
    except ImportError:
        raise ModelError("ONNX files are run by onnxruntime, which is missing: pip install 'heedmap[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about the graph's nodes, and on standard error
    options.intra_op_num_threads = threads or 0
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base class of their own
        if type(error).__name__ in ("InvalidProtobuf", "InvalidGraph") or "No graph was found" in str(error):
            raise ModelError(f"{path} is damaged or no ONNX file; copy or export it again.") from None
        reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip().splitlines()[0])
        raise ModelError(f"{path} cannot be run: {reason}") from None


def _metadata(session: Any, path: Path) -> dict[str, Any]:
    metadata = session.get_modelmeta().custom_metadata_map.get(KEY)
    if metadata is None:
        raise ModelError(f"{path} was not written by `heedmap export`: it names no classes.")
    content: dict[str, Any] = json.loads(metadata)
    if content["schema"] > SCHEMA:
        raise ModelError(f"{path} was written by heedmap {content['heedmap']}, a newer one; install that.")
    return content


class OnnxPredictor:
    """An exported file; see :class:`heedmap.inference.predictor.Predictor`. All maps that it holds are given.

    Raises:
        OptionError: a layer, for the file has its own inside; a method that it does not hold; a target where no map
            takes one, or an unknown class.
    """

    def __init__(self, classifier: OnnxClassifier, attributions: AttributionOptions = LEARNED_ONLY) -> None:
        self._classifier, path = classifier, classifier.path
        computed: dict[str, dict[str, Any]] = classifier.metadata.get("methods", {})
        self.name, self.classes, self.image_size = path.name, classifier.classes, classifier.image_size
        learned = learned_source(classifier.attention_name, classifier.attention_weights)
        self.method, self.query_note = learned.method, ""
        self._names = {name: computed.get(name, {}).get("method", name) for name in classifier.maps}
        self.maps, self.precision = tuple(self._names.values()), "float32"
        self._sources = dict.fromkeys(self.maps, learned)
        for key, name in self._names.items():
            if key in computed:
                layer, sentence = computed[key].get("layer"), computed[key]["sentence"]
                method = f"{name} at {layer}" if layer else name
                is_peaked = computed[key]["is_peaked"]
                self._sources[name] = MapSource(method, sentence=sentence, per_class=True, is_peaked=is_peaked)
        if attributions.layer is not None:
            raise OptionError(f"{path} has its layer inside; name the run for {attributions.layer}.")
        target = attributions.target
        self._target = None if target is None else class_index(self.classes, target)
        for name in set(attributions.methods) - set(self.maps):
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
        """Raise an :class:`OptionError`: the file has its query inside."""
        raise OptionError(f"{self._classifier.path} attends with each image's own query; name the run for another one.")

    def fingerprint(self) -> str:
        """Return a digest of the file."""
        with self._classifier.path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

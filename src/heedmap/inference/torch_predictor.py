"""Ask a network in torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from heedmap.errors import ImageError
from heedmap.inference.attributions import AttributionOptions, computed_lines, with_computed
from heedmap.inference.prediction import Prediction, feature_maps
from heedmap.inference.predictor import OtherQuery
from heedmap.inference.reading import read_item
from heedmap.inference.sources import Failure, Item
from heedmap.models.classifier import AttentionClassifier, attention_maps
from heedmap.types import Output


class TorchPredictor:
    """A classifier in eval mode; see :class:`heedmap.inference.predictor.Predictor`.

    Args:
        classifier: on ``device``.
        device: where it computes.
        query: another image's file, to attend with.
        asked: maps to compute besides.

    Raises:
        ImageError: the query cannot be read.
    """

    def __init__(
        self, classifier: AttentionClassifier, device: str | torch.device, query: Path | None, asked: AttributionOptions
    ) -> None:
        self._classifier, self._device, self._asked = classifier, device, asked
        self.classes, self.image_size = tuple(classifier.classes), classifier.image_size
        self.method = f"{classifier.attention_name}, {classifier.attention_weights}"
        self.maps = (*classifier.taps, *(("combined",) if len(classifier.taps) > 1 else ()), *asked.methods)
        self.query, self._vector = None, None
        if query is not None:
            one = read_item(Item(str(query)), query.stem, classifier.image_size)
            if isinstance(one, Failure):
                raise ImageError(f"Query {query}: {one.reason}")
            self.query = OtherQuery(query.name, one.view, "" if classifier.uses_query else why_no_query(classifier))
            if classifier.uses_query:
                self._vector = classifier.query(self._images(one.image[None]))

    def __call__(self, images: NDArray[np.uint8]) -> tuple[list[Prediction], list[Prediction] | None]:
        """Ask the network once, twice where a query changes the maps."""
        scaled = self._images(images)
        own = with_computed(self._classifier, scaled, self._answers(self._classifier(scaled)), self._asked)
        if self._vector is None:
            return own, None
        return own, self._answers(self._classifier(scaled, query=self._vector))

    def lines(self, answer: Prediction) -> Iterable[str]:
        """Say of each map that was computed afterwards what it is."""
        return computed_lines(answer)

    def _answers(self, output: Output) -> list[Prediction]:
        return [prediction_of(self._classifier, output, row) for row in range(len(output.logits))]

    def _images(self, views: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(views).to(self._device).float() / 255


@contextmanager
def torch_predictor(
    classifier: AttentionClassifier, device: str | torch.device, query: Path | None, asked: AttributionOptions
) -> Iterator[TorchPredictor]:
    """Ask a classifier, moved to ``device`` and in eval mode meanwhile; its train flags are put back."""
    flags = [(module, module.training) for module in classifier.modules()]
    classifier.to(device).eval()
    try:
        with torch.inference_mode():
            yield TorchPredictor(classifier, device, query, asked)
    finally:
        for module, flag in flags:
            module.training = flag


def prediction_of(classifier: AttentionClassifier, output: Output, row: int) -> Prediction:
    """Take one image's share of a batch's output."""
    return Prediction(
        output.probabilities[row].float().cpu().numpy(),
        attention_maps(classifier, output, row),
        feature_maps({name: values[row, 0].float().cpu() for name, values in output.features.items()}),
    )


def why_no_query(classifier: AttentionClassifier) -> str:
    """Say why no query can change the map of a classifier that does not use one."""
    if classifier.attention_name == "parametrised":
        return (
            "The query cannot change this map: in the parametrised score <u, l + g> it adds the same number <u, g> at "
            "every position, and the softmax over positions cancels it."
        )
    return f"The query cannot change this map: attention '{classifier.attention_name}' looks at no query."

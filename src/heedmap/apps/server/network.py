"""A run's network as what answers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from heedmap.inference.torch_predictor import prediction_of
from heedmap.models.classifier import AttentionClassifier
from heedmap.workflows.visualize import Prediction


class ServedRun:
    """A classifier in torch. See :class:`heedmap.apps.server.Predictor` for the attributes.

    Args:
        classifier: moved to ``device`` and into eval mode.
        name: for people.
        device: where it computes.
    """

    def __init__(self, classifier: AttentionClassifier, name: str, device: str | torch.device = "cpu") -> None:
        self.name = name
        self.classes = tuple(classifier.classes)
        self.image_size = classifier.image_size
        self.taps = (*classifier.taps, "combined") if len(classifier.taps) > 1 else tuple(classifier.taps)
        self._classifier, self._device = classifier.to(device).eval(), device

    @torch.inference_mode()
    def __call__(self, views: NDArray[np.uint8]) -> list[Prediction]:
        """Answer views as ``heedmap visualize`` does."""
        output = self._classifier(torch.from_numpy(views).to(self._device).float() / 255)
        return [prediction_of(self._classifier, output, row) for row in range(len(views))]

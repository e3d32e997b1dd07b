"""Run a classifier over a data set once, and keep what the metrics need."""

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heedmap.data.dataset import ImageDataset
from heedmap.data.loader import Store, memory_to_use, plain_batches
from heedmap.models.classifier import AttentionClassifier
from heedmap.system import threads
from heedmap.training.precision import autocast
from heedmap.types import Batch

BATCH = 100


@dataclass(frozen=True)
class DatasetPredictions:
    """Predictions in the order of the images."""

    logits: Tensor  # (N, K) float32
    labels: Tensor  # (N,) int64
    attention: dict[str, Tensor]  # tap -> (N, 1, h, w) float32; empty unless requested
    seconds: float  # by the clock, decoding included
    network_seconds: float  # of these, the network's alone, until its logits are on the CPU

    @property
    def correct(self) -> Tensor:
        """(N,) bool: the label has the largest logit."""
        return self.logits.argmax(1) == self.labels

    def table(self, names: Sequence[str], classes: Sequence[str]) -> str:
        """Return a CSV: image, label, predicted, and the probability of the predicted class."""
        best = self.logits.softmax(1).max(1)
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(("image", "label", "predicted", "probability"))
        columns = (self.labels.tolist(), best.indices.tolist(), best.values.tolist())
        for name, label, predicted, share in zip(names, *columns, strict=True):
            table.writerow((name, classes[label], classes[predicted], f"{share:.5f}"))
        return lines.getvalue()


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and how a network runs over a data set."""

    device: torch.device
    precision: str = "float32"  # or ``bf16``
    memory: float | None = None  # gigabytes for decoded images; None takes what is free
    workers: int | None = None  # threads that decode; None takes the processor's cores


def predict_dataset(
    classifier: AttentionClassifier, images: ImageDataset, computing: ComputeOptions, *, mirrored: bool = False
) -> DatasetPredictions:
    """Predict all images, or their mirror images; the attention is kept where the objects' boxes are known."""
    began = time.perf_counter()
    store = Store(images, classifier.image_size, threads(computing.workers), memory_to_use(computing.memory, 1))
    decoding = time.perf_counter() - began
    batches = plain_batches(store, BATCH, computing.device)
    keep = images.boxes is not None and not mirrored
    predictions = _predict_batches(classifier, batches, computing, keep_attention=keep, mirrored=mirrored)
    return replace(predictions, seconds=predictions.seconds + decoding)


@torch.no_grad()
def _predict_batches(
    classifier: AttentionClassifier,
    batches: Iterable[Batch],
    computing: ComputeOptions,
    *,
    keep_attention: bool,
    mirrored: bool,
) -> DatasetPredictions:
    began, network_seconds = time.perf_counter(), 0.0
    logits, labels = [], []
    maps: dict[str, list[Tensor]] = {tap: [] for tap in classifier.taps} if keep_attention else {}
    for batch in batches:
        images = batch.images.flip(3) if mirrored else batch.images
        started = time.perf_counter()
        with autocast(computing.precision, computing.device):
            output = classifier(images.contiguous(memory_format=torch.channels_last))
        logits.append(output.logits.float().cpu())  # which waits for the device
        for tap, parts in maps.items():
            parts.append(output.attention[tap].float().cpu())
        network_seconds += time.perf_counter() - started
        labels.append(batch.labels.cpu())
    attention = {tap: torch.cat(parts) for tap, parts in maps.items()}
    seconds = time.perf_counter() - began
    return DatasetPredictions(torch.cat(logits), torch.cat(labels), attention, seconds, network_seconds)

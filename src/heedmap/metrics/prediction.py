"""Run a classifier over images and keep what the measures need."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heedmap.models.classifier import AttentionClassifier
from heedmap.training.precision import autocast
from heedmap.types import Batch


@dataclass(frozen=True)
class Predictions:
    """Answers in the order of the images.

    Attributes:
        logits: (N, K) float32.
        labels: (N,) int64.
        attention: tap -> (N, 1, h, w) float32; empty unless asked for.
        seconds: from the first batch asked for to the last answer; whoever has prepared the batches adds his own.
        network_seconds: of these, the network's alone, its answers fetched.
    """

    logits: Tensor
    labels: Tensor
    attention: dict[str, Tensor]
    seconds: float
    network_seconds: float


@torch.no_grad()
def predict_batches(
    classifier: AttentionClassifier,
    batches: Iterable[Batch],
    *,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    keep_attention: bool = False,
    mirrored: bool = False,
) -> Predictions:
    """Answer every batch.

    Args:
        classifier: in eval mode, on ``device``.
        batches: images in [0, 1].
        precision: ``bf16`` or ``float32``.
        device: where to compute.
        keep_attention: keep the maps of all images too.
        mirrored: show every image as in a mirror.
    """
    began, device, at_work = time.perf_counter(), torch.device(device), 0.0
    logits, labels = [], []
    maps: dict[str, list[Tensor]] = {tap: [] for tap in classifier.taps} if keep_attention else {}
    for batch in batches:
        images = batch.images.flip(3) if mirrored else batch.images
        asked = time.perf_counter()
        with autocast(precision, device):
            output = classifier(images.contiguous(memory_format=torch.channels_last))
        logits.append(output.logits.float().cpu())  # which waits for the device
        for tap, kept in maps.items():
            kept.append(output.attention[tap].float().cpu())
        at_work += time.perf_counter() - asked
        labels.append(batch.labels.cpu())
    attention = {tap: torch.cat(kept) for tap, kept in maps.items()}
    return Predictions(torch.cat(logits), torch.cat(labels), attention, time.perf_counter() - began, at_work)


def predictions_table(evaluated: Predictions, names: Sequence[str], classes: Sequence[str]) -> str:
    """The answer to each image as CSV: image, label, predicted, and the probability of what was predicted."""
    best = evaluated.logits.softmax(1).max(1)
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("image", "label", "predicted", "probability"))
    columns = (evaluated.labels.tolist(), best.indices.tolist(), best.values.tolist())
    for name, label, predicted, share in zip(names, *columns, strict=True):
        table.writerow((name, classes[label], classes[predicted], f"{share:.5f}"))
    return lines.getvalue()

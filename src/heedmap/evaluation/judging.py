"""Run a classifier over pictures and keep what the measures need."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heedmap.classifier import AttentionClassifier
from heedmap.records import Batch
from heedmap.training.precision import autocast


@dataclass(frozen=True)
class Judged:
    """Answers in the order of the pictures.

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
def judge(
    classifier: AttentionClassifier,
    batches: Iterable[Batch],
    *,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    keep_attention: bool = False,
    mirrored: bool = False,
) -> Judged:
    """Answer every batch.

    Args:
        classifier: in eval mode, on ``device``.
        batches: pictures in [0, 1].
        precision: ``bf16`` or ``float32``.
        device: where to compute.
        keep_attention: keep the maps of all pictures too.
        mirrored: show every picture as in a mirror.
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
    return Judged(torch.cat(logits), torch.cat(labels), attention, time.perf_counter() - began, at_work)


def answers_table(judged: Judged, names: Sequence[str], classes: Sequence[str]) -> str:
    """The answer to each picture as CSV: picture, label, predicted, and the probability of what was predicted."""
    best = judged.logits.softmax(1).max(1)
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("picture", "label", "predicted", "probability"))
    columns = (judged.labels.tolist(), best.indices.tolist(), best.values.tolist())
    for name, label, predicted, share in zip(names, *columns, strict=True):
        table.writerow((name, classes[label], classes[predicted], f"{share:.5f}"))
    return lines.getvalue()

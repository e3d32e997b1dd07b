"""Run a classifier over pictures and keep what the measures need."""

from __future__ import annotations

import time
from collections.abc import Iterable
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
        seconds: time of the network and of decoding together.
    """

    logits: Tensor
    labels: Tensor
    attention: dict[str, Tensor]
    seconds: float


@torch.no_grad()
def judge(
    classifier: AttentionClassifier,
    batches: Iterable[Batch],
    *,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    keep_attention: bool = False,
) -> Judged:
    """Answer every batch.

    Args:
        classifier: in eval mode, on ``device``.
        batches: pictures in [0, 1].
        precision: ``bf16`` or ``float32``.
        device: where to compute.
        keep_attention: keep the maps of all pictures too.
    """
    began, device = time.perf_counter(), torch.device(device)
    logits, labels = [], []
    maps: dict[str, list[Tensor]] = {tap: [] for tap in classifier.taps} if keep_attention else {}
    for batch in batches:
        with autocast(precision, device):
            output = classifier(batch.images.contiguous(memory_format=torch.channels_last))
        logits.append(output.logits.float().cpu())
        labels.append(batch.labels.cpu())
        for tap, kept in maps.items():
            kept.append(output.attention[tap].float().cpu())
    attention = {tap: torch.cat(kept) for tap, kept in maps.items()}
    return Judged(torch.cat(logits), torch.cat(labels), attention, time.perf_counter() - began)

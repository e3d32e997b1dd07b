"""How long evaluating where maps lie takes, all measures and the baselines included.

Maps are noise on a grid of cells, interpolated: 14 cells are what a deep tap gives at 224 pixels; with 224 cells, the
worst case, every pixel goes its own way, as in a saliency map.
"""

from __future__ import annotations

import resource
from typing import Any

import torch

from benchmarks.measuring import ceiling, keep, spread, timed
from heedmap.data.annotations.annotations import Annotations
from heedmap.metrics.localization.evaluation import LocalizationOptions, evaluate_localization

SIZE = 224
MAPS = {14: 10_000, 224: 1000}  # cells along a side -> maps evaluated


def drawn(count: int, generator: torch.Generator) -> Annotations:
    """Annotations of one box an image, a fifth to four fifths of each side."""
    sides = 0.2 + 0.6 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (1 - sides)
    boxes = torch.cat([corner, corner + sides], dim=1)
    names = tuple(str(row) for row in range(count))
    known, objects = torch.ones(count, dtype=torch.bool), torch.ones(count, dtype=torch.int64)
    return Annotations(names, tuple(box[None] for box in boxes), (None,) * count, known, objects)


def predict_batches(side: int, count: int) -> None:
    """Evaluate so many maps of ``side`` cells at 224 pixels, and the four baselines that need no images."""

    def maps(rows: torch.Tensor) -> torch.Tensor:
        source = torch.Generator().manual_seed(int(rows[0]))
        return torch.rand(len(rows), 1, side, side, generator=source)

    annotations = drawn(count, torch.Generator().manual_seed(0))
    evaluate_localization({"maps": maps}, annotations, LocalizationOptions(size=SIZE))


def main(rounds: int = 1) -> dict[str, Any]:
    """Measure, keep and return the figures."""
    predict_batches(14, 64)  # what is set up once
    record: dict[str, Any] = {"ceiling": ceiling()}
    for side, count in MAPS.items():
        seconds = [timed(lambda side=side, count=count: predict_batches(side, count), "cpu") for _ in range(rounds)]
        record[f"seconds for {count:,} maps of {side} x {side} cells"] = spread(seconds)
    record["peak memory, GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    keep("localization", record)
    return record

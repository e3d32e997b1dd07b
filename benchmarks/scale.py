"""What a training step costs as images, taps, classes and sets grow, and two processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import measuring
from benchmarks.end_to_end import draw_folder
from benchmarks.measuring import alternate, ceiling, keep, spread
from benchmarks.training_step import our_step
from heedmap.config import TrainOptions
from heedmap.data.dataset import TensorDataset
from heedmap.data.loader import Store, TrainingBatches
from heedmap.data.transforms import Augmentation
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier

BATCH = 32
SIZES = (64, 96, 144, 224)
TAPS = (("stage3",), ("stage2", "stage3"), ("stage1", "stage2", "stage3"))
CLASSES = (10, 100, 1000)
IMAGES = (1_000, 10_000, 100_000)
PREPARED = 10_000  # of smaller sets, in a round
DRAWN = 960  # files for one and for two processes


def main(rounds: int = 5) -> dict[str, Any]:
    """Measure, keep and return the figures; two processes are left out under the processor's clock."""
    record: dict[str, Any] = {"batch": BATCH, "ceiling": ceiling()}
    record["training images per second by image size"] = _rates({str(s): _step(s) for s in SIZES}, rounds)
    record["training images per second by taps, 144 px"] = _rates(
        {str(len(taps)): _step(144, taps) for taps in TAPS}, rounds
    )
    record["training images per second by classes, 144 px"] = _rates(
        {str(count): _step(144, classes=count) for count in CLASSES}, rounds
    )
    prepared = {str(count): _preparing(count) for count in IMAGES}
    seconds = alternate({name: work for name, (work, _) in prepared.items()}, rounds)
    record["prepared images per second by images in the set, 32 px"] = {
        name: spread([prepared[name][1] / value for value in values]) for name, values in seconds.items()
    }
    if measuring.clock == "wall":
        record["heedmap train, images per second by processes"] = _processes(rounds)
    keep("scale", record)
    return record


def _rates(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    seconds = alternate(contenders, rounds)
    return {name: spread([BATCH / value for value in values]) for name, values in seconds.items()}


def _step(size: int, taps: tuple[str, ...] | None = None, classes: int = 10) -> Callable[[], None]:
    torch.manual_seed(0)
    names = tuple(map(str, range(classes)))
    model = build_classifier(Architecture("compact", "parametrised", None, "concat", taps, size, names)).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    options = TrainOptions(optimizer="adamw", learning_rate=1e-6, weight_decay=0.0)
    return our_step(model, torch.rand(BATCH, 3, size, size), torch.arange(BATCH) % classes, options)


def _preparing(count: int) -> tuple[Callable[[], None], int]:
    """Whole epochs from a set of so many images in memory, their shuffling included, and how many images that is.

    Small sets are passed over several times, so that there is something to time.
    """
    values = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    images = TensorDataset(values, torch.arange(count) % 10, tuple("abcdefghij"), [""] * count)
    batches = TrainingBatches(Store(images, 32, 0, 1e12), 32, BATCH, Augmentation("shift", flip=True), 0)
    epochs = range(max(1, PREPARED // count))

    def prepare() -> None:
        for epoch in epochs:
            for _ in batches.epoch(epoch):
                pass

    return prepare, len(epochs) * batches.steps * BATCH


def _processes(rounds: int) -> dict[str, Any]:
    """The same training by one process on two threads, and by two processes on one thread each."""
    with tempfile.TemporaryDirectory() as place:
        draw_folder(Path(place) / "images", DRAWN, 150)
        return {str(world): spread(_trained(Path(place), world, rounds)) for world in (1, 2)}


def _trained(place: Path, world: int, rounds: int) -> list[float]:
    """Images a second, over all processes, of each epoch after the first."""
    out = place / f"run{world}"
    # fmt: off
    joined = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    words = [sys.executable, *joined, "-m", "heedmap", "train", str(place / "images"), "--out", str(out),
             "--epochs", str(rounds + 1), "--batch-size", "48", "--cache", "off"]
    # fmt: on
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world))}
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, **threads})
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [float(line["images_per_second"]) for line in lines if line["kind"] == "epoch"][1:]

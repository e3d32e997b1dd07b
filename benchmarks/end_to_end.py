"""`heedmap train`, everything included, against the bare training step on images that lie ready in memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks import measuring
from benchmarks.measuring import CLOCKS, ceiling, keep, ratios, spread, timed
from heedmap.config import TrainOptions
from heedmap.data.transforms import Augmentation, view_size
from heedmap.models.factory import build_classifier
from heedmap.progress import Progress
from heedmap.runs import Run
from heedmap.training.optimizers import make_optimizer
from heedmap.training.precision import autocast, resolve
from heedmap.types import EpochReport
from heedmap.workflows.train.train import train

STEPS = 12  # of the bare step, a round
ALONE, KEPT = "training steps alone", "loading, steps, records, panels, checkpoints"
ALL = "the same, and evaluating the validation part"
JPEG, SMALL = "JPEG folder, 150 x 150", "small images, 32 x 32, whitened as for CIFAR-10"


class Beside(Progress):
    """Between any two epochs runs the bare step for a while, so that both are measured in the same minutes.

    Training tells of an epoch after its validation part was evaluated, and before its panel and checkpoint. So what
    lies between two tellings, less the bare step, holds all that an epoch is made of: a panel (where one is due) and a
    checkpoint, then the data, steps, averages and records of the next epoch, and evaluating.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rates: dict[str, list[float]] = {ALONE: [], KEPT: [], ALL: []}
        self.bare_rates: list[float] = []
        self.bare: Callable[[], float] | None = None
        self.since = 0.0

    def epoch(self, report: EpochReport) -> None:
        """Work out the rates of the epoch, then run the bare step; the first epoch is left out."""
        now = CLOCKS[measuring.clock]
        if self.bare is None:
            self.bare = bare_step(Run.open(self.out, finished=False))
        else:
            images = report.images_per_second * report.seconds
            self.rates[ALL].append(images / (now() - self.since))
            self.rates[KEPT].append(images / (now() - self.since - report.evaluation_seconds))
            # From the start of the epoch to the end of its last step, by the wall; the first step is in it.
            self.rates[ALONE].append(report.images_per_second)
        self.bare_rates.append(self.bare())
        self.since = now()

    def record(self) -> dict[str, Any]:
        """The rates, and what share they are of the bare step before and after the epoch."""
        around = [(before + after) / 2 for before, after in itertools.pairwise(self.bare_rates)]
        # Steps and evaluating are timed by the wall alone.
        rates = self.rates if measuring.clock == "wall" else {ALL: self.rates[ALL]}
        return {
            "images per second": {
                "bare step": spread(self.bare_rates),
                **{name: spread(values) for name, values in rates.items()},
            },
            "share of the bare step": {name: spread(ratios(values, around)) for name, values in rates.items()},
        }


def main(
    rounds: int = 4, folder: str | None = None, count: int = 1800, small: int = 12_000, **more: Any
) -> dict[str, Any]:
    """Measure, keep and return the figures.

    Args:
        rounds: epochs after the first that are measured, with a round of the bare step before and after each.
        folder: photographs to train on; None draws JPEG files of 150 x 150.
        count: files drawn.
        small: files of 32 x 32 drawn, for what CIFAR-10 gets: whitened, Muon, 512 images per step, 4 % for validation.
            CIFAR-10's epochs are five times as long, so that a checkpoint weighs less there.
        more: options of both trainings.
    """
    found = {}
    with tempfile.TemporaryDirectory() as place:
        drawn, tiny = Path(place) / "images", Path(place) / "small"
        if folder is None:
            draw_folder(drawn, count, 150)
        draw_folder(tiny, small, 32)
        trainings: dict[str, dict[str, Any]] = {
            JPEG: {"data": folder or str(drawn)},
            SMALL: {"data": str(tiny), "model": "whitened", "validation": 0.04},
        }
        for title, options in trainings.items():
            out = Path(place) / f"run {title.split()[0]}"
            beside = Beside(out)
            shared = {"out": str(out), "epochs": rounds + 1, "cache": str(Path(place) / "cache")}
            run = train(TrainOptions(**{**shared, **options, **more}), progress=beside)
            found[title] = {
                "images": run.config["sizes"]["train"],
                "model": f"{run.options.model}, {run.options.optimizer}, batch {run.options.batch_size}",
                **beside.record(),
            }
    record = {"ceiling": ceiling(), "training": found}
    keep("end-to-end", record)
    return record


def bare_step(run: Run) -> Callable[[], float]:
    """Images a second of forward, loss, backward and optimiser on one batch, again and again.

    Model, batch, size of the views, loss, optimiser and precision are those of the run.
    """
    options, model = run.options, build_classifier(run.architecture)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert options.image_size is not None
    assert options.augment is not None
    assert options.batch_size is not None
    size = options.image_size
    if model.takes_any_size:
        size = view_size(size, Augmentation(options.augment, bool(options.flip), shift=options.shift))
    images = torch.rand(options.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch_size) % len(run.architecture.classes)
    # At a rate of nothing, so that the weights stay such as training meets.
    optimizer = make_optimizer(model, replace(options, pretrained=None, learning_rate=1e-9), fused=True)
    precision = resolve(options.precision, images.device)
    smoothing = options.label_smoothing or 0.0

    def steps() -> None:
        for _ in range(STEPS):
            with autocast(precision, images.device):
                logits = model(images).logits
            F.cross_entropy(logits.float(), labels, label_smoothing=smoothing).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def rate() -> float:
        generator = torch.get_rng_state()
        seconds = timed(steps)
        torch.set_rng_state(generator)
        return STEPS * len(images) / seconds

    rate()
    return rate


def draw_folder(folder: Path, count: int, side: int) -> None:
    """JPEG files of smooth noise in four classes, a sixth of them for the test part."""
    numbers = np.random.default_rng(0)
    for index in range(count):
        part = "test" if index % 6 == 0 else "train"
        place = folder / part / f"class{index % 4}"
        place.mkdir(parents=True, exist_ok=True)
        noise = numbers.integers(0, 255, (side // 5 + 1, side // 5 + 1, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(place / f"{index}.jpg", quality=92)

"""`heedmap train`, everything included, against the bare training step on pictures that lie ready in memory."""

from __future__ import annotations

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
from benchmarks.measuring import CLOCKS, ceiling, keep, spread, timed
from heedmap.classifier import build_classifier
from heedmap.data import open_data
from heedmap.data.augmentation import Augmentation, view_size
from heedmap.listener import Listener
from heedmap.options import TrainOptions
from heedmap.records import EpochReport, StepReport
from heedmap.runs import Run
from heedmap.train import train
from heedmap.training.optimizer import make_optimizer
from heedmap.training.precision import autocast, resolve

STEPS = 12  # of the bare step, a round


class Beside(Listener):
    """After each epoch runs the bare step for a while, so that both are measured in the same minutes."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.step_rates: list[float] = []
        self.whole_rates: list[float] = []
        self.bare_rates: list[float] = []
        self.bare: Callable[[], float] | None = None
        self.seen = 0
        self.last = 0.0

    def step(self, report: StepReport) -> None:
        """Note when the first step of an epoch is over, and how long the steps took."""
        now = CLOCKS[measuring.clock]()
        if self.seen == 0:
            self.first = now
        self.seen += 1
        self.last = now

    def epoch(self, report: EpochReport) -> None:
        """Work out the rates of the epoch, then run the bare step.

        A step's time runs from the end of the one before it. The whole epoch's runs from there to here: the steps, and
        judging the validation part, a panel of maps and a checkpoint besides.
        """
        now = CLOCKS[measuring.clock]()
        options = Run.open(self.out, finished=False).options
        batch = options.batch_size or 0
        self.step_rates.append(batch * (self.seen - 1) / (self.last - self.first))
        self.whole_rates.append(batch * (self.seen - 1) / (now - self.first))
        self.seen = 0
        self.bare = self.bare or bare_step(Run.open(self.out, finished=False))
        self.bare_rates.append(self.bare())


def main(rounds: int = 4, folder: str | None = None, count: int = 1800) -> dict[str, Any]:
    """Measure, keep and return the figures.

    Args:
        rounds: epochs after the first that are measured, each followed by a round of the bare step.
        folder: photographs to train on; None draws JPEG files of 150 x 150.
        count: files drawn.
    """
    found = {}
    with tempfile.TemporaryDirectory() as place:
        drawn, small = Path(place) / "pictures", Path(place) / "small"
        draw_folder(drawn, count, 150)
        draw_folder(small, 3 * count, 32)
        for title, data in {
            "JPEG folder, 150 x 150": folder or str(drawn),
            "small pictures, 32 x 32": str(small),
        }.items():
            out = Path(place) / title.split(",")[0].replace(" ", "-")
            beside = Beside(out)
            train(TrainOptions(data=data, out=str(out), epochs=rounds + 1), listener=beside)
            shares = [mine / bare for mine, bare in zip(beside.step_rates, beside.bare_rates, strict=True)][1:]
            found[title] = {
                "pictures": len(open_data(data).train),
                "images per second": {
                    "bare step": spread(beside.bare_rates[1:]),
                    "heedmap train": spread(beside.step_rates[1:]),
                    "with judging, panel and checkpoint": spread(beside.whole_rates[1:]),
                },
                "share of the bare step": spread(shares),
            }
    record = {"ceiling": ceiling(), "training": found}
    keep("end-to-end", record)
    return record


def bare_step(run: Run) -> Callable[[], float]:
    """Images a second of forward, loss, backward and optimiser on one batch, again and again."""
    options, model = run.options, build_classifier(run.architecture)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert options.image_size is not None
    assert options.augment is not None
    assert options.batch_size is not None
    size = view_size(options.image_size, Augmentation(options.augment, True))
    images = torch.rand(options.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch_size) % len(run.architecture.classes)
    # At a rate of nothing, so that the weights stay such as training meets.
    optimizer = make_optimizer(model, replace(options, pretrained=None, learning_rate=1e-9), fused=True)
    precision = resolve(options.precision, images.device)

    def steps() -> None:
        for _ in range(STEPS):
            with autocast(precision, images.device):
                logits = model(images).logits
            F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
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

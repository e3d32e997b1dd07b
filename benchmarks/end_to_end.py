"""`heedmap train`, everything included, against the bare training step on pictures that lie ready in memory."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.measuring import ceiling, keep, spread, timed
from heedmap.data import open_data
from heedmap.options import TrainOptions
from heedmap.runs import Run
from heedmap.train import train
from heedmap.training.optimizer import make_optimizer
from heedmap.training.precision import autocast, resolve

STEPS = 20  # of the bare step, a round


def main(rounds: int = 3, folder: str | None = None, count: int = 2400) -> dict[str, Any]:
    """Measure, keep and return the figures.

    Args:
        rounds: epochs after the first that are measured, and rounds of the bare step between trainings.
        folder: photographs to train on; None draws JPEG files of 150 x 150.
        count: files drawn.
    """
    found = {}
    with tempfile.TemporaryDirectory() as place:
        drawn = Path(place) / "pictures"
        draw_folder(drawn, count, 150)
        small = Path(place) / "small"
        draw_folder(small, 2 * count, 32)
        for title, data in {
            "JPEG folder, 150 x 150": folder or str(drawn),
            "small pictures, 32 x 32": str(small),
        }.items():
            out = Path(place) / title.split(",")[0].replace(" ", "-")
            options = TrainOptions(data=data, out=str(out), epochs=rounds + 1)
            run = train(options)
            lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
            rates = [line["images_per_second"] for line in lines if line["kind"] == "epoch"]
            bare = [_bare(run) for _ in range(rounds)]
            found[title] = {
                "pictures": len(open_data(data).train),
                "first epoch": rates[0],
                "later epochs": spread(rates[1:]),
                "bare step": spread(bare),
                "share of the bare step": spread(rates[1:])["median"] / spread(bare)["median"],
            }
    record = {"ceiling": ceiling(), "training": found}
    keep("end-to-end", record)
    return record


def _bare(run: Run) -> float:
    """Images a second of forward, loss, backward and optimiser on one batch, again and again."""
    options, model = run.options, run.classifier().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    from heedmap.data.augmentation import Augmentation, view_size

    assert options.image_size is not None
    assert options.augment is not None
    assert options.batch_size is not None
    size = view_size(options.image_size, Augmentation(options.augment, True))
    images = torch.rand(options.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(options.batch_size, dtype=torch.long)
    optimizer = make_optimizer(model, replace(options, pretrained=None), fused=True)
    precision = resolve(options.precision, images.device)

    def steps() -> None:
        for _ in range(STEPS):
            with autocast(precision, images.device):
                logits = model(images).logits
            F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    steps()
    return STEPS * options.batch_size / timed(steps)


def draw_folder(folder: Path, count: int, side: int) -> None:
    """JPEG files of smooth noise in four classes, a sixth of them for the test part."""
    numbers = np.random.default_rng(0)
    for index in range(count):
        part = "test" if index % 6 == 0 else "train"
        place = folder / part / f"class{index % 4}"
        place.mkdir(parents=True, exist_ok=True)
        noise = numbers.integers(0, 255, (side // 5 + 1, side // 5 + 1, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(place / f"{index}.jpg", quality=92)

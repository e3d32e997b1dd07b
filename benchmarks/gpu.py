"""The script for a machine with a GPU: CIFAR-10 to 94 %, and the step of VGG-att3 beside the bf16 ceiling.

    python -m benchmarks gpu                               # the whole of it; needs no network, but data/ with CIFAR-10
    python -m benchmarks.gpu --data DIR --seeds 5
    python -m benchmarks.gpu --device cpu --tiny           # the same lines on a CPU in a minute, to see that they run

CIFAR-10 lies in DIR as torchvision puts it (cifar-10-batches-py), or as folders of pictures (train/CLASS, test/CLASS).
The clock of the loop runs over the steps of training alone, with all their views, averages and records; start, judging
and the checkpoint of an epoch are told as ``whole``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import training_step
from benchmarks.__main__ import show
from benchmarks.end_to_end import draw_folder
from benchmarks.measuring import ceiling, keep, spread
from heedmap.errors import HeedmapError
from heedmap.listener import Listener
from heedmap.options import TrainOptions
from heedmap.records import EpochReport
from heedmap.runs import EVALUATION
from heedmap.train import train

WANTED = 0.94


class Loop(Listener):
    """Adds up the seconds of the epochs' steps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def epoch(self, report: EpochReport) -> None:
        """An epoch of training is over."""
        self.seconds += report.seconds


def main(
    rounds: int = 5,
    *,
    device: str | None = None,
    data: str = "cifar10",
    epochs: tuple[int | None, ...] = (None,),
    batch: int = 2000,
    step_batches: tuple[int, ...] = (128, 512, 2048),
    save: bool = True,
) -> dict[str, Any]:
    """Measure, keep and return the figures.

    Args:
        rounds: seeds of each training, and rounds of each step.
        device: of the step; None takes the GPU. Training takes the GPU wherever there is one.
        data: ``cifar10``, found under data/, or a folder.
        epochs: lengths of training to try, None being the fast recipe's own: the curve of accuracy against seconds.
        batch: pictures a step of training.
        step_batches: pictures a step of VGG-att3.
        save: keep the figures for the page.

    Raises:
        SystemExit: there is no GPU and no device was named.
    """
    device = device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        raise SystemExit("There is no GPU here. To try the script: python -m benchmarks.gpu --device cpu --tiny")
    steps = {}
    for size in step_batches:
        figures = training_step.main(rounds, device, size, save=False)
        steps[str(size)] = {"images per second": figures["images per second"]}
        steps[str(size)]["share of the bf16 product"] = figures["share of the bf16 product"]
    trained = {"recipe's own" if n is None else str(n): _trained(data, n, batch, rounds) for n in epochs}
    record = {
        "device": device,
        "ceiling": ceiling(device),
        "VGG-att3 step by batch": steps,
        "training by epochs": trained,
    }
    if save:
        keep("gpu", record)
    return record


def _trained(data: str, epochs: int | None, batch: int, seeds: int) -> dict[str, Any]:
    """Test accuracy and seconds over seeds, after one training that warms the machine and is not counted."""
    found: dict[str, list[float]] = {"accuracy": [], "loop seconds": [], "whole seconds": []}
    for seed in range(-1, seeds):
        with tempfile.TemporaryDirectory() as place:
            loop, began = Loop(), time.perf_counter()
            options = TrainOptions(
                data=data, out=str(Path(place) / "run"), seed=max(seed, 0), recipe="fast", download=False,
                batch_size=batch, epochs=1 if seed < 0 else epochs, validation=0.0,
            )  # fmt: skip
            run = train(options, listener=loop)
            if seed >= 0:
                found["whole seconds"].append(time.perf_counter() - began)
                found["loop seconds"].append(loop.seconds)
                found["accuracy"].append(float(run.read_json(EVALUATION)["top1"]))
    mean = statistics.mean(found["accuracy"])
    reached = f"{mean:.4f} {'reaches' if mean >= WANTED else 'misses'} {WANTED}"
    return {**{name: spread(values) for name, values in found.items()}, "mean accuracy": mean, "verdict": reached}


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", default="cifar10", help="cifar10 (under data/), or a folder of pictures")
    parser.add_argument("--device", help="of the step: cuda, or cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, nargs="*", help="lengths of training, for the curve")
    parser.add_argument("--batch", type=int, default=2000, help="pictures a step of training")
    parser.add_argument("--tiny", action="store_true", help="drawn pictures and batches of 4, to see that it runs")
    return parser.parse_args()


def _main() -> None:
    asked = _asked()
    epochs = tuple(asked.epochs or (None,))
    if not asked.tiny:
        show(main(asked.seeds, device=asked.device, data=asked.data, epochs=epochs, batch=asked.batch))
        return
    with tempfile.TemporaryDirectory() as place:
        draw_folder(Path(place) / "pictures", 120, 32)
        drawn = str(Path(place) / "pictures")
        show(main(1, device=asked.device, data=drawn, epochs=(1,), batch=20, step_batches=(4,), save=False))


if __name__ == "__main__":
    try:
        _main()
    except HeedmapError as error:
        raise SystemExit(str(error)) from None

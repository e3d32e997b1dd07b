"""The script for a machine with a GPU: CIFAR-10 to 94 %, and VGG-att3 beside the bf16 ceiling.

    python -m benchmarks gpu                               # the whole of it; needs no network, but data/ with CIFAR-10
    python -m benchmarks.gpu --root DIR --seeds 5          # DIR holds cifar-10-batches-py, as torchvision puts it
    python -m benchmarks.gpu --data DIR                    # the same, or folders of images: train/CLASS, test/CLASS
    python -m benchmarks.gpu --device cpu --tiny           # the same lines on a CPU in a minute, to see that they run

The aim is 94 % of the test part, the mean over seeds, after at most 10 s of the loop. The clock of the loop runs over
the steps of training alone, with all their views, averages and records; start, evaluating and the checkpoint of an
epoch are told as ``whole``. Accuracy stands there twice: of the images as they are, and ``with flips``, where the
answers to an image and its mirror image are averaged, as the records for this set have it.

What is measured is kept in benchmarks/results/gpu.json after each part, so that a session that ends early loses only
the part at work. A contender for which the memory does not suffice is noted, and the rest goes on.
``torch.backends.cudnn.benchmark`` is set for the networks that are timed side by side, ours and the reference; the
trainings run as ``heedmap train`` does, which leaves it alone.

To a machine without network, carry a folder of wheels. On one with network, the same system and Python:

    pip download -d wheels -c constraints.txt '.[bench]' hatchling editables

PyTorch's wheels for Linux bring CUDA with them. Copy the repository, ``wheels`` and ``data/cifar-10-batches-py``, and
there:

    pip install --no-index --find-links wheels -c constraints.txt -e '.[bench]'
    python -m benchmarks gpu
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
from benchmarks.measuring import OUT_OF_MEMORY, ceiling, keep, spread
from heedmap.config import TrainOptions
from heedmap.errors import HeedmapError
from heedmap.progress import Progress
from heedmap.types import EpochReport
from heedmap.workflows.evaluate.data import OFFLINE
from heedmap.workflows.evaluate.evaluate import evaluate
from heedmap.workflows.evaluate.suites import EvaluateOptions
from heedmap.workflows.train.train import train

WANTED, WITHIN = 0.94, 10.0  # of the test part, seconds of the loop
UNPACKED = "cifar-10-batches-py"


class Loop(Progress):
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
    root: str = "data",
    epochs: tuple[int | None, ...] = (None,),
    batch: int = 2000,
    step_batches: tuple[int, ...] = (128, 512, 2048),
    save: bool = True,
) -> dict[str, Any]:
    """Measure, keep after each part, and return the figures.

    Args:
        rounds: seeds of each training, and rounds of each step.
        device: of the step; None takes the GPU. Training takes the GPU wherever there is one.
        data: ``cifar10``, a folder that holds it as torchvision puts it, or one of images.
        root: where ``cifar10`` lies.
        epochs: lengths of training to try, None being the fast recipe's own: the curve of accuracy against seconds.
        batch: images per step of training.
        step_batches: images per step of VGG-att3.
        save: keep the figures for the page.

    Raises:
        SystemExit: there is no GPU and no device was named.
    """
    device = device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        raise SystemExit("There is no GPU here. To try the script: python -m benchmarks.gpu --device cpu --tiny")
    if (Path(data) / UNPACKED).is_dir():
        data, root = "cifar10", data
    record: dict[str, Any] = {"device": device, "ceiling": ceiling(device)}
    steps: dict[str, Any] = record.setdefault("VGG-att3 by batch", {})
    trained: dict[str, Any] = record.setdefault("training by epochs", {})
    for size in step_batches:
        steps[str(size)] = _steps(rounds, device, size)
        _keep(record, save)
    for number in epochs:
        trained["recipe's own" if number is None else str(number)] = _trained(data, root, number, batch, rounds)
        _keep(record, save)
    return record


def _keep(record: dict[str, Any], save: bool) -> None:
    if save:
        keep("gpu", record)


def _steps(rounds: int, device: str, batch: int) -> dict[str, Any]:
    """The part training-step at one batch size, with cuDNN free to try its algorithms, for ours and the reference."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        found = training_step.main(rounds, device, batch, save=False)
    except torch.cuda.OutOfMemoryError:  # not even the images
        torch.cuda.empty_cache()
        return {"note": OUT_OF_MEMORY}
    finally:
        torch.backends.cudnn.benchmark = before
    return {name: value for name, value in found.items() if name not in ("batch", "ceiling")}


def _trained(data: str, root: str, epochs: int | None, batch: int, seeds: int) -> dict[str, Any]:
    """Test accuracy and seconds over seeds, after one training that warms the machine and is not counted."""
    found: dict[str, list[float]] = {
        name: [] for name in ("accuracy", "accuracy with flips", "loop seconds", "whole seconds")
    }
    for seed in range(-1, seeds):
        try:
            figures = _trained_once(data, root, 1 if seed < 0 else epochs, batch, max(seed, 0))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return {"note": f"{OUT_OF_MEMORY} at {batch} images per step; --batch takes fewer"}
        if seed >= 0:
            for name, value in figures.items():
                found[name].append(value)
    return {**{name: spread(values) for name, values in found.items()}, **_verdicts(found)}


def _trained_once(data: str, root: str, epochs: int | None, batch: int, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        loop, began = Loop(), time.perf_counter()
        options = TrainOptions(
            data=data, root=root, out=str(Path(place) / "run"), cache=str(Path(place) / "cache"), seed=seed,
            recipe="fast", model="whitened", optimizer="muon", download=False, batch_size=batch, epochs=epochs,
            validation=0.0,
        )  # fmt: skip
        run = train(options, progress=loop)
        whole = time.perf_counter() - began
        device = "cuda" if torch.cuda.is_available() else "cpu"
        evaluated = evaluate(run, options=EvaluateOptions(device=device, flips=True, opening=OFFLINE))
    assert evaluated.top1_with_flips is not None
    return {
        "accuracy": evaluated.report.top1,
        "accuracy with flips": evaluated.top1_with_flips,
        "loop seconds": loop.seconds,
        "whole seconds": whole,
    }


def _verdicts(found: dict[str, list[float]]) -> dict[str, str]:
    """Whether the aim is reached, by the mean accuracy and the median of the loop's seconds."""
    seconds, told = statistics.median(found["loop seconds"]), {}
    for name in ("accuracy", "accuracy with flips"):
        mean = statistics.mean(found[name])
        word = "reaches" if mean >= WANTED and seconds <= WITHIN else "misses"
        aim = f"{100 * WANTED:.0f} % in at most {WITHIN:.0f} s"
        told[f"verdict, {name}"] = f"mean {100 * mean:.2f} % after {seconds:.1f} s of the loop {word} {aim}"
    return told


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", default="cifar10", help="cifar10, or a folder of images or with cifar-10-batches-py")
    parser.add_argument("--root", default="data", help="where cifar10 lies")
    parser.add_argument("--device", help="of the step: cuda, or cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, nargs="*", help="lengths of training, for the curve")
    parser.add_argument("--batch", type=int, default=2000, help="images per step of training")
    parser.add_argument(
        "--tiny", action="store_true", help="drawn images, batches of 4, nothing kept: to see that it runs"
    )
    return parser.parse_args()


def _main() -> None:
    asked = _asked()
    epochs = tuple(asked.epochs or (None,))
    if not asked.tiny:
        places = {"data": asked.data, "root": asked.root}
        show(main(asked.seeds, device=asked.device, **places, epochs=epochs, batch=asked.batch))
        return
    with tempfile.TemporaryDirectory() as place:
        draw_folder(Path(place) / "images", 120, 32)
        drawn = str(Path(place) / "images")
        show(main(1, device=asked.device, data=drawn, epochs=(1,), batch=20, step_batches=(4,), save=False))


if __name__ == "__main__":
    try:
        _main()
    except HeedmapError as error:
        raise SystemExit(str(error)) from None

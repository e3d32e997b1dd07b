"""`visualize` on a folder of photographs against loops of pytorch-grad-cam, one image at a time, as its guide has it.

Two loops: one that does the same job (read a file, ask the same network, a map of each of the two taps and the two
combined, drawn side by side at the same size, PNG, thumbnail and raw values), and the least that anyone may call
drawing a map (one map of one layer, at the network's size, no text). `visualize` writes legend, page and table too.

Memory is that of `visualize` alone, in a process of its own for each number of images:

    python -m benchmarks.drawing --counts 1000 10000 --folder PHOTOGRAPHS
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.end_to_end import draw_folder
from benchmarks.measuring import ceiling, keep, ratios, spread, timed
from heedmap.inference.predictor import TILE
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.system import keep_freed_memory
from heedmap.workflows.visualize import VisualizeOptions, visualize

SIZE, PANEL = 144, (1116, 472)
Draw = Callable[[Image.Image, Any, Any, Path], None]


class Logits(torch.nn.Module):
    """The classifier as pytorch-grad-cam wants it: images to logits."""

    def __init__(self, classifier: AttentionClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, K)."""
        return self.classifier(images).logits


def main(
    rounds: int = 3, count: int = 160, folder: str | None = None, counts: Sequence[int] = (160, 640)
) -> dict[str, Any]:
    """Measure, keep and return the figures.

    Args:
        rounds: of each contender.
        count: images a round.
        folder: photographs (``*.jpg``, with all folders below); None draws them.
        counts: numbers of images for each of which the peak memory is measured.

    Raises:
        SystemExit: the folder holds fewer images.
    """
    with tempfile.TemporaryDirectory() as place:
        shown = Path(folder or f"{place}/images")
        if folder is None:
            draw_folder(shown, max(count, *counts), 320)
        files = _files(shown, count)
        rates = _rates(files, rounds, Path(place))
        record = {
            "ceiling": ceiling(),
            "images": count,
            "images per second": {name: spread(values) for name, values in rates.items()},
            "visualize / same job": spread(ratios(rates["visualize"], rates["pytorch-grad-cam, same job"])),
            "visualize / one map": spread(ratios(rates["visualize"], rates["pytorch-grad-cam, one map"])),
            "peak memory MiB by images": _memory(shown, counts),
        }
    keep("drawing", record)
    return record


def _classifier() -> AttentionClassifier:
    torch.manual_seed(0)
    classes = tuple("abcdef")
    return build_classifier(Architecture("compact", "parametrised", None, "concat", None, SIZE, classes)).eval()


def _files(folder: Path, count: int) -> list[Path]:
    files = sorted(folder.rglob("*.jpg"))[:count]
    if len(files) < count:
        raise SystemExit(f"{folder} holds {len(files)} images (*.jpg), and {count} are asked for.")
    return files


def _rates(files: list[Path], rounds: int, place: Path) -> dict[str, list[float]]:
    classifier = _classifier()
    jobs: dict[str, Callable[[Path], object]] = {
        "visualize": lambda out: visualize(classifier, files, out),
        "pytorch-grad-cam, same job": lambda out: _loop(classifier, files, out, _whole),
        "pytorch-grad-cam, one map": lambda out: _loop(classifier, files, out, _least),
    }
    visualize(classifier, files[:8], place / "warm")
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds):
        for name, job in jobs.items():
            out = place / f"{name}{number}"
            rates[name].append(len(files) / timed(lambda job=job, out=out: job(out)))
    return rates


def _memory(folder: Path, counts: Sequence[int]) -> dict[str, float]:
    """MiB at the peak, each of a fresh process."""
    peaks = {}
    for count in counts:
        words = ["-m", "benchmarks.drawing", "--peak-of", str(count), "--folder", str(folder)]
        found = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        if found.returncode:
            raise SystemExit(found.stderr)
        peaks[str(count)] = float(found.stdout)
    return peaks


def _peak(folder: Path, count: int) -> float:
    """MiB that this process has held at most after drawing so many images.

    The system's own high-water mark where it tells one (Linux), else the highest of what is held after each image.
    """
    keep_freed_memory()  # as the command does
    seen: list[int] = []
    with tempfile.TemporaryDirectory() as out:
        visualize(
            _classifier(),
            _files(folder, count),
            Path(out) / "maps",
            options=VisualizeOptions(on_progress=lambda done: seen.append(psutil.Process().memory_info().rss)),
        )
    status = Path("/proc/self/status")
    words = status.read_text().split() if status.is_file() else []
    if "VmHWM:" in words:  # getrusage would count what the parent held when it started this process
        return int(words[words.index("VmHWM:") + 1]) / 2**10
    return max(seen) / 2**20


def _loop(classifier: AttentionClassifier, files: list[Path], out: Path, draw: Draw) -> None:
    from pytorch_grad_cam import GradCAM

    out.mkdir()
    network = Logits(classifier)
    layers = [[classifier.backbone.get_submodule(tap)] for tap in classifier.taps]
    with GradCAM(network, layers[0]) as first, GradCAM(network, layers[1]) as second:
        for file in files:
            image = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            draw(image, first, second, out / file.stem)


def _least(image: Image.Image, cam: Any, _: Any, out: Path) -> None:
    from pytorch_grad_cam.utils.image import show_cam_on_image

    values, tensor = _arrays(image)
    grey = cam(tensor, None)[0]
    Image.fromarray(show_cam_on_image(values, grey, use_rgb=True)).save(out.with_suffix(".png"))
    np.savez_compressed(out.with_suffix(".npz"), grey)


def _whole(image: Image.Image, first: Any, second: Any, out: Path) -> None:
    from pytorch_grad_cam.utils.image import show_cam_on_image

    _, tensor = _arrays(image)
    maps = [cam(tensor, None)[0] for cam in (first, second)]
    maps.append(np.sqrt(maps[0] * maps[1]))
    large = image.resize((TILE, TILE), Image.Resampling.BICUBIC)
    values = np.asarray(large, dtype=np.float32) / 255
    sheet = Image.new("RGB", PANEL, "white")
    sheet.paste(large, (22, 92))
    for number, grey in enumerate(maps, start=1):
        resized = np.asarray(Image.fromarray(grey).resize((TILE, TILE), Image.Resampling.BILINEAR))
        drawn = Image.fromarray(show_cam_on_image(values, resized, use_rgb=True))
        sheet.paste(drawn, (22 + number * (TILE + 16), 92))
    sheet.save(out.with_suffix(".png"))
    drawn.save(out.with_suffix(".jpg"), quality=88)
    np.savez_compressed(out.with_suffix(".npz"), *maps)


def _arrays(image: Image.Image) -> tuple[Any, torch.Tensor]:
    values = np.asarray(image, dtype=np.float32) / 255
    return values, torch.from_numpy(values.transpose(2, 0, 1).copy())[None]


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drawing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", help="of photographs; drawn where none is given")
    parser.add_argument("--counts", type=int, nargs="+", default=[160, 640], help="images; only memory is measured")
    parser.add_argument("--peak-of", type=int, help="images: do it here, and print the MiB at the peak")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(asked.folder or place)
        if asked.folder is None:
            draw_folder(folder, asked.peak_of or max(asked.counts), 320)
        if asked.peak_of:
            sys.stdout.write(f"{_peak(folder, asked.peak_of):.0f}\n")
            return
        for count, peak in _memory(folder, asked.counts).items():
            sys.stdout.write(f"{count} images: {peak:.0f} MiB at the peak\n")


if __name__ == "__main__":
    _main()

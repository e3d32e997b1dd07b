"""`visualize` on a folder of photographs against loops of pytorch-grad-cam, one picture at a time, as its guide has it.

Two loops: one that does the same job (read a file, ask the same network, a map of each of the two taps and the two
combined, drawn side by side at the same size, PNG, thumbnail and raw values), and the least that anyone may call
drawing a map (one map of one layer, at the network's size, no text). `visualize` writes legend, page and table too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.end_to_end import draw_folder
from benchmarks.measuring import ceiling, keep, spread, timed
from heedmap.classifier import Architecture, AttentionClassifier, build_classifier
from heedmap.visualize import visualize
from heedmap.visualize.answers import TILE

SIZE, PANEL = 144, (1116, 472)
Draw = Callable[[Image.Image, Any, Any, Path], None]


class Logits(torch.nn.Module):
    """The classifier as pytorch-grad-cam wants it: pictures to logits."""

    def __init__(self, classifier: AttentionClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, K)."""
        return self.classifier(images).logits


def main(rounds: int = 3, count: int = 160, folder: str | None = None) -> dict[str, Any]:
    """Measure, keep and return the figures; peak memory is looked at for ``count`` and for four times as many."""
    torch.manual_seed(0)
    classes = tuple("abcdef")
    classifier = build_classifier(Architecture("compact", "parametrised", None, "concat", None, SIZE, classes)).eval()
    with tempfile.TemporaryDirectory() as place:
        drawn = Path(place) / "pictures"
        if folder is None:
            draw_folder(drawn, 4 * count, 320)
        files = sorted((Path(folder) if folder else drawn).rglob("*.jpg"))
        warm = Path(place) / "warm"
        jobs = {
            "visualize": lambda out: visualize(classifier, files[:count], out),
            "pytorch-grad-cam, same job": lambda out: _loop(classifier, files[:count], out, _whole),
            "pytorch-grad-cam, one map": lambda out: _loop(classifier, files[:count], out, _least),
        }
        visualize(classifier, files[:8], warm)
        rates: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(rounds):
            for name, job in jobs.items():
                out = Path(place) / f"{name}{number}"
                rates[name].append(count / timed(lambda job=job, out=out: job(out)))
        memory = {}
        for many in (count, len(files)):
            seen: list[int] = []
            visualize(
                classifier,
                files[:many],
                Path(place) / f"memory{many}",
                on_progress=lambda done, seen=seen: seen.append(psutil.Process().memory_info().rss),
            )
            memory[str(many)] = max(seen) / 2**20
    rows = {name: spread(values) for name, values in rates.items()}
    record = {
        "ceiling": ceiling(),
        "pictures": count,
        "images per second": rows,
        "visualize / same job": spread(_ratios(rates, "pytorch-grad-cam, same job")),
        "visualize / one map": spread(_ratios(rates, "pytorch-grad-cam, one map")),
        "peak memory MiB by pictures": memory,
    }
    keep("drawing", record)
    return record


def _ratios(rates: dict[str, list[float]], name: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(rates["visualize"], rates[name], strict=True)]


def _loop(classifier: AttentionClassifier, files: list[Path], out: Path, draw: Draw) -> None:
    from pytorch_grad_cam import GradCAM

    out.mkdir()
    network = Logits(classifier)
    layers = [[classifier.backbone.get_submodule(tap)] for tap in classifier.taps]
    with GradCAM(network, layers[0]) as first, GradCAM(network, layers[1]) as second:
        for file in files:
            picture = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            draw(picture, first, second, out / file.stem)


def _least(picture: Image.Image, cam: Any, _: Any, out: Path) -> None:
    from pytorch_grad_cam.utils.image import show_cam_on_image

    values, tensor = _arrays(picture)
    grey = cam(tensor, None)[0]
    Image.fromarray(show_cam_on_image(values, grey, use_rgb=True)).save(out.with_suffix(".png"))
    np.savez_compressed(out.with_suffix(".npz"), grey)


def _whole(picture: Image.Image, first: Any, second: Any, out: Path) -> None:
    from pytorch_grad_cam.utils.image import show_cam_on_image

    _, tensor = _arrays(picture)
    maps = [cam(tensor, None)[0] for cam in (first, second)]
    maps.append(np.sqrt(maps[0] * maps[1]))
    large = picture.resize((TILE, TILE), Image.Resampling.BICUBIC)
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


def _arrays(picture: Image.Image) -> tuple[Any, torch.Tensor]:
    values = np.asarray(picture, dtype=np.float32) / 255
    return values, torch.from_numpy(values.transpose(2, 0, 1).copy())[None]

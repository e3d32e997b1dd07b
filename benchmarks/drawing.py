"""`visualize` on a folder of photographs against a loop of pytorch-grad-cam that does the same job, one at a time.

The same job: read a file, ask the same network, draw the map over the picture, write a PNG and the raw values.
`visualize` writes more (each tap, the combined map, a panel, a page, a table).
"""

from __future__ import annotations

import tempfile
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

SIZE = 144


class Logits(torch.nn.Module):
    """The classifier as pytorch-grad-cam wants it: pictures to logits."""

    def __init__(self, classifier: AttentionClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, K)."""
        return self.classifier(images).logits


def main(rounds: int = 3, count: int = 300, folder: str | None = None) -> dict[str, Any]:
    """Measure, keep and return the figures; peak memory is looked at for ``count`` and for four times as many."""
    torch.manual_seed(0)
    classes = tuple("abcdef")
    classifier = build_classifier(Architecture("compact", "parametrised", None, "concat", None, SIZE, classes)).eval()
    with tempfile.TemporaryDirectory() as place:
        drawn = Path(place) / "pictures"
        if folder is None:
            draw_folder(drawn, 4 * count, 320)
        files = sorted((Path(folder) if folder else drawn).rglob("*.jpg"))
        rates: dict[str, list[float]] = {"visualize": [], "pytorch-grad-cam loop": []}
        for number in range(rounds):
            out = Path(place) / f"ours{number}"
            rates["visualize"].append(count / timed(lambda out=out: visualize(classifier, files[:count], out)))
            theirs = Path(place) / f"theirs{number}"
            seconds = timed(lambda theirs=theirs: _loop(classifier, files[:count], theirs))
            rates["pytorch-grad-cam loop"].append(count / seconds)
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
        "visualize / loop": rows["visualize"]["median"] / rows["pytorch-grad-cam loop"]["median"],
        "peak memory MiB by pictures": memory,
    }
    keep("drawing", record)
    return record


def _loop(classifier: AttentionClassifier, files: list[Path], out: Path) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image

    out.mkdir()
    with GradCAM(Logits(classifier), [classifier.backbone.stage3]) as cam:  # type: ignore[list-item]
        for file in files:
            picture = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            values = np.asarray(picture, dtype=np.float32) / 255
            grey = cam(torch.from_numpy(values.transpose(2, 0, 1).copy())[None])[0]
            Image.fromarray(show_cam_on_image(values, grey, use_rgb=True)).save(out / f"{file.stem}.png")
            np.savez_compressed(out / f"{file.stem}.npz", grey)

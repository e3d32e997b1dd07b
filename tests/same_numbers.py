"""The figures that a change of structure must not change: ``python tests/same_numbers.py FOLDER`` records them.

A short training on the CPU (its losses and weights), thirteen map methods on one image, an exported file's outputs, and
an evaluation. ``tests/golden`` was recorded before the files were moved into their present places, by the same steps in
the words of that time (the record names the commit); whoever changes a figure on purpose records it anew, and says so.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from conftest import write_cue_part
from heedmap import ExportOptions, OnnxClassifier, TrainOptions, evaluate, explain, export, train
from heedmap.progress import Progress
from heedmap.types import StepReport
from heedmap.workflows.evaluate.suites import EvaluateOptions

METHODS = (
    *("attention", "saliency", "smoothgrad", "integrated-gradients", "input-x-gradient", "guided-backprop"),
    *("grad-cam", "grad-cam++", "hires-cam", "layer-cam", "score-cam", "occlusion", "rise"),
)


class _Losses(Progress):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def step(self, report: StepReport) -> None:
        self.losses.append(report.loss)


def figures(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train, explain, export and evaluate in an empty folder; return the numbers and the arrays."""
    data = folder / "cue"
    write_cue_part(data / "train", 12, first_seed=0)
    write_cue_part(data / "test", 12, first_seed=1000)
    steps = _Losses()
    options = TrainOptions(
        **{"data": str(data), "out": str(folder / "run"), "image_size": 32, "epochs": 12, "batch_size": 8},
        **{"validation": 0.2, "workers": 0, "precision": "float32", "seed": 3},
    )
    run = train(options, progress=steps)
    classifier = run.classifier()
    parts = sorted(hashlib.sha256(each.contiguous().numpy().tobytes()).hexdigest() for each in _tensors(classifier))
    pixels = np.asarray(Image.open(data / "test" / "red" / "000.png").convert("RGB").resize((32, 32)))
    arrays = _maps(classifier, pixels)
    calibration = [Image.open(path).convert("RGB") for path in sorted((data / "test" / "red").glob("*.png"))[:4]]
    file = export(
        classifier, folder / "model.onnx", ExportOptions(include=("grad_cam", "saliency")), images=calibration
    )
    found = OnnxClassifier(file.path, threads=1)(np.stack([pixels] * 2))
    arrays["onnx logits"] = found["logits"]
    arrays |= {f"onnx map {name}": values for name, values in found["maps"].items()}
    chosen = EvaluateOptions(suites=("accuracy", "faithfulness", "robustness"), limit=6)
    evaluation = evaluate(run, options=chosen).as_dict()
    numbers = {
        "losses": steps.losses[:20],
        "weights": hashlib.sha256("".join(parts).encode()).hexdigest(),
        "evaluation": dict(_numbers(evaluation)),
    }
    return numbers, {name: np.asarray(values, dtype=np.float32) for name, values in arrays.items()}


def _tensors(classifier: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from classifier.state_dict().values()


def _maps(classifier: torch.nn.Module, pixels: np.ndarray) -> dict[str, np.ndarray]:
    images, found = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255, {}
    for method in METHODS:
        torch.manual_seed(0)
        found[f"map {method}"] = explain(classifier, images, method).values.numpy()
    return found


def _numbers(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested record by their path; times are left out."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _numbers(item, f"{path}/{key}")
    elif isinstance(value, int | float) and "second" not in path:
        yield path, float(value)


def machine() -> dict[str, str]:
    """What has to be alike for the last digit to be alike."""
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    cpu = next((line.partition(": ")[2] for line in described.splitlines() if line.startswith("model name")), "")
    return {"torch": str(torch.__version__), "cpu": cpu, "capability": torch.backends.cpu.get_cpu_capability()}


def main(folder: Path) -> None:
    """Record into a folder."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HEEDMAP_CACHE"] = str(Path(scratch) / "cache")
        numbers, arrays = figures(Path(scratch))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps({"commit": commit, **machine(), **numbers}, indent=1) + "\n")
    np.savez_compressed(folder / "arrays.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

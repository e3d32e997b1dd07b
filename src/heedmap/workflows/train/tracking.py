"""Experiment trackers, through Accelerate: ``--track tensorboard wandb mlflow csv``."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from heedmap.errors import OptionError
from heedmap.files import disk, write_whole
from heedmap.runs import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "heedmap"  # in Weights & Biases and MLflow; each run is under its folder's name there
METRICS_TABLE = "metrics.csv"


class CsvTracker(GeneralTracker):
    """A table ``path`` with one metric a line: ``step,metric,value``; lines after ``step`` are removed."""

    name = "csv"
    requires_logging_directory = False

    def __init__(self, path: Path, step: int = 0) -> None:
        super().__init__()
        self.path = path
        with disk(path):
            lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
            saved = [line for line in lines if line.count(",") == 2 and int(line.split(",")[0]) <= step]
            write_whole(path, "\n".join(["step,metric,value", *saved, ""]).encode())

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Append a line for each value."""
        with disk(self.path), self.path.open("a", encoding="utf-8", newline="") as table:
            csv.writer(table, lineterminator="\n").writerows((step, name, value) for name, value in values.items())


class Trackers:
    """The trackers of a run, on the first process; raises OptionError where the package of one is not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        for name in names:
            try:  # the distribution: a folder wandb/ of earlier runs can be imported too
                name == "csv" or importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                way = f"pip install 'heedmap[{name}]'"
                raise OptionError(f"--track {name} needs a package that is missing: {way}.") from None
        self.names = names
        self.accelerator: Accelerator | None = None

    def start(self, accelerator: Accelerator, run: Run, step: int) -> None:
        """Begin to log; what an interrupted process logged after ``step`` is replaced or follows."""
        if not self.names or not accelerator.is_main_process:
            return
        make: dict[str, Any] = {
            "tensorboard": lambda: TensorBoardTracker("tensorboard", run.path, purge_step=step + 1 if step else None),
            "wandb": lambda: WandBTracker(PROJECT, name=run.path.name, dir=str(run.path)),
            "mlflow": lambda: MLflowTracker(PROJECT, run_name=run.path.name),
            "csv": lambda: CsvTracker(run.path / METRICS_TABLE, step),
        }
        self.accelerator = accelerator
        accelerator.log_with = [make[name]() for name in dict.fromkeys(self.names)]
        accelerator.init_trackers(PROJECT)
        settings = {name: str(value) for name, value in run.config["options"].items()}
        for tracker in accelerator.trackers:
            if tracker.name != "tensorboard":  # which would make a second run of them
                tracker.store_init_configuration(settings)

    def log(self, kind: str, values: Mapping[str, Any], step: int) -> None:
        """Log the finite numbers among ``values`` as ``KIND/NAME``."""
        if self.accelerator is not None:
            numbers = {name: value for name, value in values.items() if isinstance(value, float)}
            self.accelerator.log({f"{kind}/{k}": v for k, v in numbers.items() if math.isfinite(v)}, step=step)

    def log_image(self, name: str, content: bytes, step: int) -> None:
        """Log an image file to the trackers that take images."""
        if self.accelerator is None:
            return
        pixels = np.array(Image.open(io.BytesIO(content)))[None]
        for tracker in self.accelerator.trackers:
            if isinstance(tracker, TensorBoardTracker | WandBTracker):
                more = {"dataformats": "NHWC"} if isinstance(tracker, TensorBoardTracker) else {}
                tracker.log_images({name: pixels}, step, **more)

    def finish(self) -> None:
        """Write what is pending, and close; ``Accelerator.end_training`` would part the processes too."""
        if self.accelerator is not None:
            for tracker in self.accelerator.trackers:
                tracker.finish()

"""The callbacks of a training run: metrics, trackers, panels of maps, checkpoints, and stopping on a signal."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import math
import shlex
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from PIL import Image
from torch import Tensor

from heedmap.errors import OptionError, Stopped
from heedmap.files import disk, write_whole
from heedmap.progress import Progress
from heedmap.runs import Run
from heedmap.training.trainer import Fitting
from heedmap.types import EpochReport, StepReport
from heedmap.workflows.evaluate.page import panel_sheet

RECORD_STEPS = 20  # steps between two lines of metrics.jsonl
PANEL_SECONDS = 20.0  # between two panels of maps during training
SAVING_SHARE = 0.01  # of the time; a shorter epoch is not worth a checkpoint of its own
PROJECT = "heedmap"  # in Weights & Biases and MLflow; each run is under its folder's name there
METRICS_TABLE = "metrics.csv"


class Checkpointer:
    """Keeps the run's files up to date during training, and stops it on a signal; the trackers receive the metrics."""

    run: Run
    fitting: Fitting

    def __init__(self, trackers: Trackers, accelerator: Accelerator, progress: Progress) -> None:
        self.trackers, self.accelerator, self.progress = trackers, accelerator, progress
        self.began, self.spent_before = time.monotonic(), 0.0
        self.saved, self.saving = self.began, 0.0  # when the last checkpoint was written, and the seconds it took
        self.drawn = -math.inf
        self.stop_requested = False

    def load(self, run: Run) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Receive the run, and load its checkpoint if there is one; see :meth:`heedmap.runs.Run.load_checkpoint`."""
        self.run, state = run, run.load_checkpoint()
        if state is not None:
            self.spent_before = float(state[1].get("since_start", 0.0))
        return state

    def start(self, fitting: Fitting) -> None:
        """Receive the training whose state is saved, and start the trackers."""
        self.fitting, self.saved = fitting, time.monotonic()
        self.trackers.start(self.accelerator, self.run, fitting.step)

    def on_step(self, report: StepReport) -> None:
        """Record the step, save where it is due, stop if requested."""
        self.progress.step(report)
        if report.step % RECORD_STEPS == 0:
            self.record("step", dataclasses.asdict(report))
        if self._is_stop_requested():
            self.save()
            raise self._stopped(report)
        if time.monotonic() - self.saved >= self.fitting.options.save_every:
            self.save()

    def on_epoch(self, report: EpochReport, sample: Tensor | None) -> None:
        """Record the epoch, draw a panel of maps, save where that costs little."""
        since_start = self.since_start()
        self.record("epoch", {"step": self.fitting.step, "since_start": since_start, **report.as_record()})
        self.progress.epoch(report)
        for warning in report.warnings:
            self.progress.message(warning)
        is_last = report.epoch == report.epochs
        is_due = is_last or time.monotonic() - self.drawn > PANEL_SECONDS
        if sample is not None and is_due and self.accelerator.is_main_process:
            sheet = panel_sheet(self.fitting.averaged, sample)
            self.run.write(f"panels/epoch-{report.epoch:04d}.jpg", sheet)
            self.trackers.log_image("maps", sheet, self.fitting.step)
            self.drawn = time.monotonic()
        is_stopping = self._is_stop_requested()
        if is_stopping or is_last or self.saving <= SAVING_SHARE * (time.monotonic() - self.saved):
            self.save()
        if is_stopping:
            raise self._stopped(report)

    def _is_stop_requested(self) -> bool:
        """Return whether any process received a signal; all must leave after the same step, or the rest wait."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        flag = torch.tensor(float(self.stop_requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag) > 0)

    def _stopped(self, report: StepReport | EpochReport) -> Stopped:
        command = f"heedmap train --resume {shlex.quote(str(self.run.path))}"
        return Stopped(f"Stopped at epoch {report.epoch} of {report.epochs}; continue with `{command}`.")

    def record(self, kind: str, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl and log it to the trackers, on the first process."""
        if self.accelerator.is_main_process:
            self.run.append_metrics({"kind": kind, **values})
            self.trackers.log(kind, values, values["step"])

    def since_start(self) -> float:
        """Return the seconds that this training has taken; of earlier attempts, up to their checkpoint."""
        return self.spent_before + time.monotonic() - self.began

    def save(self) -> None:
        """Write a checkpoint, on the first process."""
        began = time.monotonic()
        if self.accelerator.is_main_process:
            tensors, progress = self.fitting.state()
            self.run.save_checkpoint(tensors, {**progress, "since_start": self.since_start()})
        self.saved = time.monotonic()
        self.saving = self.saved - began

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Stop after the current step on SIGINT or SIGTERM, while a second one acts as usual; close the trackers."""
        is_main = threading.current_thread() is threading.main_thread()  # no other thread may handle signals

        def request_stop(number: int, _frame: object) -> None:
            self.stop_requested = True
            signal.signal(number, before[signal.Signals(number)])

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
        for number in before:
            signal.signal(number, request_stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.trackers.finish()


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

"""Keeps a run's files up to date while training goes on: metrics, panels of maps, checkpoints; and heeds signals."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heedmap.config import TrainOptions
from heedmap.errors import OptionError, Stopped
from heedmap.progress import Progress
from heedmap.runs import Run
from heedmap.training.trainer import Fitting
from heedmap.types import EpochReport, StepReport
from heedmap.workflows.evaluate.page import panel_sheet

if TYPE_CHECKING:
    from accelerate import Accelerator

RECORD_STEPS = 20  # steps between two lines of metrics.jsonl
PANEL_SECONDS = 20.0  # between two panels of maps while training goes
SAVING_SHARE = 0.01  # of the time; an epoch that is over sooner is not worth a checkpoint of its own


class Checkpointer:
    """Keeps the run's files up to date while training goes, and stops it when the user asks.

    Args:
        run, options, accelerator, progress: of this training.
        began: ``time.monotonic()`` when it began, reading the images included.
    """

    def __init__(
        self, run: Run, options: TrainOptions, accelerator: Accelerator, progress: Progress, began: float
    ) -> None:
        self.run, self.options, self.accelerator, self.progress = run, options, accelerator, progress
        self.began, self.spent_before = began, 0.0
        self.fitting: Fitting | None = None
        self.saved, self.saving = time.monotonic(), 0.0  # when the last checkpoint was written, and how long it took
        self.drawn = -math.inf
        self.asked_to_stop = False
        self.events: Any = None

    def attend(self, fitting: Fitting) -> None:
        """Know the training whose state is to be kept.

        Raises:
            OptionError: TensorBoard is wanted and not installed.
        """
        self.fitting = fitting
        if self.options.tensorboard and self.accelerator.is_main_process:
            self.events = _tensorboard(self.run, fitting.step)

    def on_step(self, report: StepReport) -> None:
        """Record, save now and then, stop if asked to."""
        self.progress.step(report)
        if report.step % RECORD_STEPS == 0:
            self.record("step", dataclasses.asdict(report))
        if self._stop_wanted():
            self.save()
            raise self._stopped(report)
        if time.monotonic() - self.saved >= self.options.save_every:
            self.save()

    def on_epoch(self, report: EpochReport, sample: Tensor | None) -> None:
        """Record, draw a panel of maps, save where that costs little."""
        assert self.fitting is not None
        since_start = self.since_start()
        self.record("epoch", {"step": self.fitting.step, "since_start": since_start, **report.as_record()})
        self.progress.epoch(report)
        for warning in report.warnings:
            self.progress.message(warning)
        due = time.monotonic() - self.drawn > PANEL_SECONDS or report.epoch == report.epochs
        if sample is not None and due and self.accelerator.is_main_process:
            sheet = panel_sheet(self.fitting.averaged, sample)
            self.run.write(f"panels/epoch-{report.epoch:04d}.jpg", sheet)
            if self.events is not None:
                pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(sheet))))
                self.events.add_image("maps", pixels, self.fitting.step, dataformats="HWC")
            self.drawn = time.monotonic()
        asked = self._stop_wanted()
        if asked or report.epoch == report.epochs or self.saving <= SAVING_SHARE * (time.monotonic() - self.saved):
            self.save()
        if asked:
            raise self._stopped(report)

    def _stop_wanted(self) -> bool:
        """Whether any process was asked to stop; all must leave after the same step, or the rest wait for ever."""
        if self.accelerator.num_processes == 1:
            return self.asked_to_stop
        asked = torch.tensor(float(self.asked_to_stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked) > 0)

    def _stopped(self, report: StepReport | EpochReport) -> Stopped:
        command = f"heedmap train --resume {shlex.quote(str(self.run.path))}"
        return Stopped(f"Stopped at epoch {report.epoch} of {report.epochs}; go on with `{command}`.")

    def record(self, kind: str, values: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and to TensorBoard where that is wanted; on the first process only."""
        if not self.accelerator.is_main_process:
            return
        self.run.append_metrics({"kind": kind, **values})
        if self.events is not None:
            for name, value in values.items():
                if isinstance(value, float) and math.isfinite(value):
                    self.events.add_scalar(f"{kind}/{name}", value, values["step"])

    def since_start(self) -> float:
        """Seconds on the clock that this training has taken, all included; of earlier attempts up to their state."""
        return self.spent_before + time.monotonic() - self.began

    def save(self) -> None:
        """Write a checkpoint, on the first process."""
        began = time.monotonic()
        if self.accelerator.is_main_process and self.fitting is not None:
            tensors, progress = self.fitting.state()
            self.run.save_checkpoint(tensors, {**progress, "since_start": self.since_start()})
        self.saved = time.monotonic()
        self.saving = self.saved - began

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint to go on from, if there is one; see :meth:`heedmap.runs.Run.load_checkpoint`."""
        state = self.run.load_checkpoint()
        if state is not None:
            self.spent_before = float(state[1].get("since_start", 0.0))
        return state

    @contextlib.contextmanager
    def on_duty(self) -> Iterator[None]:
        """While inside, SIGINT and SIGTERM stop training after the step under way, with its state saved.

        A second signal of the same kind does what it always does. TensorBoard's events are all written at the end.
        """
        try:
            with self._heeding_signals():
                yield
        finally:
            if self.events is not None:
                self.events.close()

    @contextlib.contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # no other may ask for signals
            yield
            return

        def ask(number: int, _frame: object) -> None:
            self.asked_to_stop = True
            signal.signal(number, before[signal.Signals(number)])

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _tensorboard(run: Run, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise OptionError("--tensorboard needs the package: pip install 'heedmap[tensorboard]'.") from None
    # What a run that died wrote after its last checkpoint is written again.
    return SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if step else None)

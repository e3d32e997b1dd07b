"""The runs of a comparison: one after the other in this process, or several at a time in their own.

A finished run stays as it is, an unfinished one is resumed from its checkpoint, or starts again where it has none.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch

from heedmap.data.annotations.annotations import AnnotationOptions
from heedmap.data.loader import memory_to_use
from heedmap.errors import HeedmapError, RunError, Stopped
from heedmap.files import disk
from heedmap.progress import Progress
from heedmap.runs import CONFIG, EVALUATION, Run
from heedmap.system import term_as_interrupt
from heedmap.types import StepReport
from heedmap.workflows.compare.plan import Job
from heedmap.workflows.evaluate.data import OFFLINE
from heedmap.workflows.evaluate.evaluate import evaluate
from heedmap.workflows.evaluate.page import refresh
from heedmap.workflows.evaluate.suites import EvaluateOptions
from heedmap.workflows.train.train import command_line, train

POLL_SECONDS = 0.2  # between two looks at the processes
SUITE = "localization"
MOST = 500  # test images a run whose maps are evaluated: seeds differ by more than further images would


@dataclass(frozen=True)
class FailedRun:
    """A run that cannot be finished, and why."""

    job: Job
    reason: str


class _Steps(Progress):
    """Passes steps on, but no messages and epochs, which would be many."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def step(self, report: StepReport) -> None:
        self.progress.step(report)


def is_finished(job: Job) -> bool:
    """Return whether the run is there and finished."""
    return (job.path / CONFIG).is_file() and Run.open(job.path, finished=False).is_finished


def evaluate_maps(job: Job, progress: Progress) -> None:
    """Run the localization suite on a finished run whose objects are known, unless that was done already.

    Its attention and Grad-CAM are evaluated, or Grad-CAM alone where it has no attention.
    """
    run, annotations, reading = Run.open(job.path), job.options.annotations, AnnotationOptions.from_command(job.options)
    before = run.read_json(EVALUATION)
    if SUITE in before.get("suites", {}) or (annotations is None and before.get("pointing") is None):
        return
    progress.message(f"Evaluating the maps of {job.name}.")
    options = EvaluateOptions(
        suites=(SUITE,), annotations=annotations, reading=reading, limit=MOST, precision="float32", opening=OFFLINE
    )
    refresh(run, evaluate(run, options=options))


def run_all(
    jobs: Sequence[Job], parallel: int, progress: Progress, on_end: Callable[[Job], None], lock: int | None
) -> list[FailedRun]:
    """Train the runs that are not finished yet; return those that failed.

    Args:
        parallel: 1 trains one after the other in this process; more, so many at a time, each in a process of its own
            with its part of the threads and the memory.
        progress: receives the steps (in this process), and a message for each run.
        on_end: called after each finished run.
        lock: from :func:`heedmap.files.locked`; each process holds it too, so that a comparison whose main process
            died is not started again while its runs continue.

    Raises:
        Stopped: SIGINT or SIGTERM came; the states of the current runs are saved.
    """
    failures: list[FailedRun] = []

    def begin(number: int, job: Job) -> bool:
        is_begun = _make_ready(job)
        progress.message(f"Run {number} of {len(jobs)}: {job.name}{', resumed' if is_begun else ''}.")
        return is_begun

    def end(job: Job, failure: str | None) -> None:
        if failure is None:
            on_end(job)
        else:
            failures.append(FailedRun(job, failure))
            progress.message(f"{job.name} failed: {failure}")

    if parallel > 1:
        _run_in_parallel(list(enumerate(jobs, 1)), parallel, begin, end, lock)
        return failures
    for number, job in enumerate(jobs, 1):
        is_begun, failure = begin(number, job), None
        try:
            train(job.options, resume=job.path if is_begun else None, progress=_Steps(progress))
        except Stopped:
            raise
        except HeedmapError as error:
            failure = str(error)
        end(job, failure)
    return failures


def _run_in_parallel(
    waiting: list[tuple[int, Job]],
    parallel: int,
    begin: Callable[[int, Job], bool],
    end: Callable[[Job, str | None], None],
    lock: int | None,
) -> None:
    running: dict[subprocess.Popen[bytes], Job] = {}
    try:
        with term_as_interrupt():
            while waiting or running:
                while waiting and len(running) < parallel:
                    number, job = waiting.pop(0)
                    running[_start(job, begin(number, job), parallel, lock)] = job
                time.sleep(POLL_SECONDS)
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
                    if process.returncode == 0:
                        _log(job).unlink(missing_ok=True)
                    end(job, _reason(job, process.returncode) if process.returncode else None)
    except KeyboardInterrupt:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()
        raise Stopped("Stopped.") from None


def _make_ready(job: Job) -> bool:
    """Return whether the run is to be resumed; remove what one left that died before its first line."""
    if (job.path / CONFIG).is_file():
        return True
    if job.path.is_dir():
        others = [path.name for path in job.path.iterdir() if not path.name.endswith(".partial")]
        if others:
            raise RunError(f"{job.path} holds {others[0]!r} but no run; move it away, or name another --out.")
        shutil.rmtree(job.path)
    return False


def _start(job: Job, is_begun: bool, parallel: int, lock: int | None) -> subprocess.Popen[bytes]:
    options, log, threads = job.options, _log(job), max(1, torch.get_num_threads() // parallel)
    if options.workers is None:
        options = replace(options, workers=threads)
    if options.memory is None:
        options = replace(options, memory=round(memory_to_use(None, parallel) / 1e9, 2))
    words = ["train", "--resume", str(job.path)] if is_begun else shlex.split(command_line(options))[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with disk(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            return start_heedmap(words, output, environment, lock)


def start_heedmap(
    words: Sequence[str], output: IO[bytes], environment: dict[str, str] | None = None, lock: int | None = None
) -> subprocess.Popen[bytes]:
    """Start ``heedmap WORDS`` in a process and a session of its own: it outlives the terminal and receives no Ctrl-C.

    An open file receives all output; the process holds the descriptor ``lock`` open too.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "heedmap", *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
    )


def _log(job: Job) -> Path:
    """Return the file of a process's output; it lies beside the run's folder, which has to be new."""
    return job.path.with_name(f"{job.path.name}.log")


def _reason(job: Job, status: int) -> str:
    lines = _log(job).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1].removeprefix("error: ") if lines else "no output"
    return f"{reason} (status {status}; {_log(job)})"

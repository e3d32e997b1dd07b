"""The runs of a comparison: one after the other in this process, or several at a time in their own.

A finished run is kept, an unfinished one goes on from its checkpoint, and what died before it had one starts anew.
"""

from __future__ import annotations

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

from heedmap.data.loader import memory_to_use
from heedmap.errors import HeedmapError, RunError, Stopped
from heedmap.files import disk
from heedmap.progress import Progress
from heedmap.runs import CONFIG, Run
from heedmap.system import term_as_interrupt
from heedmap.types import StepReport
from heedmap.workflows.compare.plan import Job
from heedmap.workflows.train.train import command_line, train

PATIENCE = 0.2  # seconds between two looks at the processes


@dataclass(frozen=True)
class FailedRun:
    """A run that cannot be finished, and why."""

    job: Job
    reason: str


class _Steps(Progress):
    """Passes steps on, and neither sentences nor epochs: a comparison has many runs, and each keeps its own."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def step(self, report: StepReport) -> None:
        self.progress.step(report)


def is_finished(job: Job) -> bool:
    """Whether the run is there, whole."""
    return (job.path / CONFIG).is_file() and Run.open(job.path, finished=False).is_finished


def run_here(jobs: Sequence[Job], progress: Progress, on_end: Callable[[Job], None]) -> list[FailedRun]:
    """Train one run after the other in this process.

    Args:
        jobs: those not finished yet.
        progress: is told of steps, and of each run's begin.
        on_end: called after each run that came to its end.

    Returns:
        The runs that failed; the others were trained all the same.

    Raises:
        Stopped: SIGINT or SIGTERM came; the run under way has saved its state.
    """
    failures = []
    for number, job in enumerate(jobs, 1):
        begun = _ready(job)
        progress.message(f"Run {number} of {len(jobs)}: {job.name}{', going on' if begun else ''}.")
        try:
            train(job.options, resume=job.path if begun else None, progress=_Steps(progress))
        except Stopped:
            raise
        except HeedmapError as error:
            failures.append(FailedRun(job, str(error)))
            progress.message(f"{job.name} failed: {error}")
        else:
            on_end(job)
    return failures


def run_beside(
    jobs: Sequence[Job], parallel: int, progress: Progress, on_end: Callable[[Job], None], lock: int | None
) -> list[FailedRun]:
    """Train several runs at a time, each in a process of its own, with the threads and the memory divided.

    Args:
        jobs: those not finished yet.
        parallel: how many at a time.
        progress: is told of each run's begin.
        on_end: called after each run that came to its end.
        lock: what :func:`heedmap.files.locked` gave; each process holds it too, so that a comparison whose master
            died is not started again while its runs go on.

    Returns:
        The runs that failed; the others were trained all the same.

    Raises:
        Stopped: SIGINT or SIGTERM came; the runs under way have saved their states.
    """
    waiting, failures = list(enumerate(jobs, 1)), []
    under_way: dict[subprocess.Popen[bytes], Job] = {}
    threads = max(1, torch.get_num_threads() // parallel)
    try:
        with term_as_interrupt():
            while waiting or under_way:
                while waiting and len(under_way) < parallel:
                    number, job = waiting.pop(0)
                    begun = _ready(job)
                    progress.message(f"Run {number} of {len(jobs)}: {job.name}{', going on' if begun else ''}.")
                    under_way[_start(job, begun, threads, parallel, lock)] = job
                time.sleep(PATIENCE)
                for process in [each for each in under_way if each.poll() is not None]:
                    job = under_way.pop(process)
                    if process.returncode == 0:
                        _log(job).unlink(missing_ok=True)
                        on_end(job)
                    else:
                        failures.append(FailedRun(job, _last_words(job, process.returncode)))
                        progress.message(f"{job.name} failed: {failures[-1].reason}")
    except KeyboardInterrupt:
        for process in under_way:
            process.send_signal(signal.SIGTERM)
        for process in under_way:
            process.wait()
        raise Stopped("Stopped.") from None
    return failures


def _ready(job: Job) -> bool:
    """Whether the run is to go on; what is left of one that died before its first line is removed.

    Raises:
        RunError: something else lies there.
    """
    if (job.path / CONFIG).is_file():
        return True
    if job.path.is_dir():
        odd = [each.name for each in job.path.iterdir() if not each.name.endswith(".partial")]
        if odd:
            raise RunError(f"{job.path} holds {odd[0]!r} but no run; move it away, or name another --out.")
        shutil.rmtree(job.path)
    return False


def _start(job: Job, begun: bool, threads: int, parallel: int, lock: int | None) -> subprocess.Popen[bytes]:
    options = job.options
    if options.workers is None:
        options = replace(options, workers=threads)
    if options.memory is None:
        options = replace(options, memory=round(memory_to_use(None, parallel) / 1e9, 2))
    words = ["train", "--resume", str(job.path)] if begun else shlex.split(command_line(options))[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    log = _log(job)
    with disk(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as said:
            return heedmap_beside(words, said, environment, lock)


def heedmap_beside(
    words: Sequence[str], said: IO[bytes], environment: dict[str, str] | None = None, lock: int | None = None
) -> subprocess.Popen[bytes]:
    """Start ``heedmap WORDS`` as a process that writes all it says into ``said``.

    It has a session of its own, so that it outlives the terminal and does not see Ctrl-C: who started it asks it to
    stop, once.

    Args:
        words: a command and what it is told.
        said: an open file.
        environment: of the process; None takes this one's.
        lock: a descriptor that it holds open too.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "heedmap", *words],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
    )


def _log(job: Job) -> Path:
    """Where a process says what it has to say; a run's own folder must be new."""
    return job.path.with_name(f"{job.path.name}.log")


def _last_words(job: Job, status: int) -> str:
    lines = _log(job).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    return f"{said} (status {status}; {_log(job)})"

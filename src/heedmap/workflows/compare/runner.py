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

from heedmap.data.loader import memory_to_use
from heedmap.errors import HeedmapError, RunError, Stopped
from heedmap.files import disk
from heedmap.progress import Progress
from heedmap.runs import CONFIG, Run
from heedmap.system import term_as_interrupt
from heedmap.types import StepReport
from heedmap.workflows.compare.plan import Job
from heedmap.workflows.train.train import command_line, train

POLL_SECONDS = 0.2  # between two looks at the processes


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


def run_in_process(jobs: Sequence[Job], progress: Progress, on_end: Callable[[Job], None]) -> list[FailedRun]:
    """Train one run after the other in this process.

    Args:
        jobs: those not finished yet.
        progress: receives the steps, and a message for each run.
        on_end: called after each finished run.

    Returns:
        The runs that failed; the others are finished.

    Raises:
        Stopped: SIGINT or SIGTERM came; the state of the current run is saved.
    """
    failures = []
    for number, job in enumerate(jobs, 1):
        is_begun = _make_ready(job)
        progress.message(f"Run {number} of {len(jobs)}: {job.name}{', resumed' if is_begun else ''}.")
        try:
            train(job.options, resume=job.path if is_begun else None, progress=_Steps(progress))
        except Stopped:
            raise
        except HeedmapError as error:
            failures.append(FailedRun(job, str(error)))
            progress.message(f"{job.name} failed: {error}")
        else:
            on_end(job)
    return failures


def run_in_parallel(
    jobs: Sequence[Job], parallel: int, progress: Progress, on_end: Callable[[Job], None], lock: int | None
) -> list[FailedRun]:
    """Train several runs at a time, each in a process of its own, with the threads and the memory divided.

    Args:
        jobs: those not finished yet.
        parallel: how many at a time.
        progress: receives a message for each run.
        on_end: called after each finished run.
        lock: from :func:`heedmap.files.locked`; each process holds it too, so that a comparison whose main process
            died is not started again while its runs continue.

    Returns:
        The runs that failed; the others are finished.

    Raises:
        Stopped: SIGINT or SIGTERM came; the states of the current runs are saved.
    """
    waiting, failures = list(enumerate(jobs, 1)), []
    running: dict[subprocess.Popen[bytes], Job] = {}
    threads = max(1, torch.get_num_threads() // parallel)
    try:
        with term_as_interrupt():
            while waiting or running:
                while waiting and len(running) < parallel:
                    number, job = waiting.pop(0)
                    is_begun = _make_ready(job)
                    progress.message(f"Run {number} of {len(jobs)}: {job.name}{', resumed' if is_begun else ''}.")
                    running[_start(job, is_begun, threads, parallel, lock)] = job
                time.sleep(POLL_SECONDS)
                for process in [each for each in running if each.poll() is not None]:
                    job = running.pop(process)
                    if process.returncode == 0:
                        _log(job).unlink(missing_ok=True)
                        on_end(job)
                    else:
                        failures.append(FailedRun(job, _reason(job, process.returncode)))
                        progress.message(f"{job.name} failed: {failures[-1].reason}")
    except KeyboardInterrupt:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()
        raise Stopped("Stopped.") from None
    return failures


def _make_ready(job: Job) -> bool:
    """Return whether the run is to be resumed; remains of one that died before its first line are removed.

    Raises:
        RunError: something else is in the folder.
    """
    if (job.path / CONFIG).is_file():
        return True
    if job.path.is_dir():
        others = [each.name for each in job.path.iterdir() if not each.name.endswith(".partial")]
        if others:
            raise RunError(f"{job.path} holds {others[0]!r} but no run; move it away, or name another --out.")
        shutil.rmtree(job.path)
    return False


def _start(job: Job, is_begun: bool, threads: int, parallel: int, lock: int | None) -> subprocess.Popen[bytes]:
    options = job.options
    if options.workers is None:
        options = replace(options, workers=threads)
    if options.memory is None:
        options = replace(options, memory=round(memory_to_use(None, parallel) / 1e9, 2))
    words = ["train", "--resume", str(job.path)] if is_begun else shlex.split(command_line(options))[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    log = _log(job)
    with disk(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            return start_heedmap(words, output, environment, lock)


def start_heedmap(
    words: Sequence[str], output: IO[bytes], environment: dict[str, str] | None = None, lock: int | None = None
) -> subprocess.Popen[bytes]:
    """Start ``heedmap WORDS`` in a process of its own.

    It has its own session, so that it outlives the terminal and receives no Ctrl-C; its parent stops it.

    Args:
        words: a command and its options.
        output: an open file that receives all output.
        environment: of the process; None takes this one's.
        lock: a descriptor that it holds open too.
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

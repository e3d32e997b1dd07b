"""Train variants with the same seeds and budget, and tell what differs, with intervals.

DIR/comparison.yaml                     the plan: shared options, variants, seeds
DIR/VARIANT/seed-N/                     an ordinary run
DIR/comparison.json  .html  .svg        what they came to; written again after each run
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from heedmap.errors import HeedmapError, OptionError, RunError, Stopped
from heedmap.files import disk, finite, locked, write_whole
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier
from heedmap.progress import Progress
from heedmap.report.comparison import comparison_page, comparison_plot
from heedmap.training.recipes import derive
from heedmap.workflows.compare.maps import evaluate_maps, has_maps_to_evaluate
from heedmap.workflows.compare.plan import Job, Plan, extended, make_plan, read_experiment, read_plan, read_variant
from heedmap.workflows.compare.results import gather
from heedmap.workflows.compare.runner import FailedRun, heedmap_beside, is_finished, run_beside, run_here
from heedmap.workflows.train.setup import check_model, prepare, with_absolute_paths

__all__ = [
    "LOG",
    "Plan",
    "compare",
    "compare_in_background",
    "make_plan",
    "read_experiment",
    "read_plan",
    "read_variant",
]

PLAN, RESULT, PAGE, PLOT = "comparison.yaml", "comparison.json", "comparison.html", "comparison.svg"
LOG = "comparison.log"


def compare(
    plan: Plan | None, out: str | Path, *, parallel: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Run what is missing of a comparison, and compare.

    Args:
        plan: what to compare; None takes the one that ``out`` has. Where ``out`` has one already, its runs are kept
            and seeds or variants may be added.
        out: the comparison's folder.
        parallel: runs at a time, each in its own process.
        progress: is told of every step and run.

    Returns:
        What comparison.json holds.

    Raises:
        DataError, ModelError, OptionError: see :mod:`heedmap.errors`; found before anything is trained.
        RunError: the folder is in use or holds something else, or a run failed (the others are finished and compared).
        Stopped: SIGINT or SIGTERM came; the state is saved.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("compare starts its own processes; call it without torchrun, with --parallel N.")
    if parallel < 1:
        raise OptionError(f"parallel = {parallel} is out of range: give 1 or more.")
    folder, progress = Path(out), progress or Progress()
    plan, is_new = _made(plan, folder, progress)
    try:
        with locked(folder) as lock:
            jobs = plan.jobs(folder)
            missing = [job for job in jobs if not is_finished(job)]
            if len(missing) < len(jobs):
                progress.message(f"{len(jobs) - len(missing)} of {len(jobs)} runs are finished already.")
            if missing and not is_new:
                _check_all(plan, progress)
            with disk(folder):
                write_whole(folder / PLAN, plan.as_text().encode())
            for job in jobs:
                if is_finished(job) and has_maps_to_evaluate(
                    job
                ):  # the process died in between, or an older version ran
                    evaluate_maps(job, progress)
            on_end = _teller(plan, folder, len(missing), parallel, progress)
            if parallel == 1:
                failures = run_here(missing, progress, on_end)
            else:
                failures = run_beside(missing, parallel, progress, on_end, lock)
            found = write_comparison(plan, folder, failures, parallel)
    except (Stopped, KeyboardInterrupt):  # within a run, or between them
        command = f"heedmap compare --resume {shlex.quote(str(folder))}"
        raise Stopped(f"Stopped, with the runs under way saved; go on with `{command}`.") from None
    if failures:
        raise RunError(
            f"{len(failures)} of {len(jobs)} runs failed, the first is {failures[0].job.name}: {failures[0].reason} "
            f"The others are compared in {folder / PAGE}."
        )
    return found


def compare_in_background(
    plan: Plan | None, out: str | Path, *, parallel: int = 1, progress: Progress | None = None
) -> subprocess.Popen[bytes]:
    """Check the plan, then have a process of its own run the comparison; it outlives this one and its terminal.

    What it says goes into ``comparison.log`` in ``out``. It stops like any other, by SIGTERM with its state saved.

    Args:
        plan, out, parallel, progress: as of :func:`compare`; the progress is told of the checks.

    Returns:
        The process.

    Raises:
        DataError, ModelError, OptionError: as of :func:`compare`.
        RunError: the folder is in use or holds something else.
    """
    folder = Path(out)
    plan, _ = _made(plan, folder, progress or Progress())
    with locked(folder), disk(folder):
        write_whole(folder / PLAN, plan.as_text().encode())
    words = ["compare", "--resume", str(folder.absolute()), "--parallel", str(parallel)]
    with disk(folder), (folder / LOG).open("ab") as log:
        return heedmap_beside(words, log)


def _made(plan: Plan | None, folder: Path, progress: Progress) -> tuple[Plan, bool]:
    """The plan to go by, checked where the folder is new and made here; and whether it is."""
    plan, is_new = _plan_of(plan, folder), not folder.exists()
    if is_new:  # here, so that a slip of the pen leaves no folder behind
        _check_all(plan, progress)
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return plan, is_new


def write_comparison(plan: Plan, folder: Path, failures: Sequence[FailedRun] = (), parallel: int = 1) -> dict[str, Any]:
    """Compare the finished runs and write comparison.json, .html and .svg.

    Raises:
        RunError: the runs do not belong together, or the folder cannot be written.
    """
    found = gather(plan, folder, failures, parallel)
    with disk(folder):
        content = json.dumps(finite(found), indent=1, ensure_ascii=False)
        write_whole(folder / RESULT, content.encode())
        write_whole(folder / PAGE, comparison_page(found).encode())
        write_whole(folder / PLOT, comparison_plot(found).encode())
    return found


def _plan_of(plan: Plan | None, folder: Path) -> Plan:
    """The plan to go by: what was told, over what the folder has."""
    kept = read_plan(folder / PLAN) if (folder / PLAN).is_file() else None
    if plan is None:
        if kept is None:
            raise RunError(f"{folder} is no comparison: it has no {PLAN}. `heedmap compare DATA --out` makes one.")
        return kept
    plan = replace(plan, options=with_absolute_paths(plan.options))
    if kept is not None:
        return extended(kept, plan, folder)
    if folder.is_dir() and any(each.name != ".lock" for each in folder.iterdir()):
        raise RunError(f"{folder} has something in it that is no comparison; name another --out.")
    return plan


def _check_all(plan: Plan, progress: Progress) -> None:
    """Build every variant once: what cannot be built is told now, not after hours.

    Raises:
        HeedmapError: of the kind that training would raise, with the variant's name.
    """
    for job in plan.jobs(Path())[: len(plan.variants)]:
        with _named(job.variant.name):
            check_model(job.options)
    prepared = prepare(plan.options, progress)
    if plan.options.annotations is not None:
        from heedmap.data.annotations.annotations import annotations_for, as_told
        from heedmap.workflows.evaluate.evaluate import test_part

        annotations_for(test_part(prepared.splits), plan.options.annotations, as_told(plan.options))
    for job in plan.jobs(Path())[: len(plan.variants)]:
        with _named(job.variant.name):
            options = derive(job.options, prepared.splits)
            names = ("attention", "attention_weights", "head", "taps", "combine")
            values = {name: getattr(options, name) for name in names}
            values |= {"model": options.model or "compact", "image_size": options.image_size or 0}
            build_classifier(Architecture(**values, classes=prepared.splits.classes))


@contextlib.contextmanager
def _named(variant: str) -> Iterator[None]:
    """Put the variant's name before whatever error is raised inside."""
    try:
        yield
    except HeedmapError as error:
        raise type(error)(f"Variant {variant!r}: {error}") from None


def _teller(plan: Plan, folder: Path, missing: int, parallel: int, progress: Progress) -> Callable[[Job], None]:
    """What is done after each run: the comparison so far is written, and told."""
    began, ended = time.monotonic(), 0

    def tell(job: Job) -> None:
        nonlocal ended
        ended += 1
        if has_maps_to_evaluate(job):
            evaluate_maps(job, Progress())
        found = write_comparison(plan, folder, parallel=parallel)
        (variant,) = [each for each in found["variants"] if each["name"] == job.variant.name]
        (run,) = [each for each in variant["runs"] if each["seed"] == job.seed]
        left = (time.monotonic() - began) / ended * (missing - ended) / 60
        more = f"; about {left:.0f} min left for {missing - ended} more" if missing > ended else ""
        progress.message(f"{job.name}: test accuracy {run['test_accuracy']:.2%}, {run['minutes']:.1f} min{more}.")

    return tell

"""Train variants with the same seeds and budget, and report their differences with intervals.

DIR/comparison.yaml                     the plan: shared options, variants, seeds
DIR/VARIANT/seed-N/                     an ordinary run
DIR/comparison.json  .html  .svg        the result; written again after each run
"""

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

from heedmap.data.annotations.annotations import AnnotationOptions, read_annotations
from heedmap.errors import HeedmapError, OptionError, RunError, Stopped
from heedmap.files import disk, finite, locked, write_whole
from heedmap.models.factory import build_classifier
from heedmap.progress import Progress
from heedmap.report.comparison import comparison_page, comparison_plot
from heedmap.training.recipes import derive
from heedmap.workflows.compare.plan import Job, Plan, extend_plan, make_plan, read_experiment, read_plan, read_variant
from heedmap.workflows.compare.results import gather
from heedmap.workflows.compare.runner import FailedRun, evaluate_maps, is_finished, run_all, start_heedmap
from heedmap.workflows.evaluate.data import test_part
from heedmap.workflows.train.setup import architecture_of, check_model, prepare, with_absolute_paths

__all__ = ["LOG", "Plan", "compare", "compare_in_background", "make_plan", "read_experiment", "read_plan"]
__all__ += ["read_variant"]

PLAN, RESULT, PAGE, PLOT = "comparison.yaml", "comparison.json", "comparison.html", "comparison.svg"
LOG = "comparison.log"


def compare(
    plan: Plan | None, out: str | Path, *, parallel: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Run what is missing of a comparison, and return the content of comparison.json.

    Args:
        plan: what to compare; None takes the one in ``out``. A plan there may be extended by seeds and variants.
        out: the comparison's folder; finished runs there stay as they are.
        parallel: runs at a time, each in its own process.
        progress: receives every step and a message for each run.

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
    plan, is_new = _prepare_folder(plan, folder, progress)
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
            for job in jobs:  # a process may have died before the maps
                if is_finished(job):
                    evaluate_maps(job, progress)
            on_end = _reporter(plan, folder, len(missing), parallel, progress)
            failures = run_all(missing, parallel, progress, on_end, lock)
            comparison = write_comparison(plan, folder, failures, parallel)
    except (Stopped, KeyboardInterrupt):  # within a run, or between them
        command = f"heedmap compare --resume {shlex.quote(str(folder))}"
        raise Stopped(f"Stopped; the current runs are saved, continue with `{command}`.") from None
    if failures:
        raise RunError(
            f"{len(failures)} of {len(jobs)} runs failed, the first is {failures[0].job.name}: {failures[0].reason} "
            f"The others are compared in {folder / PAGE}."
        )
    return comparison


def compare_in_background(
    plan: Plan | None, out: str | Path, *, parallel: int = 1, progress: Progress | None = None
) -> subprocess.Popen[bytes]:
    """Check the plan, then start :func:`compare` in a process of its own, which outlives this one and its terminal.

    Its output goes into ``comparison.log`` in ``out``. SIGTERM stops it, with its state saved.

    Raises:
        DataError, ModelError, OptionError, RunError: as in :func:`compare`, from the checks.
    """
    folder = Path(out)
    plan, _ = _prepare_folder(plan, folder, progress or Progress())
    with locked(folder), disk(folder):
        write_whole(folder / PLAN, plan.as_text().encode())
    with disk(folder), (folder / LOG).open("ab") as log:
        return start_heedmap(["compare", "--resume", str(folder.absolute()), "--parallel", str(parallel)], log)


def _prepare_folder(plan: Plan | None, folder: Path, progress: Progress) -> tuple[Plan, bool]:
    """Return the plan, an extension of the folder's own, and whether the folder is new: then the plan is checked."""
    saved, is_new = read_plan(folder / PLAN) if (folder / PLAN).is_file() else None, not folder.exists()
    if plan is None:
        if saved is None:
            raise RunError(f"{folder} is no comparison: it has no {PLAN}. `heedmap compare DATA --out` creates one.")
        return saved, is_new
    plan = replace(plan, options=with_absolute_paths(plan.options))
    if saved is not None:
        plan = extend_plan(saved, plan, folder)
    elif folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
        raise RunError(f"{folder} has something in it that is no comparison; name another --out.")
    if is_new:  # first, so that a typing error leaves no folder behind
        _check_all(plan, progress)
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return plan, is_new


def write_comparison(plan: Plan, folder: Path, failures: Sequence[FailedRun] = (), parallel: int = 1) -> dict[str, Any]:
    """Compare the finished runs and write comparison.json, .html and .svg; RunError where that cannot be."""
    comparison = gather(plan, folder, failures, parallel)
    with disk(folder):
        content = json.dumps(finite(comparison), indent=1, ensure_ascii=False)
        write_whole(folder / RESULT, content.encode())
        write_whole(folder / PAGE, comparison_page(comparison).encode())
        write_whole(folder / PLOT, comparison_plot(comparison).encode())
    return comparison


def _check_all(plan: Plan, progress: Progress) -> None:
    """Build every variant once: the errors of training come now, not after hours."""
    for job in plan.jobs(Path())[: len(plan.variants)]:
        with _named(job.variant.name):
            check_model(job.options)
    prepared = prepare(plan.options, progress)
    if plan.options.annotations is not None:
        reading = AnnotationOptions.from_command(plan.options)
        read_annotations(plan.options.annotations, test_part(prepared.splits), reading)
    for job in plan.jobs(Path())[: len(plan.variants)]:
        with _named(job.variant.name):
            build_classifier(architecture_of(derive(job.options, prepared.splits), prepared.splits.classes))


@contextlib.contextmanager
def _named(variant: str) -> Iterator[None]:
    """Put the variant's name before the message of an error."""
    try:
        yield
    except HeedmapError as error:
        raise type(error)(f"Variant {variant!r}: {error}") from None


def _reporter(plan: Plan, folder: Path, missing: int, parallel: int, progress: Progress) -> Callable[[Job], None]:
    """Return what is done after each run: write the comparison so far, and report it."""
    began, ended = time.monotonic(), 0

    def report(job: Job) -> None:
        nonlocal ended
        ended += 1
        evaluate_maps(job, Progress())
        comparison = write_comparison(plan, folder, parallel=parallel)
        variant = next(entry for entry in comparison["variants"] if entry["name"] == job.variant.name)
        run = next(entry for entry in variant["runs"] if entry["seed"] == job.seed)
        left = (time.monotonic() - began) / ended * (missing - ended) / 60
        more = f"; about {left:.0f} min left for {missing - ended} more" if missing > ended else ""
        progress.message(f"{job.name}: test accuracy {run['test_accuracy']:.2%}, {run['minutes']:.1f} min{more}.")

    return report

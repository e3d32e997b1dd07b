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
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier
from heedmap.progress import Progress
from heedmap.report.comparison import comparison_page, comparison_plot
from heedmap.training.recipes import derive
from heedmap.workflows.compare.maps import evaluate_maps, has_maps_to_evaluate
from heedmap.workflows.compare.plan import Job, Plan, extend_plan, make_plan, read_experiment, read_plan, read_variant
from heedmap.workflows.compare.results import gather
from heedmap.workflows.compare.runner import FailedRun, is_finished, run_in_parallel, run_in_process, start_heedmap
from heedmap.workflows.evaluate.data import test_part
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
        progress: receives every step and a message for each run.

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
                if is_finished(job) and has_maps_to_evaluate(job):
                    evaluate_maps(job, progress)
            on_end = _reporter(plan, folder, len(missing), parallel, progress)
            if parallel == 1:
                failures = run_in_process(missing, progress, on_end)
            else:
                failures = run_in_parallel(missing, parallel, progress, on_end, lock)
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
    """Check the plan, then run the comparison in a process of its own, which outlives this one and its terminal.

    Its output goes into ``comparison.log`` in ``out``. SIGTERM stops it, with its state saved.

    Args:
        plan, out, parallel, progress: as in :func:`compare`; the progress receives the checks.

    Returns:
        The process.

    Raises:
        DataError, ModelError, OptionError: as in :func:`compare`.
        RunError: the folder is in use or holds something else.
    """
    folder = Path(out)
    plan, _ = _prepare_folder(plan, folder, progress or Progress())
    with locked(folder), disk(folder):
        write_whole(folder / PLAN, plan.as_text().encode())
    words = ["compare", "--resume", str(folder.absolute()), "--parallel", str(parallel)]
    with disk(folder), (folder / LOG).open("ab") as log:
        return start_heedmap(words, log)


def _prepare_folder(plan: Plan | None, folder: Path, progress: Progress) -> tuple[Plan, bool]:
    """Return the plan, checked if the folder is new, which is created then; and whether it is."""
    plan, is_new = _merged_plan(plan, folder), not folder.exists()
    if is_new:  # first, so that a typing error leaves no folder behind
        _check_all(plan, progress)
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return plan, is_new


def write_comparison(plan: Plan, folder: Path, failures: Sequence[FailedRun] = (), parallel: int = 1) -> dict[str, Any]:
    """Compare the finished runs and write comparison.json, .html and .svg.

    Raises:
        RunError: the runs do not belong together, or the folder cannot be written.
    """
    comparison = gather(plan, folder, failures, parallel)
    with disk(folder):
        content = json.dumps(finite(comparison), indent=1, ensure_ascii=False)
        write_whole(folder / RESULT, content.encode())
        write_whole(folder / PAGE, comparison_page(comparison).encode())
        write_whole(folder / PLOT, comparison_plot(comparison).encode())
    return comparison


def _merged_plan(plan: Plan | None, folder: Path) -> Plan:
    """Return the given plan, as an extension of the one in the folder."""
    saved = read_plan(folder / PLAN) if (folder / PLAN).is_file() else None
    if plan is None:
        if saved is None:
            raise RunError(f"{folder} is no comparison: it has no {PLAN}. `heedmap compare DATA --out` creates one.")
        return saved
    plan = replace(plan, options=with_absolute_paths(plan.options))
    if saved is not None:
        return extend_plan(saved, plan, folder)
    if folder.is_dir() and any(each.name != ".lock" for each in folder.iterdir()):
        raise RunError(f"{folder} has something in it that is no comparison; name another --out.")
    return plan


def _check_all(plan: Plan, progress: Progress) -> None:
    """Build every variant once: errors come now, not after hours.

    Raises:
        HeedmapError: of the kind that training would raise, with the variant's name.
    """
    for job in plan.jobs(Path())[: len(plan.variants)]:
        with _named(job.variant.name):
            check_model(job.options)
    prepared = prepare(plan.options, progress)
    if plan.options.annotations is not None:
        reading = AnnotationOptions.from_command(plan.options)
        read_annotations(plan.options.annotations, test_part(prepared.splits), reading)
    for job in plan.jobs(Path())[: len(plan.variants)]:
        with _named(job.variant.name):
            options = derive(job.options, prepared.splits)
            names = ("attention", "attention_weights", "head", "taps", "combine")
            values = {name: getattr(options, name) for name in names}
            values |= {"model": options.model or "compact", "image_size": options.image_size or 0}
            build_classifier(Architecture(**values, classes=prepared.splits.classes))


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
        if has_maps_to_evaluate(job):
            evaluate_maps(job, Progress())
        comparison = write_comparison(plan, folder, parallel=parallel)
        (variant,) = [each for each in comparison["variants"] if each["name"] == job.variant.name]
        (run,) = [each for each in variant["runs"] if each["seed"] == job.seed]
        left = (time.monotonic() - began) / ended * (missing - ended) / 60
        more = f"; about {left:.0f} min left for {missing - ended} more" if missing > ended else ""
        progress.message(f"{job.name}: test accuracy {run['test_accuracy']:.2%}, {run['minutes']:.1f} min{more}.")

    return report

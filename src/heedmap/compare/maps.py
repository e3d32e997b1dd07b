"""Where the objects are known, each run of a comparison is judged by its maps too; the run's own report shows it."""

from __future__ import annotations

from heedmap.compare.plan import Job
from heedmap.data.annotations import as_told
from heedmap.evaluate import evaluate
from heedmap.listener import Listener
from heedmap.refresh import refresh
from heedmap.runs import EVALUATION, Run
from heedmap.suites import Wanted

__all__ = ["has_maps_to_judge", "judge_maps"]

SUITE = "localisation"
MOST = 500  # test pictures a run: seeds differ by more than other pictures of the same kind would


def has_maps_to_judge(job: Job) -> bool:
    """Whether a finished run's objects are known, and its maps have not been held against them yet."""
    found = Run.open(job.path).read_json(EVALUATION)
    is_known = job.options.annotations is not None or found.get("pointing") is not None
    return is_known and SUITE not in found.get("suites", {})


def judge_maps(job: Job, listener: Listener) -> None:
    """Run the localisation suite over a finished run: its attention and Grad-CAM, or for a control Grad-CAM alone.

    Raises:
        DataError, RunError: data, annotations or run cannot be used any more.
    """
    listener.message(f"Judging the maps of {job.name}.")
    run, options = Run.open(job.path), job.options
    wanted = Wanted(suites=(SUITE,), annotations=options.annotations, reading=as_told(options), limit=MOST)
    refresh(run, evaluate(run, wanted=wanted, precision="float32", download=False))

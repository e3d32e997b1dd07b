"""Evaluate the maps of a comparison's runs where the objects are known; each run's own report shows the result."""

from heedmap.data.annotations.annotations import AnnotationOptions
from heedmap.progress import Progress
from heedmap.runs import EVALUATION, Run
from heedmap.workflows.compare.plan import Job
from heedmap.workflows.evaluate.data import OFFLINE
from heedmap.workflows.evaluate.evaluate import evaluate
from heedmap.workflows.evaluate.page import refresh
from heedmap.workflows.evaluate.suites import EvaluateOptions

SUITE = "localization"
MOST = 500  # test images a run: seeds differ by more than further images would


def has_maps_to_evaluate(job: Job) -> bool:
    """Return whether a finished run's objects are known and its maps not evaluated yet."""
    evaluation = Run.open(job.path).read_json(EVALUATION)
    is_known = job.options.annotations is not None or evaluation.get("pointing") is not None
    return is_known and SUITE not in evaluation.get("suites", {})


def evaluate_maps(job: Job, progress: Progress) -> None:
    """Run the localization suite on a finished run: its attention and Grad-CAM, or Grad-CAM alone without attention.

    Raises:
        DataError, RunError: data, annotations or run cannot be used any more.
    """
    progress.message(f"Evaluating the maps of {job.name}.")
    run, options = Run.open(job.path), job.options
    chosen = EvaluateOptions(
        suites=(SUITE,),
        annotations=options.annotations,
        reading=AnnotationOptions.from_command(options),
        limit=MOST,
        precision="float32",
        opening=OFFLINE,
    )
    refresh(run, evaluate(run, options=chosen))

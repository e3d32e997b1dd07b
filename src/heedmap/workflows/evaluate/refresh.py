"""Write a run's evaluation and report again, with what the suites found."""

from __future__ import annotations

from dataclasses import replace

import torch

from heedmap.data.cache.verified import verify_images
from heedmap.files import as_utf8, finite
from heedmap.report import report_page
from heedmap.report.viewer import viewer_images
from heedmap.runs import EVALUATION, REPORT, Run
from heedmap.system import threads
from heedmap.workflows.evaluate.evaluate import Evaluation, report_data, report_panels, run_over, test_part
from heedmap.workflows.evaluate.panels import ranked_panels
from heedmap.workflows.evaluate.run_data import cache_of, open_run_data


def refresh(
    run: Run,
    evaluation: Evaluation,
    *,
    device: str | torch.device = "cpu",
    root: str | None = None,
    workers: int | None = None,
    cache: str | None = None,
) -> None:
    """Put the suites of an evaluation of the run's own test part into evaluation.json and report.html.

    Suites that were run before and not now stay as they are; so do accuracy and calibration of the first evaluating.

    Args:
        run: the run.
        evaluation: of its own test part.
        device: where to compute.
        root, workers, cache: as for :func:`heedmap.workflows.evaluate.evaluate.evaluate`.

    Raises:
        DataError, RunError: data or run cannot be used any more.
    """
    options, device = run.options, torch.device(device)
    workers = options.workers if workers is None else workers
    kept = run.read_json(EVALUATION)
    kept["suites"] = {**kept.get("suites", {}), **finite(evaluation.suites)}
    home = cache_of(options, cache)
    splits = open_run_data(run, root=root, cache=home and home / "shards")
    splits = verify_images(splits, threads(workers), home, ("test",)).splits
    # What was said of all parts in training, which has looked at all of them.
    splits = replace(splits, notes=tuple(run.config.get("notes", splits.notes)))
    classifier, images = run.classifier().to(device), test_part(splits)
    evaluated = run_over(classifier, images, device, "float32", options.memory, workers)
    right, wrong = report_panels(classifier, images, evaluated, device)
    data = report_data(run, splits, kept, right, wrong)
    ranked = evaluation.ranked or ranked_panels(kept["suites"].get("localization"), classifier, images, device)
    data = replace(data, ranked=ranked, viewer=viewer_images(classifier, images, evaluated, device))
    run.write_json(EVALUATION, kept)
    run.write(REPORT, as_utf8(report_page(data)))
    run.finish()

"""Write a run's evaluation and report again, with what the suites found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from heedmap.classifier import AttentionClassifier
from heedmap.data import Pictures, check_splits
from heedmap.evaluate import Evaluation, report_data, report_panel, report_panels, run_over, test_part
from heedmap.own_data import open_own
from heedmap.report import ReportPanel, report_page
from heedmap.report.viewer import viewer_pictures
from heedmap.runs import EVALUATION, REPORT, Run, as_utf8, finite

SHOWN = 3  # pictures of each sort


def refresh(run: Run, evaluation: Evaluation, *, device: str | torch.device = "cpu") -> None:
    """Put the suites of an evaluation of the run's own test part into evaluation.json and report.html.

    Suites that were run before and not now stay as they are; so do accuracy and calibration of the first judging.

    Raises:
        DataError, RunError: data or run cannot be used any more.
    """
    options, device = run.options, torch.device(device)
    kept = run.read_json(EVALUATION)
    kept["suites"] = {**kept.get("suites", {}), **finite(evaluation.suites)}
    splits = check_splits(open_own(run), options.workers or 2)
    classifier, pictures = run.classifier().to(device), test_part(splits)
    judged = run_over(classifier, pictures, device, "float32", options.memory)
    right, wrong = report_panels(classifier, pictures, judged, device)
    data = report_data(run, splits, kept, right, wrong)
    ranked = _ranked(kept["suites"].get("localisation"), classifier, pictures, device)
    data = replace(data, ranked=ranked, viewer=viewer_pictures(classifier, pictures, judged, device))
    run.write_json(EVALUATION, kept)
    run.write(REPORT, as_utf8(report_page(data)))
    run.finish()


def _ranked(
    found: dict[str, Any] | None, classifier: AttentionClassifier, pictures: Pictures, device: torch.device
) -> dict[str, list[ReportPanel]]:
    """Panels of the pictures whose map lies best, middling and worst."""
    if found is None:
        return {}
    boxes = {int(row): places for row, places in found["ranked"]["boxes"].items()}
    return {
        kind: [report_panel(classifier, pictures, row, device, tuple(boxes[row][0])) for row in rows[:SHOWN]]
        for kind, rows in found["ranked"]["rows"].items()
    }

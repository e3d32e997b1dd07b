"""One self-contained page about a run: result, maps, curves, tables, audit, and how it was made.

The page loads nothing: style, charts (SVG), images and the script of the image viewer are inside it. It can be mailed.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from heedmap.metrics.classification import wilson_interval
from heedmap.report.sections import Section
from heedmap.report.viewer import ViewerImage, viewer_json
from heedmap.types import Audit, EpochReport
from heedmap.visualization.charts import Series, line_chart, matrix
from heedmap.visualization.page import page_template

TEST_ONCE = (
    "The test set was used once, after training; the weights were chosen on images set apart from the training set."
)
TEST_AGAIN = (
    "The weights were chosen on images set apart from the training set. The test set was evaluated once after "
    "training, and used again for the measures below; nothing was chosen by it."
)

MOST_CLASSES_IN_TABLE = 24
MOST_FINDINGS = 12


@dataclass(frozen=True)
class ReportPanel:
    """A panel of maps on the page: ``image`` has a PNG or JPEG file's bytes; label and prediction are class names."""

    path: str
    label: str
    predicted: str
    probability: float
    image: bytes

    @property
    def source(self) -> str:
        """The image as a ``data:`` URL."""
        kind = "png" if self.image.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.image).decode('ascii')}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels: the page reserves the room, or the text jumps when a panel is loaded."""
        with Image.open(io.BytesIO(self.image)) as panel:
            return panel.size


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the page shows.

    Attributes:
        command: the exact command line of the run.
        classes: class names, in the order of the logits.
        splits, options, versions: part -> number of images; option -> value, as used; package or machine -> version.
        steps: (step, loss) pairs, thinned by the caller.
        evaluation: what ``ClassificationReport.as_dict()`` gives (count, classes, top1, top5, nll, ece, per_class,
            confusion), with ``split`` (which part) and optionally ``images_per_second``; None before evaluation.
        audit: None where none was made.
        pointing: tap -> share of images whose hottest point lies in the object's box, with the baselines ``centre``
            and ``random``; None where there are no boxes.
        right, wrong: panels of correct and wrong predictions.
        viewer: the images behind the figures, to sort and filter on the page.
        notes, warnings: sentences, such as how the data was split; those that are shown first.
        is_leakage_suspected: leakage would explain the accuracy.
        ranked: ``best``, ``median``, ``worst`` -> panels, by how well the map lies on the object.
    """

    title: str
    command: str
    classes: Sequence[str]
    splits: Mapping[str, int]
    options: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    epochs: Sequence[EpochReport] = ()
    steps: Sequence[tuple[int, float]] = ()
    evaluation: Mapping[str, Any] | None = None
    audit: Audit | None = None
    pointing: Mapping[str, float] | None = None
    right: Sequence[ReportPanel] = ()
    wrong: Sequence[ReportPanel] = ()
    viewer: Sequence[ViewerImage] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    test_sentence: str = TEST_ONCE
    is_leakage_suspected: bool = False
    sections: Sequence[Section] = ()
    ranked: Mapping[str, Sequence[ReportPanel]] = field(default_factory=dict)


def report_page(data: ReportData) -> str:
    """Return the page as text."""
    evaluation = data.evaluation
    confusion, is_big = evaluation and evaluation["confusion"], len(data.classes) > MOST_CLASSES_IN_TABLE
    viewer, viewer_count = viewer_json(data.viewer, data.classes) if data.viewer else ("", 0)
    return page_template("page.html.jinja").render(
        data=data,
        interval=evaluation and wilson_interval(evaluation["top1"], evaluation["count"]),
        charts=_charts(data),
        worst=confusion and most_confused(confusion, data.classes),
        big_matrix=matrix("Confusion matrix", confusion, data.classes) if confusion and is_big else "",
        viewer=viewer,
        viewer_count=viewer_count,
        pointing=_pointing_rows(data.pointing),
        best_epoch=_best_epoch(data.epochs),
        seconds=sum(epoch.seconds for epoch in data.epochs),
        findings=_findings(data.audit),
        most_findings=MOST_FINDINGS,
    )


def most_confused(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], most: int = 6
) -> list[tuple[str, str, int]]:
    """Return (truth, predicted, count) of the most frequent mistakes, most frequent first."""
    pairs = [
        (classes[row], classes[column], count)
        for row, line in enumerate(confusion)
        for column, count in enumerate(line)
        if row != column and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]


def _charts(data: ReportData) -> list[dict[str, Any]]:
    """Return the curves that are not empty: title, sentence, names for the key, SVG."""
    epochs, best = data.epochs, _best_epoch(data.epochs)
    taps = list(dict.fromkeys(tap for epoch in epochs for tap in epoch.attention_peak))
    training = Series("training", tuple((epoch.epoch, float(epoch.train_loss)) for epoch in epochs))
    loss = [training, _validation(epochs, "loss")]
    accuracy = [_validation(epochs, "accuracy")]
    peaks = [Series(tap, tuple((e.epoch, e.attention_peak.get(tap, math.nan)) for e in epochs)) for tap in taps]
    drawn = [
        ("Loss", "Cross-entropy, in nats.", loss, line_chart("Loss by epoch", loss, mark=best)),
        ("Accuracy", "On the validation set.", accuracy, line_chart("Accuracy", accuracy, is_share=True, mark=best)),
        (
            "Attention peak",
            "The largest weight of a map, mean over images. With softmax 1 is a single point, and a flat low line "
            "stayed uniform; for gates 1 is open and 0 is closed.",
            peaks,
            line_chart("Attention peak by epoch", peaks, from_zero=True, mark=best),
        ),
    ]
    if data.steps:
        steps = [Series("training", tuple((float(step), loss) for step, loss in data.steps))]
        drawn.insert(1, ("Loss by step", "While training.", steps, line_chart("Loss by step", steps, x_name="step")))
    return [
        {"title": title, "sentence": sentence, "names": [line.name if line.known else "" for line in lines], "svg": svg}
        for title, sentence, lines, svg in drawn
        if svg
    ]


def _validation(epochs: Sequence[EpochReport], figure: str) -> Series:
    return Series("validation", tuple((epoch.epoch, epoch.validation.get(figure, math.nan)) for epoch in epochs))


def _best_epoch(epochs: Sequence[EpochReport]) -> int | None:
    """Return the epoch whose weights were saved: the last of those that were the best so far."""
    return max((epoch.epoch for epoch in epochs if epoch.is_best), default=None)


def _pointing_rows(pointing: Mapping[str, float] | None) -> list[dict[str, Any]]:
    """Return rows: taps first, then the two baselines that any map must beat."""
    words = {"centre": "always the image's centre", "random": "a random point"}
    shares = sorted((pointing or {}).items(), key=lambda pair: pair[0] in words)
    return [{"name": words.get(key, key), "share": share, "base": key in words} for key, share in shares]


def _findings(audit: Audit | None) -> dict[str, list[Any]]:
    """Return findings by kind, those across two parts first."""
    grouped: dict[str, list[Any]] = {}
    for finding in audit.findings if audit is not None else ():
        grouped.setdefault(finding.kind, []).append(finding)
    return {kind: sorted(found, key=lambda finding: len(set(finding.splits)) < 2) for kind, found in grouped.items()}

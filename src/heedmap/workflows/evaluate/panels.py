"""Panels of a report: an image with its maps, and the images whose map lies best, middling and worst."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from heedmap.attribution import METHODS
from heedmap.data import ImageDataset
from heedmap.inference.predictor import AttributionOptions, PanelOptions, open_predictor, prediction_panel
from heedmap.models.classifier import AttentionClassifier
from heedmap.report import ReportPanel
from heedmap.visualization.panel import Box


@torch.no_grad()
def report_panel(
    classifier: AttentionClassifier,
    dataset: ImageDataset,
    row: int,
    device: torch.device,
    *,
    boxes: Sequence[Box] | None = None,
    method: str | None = None,
    remark: str = "",
) -> ReportPanel:
    """The panel of one image.

    Args:
        classifier: in eval mode, on ``device``.
        images: the part that the image is of.
        row: which one.
        device: where the classifier is.
        boxes: of the objects, in shares of the square view; None takes the one that the images bring, if any.
        method: a map of :data:`heedmap.attribution.METHODS` to draw beside the learned ones, asked about the truth.
        remark: one more line at the foot.
    """
    label, name = dataset.classes[int(dataset.labels[row])], dataset.names[row]
    attributions = None if method is None else AttributionOptions((method,), label)
    answer = open_predictor(classifier, device, attributions=attributions)(
        dataset.load(row, classifier.image_size).numpy()[None]
    )[0]
    if boxes is None and dataset.boxes is not None:
        left, top, right, bottom = dataset.boxes[row].tolist()
        boxes = [(left, top, right, bottom)]
    image = Image.fromarray(dataset.load(row, max(256, classifier.image_size)).permute(1, 2, 0).numpy())
    options = PanelOptions(label, name, boxes or (), (remark,))
    sheet = prediction_panel(image, answer, classifier.classes, options)
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=88, subsampling=0)
    return ReportPanel(
        path=name,
        label=label,
        predicted=classifier.classes[answer.predicted],
        probability=float(answer.probabilities.max()),
        image=content.getvalue(),
    )


def ranked_panels(
    found: Mapping[str, Any] | None, classifier: AttentionClassifier, images: ImageDataset, device: torch.device
) -> dict[str, list[ReportPanel]]:
    """Panels of the images whose map lies best, middling and worst, each with the map that was ranked and all boxes.

    Args:
        found: what the localization suite gave, fresh or as evaluation.json holds it; None gives no panels.
        classifier, device: see :func:`report_panel`.
        images: the part that was evaluated.
    """
    if found is None:
        return {}
    ranked = found["ranked"]
    boxes = {int(row): [tuple(box) for box in of_row] for row, of_row in ranked["boxes"].items()}
    figures = {int(row): figure for row, figure in ranked.get("figures", {}).items()}  # early runs have none
    method = ranked["map"] if ranked["map"].partition(":")[0] in METHODS else None

    def drawn(row: int) -> ReportPanel:
        reached = f": IoU {figures[row]:.2f} with the object, cut at Otsu's threshold" if row in figures else ""
        remark = f"Ranked by the map {ranked['map']}{reached}."
        return report_panel(classifier, images, row, device, boxes=boxes[row], method=method, remark=remark)

    return {kind: [drawn(row) for row in rows] for kind, rows in ranked["rows"].items()}

"""Write the results of an evaluation: the files of a finished run, a folder of its own, and the page of each."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from heedmap.attribution import METHODS
from heedmap.data import Splits
from heedmap.data.audit.findings import leakage_flag
from heedmap.data.decoding import plain
from heedmap.files import as_utf8, disk, finite, write_whole
from heedmap.inference.predictor import AttributionOptions, PanelOptions, open_predictor, prediction_panel
from heedmap.inference.torch_predictor import prediction_of
from heedmap.metrics.prediction import ComputeOptions
from heedmap.models.classifier import AttentionClassifier
from heedmap.report import TEST_AGAIN, TEST_ONCE, ReportData, ReportPanel, report_page
from heedmap.report.sections import sections
from heedmap.report.viewer import viewer_images
from heedmap.runs import AUDIT, EVALUATION, PREDICTIONS, REPORT, Run
from heedmap.types import Audit, EpochReport, Finding
from heedmap.visualization.heatmap import heatmap
from heedmap.visualization.panel import Box, png
from heedmap.workflows.evaluate.data import EvaluationData
from heedmap.workflows.evaluate.evaluate import Evaluation, evaluate_accuracy
from heedmap.workflows.evaluate.suites import Subject

PANELS = 8  # correct predictions, and as many wrong ones, in the report


def complete(run: Run, classifier: AttentionClassifier, splits: Splits, computing: ComputeOptions) -> Evaluation:
    """Finish a run: save the weights, evaluate the test set once, write evaluation, report and manifest."""
    run.save_model(classifier)
    data = EvaluationData.of_splits(splits, classifier.classes)
    subject = Subject(classifier.to(computing.device).eval(), data.images, data.labels)
    evaluation = evaluate_accuracy(subject, data, computing)
    run.write(PREDICTIONS, as_utf8(evaluation.predictions.table(data.images.names, classifier.classes)))
    _write_report(run, evaluation, evaluation.as_dict())
    return evaluation


def refresh(run: Run, evaluation: Evaluation) -> None:
    """Put the suites of an evaluation of the run's own test part into its evaluation.json and report.html.

    Suites of earlier evaluations that were not run now stay as they are; so do accuracy and calibration of the first.
    """
    results = run.read_json(EVALUATION)
    results["suites"] = {**results.get("suites", {}), **finite(dict(evaluation.suites))}
    _write_report(run, evaluation, results)


def write_evaluation(evaluation: Evaluation, out: Path) -> Path:
    """Write evaluation.json, confusion.png (rows: truth, columns: predicted) and, with suites, a page into a folder."""
    confusion = evaluation.report.confusion.double()
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / EVALUATION, as_utf8(json.dumps(finite(evaluation.as_dict()), indent=1, ensure_ascii=False)))
        write_whole(out / "confusion.png", png(heatmap(shares, 0.0, 1.0, max(320, 4 * len(shares)), smooth=False)))
        if evaluation.suites:
            write_whole(out / REPORT, as_utf8(report_page(_bare_report(evaluation))))
    return out


def _bare_report(evaluation: Evaluation) -> ReportData:
    """Return a page without training, and with panels of the localization suite only."""
    results = finite(evaluation.as_dict())
    return ReportData(
        title=f"Evaluated on {evaluation.part}",
        command="",
        classes=evaluation.report.classes,
        splits={"evaluated": evaluation.report.count},
        evaluation={"split": evaluation.part, **results},
        pointing=results["pointing"],
        sections=sections(results["suites"]),
        ranked=ranked_panels(results["suites"].get("localization"), evaluation.subject),
        test_sentence="Nothing of this run was chosen by these images, unless it was trained on some of them.",
    )


def _write_report(run: Run, evaluation: Evaluation, results: dict[str, Any]) -> None:
    """Write evaluation.json and the page; finish the run."""
    subject, predictions = evaluation.subject, evaluation.predictions
    correct = predictions.correct.nonzero().flatten()
    correct = correct[torch.linspace(0, len(correct) - 1, min(PANELS, len(correct))).long()]
    wrong, confidence = (~predictions.correct).nonzero().flatten(), predictions.logits.softmax(1).amax(1)
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:PANELS]
    data = replace(
        report_data(run, evaluation.data.splits, results),
        right=[report_panel(subject, row) for row in correct.tolist()],
        wrong=[report_panel(subject, row) for row in wrong.tolist()],
        viewer=viewer_images(subject.classifier, subject.images, predictions),
        ranked=ranked_panels(results.get("suites", {}).get("localization"), subject),
    )
    run.write_json(EVALUATION, results)
    run.write(REPORT, as_utf8(report_page(data)))
    run.finish()


@torch.no_grad()
def report_panel(
    subject: Subject, row: int, *, boxes: Sequence[Box] | None = None, method: str | None = None, remark: str = ""
) -> ReportPanel:
    """Return the panel of the image ``row``.

    Args:
        boxes: of the objects, in shares of the square view; None takes the one that the images bring, if any.
        method: a map of :data:`heedmap.attribution.METHODS` to draw beside the learned ones, for the true class.
        remark: one more line at the foot.
    """
    classifier, dataset = subject.classifier, subject.images
    label, name = dataset.classes[int(dataset.labels[row])], dataset.names[row]
    attributions = None if method is None else AttributionOptions((method,), label)
    predictor = open_predictor(classifier, classifier.mean.device, attributions=attributions)
    prediction = predictor(dataset.load(row, classifier.image_size).numpy()[None])[0]
    if boxes is None and dataset.boxes is not None:
        left, top, right, bottom = dataset.boxes[row].tolist()
        boxes = [(left, top, right, bottom)]
    image = Image.fromarray(dataset.load(row, max(256, classifier.image_size)).permute(1, 2, 0).numpy())
    options = PanelOptions(label, name, boxes or (), (remark,))
    sheet = prediction_panel(image, prediction, classifier.classes, options)
    predicted, probability = classifier.classes[prediction.predicted], float(prediction.probabilities.max())
    return ReportPanel(name, label, predicted, probability, _jpeg(sheet, quality=88, subsampling=0))


def ranked_panels(results: Mapping[str, Any] | None, subject: Subject) -> dict[str, list[ReportPanel]]:
    """Return panels of the images with the best, median and worst maps, from the results of the localization suite."""
    if results is None:
        return {}
    ranked = results["ranked"]
    boxes = {int(row): [tuple(box) for box in of_row] for row, of_row in ranked["boxes"].items()}
    figures = {int(row): figure for row, figure in ranked.get("figures", {}).items()}  # early runs have none
    method = ranked["map"] if ranked["map"].partition(":")[0] in METHODS else None

    def drawn(row: int) -> ReportPanel:
        reached = f": IoU {figures[row]:.2f} with the object, cut at Otsu's threshold" if row in figures else ""
        remark = f"Ranked by the map {ranked['map']}{reached}."
        return report_panel(subject, row, boxes=boxes[row], method=method, remark=remark)

    return {kind: [drawn(row) for row in rows] for kind, rows in ranked["rows"].items()}


@torch.no_grad()
def panel_sheet(classifier: AttentionClassifier, views: Tensor) -> bytes:
    """Return a JPEG of the panels of a few images (uint8 (n, 3, S, S)), one below the other."""
    output = classifier(plain(views).to(classifier.mean.device))
    sheets = []
    for row, view in enumerate(views):
        image = Image.fromarray(view.permute(1, 2, 0).numpy())
        sheets.append(prediction_panel(image, prediction_of(classifier, output, row), classifier.classes))
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return _jpeg(whole, quality=85)


def _jpeg(image: Image.Image, **settings: int) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", **settings)
    return content.getvalue()


def report_data(run: Run, splits: Splits, results: Mapping[str, Any]) -> ReportData:
    """Gather what the report shows without panels, from the run's own files and the content of evaluation.json."""
    metrics = run.read_metrics()
    epochs = [EpochReport.from_record(record) for record in metrics if record.get("kind") == "epoch"]
    steps = [(int(record["step"]), float(record["loss"])) for record in metrics if record.get("kind") == "step"]
    audit = read_audit(run.read_json(AUDIT))
    flag = leakage_flag(results["top1"], audit, results["count"])
    options, suites = run.config["options"], results.get("suites", {})
    is_control = options["attention"] == "none"
    attention = ", no attention (the control)" if is_control else f" with {options['attention']} attention"
    return ReportData(
        title=f"{Path(splits.name).name}, {options['model']}{attention}",
        command=str(run.config.get("command", "")),
        classes=splits.classes,
        splits=dict(run.config.get("sizes") or {part: len(images) for part, images in splits.parts.items()}),
        options=options,
        versions={"heedmap": str(run.config.get("heedmap")), **run.config.get("versions", {})},
        epochs=epochs,
        steps=steps[:: max(1, len(steps) // 1000)],
        evaluation={"split": results["part"], **results},
        audit=audit,
        pointing=results["pointing"],
        # What was noted of all parts in training, which has looked at all of them.
        notes=tuple(run.config.get("notes", splits.notes)),
        warnings=[*([flag] if flag else []), *(epochs[-1].warnings if epochs else ())],
        is_leakage_suspected=flag is not None,
        sections=sections(suites),
        test_sentence=TEST_AGAIN if suites else TEST_ONCE,
    )


def read_audit(content: dict[str, Any]) -> Audit:
    """Return the audit from the content of audit.json."""
    findings = tuple(Finding(f["kind"], tuple(f["splits"]), tuple(f["paths"]), f["note"]) for f in content["findings"])
    return Audit(**{**content, "findings": findings})

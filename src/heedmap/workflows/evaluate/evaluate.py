"""Evaluate a run on images, and finish a run: test part once, weights, evaluation, report, manifest."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from heedmap.data import DIGIT_SCENES, NAMED, FolderDataset, ImageDataset, Splits, open_data
from heedmap.data.audit.findings import leakage_flag
from heedmap.data.cache.verified import verify_images
from heedmap.data.folders import find_parts
from heedmap.data.loader import Store, memory_to_use, plain_batches
from heedmap.data.transforms import plain
from heedmap.errors import DataError, nearest
from heedmap.files import as_utf8, disk, finite, write_whole
from heedmap.inference.torch_predictor import prediction_of
from heedmap.metrics.classification import ClassificationReport, classification_report
from heedmap.metrics.localization.localize import pointing_table
from heedmap.metrics.prediction import Predictions, predict_batches, predictions_table
from heedmap.models.classifier import AttentionClassifier, combined_map
from heedmap.progress import Progress
from heedmap.report import TEST_AGAIN, TEST_ONCE, ReportData, ReportPanel, report_page
from heedmap.report.sections import sections
from heedmap.report.viewer import viewer_images
from heedmap.runs import AUDIT, EVALUATION, PREDICTIONS, REPORT, Run
from heedmap.system import threads
from heedmap.training.precision import resolve
from heedmap.types import Audit, EpochReport, Finding
from heedmap.visualization.heatmap import heatmap
from heedmap.workflows.evaluate.panels import ranked_panels, report_panel
from heedmap.workflows.evaluate.run_data import cache_of, open_run_data
from heedmap.workflows.evaluate.suites import Subject, Suite, Wanted, check_maps, check_used, control_of, ready_suites
from heedmap.workflows.visualize import prediction_panel

BATCH = 100
PANELS = 8  # right answers, and as many wrong ones, in the report


@dataclass(frozen=True)
class Evaluation:
    """What a classifier came to on one part of the data.

    Attributes:
        part: ``test``, or what was evaluated instead.
        report: accuracy, calibration, classes, confusion.
        pointing: share of images whose hottest point lies in the object's box, by map, with ``centre`` and
            ``random`` beside; None where no boxes are known.
        images_per_second: network and decoding together, by the clock, from the first file opened to the last answer.
        network_images_per_second: of the network alone, with images already decoded; the lower the first lies below
            it, the more threads that decode would help.
        learned: how many of these images the run learned from, or was chosen by; they flatter it.
        suites: what :func:`heedmap.workflows.evaluate.suites.ready_suites` found; empty unless asked for.
        top1_with_flips: share of right answers where the logits of an image and of its mirror image are averaged, at
            twice the cost; None unless asked for, and never what ``report.top1`` says.
        ranked: panels to the localization suite, for a page; they are not part of :meth:`as_dict`.
    """

    part: str
    report: ClassificationReport
    pointing: dict[str, float] | None
    images_per_second: float
    network_images_per_second: float
    learned: int = 0
    suites: dict[str, Any] = field(default_factory=dict)
    top1_with_flips: float | None = None
    ranked: dict[str, list[ReportPanel]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "part": self.part,
            **self.report.as_dict(),
            "pointing": self.pointing,
            "images_per_second": self.images_per_second,
            "network_images_per_second": self.network_images_per_second,
            "learned": self.learned,
            **({} if self.top1_with_flips is None else {"top1_with_flips": self.top1_with_flips}),
            **({"suites": self.suites} if self.suites else {}),
        }


def evaluate(
    run: Run,
    data: str | None = None,
    *,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    root: str | None = None,
    download: bool = True,
    workers: int | None = None,
    cache: str | None = None,
    wanted: Wanted | None = None,
    control: Run | None = None,
    flips: bool = False,
    progress: Progress | None = None,
    on_found: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Evaluate a finished run on the test part of its own data, or on other data with the same classes.

    Args:
        run: the run.
        data: a named set or a folder, whose test part is evaluated; a folder without parts (``DIR/CLASS/*``) is
            evaluated as a whole. None takes the run's own data.
        device: where to compute.
        precision: ``auto``, ``bf16`` or ``float32``.
        root: where named sets lie; None takes the run's.
        download: fetch a named set that is not there.
        workers: threads that decode; None takes the run's, or the machine's cores.
        cache: where is kept which files were decoded before, see :func:`heedmap.data.cache.folder.cache_folder`; None
            takes the run's, where that is on this machine.
        wanted: suites beside accuracy; None takes none.
        control: a run that is evaluated beside this one for robustness and transfer.
        flips: evaluate the mirrored images too, for ``top1_with_flips``.
        progress: is told which suite is at work.
        on_found: called with what is known so far, after accuracy and after each suite.

    Raises:
        DataError: data that cannot be used, or classes that the run does not know.
        ModelError, OptionError: see :mod:`heedmap.workflows.evaluate.suites`; or a control that no suite would heed.
        RunError: a run that cannot be used, or a control with other classes or another image size.
    """
    options, device = run.options, torch.device(device)
    classifier = run.classifier().to(device)
    workers, home = options.workers if workers is None else workers, cache_of(options, cache)
    if wanted is not None:  # before anything is opened
        check_maps(wanted, classifier, options.attention)
    sets: dict[str, Any] = {"root": root or options.root, "download": download, "cache": home and home / "shards"}
    images, part, known = _images_to_evaluate(run, data, classifier.classes, sets, threads(workers), home)
    sets |= {"seed": options.seed, "test_share": options.test}
    places = torch.tensor([classifier.classes.index(name) for name in known])
    check_used("control", control, () if wanted is None else wanted.suites)
    suites: dict[str, Suite] = {}
    if wanted is not None:  # before anything is evaluated, for it tells what cannot be used
        others = {} if control is None else {"control": control_of(control, classifier).to(device)}
        labels = places[torch.as_tensor(images.labels)]
        subject = Subject(classifier, images, labels, options.attention, "this run", others, sets)
        suites = ready_suites(wanted, subject)
    precision = resolve(precision, device)
    evaluated = run_over(classifier, images, device, precision, options.memory, workers)
    evaluated = replace(evaluated, labels=places[evaluated.labels])
    found = assess(evaluated, images, classifier.classes, part, classifier.shares())
    found = replace(found, learned=count_trained_on(images, run))
    if flips:
        other = run_over(classifier, images, device, precision, options.memory, workers, mirrored=True)
        right = (evaluated.logits + other.logits).argmax(1) == evaluated.labels
        found = replace(found, top1_with_flips=float(right.double().mean()))
    tell = on_found or (lambda _: None)
    tell(found)
    for name, suite in suites.items():
        found = replace(found, suites={**found.suites, name: suite(progress or Progress())})
        if name == "localization":
            found = replace(found, ranked=ranked_panels(found.suites[name], classifier, images, device))
        tell(found)
    return found


def _images_to_evaluate(
    run: Run, data: str | None, known: tuple[str, ...], sets: dict[str, Any], workers: int, home: Path | None
) -> tuple[ImageDataset, str, tuple[str, ...]]:
    """Open and check what is to be evaluated: the images, what to call them, and their classes in their own order."""
    options = run.options
    is_own = data is None or _is_same(data, options.data)
    if is_own:
        splits = open_run_data(run, **sets)
    else:
        splits = open_data(data or options.data, **sets, seed=options.seed, test_share=options.test)
    check_classes(splits.classes, known)
    is_whole = not is_own and whole_folder(splits) is not None
    splits = verify_images(splits, workers, home, ("train", "test") if is_whole else ("test",)).splits
    whole = whole_folder(splits) if is_whole else None
    part = "test" if data is None else f"{data}, {'all' if whole else 'test'}"
    return whole or test_part(splits), part, splits.classes


def count_trained_on(images: ImageDataset, run: Run) -> int:
    """How many of these files lie in the part of the run's own folder that it was trained on, or chosen by."""
    options = run.options
    if not isinstance(images, FolderDataset) or is_named(options.data) or not Path(options.data).is_dir():
        return 0
    here, own = images.root.resolve(), Path(options.data).resolve()
    if not (here.is_relative_to(own) or own.is_relative_to(here)):
        return 0
    splits = open_run_data(run)
    parts = [part for part in (splits.train, splits.validation) if isinstance(part, FolderDataset)]
    learned = {part.root.resolve() / name for part in parts for name in part.names}
    return sum(here / name in learned for name in images.names)


def is_named(data: str) -> bool:
    """Whether the data is called by a name, beside which a folder of that name does not count."""
    return data in (*DIGIT_SCENES, *NAMED)


def whole_folder(splits: Splits) -> FolderDataset | None:
    """All images of a folder that has no parts of its own; None where the data came in parts."""
    train, test = splits.train, splits.test
    if not isinstance(train, FolderDataset) or not isinstance(test, FolderDataset) or find_parts(train.root):
        return None
    labels = torch.cat((train.labels, test.labels))
    return FolderDataset(train.root, train.names + test.names, labels, splits.classes)


def _is_same(data: str, other: str) -> bool:
    # The rest of the run's own folder is what it learned from; evaluated as a whole it would flatter.
    if is_named(data) or is_named(other):
        return data == other
    return Path(data).resolve() == Path(other).resolve()


def test_part(splits: Splits) -> ImageDataset:
    """The test part.

    Raises:
        DataError: there is none.
    """
    if splits.test is None:
        raise DataError(f"{splits.name} has no test part; add a folder 'test' beside 'train'.")
    return splits.test


def check_classes(found: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Check that the data has the run's classes, in whatever order.

    Raises:
        DataError: a class that the run was not trained on, or one that is missing.
    """
    unknown = [name for name in found if name not in known]
    if unknown:
        raise DataError(
            f"Class {unknown[0]!r} is unknown to the run, which has {', '.join(known)}.{nearest(unknown[0], known)}"
        )
    missing = [name for name in known if name not in found]
    if missing:
        raise DataError(
            f"The data has no class {missing[0]!r}, which the run was trained on; add a folder of that name."
        )


def run_over(
    classifier: AttentionClassifier,
    images: ImageDataset,
    device: torch.device,
    precision: str,
    memory: float | None = None,
    workers: int | None = None,
    *,
    mirrored: bool = False,
) -> Predictions:
    """Answer all images, or their mirror images; the attention is kept where the objects' boxes are known.

    ``workers`` threads decode, the machine's cores unless told; the time that they take is in ``seconds``.
    """
    began = time.perf_counter()
    store = Store(images, classifier.image_size, threads(workers), memory_to_use(memory, 1))
    stored = time.perf_counter() - began
    batches = plain_batches(store, BATCH, device)
    keep = images.boxes is not None and not mirrored
    evaluated = predict_batches(
        classifier, batches, precision=precision, device=device, keep_attention=keep, mirrored=mirrored
    )
    return replace(evaluated, seconds=evaluated.seconds + stored)


def assess(
    evaluated: Predictions, images: ImageDataset, classes: tuple[str, ...], part: str, shares: Tensor | None = None
) -> Evaluation:
    """Turn answers into measures; ``shares`` are those of the classifier."""
    report = classification_report(evaluated.logits, evaluated.labels, classes)
    pointing = None
    if images.boxes is not None and evaluated.attention:
        maps, shares = evaluated.attention, None if shares is None else shares.detach().float().cpu()
        if len(maps) > 1:
            maps = {**maps, "combined": combined_map(maps, shares)}
        pointing = pointing_table(maps, images.boxes)
    both, alone = (len(evaluated.labels) / max(took, 1e-9) for took in (evaluated.seconds, evaluated.network_seconds))
    return Evaluation(part, report, pointing, both, alone)


def write_evaluation(evaluation: Evaluation, out: Path) -> Path:
    """Write evaluation.json, confusion.png (rows: truth, columns: answer) and, with suites, a page into a folder.

    Raises:
        RunError: the folder cannot be written.
    """
    confusion = evaluation.report.confusion.double()
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    content = io.BytesIO()
    heatmap(shares, 0.0, 1.0, max(320, 4 * len(shares)), smooth=False).save(content, "PNG")
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / EVALUATION, as_utf8(json.dumps(finite(evaluation.as_dict()), indent=1, ensure_ascii=False)))
        write_whole(out / "confusion.png", content.getvalue())
        if evaluation.suites:
            write_whole(out / REPORT, as_utf8(report_page(_bare_report(evaluation))))
    return out


def _bare_report(evaluation: Evaluation) -> ReportData:
    """A page on other data than the run's own: no training, and no panels but those of the localization suite."""
    found = finite(evaluation.as_dict())
    return ReportData(
        title=f"Evaluated on {evaluation.part}",
        command="",
        classes=evaluation.report.classes,
        splits={"evaluated": evaluation.report.count},
        evaluation={"split": evaluation.part, **found},
        pointing=evaluation.pointing,
        sections=sections(found["suites"]),
        ranked=evaluation.ranked,
        test_sentence="Nothing of this run was chosen by these images, unless it learned from some of them.",
    )


def complete(
    run: Run, classifier: AttentionClassifier, splits: Splits, *, device: torch.device, precision: str
) -> Evaluation:
    """Finish a run: keep the weights, evaluate the test part once, write evaluation, report and manifest."""
    run.save_model(classifier)
    images = test_part(splits)
    options = run.options
    evaluated = run_over(classifier.to(device).eval(), images, device, precision, options.memory, options.workers)
    evaluation = assess(evaluated, images, splits.classes, "test", classifier.shares())
    run.write_json(EVALUATION, evaluation.as_dict())
    run.write(PREDICTIONS, as_utf8(predictions_table(evaluated, images.names, splits.classes)))
    right, wrong = report_panels(classifier, images, evaluated, device)
    data = report_data(run, splits, evaluation.as_dict(), right, wrong)
    page = report_page(replace(data, viewer=viewer_images(classifier, images, evaluated, device)))
    run.write(REPORT, as_utf8(page))
    run.finish()
    return evaluation


def report_panels(
    classifier: AttentionClassifier, images: ImageDataset, evaluated: Predictions, device: torch.device
) -> tuple[list[ReportPanel], list[ReportPanel]]:
    """Panels of right answers spread over the classes, and of the wrong answers that were most confident."""
    predicted = evaluated.logits.argmax(1)
    surety = evaluated.logits.softmax(1).amax(1)
    right = (predicted == evaluated.labels).nonzero().flatten().tolist()
    wrong = (predicted != evaluated.labels).nonzero().flatten().tolist()
    right = [right[i] for i in torch.linspace(0, len(right) - 1, min(PANELS, len(right))).long().tolist()]
    wrong = sorted(wrong, key=lambda row: -float(surety[row]))[:PANELS]
    first, second = ([report_panel(classifier, images, row, device) for row in rows] for rows in (right, wrong))
    return first, second


@torch.no_grad()
def panel_sheet(classifier: AttentionClassifier, views: Tensor) -> bytes:
    """A JPEG of the panels of a few images (uint8 (n, 3, S, S)), one below the other."""
    device = next(classifier.parameters()).device
    output = classifier(plain(views).to(device))
    sheets = []
    for row, view in enumerate(views):
        image = Image.fromarray(view.permute(1, 2, 0).numpy())
        sheets.append(prediction_panel(image, prediction_of(classifier, output, row), classifier.classes))
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    content = io.BytesIO()
    whole.save(content, "JPEG", quality=85)
    return content.getvalue()


def report_data(
    run: Run, splits: Splits, found: dict[str, Any], right: list[ReportPanel], wrong: list[ReportPanel]
) -> ReportData:
    """Gather what the report shows, from the run's own files and what evaluation.json holds."""
    metrics = run.read_metrics()
    epochs = [epoch_report(record) for record in metrics if record.get("kind") == "epoch"]
    steps = [(int(record["step"]), float(record["loss"])) for record in metrics if record.get("kind") == "step"]
    audit = read_audit(run.read_json(AUDIT))
    flag = leakage_flag(found["top1"], audit, found["count"])
    warnings = [*([flag] if flag else []), *(epochs[-1].warnings if epochs else ())]
    name, attention = run.config["options"]["model"], run.config["options"]["attention"]
    return ReportData(
        title=f"{Path(splits.name).name}, {name}"
        + (", no attention (the control)" if attention == "none" else f" with {attention} attention"),
        command=str(run.config.get("command", "")),
        classes=splits.classes,
        splits=_sizes(run, splits),
        options=run.config["options"],
        versions={"heedmap": str(run.config.get("heedmap")), **run.config.get("versions", {})},
        epochs=epochs,
        steps=steps[:: max(1, len(steps) // 1000)],
        evaluation={"split": found["part"], **found},
        audit=audit,
        pointing=found["pointing"],
        right=right,
        wrong=wrong,
        notes=splits.notes,
        warnings=warnings,
        is_leakage_suspected=flag is not None,
        sections=sections(found.get("suites", {})),
        test_sentence=TEST_AGAIN if found.get("suites") else TEST_ONCE,
    )


def _sizes(run: Run, splits: Splits) -> dict[str, int]:
    """Images that were learned from, chosen by, and evaluated."""
    sizes = run.config.get("sizes")
    return dict(sizes) if sizes else {name: len(part) for name, part in splits.parts.items()}


def epoch_report(record: dict[str, Any]) -> EpochReport:
    """An epoch as metrics.jsonl holds it; null stands for what was not a number."""
    names = {field.name for field in fields(EpochReport)}
    values: dict[str, Any] = {
        name: math.nan if value is None else value for name, value in record.items() if name in names
    }
    return EpochReport(**{**values, "warnings": tuple(values.get("warnings", ()))})


def read_audit(content: dict[str, Any]) -> Audit:
    """The audit as audit.json holds it."""
    findings = tuple(
        Finding(found["kind"], tuple(found["splits"]), tuple(found["paths"]), found["note"])
        for found in content["findings"]
    )
    return Audit(**{**content, "findings": findings})

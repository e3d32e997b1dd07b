"""Evaluate a run: open it and the data, predict once, run the suites over the predictions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from heedmap.metrics.classification import ClassificationReport
from heedmap.metrics.prediction import ComputeOptions, DatasetPredictions, predict_dataset
from heedmap.progress import Progress
from heedmap.runs import Run
from heedmap.training.precision import resolve
from heedmap.workflows.evaluate.data import EvaluationData
from heedmap.workflows.evaluate.suites import SUITES, EvaluateOptions, Subject, control_of, map_functions

DEFAULTS = EvaluateOptions()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of a classifier on one part of the data.

    Attributes:
        part: ``test``, or what was evaluated instead.
        accuracy: results of the accuracy suite, see :meth:`heedmap.workflows.evaluate.suites.Accuracy.compute`.
        subject, data, predictions: what was evaluated, for the pages of reports; not part of :meth:`as_dict`.
        top1_with_flips: accuracy where the logits of an image and of its mirror image are averaged, at twice the cost;
            None unless requested, and never ``report.top1``.
        suites: results of the other suites; empty unless requested.
    """

    part: str
    accuracy: Mapping[str, Any]
    subject: Subject
    data: EvaluationData
    predictions: DatasetPredictions
    top1_with_flips: float | None = None
    suites: Mapping[str, Any] = field(default_factory=dict)

    @property
    def report(self) -> ClassificationReport:
        """Accuracy, calibration, classes, confusion."""
        return ClassificationReport.from_dict(self.accuracy)

    @property
    def learned(self) -> int:
        """How many of these images the run was trained on, or chosen by; they flatter it."""
        return self.data.trained_on

    def as_dict(self) -> dict[str, Any]:
        """Return the results as JSON can hold them."""
        flips = {} if self.top1_with_flips is None else {"top1_with_flips": self.top1_with_flips}
        suites = {"suites": dict(self.suites)} if self.suites else {}
        return {"part": self.part, **self.accuracy, "learned": self.learned, **flips, **suites}


def evaluate(
    run: Run,
    data: str | None = None,
    options: EvaluateOptions = DEFAULTS,
    *,
    progress: Progress | None = None,
    on_update: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Evaluate a finished run on the test part of its own data, or on other data with the same classes.

    Args:
        data: a named set or a folder, whose test part is evaluated; a folder without parts (``DIR/CLASS/*``) is
            evaluated as a whole. None takes the run's own data.
        options: what is evaluated, and how.
        progress: receives the name of each suite as it starts.
        on_update: called with the results so far, after accuracy and after each suite.

    Raises:
        DataError: data that cannot be used, or classes that the run does not know.
        ModelError: a map that this run cannot give.
        RunError: a run that cannot be used, or a control with other classes or another image size.
    """
    device, own, opening = torch.device(options.device), run.options, options.opening
    classifier = run.classifier().to(device)
    maps = map_functions(options, classifier, own.attention)  # what cannot be had fails before data is opened
    opened = EvaluationData.open(run, data, classifier.classes, opening)
    others = {} if options.control is None else {"control": control_of(options.control, classifier).to(device)}
    subject = Subject(classifier, opened.images, opened.labels, maps, others, opening.arguments(own))
    suites = {name: SUITES[name](subject, options) for name in options.suites}  # before anything is predicted
    workers = own.workers if opening.workers is None else opening.workers
    computing = ComputeOptions(
        device=device, precision=resolve(options.precision, device), memory=own.memory, workers=workers
    )
    evaluation = evaluate_accuracy(subject, opened, computing, options)
    if options.flips:
        mirrored = predict_dataset(classifier, opened.images, computing, mirrored=True)
        both = (evaluation.predictions.logits + mirrored.logits).argmax(1) == evaluation.predictions.labels
        evaluation = replace(evaluation, top1_with_flips=float(both.double().mean()))
    progress, on_update = progress or Progress(), on_update or (lambda _: None)
    on_update(evaluation)
    for name, suite in suites.items():
        if name != "accuracy":
            progress.message(suite.message)
            results = suite.compute(evaluation.predictions, progress)
            evaluation = replace(evaluation, suites={**evaluation.suites, name: results})
            on_update(evaluation)
    return evaluation


def evaluate_accuracy(
    subject: Subject, data: EvaluationData, computing: ComputeOptions, options: EvaluateOptions = DEFAULTS
) -> Evaluation:
    """Predict all images once, and compute the accuracy suite."""
    predictions = replace(predict_dataset(subject.classifier, data.images, computing), labels=subject.labels)
    accuracy = SUITES["accuracy"](subject, options).compute(predictions, Progress())
    return Evaluation(data.part, accuracy, subject, data, predictions)

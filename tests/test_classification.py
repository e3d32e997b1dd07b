import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from heedmap.errors import DataError, ModelError
from heedmap.metrics.classification import (
    ClassificationReport,
    calibration_error,
    classification_report,
    confusion_table,
)

CLASSES = tuple("abcdefg")


@pytest.fixture
def answers(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy logits of 200 images of seven classes; class "g" has no images and "f" is never predicted."""
    labels = torch.randint(0, 6, (200,), generator=generator)
    logits = torch.randn(200, 7, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 7)
    logits[:, 5] -= 12  # not more: log_loss of sklearn clips probabilities below 2e-16
    return logits, labels


def test_top1_top5_and_nll_agree_with_sklearn(answers: tuple[Tensor, Tensor]) -> None:
    from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

    logits, labels = answers
    report = classification_report(logits, labels, CLASSES)
    scores, truth, known = logits.double().numpy(), labels.numpy(), np.arange(7)
    assert report.top1 == pytest.approx(accuracy_score(truth, scores.argmax(1)), abs=1e-12)
    assert report.top5 == pytest.approx(top_k_accuracy_score(truth, scores, k=5, labels=known), abs=1e-12)
    probabilities = logits.double().softmax(1).numpy()
    assert report.nll == pytest.approx(log_loss(truth, probabilities, labels=known), rel=1e-9)
    assert report.count == 200


def test_per_class_table_and_confusion_agree_with_sklearn(answers: tuple[Tensor, Tensor]) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    logits, labels = answers
    report = classification_report(logits, labels, CLASSES)
    predicted = logits.argmax(1)
    known = np.arange(7)
    assert report.confusion.tolist() == confusion_matrix(labels, predicted, labels=known).tolist()
    table = precision_recall_fscore_support(labels, predicted, labels=known, zero_division=0)
    for row, precision, recall, f1, count in zip(report.per_class, *table, strict=True):
        assert (row.precision, row.recall, row.f1) == pytest.approx((precision, recall, f1), abs=1e-12)
        assert row.count == count
    assert [row.name for row in report.per_class] == list(CLASSES)
    assert report.per_class[6].count == 0
    assert report.per_class[6].recall == 0


def test_confusion_has_the_label_in_the_row_and_the_prediction_in_the_column() -> None:
    table = confusion_table(predicted=torch.tensor([1, 1, 0]), labels=torch.tensor([0, 0, 2]), num_classes=3)
    assert table.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


def test_calibration_error_of_five_images_worked_out_by_hand() -> None:
    # Two bins, (0, 0.5] and (0.5, 1]. Confidences 0.5, 0.5 with one right: gap |0.5 - 0.5| = 0.
    # Confidences 0.8, 0.8, 0.9 with one right: gap |1/3 - 2.5/3| = 0.5. ECE = 2/5 * 0 + 3/5 * 0.5 = 0.3.
    probabilities = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.8, 0.2], [0.2, 0.8], [0.9, 0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0, 1])
    assert calibration_error(probabilities, labels, bins=2) == pytest.approx(0.3, abs=1e-12)


def test_calibration_error_agrees_with_the_definition_written_slowly(answers: tuple[Tensor, Tensor]) -> None:
    logits, labels = answers
    probabilities = logits.double().softmax(1)
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [row for row in range(200) if low < probabilities[row].max() <= high]
        if inside:
            right = sum(int(probabilities[row].argmax() == labels[row]) for row in inside) / len(inside)
            confidence = sum(float(probabilities[row].max()) for row in inside) / len(inside)
            expected += len(inside) / 200 * abs(right - confidence)
    assert classification_report(logits, labels, CLASSES).ece == pytest.approx(expected, abs=1e-12)
    assert expected > 0.01


def test_a_bin_owns_its_right_edge() -> None:
    # Confidence 0.5 right and 0.6 wrong: in one bin the surplus would be 0.5 - 0.6 = -0.1, apart it is 0.5 + 0.6.
    probabilities = torch.tensor([[0.5, 0.5], [0.6, 0.4]], dtype=torch.float64)
    assert calibration_error(probabilities, torch.tensor([0, 1]), bins=2) == pytest.approx(1.1 / 2, abs=1e-12)


def test_a_confident_and_correct_classifier_is_perfect_and_a_confident_and_wrong_one_is_fully_miscalibrated() -> None:
    labels = torch.tensor([0, 1, 2])
    right = classification_report(1000 * torch.eye(3), labels, CLASSES[:3])
    wrong = classification_report(1000 * torch.eye(3), labels.roll(1), CLASSES[:3])
    assert (right.top1, right.nll, right.ece) == (1.0, 0.0, 0.0)
    assert (wrong.top1, wrong.nll, wrong.ece) == (0.0, 1000.0, 1.0)


def test_a_classifier_that_knows_nothing_has_the_logarithm_of_the_class_count_as_nll() -> None:
    report = classification_report(torch.zeros(8, 4), torch.arange(8) % 4, CLASSES[:4])
    assert report.nll == pytest.approx(math.log(4), abs=1e-12)


def test_of_equal_logits_the_first_class_wins_in_every_figure() -> None:
    report = classification_report(torch.zeros(7, 7), torch.arange(7), CLASSES)
    assert report.top1 == pytest.approx(1 / 7)
    assert report.top5 == pytest.approx(5 / 7)
    assert report.confusion[:, 0].tolist() == [1] * 7


def test_top5_is_one_where_there_are_five_classes_or_fewer() -> None:
    report = classification_report(torch.eye(5), torch.arange(5).roll(1), CLASSES[:5])
    assert report.top1 == 0.0
    assert report.top5 == 1.0


def test_half_precision_logits_are_evaluated_in_double_precision() -> None:
    logits = torch.randn(64, 7, generator=torch.Generator().manual_seed(3)).bfloat16()
    labels = torch.arange(64) % 7
    low, high = (classification_report(values, labels, CLASSES) for values in (logits, logits.double()))
    assert low.nll == high.nll
    assert low.ece == high.ece


def test_the_report_becomes_json_without_loss(answers: tuple[Tensor, Tensor]) -> None:
    report = classification_report(*answers, CLASSES)
    plain = report.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert ClassificationReport.from_dict(plain).as_dict() == plain
    assert set(plain) == {"count", "classes", "top1", "top5", "nll", "ece", "per_class", "confusion"}
    assert plain["per_class"][0]["name"] == "a"
    assert sum(map(sum, plain["confusion"])) == 200


@pytest.mark.parametrize(
    ("logits", "labels", "error", "words"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 1]), ModelError, r"\(2, 3\)"),
        (torch.zeros(2), torch.tensor([0, 1]), ModelError, r"\(2,\)"),
        (torch.zeros(2, 2), torch.tensor([0]), DataError, "2 images"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), DataError, "no images"),
        (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), DataError, "float32"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), DataError, "Label 2"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), DataError, "Label -1"),
        (
            torch.tensor([[0.0, math.nan], [0.0, 1.0]]),
            torch.tensor([0, 1]),
            ModelError,
            "1 of 2 images",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    logits: Tensor, labels: Tensor, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        classification_report(logits, labels, CLASSES[:2])
    assert "\n" not in str(caught.value)

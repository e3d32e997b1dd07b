"""How well a classifier classifies, and how well its probabilities are calibrated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from heedmap.errors import DataError, ModelError

BINS = 15
_PLAIN = ("count", "top1", "top5", "nll", "ece")


@dataclass(frozen=True)
class ClassScores:
    """How well one class is recognised; shares in [0, 1].

    Attributes:
        precision: share of the images predicted as this class that are it; 0 where there are none.
        recall: share of the images of this class that are predicted as it; 0 where the class has no images.
        f1: harmonic mean of both; 0 where both are 0.
    """

    name: str
    count: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class ClassificationReport:
    """How well a classifier did on N labelled images; classes are in the order of the logits.

    Attributes:
        top1: share of images whose label has the largest logit. Of equal logits the first counts as the larger.
        top5: share of images whose label is among the five largest logits; 1 where there are five classes or fewer.
        nll: mean of -log(probability of the label), in nats; log(K) for a classifier that knows nothing.
        ece: expected calibration error, in [0, 1]; see :func:`calibration_error`.
        confusion: (K, K) int64; row = label, column = predicted.
    """

    count: int
    classes: tuple[str, ...]
    top1: float
    top5: float
    nll: float
    ece: float
    per_class: tuple[ClassScores, ...]
    confusion: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and dicts, ready for JSON."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {
            "classes": list(self.classes),
            "per_class": [asdict(scores) for scores in self.per_class],
            "confusion": self.confusion.tolist(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ClassificationReport:
        """Return the report that :meth:`as_dict` has written, whatever else the content holds."""
        return cls(
            **{name: content[name] for name in _PLAIN},
            classes=tuple(content["classes"]),
            per_class=tuple(ClassScores(**scores) for scores in content["per_class"]),
            confusion=torch.tensor(content["confusion"]),
        )


def classification_report(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> ClassificationReport:
    """Evaluate the logits of a classifier.

    Logits are (N, K), finite, labels (N,) integers in 0 .. K - 1. Computed in float64 whatever the type of the logits,
    so that bf16 and float32 are evaluated alike.

    Raises:
        DataError: no images, or labels that do not fit the images or the classes.
        ModelError: logits that do not fit the classes, or are not finite.
    """
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu()
    _check(logits, labels, classes)
    labels = labels.long()
    # The rank of a label counts the classes before it when sorted by logit, 0 = the label comes first.
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1])[None] < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
    confusion = confusion_table(logits.argmax(dim=1), labels, len(classes))
    return ClassificationReport(
        count=len(labels),
        classes=tuple(classes),
        top1=(rank < 1).double().mean().item(),
        top5=(rank < 5).double().mean().item(),
        nll=F.cross_entropy(logits, labels).item(),
        ece=calibration_error(logits.softmax(dim=1), labels),
        per_class=_per_class(confusion, classes),
        confusion=confusion,
    )


def confusion_table(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the images of each pair (label, predicted): (K, K) int64, row = label, column = predicted."""
    pairs = labels * num_classes + predicted
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).

    The confidence of an image is its largest probability. Images are sorted by confidence into ``bins`` bins of
    equal width, (0, 1/15], (1/15, 2/15], ...; the error is the mean over images of
    | accuracy - mean confidence | of the image's bin. 0: of the images predicted with 80 % confidence, 80 % are
    correct. Few images make it look worse than it is: the accuracy of a bin is then noise.

    Probabilities are (N, K), rows sum to one; labels (N,) int64. Figures of other numbers of bins do not compare.
    """
    confidence, predicted = probabilities.max(dim=1)
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)[1:-1]
    place = torch.bucketize(confidence, edges)  # right edge belongs to the bin
    surplus = (predicted == labels).to(confidence.dtype) - confidence
    # |sum over the bin of (right - confidence)| is the bin's count times its gap, so empty bins need no special case.
    gaps = torch.zeros(bins, dtype=confidence.dtype).index_add_(0, place, surplus)
    return gaps.abs().sum().item() / len(labels)


def _per_class(confusion: Tensor, classes: Sequence[str]) -> tuple[ClassScores, ...]:
    right = confusion.diagonal().tolist()
    counts, called = confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
    return tuple(
        ClassScores(name, count, _ratio(hits, calls), _ratio(hits, count), f1=_ratio(2 * hits, calls + count))
        for name, hits, count, calls in zip(classes, right, counts, called, strict=True)
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _check(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if logits.ndim != 2 or logits.shape[1] != len(classes):
        raise ModelError(f"Logits of shape {tuple(logits.shape)} do not fit {len(classes)} classes; (N, K) is needed.")
    if labels.shape != logits.shape[:1]:
        raise DataError(f"Labels of shape {tuple(labels.shape)} do not fit {len(logits)} images; one each is needed.")
    if not len(labels):
        raise DataError("There are no images to evaluate; name a folder or a split that has some.")
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"Labels of type {labels.dtype} are no class indices; integers are needed.")
    if labels.min() < 0 or labels.max() >= len(classes):
        worst = int(labels.min()) if labels.min() < 0 else int(labels.max())
        raise DataError(f"Label {worst} lies outside 0 .. {len(classes) - 1}, the indices of the classes.")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite().all(dim=1)).sum())
        raise ModelError(f"The logits of {bad} of {len(logits)} images are not finite; the weights are broken.")


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``count`` images (Wilson 1927, without continuity correction).

    It states how far the figure may be off because the test set is small, not how much another seed would change it.
    SciPy's (``binomtest(...).proportion_ci``) takes whole numbers of images only; a share may count half an image.
    """
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)

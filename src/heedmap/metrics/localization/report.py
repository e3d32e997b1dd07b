"""The result of localization: figures with intervals, and images to look at.

Figures are means over images. Where a paper and its code differ, or we depart from both, ``METRICS`` says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heedmap.metrics.maps import check_known

Floats = NDArray[np.float64]
_AT_ONCE = 100  # draws held in memory together

METRICS = {
    "pointing": "share of images whose hottest cell's centre lies on the object (Zhang et al. 2016, section 4.1); of "
    "several equally hot cells, the share that does",
    "pointing_near": "the same, but the point may miss by the tolerance (there 15 pixels of a photo of about 375)",
    "energy": "share of the map's positive sum that lies on the object (Wang et al. 2020, Score-CAM, section 4.3)",
    "otsu_iou": "IoU of the map cut at Otsu's threshold with the object (as Jetley et al. 2018 segment)",
    "best_iou": "IoU of the map cut at the one threshold that is best on other images",
    "pxap": "area under precision and recall of all pixels pooled (Choe et al. 2020, section 4.1)",
    "max_box_acc": "share of images where the box of the largest component overlaps an object by IoU 0.5, at the one "
    "threshold best for these very images (Choe et al. 2020, section 4.1)",
    "max_box_acc_v2": "the same where the box of any component may overlap, for IoU 0.3, 0.5 and 0.7, each at its own "
    "best threshold, averaged (Choe et al. 2020, TPAMI version)",
    "corloc": "share of images where the largest component's box overlaps an object by IoU 0.5 (Deselaers et al. "
    "2012), cut at Otsu's threshold, so that nothing is chosen by looking at the result",
}
"""Name of a metric -> what it is. All lie between 0 and 1, and more is better."""

PER_IMAGE = ("pointing", "pointing_near", "energy", "otsu_iou", "best_iou", "corloc")
"""The metrics that are means of one figure for each image."""

CHOOSING = ("max_box_acc",)
YES_NO = ("pointing", "pointing_near", "corloc", *CHOOSING)
"""The metrics that are yes or no for an image, unless its map is equally hot in several places.

``CHOOSING`` are those of them whose threshold is the best for these very images.
"""


class ScoreWithInterval(NamedTuple):
    """A figure from 0 to 1 and the ends of its 95 % interval over images.

    Wilson's where each image is a yes or a no; bootstrap for all others, and where the threshold is chosen on the same
    images (unless the figure is 0 or 1, where no draw of the bootstrap differs).
    """

    value: float
    low: float
    high: float

    @property
    def percent(self) -> str:
        """``value (low - high)`` in percent."""
        return f"{100 * self.value:.1f} ({100 * self.low:.1f} - {100 * self.high:.1f})"


@dataclass(frozen=True)
class Bootstrap:
    """How much a figure would vary with other images of the same kind: the bootstrap over images.

    Images are drawn with replacement, as many as there are, and the figure is computed again (Efron and Tibshirani,
    "An Introduction to the Bootstrap", 1993, chapter 13: percentile intervals). Every map gets the same draws, so that
    their figures may be subtracted draw by draw.

    ``scipy.stats.bootstrap`` draws the same rows from the same seed, but gathers all values of every draw: of one map
    on 500 images 1,000 x 500 x 2,054 numbers, 100 draws at a time 0.4 GB. As all figures here follow from means,
    counting how often an image is drawn and one matrix product give the same (a test compares the two): 3 ms instead
    of 1.5 s for 100 draws.

    ``count`` is the number of images there are, and in each draw; ``level`` the share of the draws in an interval.
    """

    count: int
    draws: int = 1000
    seed: int = 0
    level: float = 0.95

    def means(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the means of values (count, K) over the images of each draw: (draws, K) float32."""
        return np.concatenate([values[:0], *(shares @ values for shares in self.shares())])

    def shares(self) -> Iterator[NDArray[np.float32]]:
        """Yield how often each image is drawn, as a share of the draw, (up to 100, count) at a time."""
        random = np.random.default_rng(self.seed)
        for first in range(0, self.draws, _AT_ONCE):
            rows = min(_AT_ONCE, self.draws - first)
            picked = random.integers(self.count, size=(rows, self.count))
            picked += np.arange(rows)[:, None] * self.count
            times = np.bincount(picked.ravel(), minlength=rows * self.count).reshape(rows, self.count)
            yield times.astype(np.float32) / np.float32(self.count)

    def interval(self, drawn: Floats) -> tuple[float, float]:
        """Return the interval between equal tails of a figure's draws; NaN at both ends where there are none."""
        if not len(drawn):
            return float("nan"), float("nan")
        low, high = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


@dataclass(frozen=True)
class LocalizationReport:
    """How well maps lie on the objects.

    Attributes:
        scores: map or one of the ``baselines`` -> metric -> score; the maps first, in their order.
        thresholds: map -> shares of its range at which ``best_iou`` cuts: the one chosen on other images, or the two
            chosen on either half for the other.
        rows: (n,) the images that were evaluated, as rows of what was given.
        per_image: map -> metric -> (n,) figures of these images.
        left_out: reason -> number of images that were not evaluated.
        unmeasurable: map -> number of images whose map was ``not finite`` or ``flat``; they were evaluated as a map
            that is the same everywhere.
        outlined: how many of the evaluated images have masks; for the rest, what the boxes cover is the object.
        covered: how many are wholly covered by their objects, so that nothing can miss.
        size, tolerance: side in pixels at which maps and objects were compared; of ``pointing_near``, in shares of it.
        notes: how annotations were read, and what is missing.
    """

    scores: dict[str, dict[str, ScoreWithInterval]]
    baselines: tuple[str, ...]
    thresholds: dict[str, tuple[float, ...]]
    rows: Tensor
    per_image: dict[str, dict[str, Floats]]
    left_out: dict[str, int]
    unmeasurable: dict[str, dict[str, int]]
    outlined: int
    covered: int
    size: int
    tolerance: float
    draws: int
    notes: tuple[str, ...]

    def table(self) -> list[list[str]]:
        """Return rows of cells in percent: a head, then one for each map and baseline, ``value (low - high)``."""
        rows = [[name, *(row[metric].percent for metric in METRICS)] for name, row in self.scores.items()]
        return [["map", *METRICS], *rows]

    def ranked(self, name: str, metric: str = "otsu_iou", count: int = 4) -> dict[str, list[int]]:
        """Find images to look at: ``best``, ``median``, ``worst`` -> rows of what was given, from better to worse.

        The name is that of a map or a baseline, the metric one of ``PER_IMAGE``. Where there are fewer than three times
        ``count`` images, an image may be of several sorts.

        Raises:
            OptionError: an unknown map or metric.
        """
        check_known("map", name, self.per_image)
        check_known("metric of single images", metric, PER_IMAGE)
        order = np.argsort(-self.per_image[name][metric], kind="stable")
        rows = self.rows[torch.from_numpy(order)].tolist()
        count = min(count, len(rows))
        middle = (len(rows) - count) // 2
        return {"best": rows[:count], "median": rows[middle : middle + count], "worst": rows[len(rows) - count :]}

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it, without the figures of single images."""
        scores = {name: {metric: score._asdict() for metric, score in row.items()} for name, row in self.scores.items()}
        thresholds = {name: list(shares) for name, shares in self.thresholds.items()}
        plain = ("left_out", "unmeasurable", "outlined", "covered", "size", "tolerance", "draws")
        return {
            "scores": scores,
            "metrics": METRICS,
            "baselines": list(self.baselines),
            "thresholds": thresholds,
            "images": len(self.rows),
            **{name: getattr(self, name) for name in plain},
            "notes": list(self.notes),
        }

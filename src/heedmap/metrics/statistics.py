"""Do two classifiers differ? Differences paired by seed, and, within one seed, paired by image.

Over seeds: would another training give such a difference again? That is what a t interval of the paired differences is
for (Student 1908; with n seeds it has n - 1 degrees of freedom, so it is honest for three seeds too, and wide). Within
a seed: do these two networks, as they are, differ on more images than this test set would show by chance? For that
there are the exact test of McNemar (1947) and a bootstrap over images, which say nothing about the next seed.

The t quantile and McNemar's test are SciPy's, imported late: they take half a second. The sign-flip test stays, for
``scipy.stats.permutation_test`` takes equal sums in another order for different ones from 1e-14 on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from torch import Tensor

CONFIDENCE = 0.95
RESAMPLES = 10_000
MOST_FLIPPED = 16  # differences; beyond it there are too many signs to try them all


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1; NaN for a single seed) of one figure over so many seeds."""

    count: int
    mean: float
    sd: float


@dataclass(frozen=True)
class PairedDifference:
    """How a figure differs between two variants trained with the same seeds.

    Attributes:
        differences: other - control, for each of the seeds that both have.
        mean: of the differences, with its 95 % t interval ``low`` to ``high``; NaN for a single seed.
        sign_flip: share of all 2^n assignments of signs to the differences whose mean is at least as far from zero
            (exact, no normal distribution assumed; its least value is 2 / 2^n); NaN for a single seed or above 16.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    sign_flip: float

    @property
    def holds_zero(self) -> bool | None:
        """Whether the interval holds zero; None where there is no interval."""
        return None if math.isnan(self.low) else self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class WithinSeed:
    """How the predictions of two networks of one seed differ, image by image.

    Attributes:
        images, only_control, only_other: number of test images, and of those that only this one classified correctly.
        difference: accuracy of the other - accuracy of the control, with its 95 % percentile interval ``low`` to
            ``high`` over resampled images.
        p: two-sided exact McNemar test; see :func:`mcnemar`.
    """

    images: int
    only_control: int
    only_other: int
    difference: float
    low: float
    high: float
    p: float


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation; ValueError for no values."""
    if not values:
        raise ValueError("There are no values to take the mean of.")
    count, mean = len(values), math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(count, mean, math.sqrt(squares / (count - 1)) if count > 1 else math.nan)


def paired_difference(control: Mapping[int, float], other: Mapping[int, float]) -> PairedDifference:
    """Compare one figure (seed -> figure) over the seeds that both variants have; ValueError where there is none."""
    seeds = tuple(sorted(set(control) & set(other)))
    if not seeds:
        raise ValueError("The two have no seed in common, so there is nothing to pair.")
    differences = tuple(other[seed] - control[seed] for seed in seeds)
    over_seeds = spread(differences)
    mean, reach = over_seeds.mean, math.nan
    if over_seeds.count > 1:
        from scipy.stats import t

        quantile = float(t.ppf(0.5 + CONFIDENCE / 2, over_seeds.count - 1))
        reach = quantile * over_seeds.sd / math.sqrt(over_seeds.count)
    return PairedDifference(seeds, differences, mean, mean - reach, mean + reach, _sign_flip(differences))


def _sign_flip(differences: Sequence[float]) -> float:
    """Return p of the two-sided exact permutation test: without a difference each sign is as likely as its opposite."""
    if not 1 < len(differences) <= MOST_FLIPPED:
        return math.nan
    sizes = np.abs(np.array(differences))
    signs = np.array(list(product((-1.0, 1.0), repeat=len(sizes))))
    seen = abs(float(np.sum(differences)))
    # A sum in another order may differ in its last digits from one that is equal to it.
    return float((np.abs(signs @ sizes) >= seen * (1 - 1e-9)).mean())


def within_seed(control: Tensor, other: Tensor) -> WithinSeed:
    """Compare the predictions of two networks on the same images: (N,) bool each, whether they are correct.

    Raises:
        ValueError: different numbers of images, or none.
    """
    if control.shape != other.shape or not len(control):
        raise ValueError(f"{len(control)} predictions against {len(other)}; there must be equally many, and some.")
    count, lost, won = len(control), int((control & ~other).sum()), int((~control & other).sum())
    # To resample N images is to draw the three counts from a multinomial distribution: what ``scipy.stats.bootstrap``
    # gives by gathering 10,000 x N values.
    shares = [lost / count, won / count, (count - lost - won) / count]
    drawn = np.random.default_rng(0).multinomial(count, shares, size=RESAMPLES)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / count, [tail, 100 - tail]).tolist()
    return WithinSeed(count, lost, won, (won - lost) / count, low, high, mcnemar(lost, won))


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided exact McNemar p: of ``lost + won`` disagreements, how odd is so uneven a split?

    Under equal skill each disagreement falls to either side like a fair coin. 1 where there is no disagreement.
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0

"""Differences between variants: paired by seed, and within a seed by image."""

import itertools
import math
import random

import pytest
import torch
from scipy import stats

from heedmap.metrics.statistics import mcnemar, paired_difference, spread, within_seed


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_mean_and_spread_by_hand() -> None:
    found = spread([1.0, 2.0, 6.0])
    assert (found.count, found.mean) == (3, 3.0)
    assert found.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert math.isnan(spread([2.0]).sd)
    with pytest.raises(ValueError, match="values"):
        spread([])


def test_the_interval_is_that_of_the_textbook() -> None:
    # differences 1, 2, 3: mean 2, sd 1, t(2) = 4.302653 at 97.5 %, so 2 -+ 4.302653 / sqrt(3)
    found = paired_difference(by_seed(0, 0, 0), by_seed(1, 2, 3))
    assert found.mean == 2
    assert found.low == pytest.approx(2 - 4.30265273 / math.sqrt(3))
    assert found.high == pytest.approx(2 + 4.30265273 / math.sqrt(3))
    assert found.holds_zero is True
    # two seeds have one degree of freedom: 12.7062
    two = paired_difference(by_seed(0, 0), by_seed(1, 3))
    assert two.high == pytest.approx(2 + 12.7062047)


def test_the_interval_agrees_with_the_paired_test_of_scipy() -> None:
    rng = random.Random(0)
    for count in (2, 3, 5, 10):
        control = [rng.gauss(0.9, 0.01) for _ in range(count)]
        other = [value + rng.gauss(0.005, 0.004) for value in control]
        found = paired_difference(by_seed(*control), by_seed(*other))
        theirs = stats.ttest_rel(other, control)
        low, high = theirs.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.holds_zero == (theirs.pvalue >= 0.05)


def test_the_interval_holds_the_truth_in_ninety_five_of_a_hundred_cases() -> None:
    rng, truth, held, tries = random.Random(1), 0.3, 0, 2000
    for _ in range(tries):
        found = paired_difference(by_seed(*[0.0] * 4), by_seed(*[rng.gauss(truth, 1) for _ in range(4)]))
        held += found.low <= truth <= found.high
    assert held / tries == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({0: 0.5, 1: 0.6, 3: 0.9}, {3: 1.0, 0: 0.7, 2: 0.1})
    assert found.seeds == (0, 3)
    assert found.differences == pytest.approx((0.2, 0.1))
    with pytest.raises(ValueError, match="seed"):
        paired_difference({0: 0.5}, {1: 0.5})


def test_a_single_seed_has_no_interval() -> None:
    found = paired_difference({4: 0.5}, {4: 0.6})
    assert found.holds_zero is None
    assert math.isnan(found.low)
    assert math.isnan(found.sign_flip)


def test_the_sign_flip_test_tries_every_sign() -> None:
    for differences in ([1.0, 2.0, 3.0], [0.5, -0.1, 0.2, 0.3], [1.0, -1.0], [0.1, 0.1, 0.1, 0.1, 0.1]):
        seen = abs(sum(differences))
        tried = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
                 for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
        expected = sum(one >= seen - 1e-12 for one in tried) / len(tried)
        found = paired_difference(by_seed(*[0.0] * len(differences)), by_seed(*differences))
        assert found.sign_flip == pytest.approx(expected)
    assert found.sign_flip == pytest.approx(2 / 2**5)  # all on one side: the least there can be


def test_the_order_of_variants_turns_the_sign_and_nothing_else() -> None:
    control, other = by_seed(0.5, 0.7, 0.6), by_seed(0.55, 0.72, 0.59)
    forth, back = paired_difference(control, other), paired_difference(other, control)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert forth.sign_flip == back.sign_flip


def test_mcnemar_by_hand_and_against_the_sum_of_binomials() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    for lost, won in ((3, 3), (2, 9), (40, 61), (900, 1013)):
        assert mcnemar(lost, won) == mcnemar(won, lost)
        tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1))
        assert mcnemar(lost, won) == pytest.approx(min(1.0, 2 * tail / 2 ** (lost + won)), rel=1e-12)


def test_images_are_counted_in_pairs() -> None:
    control = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1, 1, 1], dtype=torch.bool)
    other = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    found = within_seed(control, other)
    assert (found.images, found.only_control, found.only_other) == (10, 1, 3)
    assert found.difference == pytest.approx(0.2)
    assert found.low < 0.2 < found.high
    with pytest.raises(ValueError, match=r"10 .* 9"):
        within_seed(control, other[:9])


def test_the_interval_over_images_is_the_bootstrap_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    control, other = torch.rand(300, generator=generator) < 0.8, torch.rand(300, generator=generator) < 0.85
    found = within_seed(control, other)
    gained = other.double() - control.double()
    rows = torch.randint(300, (10_000, 300), generator=generator)
    low, high = gained[rows].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)


def test_equal_predictions_do_not_differ() -> None:
    right = torch.tensor([True, False, True])
    found = within_seed(right, right)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)

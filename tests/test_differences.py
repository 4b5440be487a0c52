"""Differences of two models on the same examples: their standard errors, and examples needed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mergetomix.statistics.agreement import examples_needed, paired_difference


def test_a_difference_has_its_weighted_mean_and_its_analytic_standard_error() -> None:
    rng = np.random.default_rng(3)
    common, weights = rng.normal(0, 10, 400), rng.uniform(0.5, 3, 400)
    a, b = common + rng.normal(0.3, 1, 400), common + rng.normal(0, 1, 400)
    mean, sd = paired_difference(a, b, weights, num_resamples=1500)
    expected = np.average(a - b, weights=weights)
    assert mean == pytest.approx(expected)
    # a ratio of sums, linearised: Cochran 1977, equation 2.39
    assert sd == pytest.approx(
        math.sqrt((weights**2 * (a - b - expected) ** 2).sum()) / weights.sum(), rel=0.08
    )


def test_with_equal_weights_the_standard_error_is_the_known_one() -> None:
    values = np.random.default_rng(4).normal(size=300)
    mean, sd = paired_difference(values, np.zeros(300), np.full(300, 7.0), num_resamples=1500)
    assert (mean, sd) == (
        pytest.approx(values.mean()),
        pytest.approx(values.std() / math.sqrt(300), rel=0.08),
    )


def test_differences_turn_round_and_do_not_see_the_scale_of_the_weights() -> None:
    rng = np.random.default_rng(5)
    a, b, weights = rng.normal(size=(3, 50)) ** 2
    mean, sd = paired_difference(a, b, weights)
    assert paired_difference(b, a, weights) == pytest.approx((-mean, sd))
    assert paired_difference(a, b, 1000 * weights) == pytest.approx((mean, sd))
    assert paired_difference(10 * a, 10 * b, weights) == pytest.approx((10 * mean, 10 * sd))
    assert paired_difference(a, b, weights) == (mean, sd)
    assert paired_difference(a, b, weights, seed=1)[1] != sd


def test_the_same_difference_everywhere_is_certain_and_one_example_is_not() -> None:
    assert paired_difference([3.0, 5.0, 9.0], [1.0, 3.0, 7.0], [1, 2, 3]) == (
        2,
        pytest.approx(0, abs=1e-12),
    )
    mean, sd = paired_difference([3.0], [1.0], [4.0])
    assert mean == 2 and math.isnan(sd)


def test_resamples_without_weight_are_left_out() -> None:
    mean, sd = paired_difference([5.0, 1.0], [0.0, 0.0], [0.0, 1.0])
    assert (mean, sd) == (1, 0)


@pytest.mark.parametrize(
    ("a", "b", "weights", "num_resamples", "named"),
    [
        ([1, 2], [1], [1, 1], 9, "one length"),
        ([1, 2], [1, 2], [1], 9, "one length"),
        ([1, math.nan], [1, 2], [1, 1], 9, "values_a_E must be finite"),
        ([1, 2], [1, 2], [1, math.inf], 9, "weights_E must be finite"),
        ([1, 2], [1, 2], [3, -1], 9, "weights >= 0"),
        ([1, 2], [1, 2], [0, 0], 9, "sum > 0"),
        ([], [], [], 9, "sum > 0"),
        ([1, 2], [1, 2], [1, 1], 1, "num_resamples >= 2"),
    ],
)
def test_what_has_no_difference(
    a: list[float], b: list[float], weights: list[float], num_resamples: int, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        paired_difference(a, b, weights, num_resamples=num_resamples)


def test_examples_needed_grow_with_the_square_of_the_uncertainty() -> None:
    assert examples_needed(0.02, 100, 1.645 * 0.02) == 100
    assert examples_needed(0.02, 100, 1.645 * 0.01) == 400
    assert examples_needed(0.04, 100, 1.645 * 0.01) == 1600
    assert examples_needed(0.02, 100, 1.644 * 0.02) == 101  # rounds up
    assert examples_needed(0.02, 100, 50.0) == examples_needed(0.0, 100, 0.1) == 1


def test_with_the_examples_needed_the_gap_is_wide_enough() -> None:
    values = np.random.default_rng(6).normal(0.1, 1, 200)
    _, sd = paired_difference(values, np.zeros(200), np.ones(200))
    needed = examples_needed(sd, 200, 0.1)
    assert (
        0.1 / (sd * math.sqrt(200 / needed)) >= 1.645 > 0.1 / (sd * math.sqrt(200 / (needed - 1)))
    )


@pytest.mark.parametrize(
    ("sd", "num_examples", "gap"),
    [
        (-1.0, 5, 0.1),
        (math.nan, 5, 0.1),
        (math.inf, 5, 0.1),
        (1.0, 0, 0.1),
        (1.0, 5, 0.0),
        (1.0, 5, -0.1),
        (1.0, 5, math.nan),
    ],
)
def test_what_needs_no_number_of_examples(sd: float, num_examples: int, gap: float) -> None:
    with pytest.raises(ValueError, match="gap > 0 must hold"):
        examples_needed(sd, num_examples, gap)

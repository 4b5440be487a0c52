"""The quadratic of a target: its covariance, its posterior, its prior, and what it recovers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mergetomix.search.candidates import Array
from mergetomix.search.gradient.prior import MOST_NUMBERS, START, evidence, fit_prior, thinned
from mergetomix.search.gradient.quadratic import (
    TERMS,
    Observations,
    QuadraticPosterior,
    QuadraticPrior,
    covariance,
)

SCALES = np.array([0.7, 0.4, 0.9, 0.3, 0.2])


def value_covariance(left_N: Array, right_N: Array) -> float:
    u, v = float(left_N @ right_N), float(left_N.sum() * right_N.sum())
    return float(SCALES @ np.array([u, v, u * u, u * v, v * v]))


def observed(
    num_points: int, num: int, seed: int, with_slopes: int | None = None
) -> tuple[Observations, Array, Array]:
    """Values and derivatives of a random quadratic; its b and H."""
    rng = np.random.default_rng(seed)
    b_N, h_NN = rng.normal(size=num), rng.normal(size=(num, num))
    h_NN = h_NN + h_NN.T
    points = rng.dirichlet(np.ones(num), num_points)
    values = points @ b_N + ((points @ h_NN) * points).sum(axis=1) / 2
    slopes = b_N + points @ h_NN
    if with_slopes is not None:
        slopes[with_slopes:] = math.nan
    return Observations(points, values, slopes), b_N, h_NN


def terms_of(seen: Observations) -> Array:
    return np.stack([covariance(alone, seen) for alone in np.eye(len(TERMS))])


@pytest.mark.parametrize("seed", range(3))
def test_covariances_of_derivatives_are_derivatives_of_the_covariance(seed: int) -> None:
    """All of them by central differences: two points with derivatives, and one without."""
    points_MN = np.random.default_rng(seed).normal(size=(3, 3))
    slopes_MN = np.array([[0.0] * 3, [math.nan] * 3, [0.0] * 3])
    found = covariance(SCALES, Observations(points_MN, np.zeros(3), slopes_MN))
    steps = np.eye(3) * 1e-4
    # every number observed as (point, weight) pairs: a value, or a difference of two
    sloped = [points_MN[i] for i in (0, 2)]
    numbers = [[(x + step, 5e3), (x - step, -5e3)] for x in sloped for step in steps]
    numbers += [[(x, 1.0)] for x in points_MN]
    for row, one in enumerate(numbers):
        for column, other in enumerate(numbers):
            parts = [a * b * value_covariance(x, y) for x, a in one for y, b in other]
            assert found[row, column] == pytest.approx(sum(parts), abs=1e-4)


def test_the_terms_make_up_the_whole() -> None:
    seen, _, _ = observed(4, 3, 0, with_slopes=2)
    parts = [
        scale * covariance(alone, seen) for scale, alone in zip(SCALES, np.eye(5), strict=True)
    ]
    whole = covariance(SCALES, seen)
    assert len(SCALES) == len(TERMS)
    assert whole == pytest.approx(sum(parts))
    assert whole == pytest.approx(whole.T)
    assert np.linalg.eigvalsh(whole).min() > -1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_posterior_is_that_of_gaussian_conditioning(seed: int) -> None:
    seen, _, _ = observed(5, 4, seed, with_slopes=3)
    prior = QuadraticPrior(tuple(SCALES), 1e-3, 1e-2)
    posterior = QuadraticPosterior(seen, prior)
    asked = np.random.default_rng(seed + 9).dirichlet(np.ones(4), 7)
    both = Observations(
        np.vstack([seen.points_MN, asked]),
        np.zeros(12),
        np.vstack([seen.slopes_MN, np.full((7, 4), math.nan)]),
    )
    joint = covariance(SCALES, both)
    old = len(joint) - 7
    inverse = np.linalg.inv(joint[:old, :old] + np.diag(prior.noises(seen)))
    assert posterior.mean(asked) == pytest.approx(joint[old:, :old] @ inverse @ seen.numbers_S)
    expected = joint[old:, old:] - joint[old:, :old] @ inverse @ joint[:old, old:]
    assert posterior.sd(asked) ** 2 == pytest.approx(np.diag(expected), abs=1e-9)


def test_a_posterior_that_grows_is_the_one_made_anew() -> None:
    seen, _, _ = observed(9, 4, 1, with_slopes=3)
    prior = QuadraticPrior(tuple(SCALES), 1e-3, 1e-2)
    asked = np.random.default_rng(0).dirichlet(np.ones(4), 6)

    def part(num: int) -> Observations:
        return seen.picked(np.arange(num))

    grown = QuadraticPosterior(part(3), prior)
    for num in (4, 5, 8, 9):
        assert part(num).extends(grown.seen)
        grown = QuadraticPosterior(part(num), prior, grown)
        fresh = QuadraticPosterior(part(num), prior)
        assert grown.mean(asked) == pytest.approx(fresh.mean(asked), rel=1e-7)
        assert grown.sd(asked) == pytest.approx(fresh.sd(asked), rel=1e-5)
    other = QuadraticPosterior(part(9), QuadraticPrior(tuple(2 * SCALES), 1e-3, 1e-2), grown)
    assert other.sd(asked) == pytest.approx(QuadraticPosterior(part(9), other.prior).sd(asked))


@pytest.mark.parametrize("seed", range(4))
def test_the_evidence_has_the_slope_that_it_says_and_is_that_of_a_normal(seed: int) -> None:
    from scipy.stats import multivariate_normal

    seen, _, _ = observed(4, 3, seed, with_slopes=3)
    parts = terms_of(seen)
    logs = START.logs + np.random.default_rng(seed).normal(0, 0.5, 7)
    value, slope = evidence(logs, parts, seen)
    for index in range(7):
        step = np.eye(7)[index] * 1e-5
        difference = evidence(logs + step, parts, seen)[0] - evidence(logs - step, parts, seen)[0]
        assert slope[index] == pytest.approx(difference / 2e-5, rel=1e-3, abs=1e-4)

    def minus_log(at: Array) -> float:
        prior = QuadraticPrior.of(at)
        matrix = np.tensordot(np.array(prior.scales), parts, 1) + np.diag(prior.noises(seen))
        return -float(multivariate_normal.logpdf(seen.numbers_S, cov=matrix))

    # away from START the prior on logs counts too: compare where it does not change
    mirrored = 2 * START.logs - logs
    assert evidence(mirrored, parts, seen)[0] - value == pytest.approx(
        minus_log(mirrored) - minus_log(logs), rel=1e-6
    )


@pytest.mark.parametrize("num", [3, 6, 12])
def test_a_quadratic_is_recovered_from_as_many_derivatives_as_determine_it(num: int) -> None:
    seen, b_N, h_NN = observed(num + 1, num, num)
    scale = float(np.sqrt((seen.slopes_MN**2).mean()))
    scaled = Observations(seen.points_MN, seen.values_M / scale, seen.slopes_MN / scale)
    posterior = QuadraticPosterior(scaled, fit_prior(scaled))
    asked = np.random.default_rng(7).dirichlet(np.ones(num), 50)
    truth = asked @ b_N + ((asked @ h_NN) * asked).sum(axis=1) / 2
    assert posterior.mean(asked) * scale == pytest.approx(truth, abs=2e-3 * float(np.ptp(truth)))
    assert float(posterior.sd(asked).max()) * scale < 0.02 * float(np.ptp(truth))


def test_the_prior_fitted_is_likelier_than_the_start_and_tells_noise() -> None:
    seen, _, _ = observed(8, 5, 3)
    rng = np.random.default_rng(0)
    slopes_MN = seen.slopes_MN + rng.normal(0, 0.3, seen.slopes_MN.shape)
    noisy, parts = Observations(seen.points_MN, seen.values_M, slopes_MN), terms_of(seen)
    clean, dirty = fit_prior(seen), fit_prior(noisy)
    assert evidence(dirty.logs, parts, noisy)[0] < evidence(START.logs, parts, noisy)[0]
    assert dirty.noise_slope > 100 * clean.noise_slope
    assert math.sqrt(dirty.noise_slope) == pytest.approx(0.3, rel=0.5)


def test_a_prior_is_fitted_to_the_latest_derivatives_and_then_the_latest_values() -> None:
    seen, _, _ = observed(60, 9, 0, with_slopes=40)
    some = thinned(seen)
    assert len(some.numbers_S) <= MOST_NUMBERS
    assert np.array_equal(some.points_MN[some.sloped], seen.points_MN[8:40])
    few, _, _ = observed(12, 9, 0, with_slopes=3)
    assert np.array_equal(thinned(few).numbers_S, few.numbers_S)

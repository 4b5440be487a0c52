"""The quadratic model: its covariance by differences, its posterior against plain linear algebra, and what it recovers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mergetomix.search.combined import Combined

from mergetomix.search.gradient.quadratic import (
    START,
    TERMS,
    Array,
    Observations,
    QuadraticPosterior,
    QuadraticPrior,
    along,
    between,
    covariance,
    evidence,
    fit_prior,
    mixed,
    noises,
    products,
    term,
)
from mergetomix.search.strategy import mean_value

SCALES = np.array([0.7, 0.4, 0.9, 0.3, 0.2])


def kernel(scales: Array, left_N: Array, right_N: Array) -> float:
    u, v = float(left_N @ right_N), float(left_N.sum() * right_N.sum())
    return float(scales @ np.array([u, v, u * u, u * v, v * v]))


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


@pytest.mark.parametrize("seed", range(3))
def test_covariances_of_derivatives_are_derivatives_of_the_covariance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, 3)), rng.normal(size=(4, 3))
    partials = mixed(SCALES, *products(left, right))
    step, axes = 1e-4, np.eye(3)
    for k, x_N in enumerate(left):
        for m, y_N in enumerate(right):
            assert partials.f[k, m] == pytest.approx(kernel(SCALES, x_N, y_N))
            for j in range(3):
                moved = [kernel(SCALES, x_N, y_N + sign * step * axes[j]) for sign in (1, -1)]
                assert along(partials, left, right)[k, 3 * m + j] == pytest.approx(
                    (moved[0] - moved[1]) / (2 * step), abs=1e-5
                )
                for i in range(3):
                    corners = [
                        one
                        * two
                        * kernel(SCALES, x_N + one * step * axes[i], y_N + two * step * axes[j])
                        for one in (1, -1)
                        for two in (1, -1)
                    ]
                    expected = sum(corners) / (4 * step**2)
                    assert between(partials, left, right)[3 * k + i, 3 * m + j] == pytest.approx(
                        expected, abs=1e-4
                    )


def test_the_terms_make_up_the_whole() -> None:
    seen, _, _ = observed(4, 3, 0, with_slopes=2)
    uv = products(seen.points_MN, seen.points_MN)
    parts = sum(scale * covariance(term(index, *uv), seen) for index, scale in enumerate(SCALES))
    whole = covariance(mixed(SCALES, *uv), seen)
    assert len(SCALES) == len(TERMS)
    assert whole == pytest.approx(parts)
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
    joint = covariance(mixed(SCALES, *products(both.points_MN, both.points_MN)), both)
    old = len(joint) - 7
    inverse = np.linalg.inv(joint[:old, :old] + np.diag(noises(prior, seen)))
    assert posterior.mean(asked) == pytest.approx(joint[old:, :old] @ inverse @ seen.numbers_S)
    expected = joint[old:, old:] - joint[old:, :old] @ inverse @ joint[:old, old:]
    assert posterior.sd(asked) ** 2 == pytest.approx(np.diag(expected), abs=1e-9)


def test_a_posterior_that_grows_is_the_one_made_anew() -> None:
    seen, _, _ = observed(9, 4, 1, with_slopes=3)
    prior = QuadraticPrior(tuple(SCALES), 1e-3, 1e-2)
    part = lambda num: Observations(seen.points_MN[:num], seen.values_M[:num], seen.slopes_MN[:num])  # noqa: E731
    asked = np.random.default_rng(0).dirichlet(np.ones(4), 6)
    grown = QuadraticPosterior(part(3), prior)
    for num in (4, 5, 8, 9):
        grown, fresh = (
            QuadraticPosterior(part(num), prior, grown),
            QuadraticPosterior(part(num), prior),
        )
        assert grown.mean(asked) == pytest.approx(fresh.mean(asked), rel=1e-7)
        assert grown.sd(asked) == pytest.approx(fresh.sd(asked), rel=1e-5)
    other = QuadraticPosterior(part(9), QuadraticPrior(tuple(2 * SCALES), 1e-3, 1e-2), grown)
    assert other.sd(asked) == pytest.approx(QuadraticPosterior(part(9), other.prior).sd(asked))


@pytest.mark.parametrize("seed", range(4))
def test_the_evidence_has_the_slope_that_it_says_and_is_that_of_a_normal(seed: int) -> None:
    from scipy.stats import multivariate_normal

    seen, _, _ = observed(4, 3, seed, with_slopes=3)
    parts = np.stack(
        [
            covariance(term(i, *products(seen.points_MN, seen.points_MN)), seen)
            for i in range(len(TERMS))
        ]
    )
    logs = START.logs + np.random.default_rng(seed).normal(0, 0.5, 7)
    value, slope = evidence(logs, parts, seen)
    for index in range(7):
        step = np.eye(7)[index] * 1e-5
        difference = evidence(logs + step, parts, seen)[0] - evidence(logs - step, parts, seen)[0]
        assert slope[index] == pytest.approx(difference / 2e-5, rel=1e-3, abs=1e-4)

    def minus_log(at: Array) -> float:
        prior = QuadraticPrior.of(at)
        matrix = np.tensordot(np.array(prior.scales), parts, 1) + np.diag(noises(prior, seen))
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
    noisy = Observations(
        seen.points_MN, seen.values_M, seen.slopes_MN + rng.normal(0, 0.3, seen.slopes_MN.shape)
    )
    parts = np.stack(
        [
            covariance(term(i, *products(seen.points_MN, seen.points_MN)), seen)
            for i in range(len(TERMS))
        ]
    )
    clean, dirty = fit_prior(seen), fit_prior(noisy)
    assert evidence(dirty.logs, parts, noisy)[0] < evidence(START.logs, parts, noisy)[0]
    assert dirty.noise_slope > 100 * clean.noise_slope
    assert math.sqrt(dirty.noise_slope) == pytest.approx(0.3, rel=0.5)


# --- the objective of many -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("combine", "is_linear", "is_worst"),
    [
        (mean_value, True, False),
        (lambda v: 3 * v["a"] - v["b"] + 2, True, False),
        (lambda v: min(v.values()), False, True),
        (lambda v: min(2 * v["a"], v["b"], v["c"]), False, False),
        (lambda v: math.tanh(v["a"]) + v["b"] * v["c"], False, False),
    ],
)
def test_an_objective_of_many_is_that_of_each(
    combine: object, is_linear: bool, is_worst: bool
) -> None:
    assert callable(combine)
    combined = Combined(combine, "abc")
    assert (combined.is_linear, combined.is_worst, combined.is_slow) == (
        is_linear,
        is_worst,
        not (is_linear or is_worst),
    )
    values_TK = np.random.default_rng(1).normal(size=(3, 20))
    each = lambda rows: [combine(dict(zip("abc", row, strict=True))) for row in rows.T]  # noqa: E731
    assert combined(values_TK) == pytest.approx(each(values_TK))
    for target in range(3):
        step = np.zeros((3, 1))
        step[target] = 1e-6
        expected = (np.array(each(values_TK + step)) - np.array(each(values_TK - step))) / 2e-6
        assert combined.slopes(values_TK)[target] == pytest.approx(expected, abs=1e-4)

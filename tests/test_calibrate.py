"""The posterior in worlds whose truth is known: residuals are drawn from the fitted model."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import multivariate_t

from mergetomix.statistics.next_check import next_check
from mergetomix.statistics.noise import Noise
from mergetomix.statistics.posterior import (
    Array,
    Posterior,
    Prior,
    Unit,
    Views,
    how_much_longer,
    likeliest,
    posterior_of,
    with_strongest,
)

N = 5
SUBSETS = [chosen for k in range(1, N + 1) for chosen in combinations(range(N), k)]
PRIOR = Prior()


def subset_weights() -> Array:
    weights = np.zeros((len(SUBSETS), N))
    for row, chosen in enumerate(SUBSETS):
        weights[row, list(chosen)] = 1 / len(chosen)
    return weights


WEIGHTS = subset_weights()
MIXED = np.sqrt(1 - (WEIGHTS**2).sum(axis=1))
SEVERAL = [row for row, chosen in enumerate(SUBSETS) if len(chosen) > 1]


def views(proxy: Array, pooled: Array | None = None) -> Views:
    return Views(WEIGHTS, proxy, proxy if pooled is None else pooled)


def exactly(mean_M: Array, scale_MM: Array, dof: float, *known: int) -> Posterior:
    """A posterior of what is measured without noise."""
    noise, sd_M = Noise.none(len(mean_M)), np.sqrt(np.diag(scale_MM))
    return Posterior(mean_M, scale_MM, dof, frozenset(known), 0.0, noise, mean_M, sd_M)


def world(seed: int) -> tuple[Array, Array]:
    """Proxies, and reals drawn from the prior given them."""
    rng = np.random.default_rng(seed)
    proxy = WEIGHTS @ rng.normal(size=N) + 0.3 * rng.normal(size=len(SUBSETS))
    prior = posterior_of(views(proxy), {})
    real = proxy.copy()
    scale = prior.scale_MM[np.ix_(SEVERAL, SEVERAL)]
    real[SEVERAL] = multivariate_t(
        prior.mean_M[SEVERAL], scale, prior.dof, allow_singular=True, seed=seed
    ).rvs()
    return proxy, real


@pytest.mark.parametrize("num", [0, 1, 3, 6])
def test_intervals_hold_the_truth_as_often_as_they_say(num: int) -> None:
    held = []
    for seed in range(60):
        proxy, real = world(seed)
        rows = np.random.default_rng(seed).permutation(SEVERAL)[:num]
        found = posterior_of(views(proxy), {int(i): float(real[i]) for i in rows})
        low, high = found.interval(0.9)
        held += [low[i] <= real[i] <= high[i] for i in SEVERAL if i not in rows]
    # mixtures of one world move together: the share is less sure than its intervals are many
    assert 0.85 <= np.mean(held) <= 0.95


def covariance(prior: Prior, one: int, other: int, z: Array, d: Array, s: Array, t: Array) -> float:
    """What two mixtures' residuals share, term by term, in units of the proxies' spread."""
    v, w = WEIGHTS[one], WEIGHTS[other]
    mixed = MIXED[one] * MIXED[other]
    terms = prior.level**2 + prior.slope**2 * z[one] * z[other] + prior.pool**2 * d[one] * d[other]
    terms += prior.strong**2 * s[one] * s[other]
    longer = prior.longer**2 + prior.levelled**2 * z[one] * z[other]
    terms += longer * t[one] * t[other]
    terms += prior.main**2 * (v @ w) / ((v @ v) * (w @ w))
    pairs = sum(v[i] * v[j] * w[i] * w[j] for i, j in combinations(range(N), 2))
    return float(mixed * terms + prior.pair**2 * pairs)


def test_the_posterior_is_that_of_the_formula() -> None:
    """Beside scipy's multivariate t and the conditional of a normal."""
    prior = Prior(0.5, 0.3, 0.4, 0.7, 0.6, 0.4, 0.3, 0.5, 0.2, -0.4, 0.3, 0.2, 0.9, 0.15, 5.0)
    proxy, real = world(9)
    pooled = proxy + 0.2 * np.random.default_rng(9).normal(size=len(proxy))
    strongest = with_strongest(WEIGHTS, proxy, proxy[:N])
    unit, rows = Unit.of(proxy), SEVERAL[::4]
    z, d, s = (
        (proxy - unit.mean) / unit.sd,
        (pooled - proxy) / unit.sd,
        (strongest - proxy) / unit.sd,
    )
    longer = how_much_longer(np.sign(WEIGHTS), np.arange(1.0, N + 1))
    moved = prior.expected_slope * z + prior.expected_pool * d + prior.expected_strong * s
    moved += (prior.expected_longer + prior.expected_levelled * z) * longer
    expected = proxy + unit.sd * MIXED * moved
    every = range(len(proxy))
    shared = np.array([[covariance(prior, i, j, z, d, s, longer) for j in every] for i in every])
    residual, best = real[rows] - expected[rows], (-np.inf, np.empty(0), np.empty(0))
    for factor in (0.5, 1, 2, 4, 8):
        whole = shared + np.diag((factor * prior.own * MIXED) ** 2)
        seen = whole[np.ix_(rows, rows)]
        chance = multivariate_t.logpdf(residual, shape=unit.sd**2 * seen, df=prior.dof)
        solved = np.linalg.solve(seen, shared[rows]).T
        dof = prior.dof + len(rows)
        amplitude = (prior.dof * unit.sd**2 + residual @ np.linalg.solve(seen, residual)) / dof
        mean = expected + solved @ residual
        variance = amplitude * np.diag(whole - solved @ shared[rows])
        best = max(best, (chance - np.log(factor) ** 2 / 2, mean, variance), key=lambda b: b[0])
    known = {i: float(real[i]) for i in rows}
    found = posterior_of(Views(WEIGHTS, proxy, pooled, strongest, longer), known, prior)
    left = [i for i in SEVERAL if i not in rows]
    assert found.log_evidence == pytest.approx(best[0], abs=1e-4)
    assert found.dof == prior.dof + len(rows)
    np.testing.assert_allclose(found.mean_M[left], best[1][left], atol=1e-5)
    np.testing.assert_allclose(found.sd_M[left] ** 2, best[2][left], rtol=1e-4)


def test_the_strongest_expert_counts_most_where_effects_are_large() -> None:
    weights = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    merged = np.array([0.4, 0.2, 0.1])
    found = with_strongest(weights, merged, np.array([0.4, 0.0, -0.1]))
    share = 0.4 / (0.4 + 0.1)
    assert found[0] == pytest.approx(0.4)
    assert found[1] == pytest.approx(0.2 + share * (0.4 - 0.2))
    strongest = (0.4**3 - 0.1**3) / (0.4**2 + 0.1**2)
    assert found[2] == pytest.approx(0.1 + share * (strongest - 0.1))
    # small effects stay as they are merged
    small = with_strongest(weights, 1e-4 * merged, 1e-4 * np.array([0.4, 0.0, -0.1]))
    assert small == pytest.approx(1e-4 * merged, rel=0.01)
    assert with_strongest(weights, merged, np.zeros(3)) == pytest.approx(merged)


def test_a_union_of_all_rows_is_longer_by_as_many_equal_datasets_as_it_has() -> None:
    is_in = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    equal = how_much_longer(is_in, np.full(3, 500.0))
    assert equal == pytest.approx(np.log([1, 2, 3]))
    # one dataset that has nearly all is trained for as long alone
    unequal = how_much_longer(is_in, np.array([10_000.0, 10.0, 10.0]))
    assert unequal == pytest.approx(0, abs=0.01)


def test_what_is_trained_for_longer_than_its_experts_is_expected_to_gain() -> None:
    proxy, _ = world(3)
    longer = how_much_longer(np.sign(WEIGHTS), np.ones(N))
    before, after = (
        posterior_of(Views(WEIGHTS, proxy, proxy, proxy, each), {}).mean_M
        for each in (None, longer)
    )
    lifted = after - before
    assert lifted[:N] == pytest.approx(0)
    low, high = (extreme(SEVERAL, key=lambda i: proxy[i]) for extreme in (min, max))
    assert (lifted[SEVERAL] > 0).mean() > 0.9
    # the worse a union's merge is beside others as long, the more
    same = [i for i in SEVERAL if longer[i] == longer[low]]
    assert lifted[low] == pytest.approx(max(lifted[i] for i in same))
    assert lifted[low] / longer[low] > lifted[high] / longer[high]


def test_checks_make_predictions_better() -> None:
    errors = {num: [] for num in (0, 5)}  # type: dict[int, list[float]]
    for seed in range(40):
        proxy, real = world(seed)
        for num, list_ in errors.items():
            found = posterior_of(views(proxy), {i: float(real[i]) for i in SEVERAL[: 5 * num : 5]})
            list_.append(float(np.mean((found.mean_M - real) ** 2)))
    assert np.mean(errors[5]) < 0.6 * np.mean(errors[0])


def test_a_single_dataset_is_its_own_proxy() -> None:
    proxy, real = world(1)
    found = posterior_of(views(proxy), {SEVERAL[0]: float(real[SEVERAL[0]])})
    assert np.array_equal(found.mean_M[:N], proxy[:N])
    assert not found.sd_M[:N].any()


def test_what_is_known_is_exact() -> None:
    proxy, real = world(2)
    found = posterior_of(views(proxy), {i: float(real[i]) for i in SEVERAL})
    assert np.array_equal(found.mean_M[SEVERAL], real[SEVERAL])
    assert found.best_probabilities()[int(np.argmax(found.mean_M))] == 1


def test_without_checks_the_proxies_stand_but_for_their_slope() -> None:
    proxy, _ = world(3)
    flat = posterior_of(views(proxy), {}, Prior(expected_slope=0))
    assert np.array_equal(flat.mean_M, proxy)
    expected = proxy + MIXED * PRIOR.expected_slope * (proxy - proxy.mean())
    assert np.allclose(posterior_of(views(proxy), {}).mean_M, expected)


def test_a_common_unit_changes_nothing() -> None:
    proxy, real = world(4)
    known = {i: float(real[i]) for i in SEVERAL[::7]}
    one = posterior_of(views(proxy), known)
    other = posterior_of(views(100 * proxy - 7), {i: 100 * value - 7 for i, value in known.items()})
    np.testing.assert_allclose(other.mean_M, 100 * one.mean_M - 7, rtol=1e-6)
    np.testing.assert_allclose(other.sd_M, 100 * one.sd_M, rtol=1e-5, atol=1e-9)


def test_the_first_check_is_the_best_proxy_and_the_next_the_likeliest_best() -> None:
    proxy, real = world(5)
    found = posterior_of(views(proxy), {})
    best = max(SEVERAL, key=lambda i: proxy[i])
    assert next_check(found, proxy, 0.95) == (best, "")
    assert next_check(found, np.zeros(len(proxy)), 0.95)[0] == SEVERAL[0]
    after = posterior_of(views(proxy), {best: float(real[best])})
    chosen, _ = next_check(after, None, 1.0)
    left = [i for i in SEVERAL if i != best]
    assert chosen == max(left, key=lambda i: after.best_probabilities()[i])


def test_of_mixtures_with_equal_chances_the_better_is_checked() -> None:
    mean, scale = np.array([5.0, 0.0, 0.1]), np.diag([0.0, 1e-4, 1e-4])
    found = exactly(mean, scale, 50.0, 0)
    assert found.best_probabilities().tolist() == [1.0, 0.0, 0.0]
    assert next_check(replace(found, known=frozenset()), None, 1.1)[0] == 0
    assert next_check(found, None, 1.1)[0] == 2


def test_draws_follow_the_posterior() -> None:
    proxy, real = world(3)
    found = posterior_of(
        views(proxy),
        {SEVERAL[0]: float(real[SEVERAL[0]]), SEVERAL[9]: float(real[SEVERAL[9]])},
    )
    drawn = found.draws(seed=1, num=40_000)
    assert np.array_equal(
        drawn[:, sorted(found.known)], np.tile(found.mean_M[sorted(found.known)], (40_000, 1))
    )
    unknown = [i for i in SEVERAL if i not in found.known]
    variance = found.dof / (found.dof - 2) * found.scale_MM[np.ix_(unknown, unknown)]
    np.testing.assert_allclose(
        drawn[:, unknown].mean(axis=0),
        found.mean_M[unknown],
        atol=0.03 * float(variance.max()) ** 0.5,
    )
    np.testing.assert_allclose(
        np.cov(drawn[:, unknown].T), variance, atol=0.1 * float(variance.max())
    )
    low, high = found.interval(0.9)
    held = (low[unknown] <= drawn[:, unknown]) & (drawn[:, unknown] <= high[unknown])
    assert held.mean() == pytest.approx(0.9, abs=0.005)


def test_checks_end_once_the_pick_is_safe() -> None:
    mean, scale = np.array([1.0, 0.0, -0.1]), np.diag([0.0, 0.01, 0.01])
    assert next_check(exactly(mean, scale, 50.0, 0), None, 0.95)[0] is None
    assert next_check(exactly(mean, 400 * scale, 50.0, 0), None, 0.95)[0] is not None
    known = exactly(mean, 0 * scale, 50.0, 0, 1, 2)
    assert next_check(known, None, 1.0) == (None, "every mixture was measured")


def shifted(shifts: dict[float, float], rows: list[int], proxy: Array) -> dict[float, Views]:
    """What is known of some rows if a proxy at an exponent is off by so much."""
    return {
        exponent: Views(WEIGHTS[rows], proxy[rows] + shift, proxy[rows] + shift)
        for exponent, shift in shifts.items()
    }


def chosen(
    views: dict[float, Views], real: Array, unit: Unit, log_prior: dict[float, float]
) -> float:
    """The likeliest exponent by checks without noise."""
    none = Noise.none(len(real))
    return likeliest({"t": views}, {"t": real}, {"t": unit}, {"t": none}, log_prior)


def test_the_way_that_explains_the_checks_is_found() -> None:
    proxy, _ = world(6)
    rows, flat = SEVERAL[::3], {1.0: 0.0, 0.5: 0.0, 0.75: 0.0}
    real = posterior_of(views(proxy), {}).mean_M[rows]
    far = shifted({0.5: 1.5, 0.75: 0.02, 1.0: -1.5}, rows, proxy)
    assert chosen(far, real, Unit.of(proxy), flat) == 0.75
    same = shifted(dict.fromkeys((0.5, 0.75, 1.0), 0.0), rows, proxy)
    assert chosen(same, proxy[rows], Unit(0.0, 1.0), flat) == 1.0


def test_another_way_must_be_likelier_by_what_its_prior_asks_for() -> None:
    proxy, _ = world(6)
    rows, unit = SEVERAL[::3], Unit.of(proxy)
    real = posterior_of(views(proxy), {}).mean_M[rows]

    def evidence(shift: float) -> float:
        (known,) = shifted({1.0: shift}, rows, proxy).values()
        return posterior_of(known, dict(enumerate(real)), unit=unit).log_evidence

    for more, asked, expected in ((0.4, 0.5, 1.0), (0.6, 0.5, 0.75), (0.1, 0.08, 0.75)):
        shift = brentq(lambda x, more=more: evidence(0.0) - evidence(x) - more, 0.0, 5.0)
        near = shifted({0.75: 0.0, 1.0: shift}, rows, proxy)
        assert chosen(near, real, unit, {1.0: 0.0, 0.75: -asked}) == expected


def test_equal_proxies_are_equal_whatever_their_rounding() -> None:
    proxy = np.full(len(SUBSETS), 0.1)
    proxy[::2] += 1.4e-17
    assert Unit.of(proxy).sd == 1
    pooled = proxy + 0.01 * np.random.default_rng(0).normal(size=len(proxy))
    found = posterior_of(views(proxy, pooled), {SEVERAL[0]: 0.11})
    assert np.isfinite(found.draws(seed=0)).all()


def test_views_of_other_numbers_of_mixtures_are_refused() -> None:
    proxy, _ = world(7)
    for weights, proxies, pooled in (
        (WEIGHTS[1:], proxy, proxy),
        (WEIGHTS, proxy[1:], proxy),
        (WEIGHTS, proxy, proxy[1:]),
        (WEIGHTS[0], proxy, proxy),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            Views(weights, proxies, pooled)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused(bad: float) -> None:
    proxy, _ = world(7)
    with pytest.raises(ValueError, match="finite"):
        posterior_of(views(proxy), {SEVERAL[0]: bad})


def test_pooled_experts_move_the_expectation_and_checks_say_how_far() -> None:
    proxy, _ = world(8)
    pooled = proxy + np.where(
        np.isin(np.arange(len(proxy)), SEVERAL), 2.0, 0.0
    ) * np.random.default_rng(8).normal(size=len(proxy))
    mixed, flat = MIXED, Prior(expected_slope=0)
    before = posterior_of(views(proxy, pooled), {}, flat).mean_M
    assert np.allclose(before, proxy + flat.expected_pool * mixed * (pooled - proxy))
    for believed in (0.0, 1.0):
        real = proxy + believed * mixed * (pooled - proxy)
        found = posterior_of(
            views(proxy, pooled), {i: float(real[i]) for i in SEVERAL[::2]}, flat
        ).mean_M
        assert np.abs(found - real).mean() < 0.5 * np.abs(before - real).mean()


def stopped(proxy: Array, real: Array, confidence: float) -> tuple[int, int, float] | None:
    """The pick, the number of checks and its probability if checks end as it is safe, else None."""
    known: dict[int, float] = {}
    while True:
        found = posterior_of(views(proxy), known)
        row, reason = next_check(found, None if known else proxy, confidence)
        if row is None:
            pick = int(np.argmax(found.mean_M))
            return (
                (pick, len(known), float(found.best_probabilities()[pick]))
                if "probability" in reason
                else None
            )
        known[row] = float(real[row])


def test_where_checks_end_early_the_pick_is_the_best_as_often_as_it_says() -> None:
    confidence, right, promised, spent = 0.8, [], [], []
    for seed in range(60):
        proxy, real = world(seed)
        found = stopped(proxy, real, confidence)
        if found is not None:
            pick, num_checks, probability = found
            right.append(real[pick] == real.max())
            promised.append(probability)
            spent.append(num_checks)
    assert len(right) > 40 and np.mean(spent) < 0.6 * len(SEVERAL)
    assert min(promised) >= confidence
    # a share of 0.8 to 1 over some 55 worlds has a standard error of .05
    assert np.mean(right) == pytest.approx(np.mean(promised), abs=0.11)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_noise_of_a_known_size_is_learnt(noise: float) -> None:
    """real = proxy + normal noise: not the model that is fitted; intervals may only be too wide."""
    held, widths = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        proxy = WEIGHTS @ rng.normal(size=N) + 0.3 * rng.normal(size=len(SUBSETS))
        real = proxy.copy()
        real[SEVERAL] += noise * rng.normal(size=len(SEVERAL))
        known = {int(i): float(real[i]) for i in rng.permutation(SEVERAL)[:10]}
        low, high = posterior_of(views(proxy), known).interval(0.9)
        left = [i for i in SEVERAL if i not in known]
        held += ((low[left] <= real[left]) & (real[left] <= high[left])).tolist()
        widths.append(float(np.mean(high[left] - low[left])))
    assert 0.85 <= np.mean(held) <= 0.99
    assert np.mean(widths) < 3 * 2 * 1.645 * noise

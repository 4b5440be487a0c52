"""Correlations, regrets, intervals, ceilings: against scipy, plain references and known worlds."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mergetomix.records import Estimate
from mergetomix.statistics.agreement import (
    MIN_CHECKS,
    ceiling,
    fidelity,
    noise_sd,
)

NAMES = ("pearson", "spearman", "kendall")
Array = np.ndarray
Found = dict[str, Any]


def plain_pearson(x: Sequence[float], y: Sequence[float]) -> float:
    return statistics.correlation(x, y) if len(set(x)) > 1 and len(set(y)) > 1 else math.nan


def plain_ranks(x: Sequence[float]) -> list[float]:
    return [
        sum(other < one for other in x) + (sum(other == one for other in x) + 1) / 2 for one in x
    ]


def plain_spearman(x: Sequence[float], y: Sequence[float]) -> float:
    return plain_pearson(plain_ranks(x), plain_ranks(y))


def plain_kendall(x: Sequence[float], y: Sequence[float]) -> float:
    pairs = itertools.combinations(zip(x, y, strict=True), 2)
    signs = [(float(np.sign(a - c)), float(np.sign(b - d))) for (a, b), (c, d) in pairs]
    untied = [sum(map(abs, side)) for side in zip(*signs, strict=True)]
    return sum(p * q for p, q in signs) / math.sqrt(math.prod(untied)) if all(untied) else math.nan


def plain_top_quarter(x: Sequence[float], y: Sequence[float]) -> float:
    last = sorted(y, reverse=True)[len(y) // 4 - 1]
    members = [(a, b) for a, b in zip(x, y, strict=True) if b >= last]
    return plain_spearman(*zip(*members, strict=True))


def plain_regret(x: Sequence[float], y: Sequence[float], k: int) -> float:
    picked = sorted(zip(x, y, strict=True), key=lambda pair: (-pair[0], pair[1]))[:k]
    return max(y) - max(real for _, real in picked)


def regrets_of(found: Found) -> dict[int, Estimate]:
    return {k: found[f"regret_{k}"] for k in (1, 3, 5)}


PLAIN = {"pearson": plain_pearson, "spearman": plain_spearman, "kendall": plain_kendall}


def related(num: int, seed: int, *, tied: bool = False, noise: float = 1.0) -> tuple[Array, Array]:
    """Proxies and reals of correlation 1 / sqrt(1 + noise^2); if tied, rounded to few values."""
    rng = np.random.default_rng(seed)
    proxy = rng.normal(size=num)
    real = proxy + noise * rng.normal(size=num)
    return (np.round(proxy), np.round(real)) if tied else (proxy, real)


def measured(proxy: object, real: object, **settings: object) -> Found:
    found = fidelity(proxy, real, **{"num_resamples": 99, **settings})  # type: ignore[arg-type]
    assert found is not None
    return found


def is_undefined(interval: Estimate | None) -> bool:
    return interval is not None and all(
        math.isnan(value) for value in dataclasses.astuple(interval)
    )


# --- correlations and regrets


@given(num=st.integers(5, 60), seed=st.integers(0, 99), tied=st.booleans(), noise=st.floats(0, 3))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_estimates_follow_their_definitions(num: int, seed: int, tied: bool, noise: float) -> None:
    proxy, real = related(num, seed, tied=tied, noise=noise)
    found = measured(proxy, real, num_resamples=1)
    expected = {name: plain(proxy.tolist(), real.tolist()) for name, plain in PLAIN.items()}
    expected |= {f"regret_{k}": plain_regret(proxy.tolist(), real.tolist(), k) for k in (1, 3, 5)}
    if num >= 12:
        expected["top_quarter"] = plain_top_quarter(proxy.tolist(), real.tolist())
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("tied", [False, True])
def test_estimates_are_those_of_scipy(tied: bool) -> None:
    for num, seed in itertools.product((5, 17, 60), range(3)):
        proxy, real = related(num, seed, tied=tied)
        found = measured(proxy, real, num_resamples=1)
        expected = {
            "pearson": scipy.stats.pearsonr(proxy, real).statistic,
            "spearman": scipy.stats.spearmanr(proxy, real).statistic,
            "kendall": scipy.stats.kendalltau(proxy, real).statistic,
        }
        assert {name: found[name].value for name in NAMES} == pytest.approx(expected, abs=1e-12)


def test_a_perfect_proxy_loses_nothing_and_one_the_wrong_way_round_everything() -> None:
    real = np.random.default_rng(0).normal(size=20)
    perfect, reversed_ = measured(3 * real - 7, real), measured(-real, real)
    for name in NAMES:
        assert dataclasses.astuple(perfect[name]) == pytest.approx((1, 1, 1))
        assert dataclasses.astuple(reversed_[name]) == pytest.approx((-1, -1, -1))
    assert dataclasses.astuple(perfect["top_quarter"]) == pytest.approx((1, 1, 1))
    assert dataclasses.astuple(reversed_["top_quarter"]) == pytest.approx((-1, -1, -1))
    assert regrets_of(perfect) == {k: Estimate(0, 0, 0) for k in (1, 3, 5)}
    ascending = np.sort(real)
    assert {k: regret.value for k, regret in regrets_of(reversed_).items()} == {
        k: pytest.approx(ascending[-1] - ascending[k - 1]) for k in (1, 3, 5)
    }
    assert reversed_["regret_1"].value == pytest.approx(np.ptp(real))


def test_regret_is_about_the_best_of_the_picked_ones() -> None:
    proxy, real = [9, 8, 7, 6, 5, 4, 3], [2, 1, 6, 0, 9, 10, 3]
    assert {k: regret.value for k, regret in regrets_of(measured(proxy, real)).items()} == {
        1: 8,
        3: 4,
        5: 1,
    }


def test_a_proxy_that_cannot_tell_mixtures_apart_picks_the_worst_of_them() -> None:
    found = measured([1, 1, 1, 1, 0, 0], [3, 5, 4, 2, 9, 1])
    assert {k: regret.value for k, regret in regrets_of(found).items()} == {1: 7, 3: 5, 5: 4}


def test_the_top_quarter_is_by_real_objective() -> None:
    real = np.arange(12.0)
    proxy = np.concatenate(
        [np.full(9, 50.0), [3.0, 2.0, 1.0]]
    )  # the worst nine have the best proxies
    found = measured(proxy, real)
    assert found["top_quarter"] is not None
    assert found["top_quarter"].value == pytest.approx(-1)
    other = measured(np.concatenate([np.full(9, 50.0), [1.0, 2.0, 3.0]]), real)
    assert other["top_quarter"] is not None
    assert other["top_quarter"].value == pytest.approx(1) and other["spearman"].value < 0


@pytest.mark.parametrize(("num", "has"), [(11, False), (12, True), (15, True)])
def test_a_top_quarter_needs_three_members(num: int, has: bool) -> None:
    assert (measured(*related(num, 0))["top_quarter"] is not None) == has


def test_those_that_tie_with_the_last_of_the_top_quarter_are_in_it() -> None:
    real = np.array([0.0] * 9 + [5.0] * 4 + [7.0, 8.0])
    proxy = np.array([99.0] * 9 + [4.0, 3.0, 2.0, 1.0] + [5.0, 6.0])
    expected = plain_spearman(proxy[9:].tolist(), real[9:].tolist())
    found = measured(proxy, real)["top_quarter"]
    assert found is not None
    assert found.value == pytest.approx(expected)
    assert 0 < expected < 1


# --- what is too little, what is undefined, what is wrong


@pytest.mark.parametrize("num", range(8))
def test_fewer_than_five_checks_tell_nothing(num: int) -> None:
    proxy, real = related(num, 0)
    assert (fidelity(proxy, real, num_resamples=9) is None) == (num < 5)
    assert MIN_CHECKS == 5


@pytest.mark.parametrize("constant", [0.1, 0.0, -1e9])
@pytest.mark.parametrize("num", [6, 13])
def test_a_correlation_with_a_constant_is_undefined(constant: float, num: int) -> None:
    _, real = related(num, 0)
    found = measured(np.full(num, constant), real)
    assert all(is_undefined(found[name]) for name in NAMES)
    assert num < 12 or is_undefined(found["top_quarter"])
    assert found["regret_1"].value == pytest.approx(np.ptp(real))
    flat = measured(real, np.full(num, constant))
    assert all(is_undefined(flat[name]) for name in NAMES)
    assert regrets_of(flat) == {k: Estimate(0, 0, 0) for k in (1, 3, 5)}


def test_resamples_in_which_a_correlation_is_undefined_are_left_out() -> None:
    found = measured(
        [0, 0, 0, 0, 0.3], [0.1, 0.1, 0.1, 0.1, 0.2], num_resamples=999
    )  # a third of them lack the last
    for name in NAMES:
        assert dataclasses.astuple(found[name]) == pytest.approx((1, 1, 1))


def test_where_no_resample_is_defined_there_is_an_estimate_without_an_interval() -> None:
    found = [
        measured([0, 0, 0, 0, 1], [0, 0, 0, 0, 1], num_resamples=1, seed=seed)["kendall"]
        for seed in range(40)
    ]
    alone = [interval for interval in found if math.isnan(interval.low)]
    assert 0 < len(alone) < len(found)
    assert all(interval.value == 1 and math.isnan(interval.high) for interval in alone)


@pytest.mark.parametrize(
    ("proxy", "real", "settings", "named"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4], {}, "one length"),
        ([[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5]], {}, "one-dimensional"),
        ([1, 2, 3, 4, math.nan], [1, 2, 3, 4, 5], {}, "proxy_M must be finite: nan at 4"),
        ([1, 2, 3, 4, 5], [1, math.inf, 3, 4, 5], {}, "real_M must be finite: inf at 1"),
        ([1, math.nan], [1, 2], {}, "proxy_M must be finite"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], {"confidence": 1.0}, "confidence"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], {"confidence": 0.0}, "confidence"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], {"confidence": 1.5}, "confidence"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], {"num_resamples": 0}, "num_resamples"),
    ],
)
def test_what_has_no_fidelity(
    proxy: list[float], real: list[float], settings: dict[str, float], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        fidelity(proxy, real, **settings)  # type: ignore[arg-type]


# --- invariances


@pytest.mark.parametrize("tied", [False, True])
def test_the_order_of_the_mixtures_changes_nothing(tied: bool) -> None:
    proxy, real = related(20, 5, tied=tied)
    expected = measured(proxy, real)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(20)
        assert measured(proxy[order], real[order]) == expected


def test_ranks_do_not_see_monotone_transforms() -> None:
    proxy, real = related(20, 6)
    one, other = measured(proxy, real), measured(np.exp(proxy), real**3)
    for name in ("spearman", "kendall", "top_quarter"):
        assert one[name] == other[name]
    assert abs(one["pearson"].value - other["pearson"].value) > 0.01
    scaled = measured(1e-3 * proxy + 5, 1e6 * real - 2)
    assert dataclasses.astuple(scaled["pearson"]) == pytest.approx(
        dataclasses.astuple(one["pearson"])
    )
    for k, regret in regrets_of(scaled).items():
        assert dataclasses.astuple(regret) == pytest.approx(
            1e6 * np.array(dataclasses.astuple(regrets_of(one)[k]))
        )


def test_the_same_seed_gives_the_same_and_another_gives_other_intervals() -> None:
    proxy, real = related(20, 7)
    assert measured(proxy, real, seed=1) == measured(proxy, real, seed=1)
    one, other = measured(proxy, real, seed=1), measured(proxy, real, seed=2)
    assert one["pearson"].value == other["pearson"].value
    assert one["pearson"].low != other["pearson"].low


def test_inputs_are_left_as_they_were() -> None:
    proxy, real = related(20, 8)
    before = proxy.copy(), real.copy()
    measured(proxy, real)
    assert (proxy == before[0]).all() and (real == before[1]).all()


# --- intervals


@pytest.mark.parametrize("tied", [False, True])
def test_intervals_are_percentiles_over_resampled_pairs(tied: bool) -> None:
    proxy, real = related(14, 9, tied=tied)
    order = np.lexsort((proxy, real))
    found = measured(proxy, real, num_resamples=60, seed=3, confidence=0.8)
    counts = np.random.default_rng(3).multinomial(14, np.full(14, 1 / 14), size=60)
    expected = [one_by_one(proxy[order], real[order], count) for count in counts]
    for name, interval in found.items():
        assert interval is not None
        low, high = np.nanquantile([values[name] for values in expected], [0.1, 0.9])
        assert (interval.low, interval.high) == (
            pytest.approx(low, abs=1e-12),
            pytest.approx(high, abs=1e-12),
        ), name


def one_by_one(proxy: Array, real: Array, count: Array) -> dict[str, float]:
    """Every statistic of one resample by its definition."""
    drawn = np.repeat(proxy, count).tolist(), np.repeat(real, count).tolist()
    distinct = proxy[count > 0].tolist(), real[count > 0].tolist()
    correlations = {
        name: plain(*drawn) for name, plain in {**PLAIN, "top_quarter": plain_top_quarter}.items()
    }
    return correlations | {f"regret_{k}": plain_regret(*distinct, k) for k in (1, 3, 5)}


def test_a_wider_confidence_gives_wider_intervals_and_more_checks_narrower_ones() -> None:
    def width(num: int, confidence: float) -> float:
        interval = measured(*related(num, 10), confidence=confidence, num_resamples=199)["spearman"]
        return interval.high - interval.low

    assert width(30, 0.5) < width(30, 0.9) < width(30, 0.99)
    assert width(1000, 0.9) < width(30, 0.9) / 2


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rho, num, num_worlds = 0.7, 40, 120
    truth = {
        "pearson": rho,
        "spearman": 6 / math.pi * math.asin(rho / 2),
        "kendall": 2 / math.pi * math.asin(rho),
    }
    held = dict.fromkeys(truth, 0)
    for seed in range(num_worlds):
        x, y = related(num, seed, noise=math.sqrt(1 / rho**2 - 1))
        found = measured(x, y, num_resamples=99, seed=seed)
        for name, value in truth.items():
            held[name] += found[name].low <= value <= found[name].high
    assert all(0.80 < count / num_worlds < 0.97 for count in held.values()), held


# --- noise over seeds


def world(
    num_seeds: int, num_mixtures: int, seed: int, *, noise: float, offset: float = 0.0
) -> Array:
    """real[s, m] = f[m] + o[s] + e[s, m]."""
    rng = np.random.default_rng(seed)
    true, offsets = rng.normal(0, 10, num_mixtures), offset * rng.normal(size=(num_seeds, 1))
    return true + offsets + noise * rng.normal(size=(num_seeds, num_mixtures))


def mean_variance(estimates: Sequence[float | None]) -> float:
    """Variances are unbiased, standard deviations are not."""
    return statistics.fmean(estimate**2 for estimate in estimates if estimate is not None)


@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize(("num_seeds", "num_mixtures"), [(2, 2), (2, 9), (3, 4), (5, 3)])
def test_noise_is_recovered_whatever_seeds_do_to_all_mixtures(
    num_seeds: int, num_mixtures: int, offset: float
) -> None:
    found = [
        noise_sd(world(num_seeds, num_mixtures, seed, noise=0.5, offset=offset))
        for seed in range(200)
    ]
    degrees = 200 * (num_seeds - 1) * (num_mixtures - 1)
    assert mean_variance(found) == pytest.approx(0.25, rel=4 * math.sqrt(2 / degrees))


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_noise_is_recovered_where_fine_tunes_are_missing(offset: float) -> None:
    found = []
    for seed in range(300):
        reals = world(4, 8, seed, noise=0.5, offset=offset)
        reals[np.random.default_rng(seed).random(reals.shape) < 0.4] = np.nan
        found.append(noise_sd(reals))
    assert all(estimate is not None for estimate in found)
    assert mean_variance(found) == pytest.approx(0.25, rel=0.1)


def test_three_mixtures_that_share_seeds_in_a_ring_have_one_degree_of_freedom() -> None:
    nan = math.nan
    # by hand: the residual of one contrast, a0 - a1 + b1 - b2 + c2 - c0, whose variance is 6 sd^2
    ring = [[1.0, nan, 4.0], [3.0, 2.0, nan], [nan, 7.0, 5.0]]
    assert noise_sd(ring) == pytest.approx(abs(1 - 3 + 2 - 7 + 5 - 4) / math.sqrt(6))


def test_a_complete_block_gives_the_two_way_residual_mean_square() -> None:
    reals = world(3, 5, 0, noise=1, offset=3)
    residual = reals - reals.mean(axis=0) - reals.mean(axis=1, keepdims=True) + reals.mean()
    assert noise_sd(reals) == pytest.approx(math.sqrt((residual**2).sum() / (2 * 4)))


def test_mixtures_and_seeds_without_repeats_change_nothing() -> None:
    reals = world(2, 3, 1, noise=1, offset=3)
    more = np.full((4, 6), np.nan)
    more[:2, :3] = reals
    more[0, 3], more[2, 4] = 40.0, -40.0  # one fine-tune each: they tell f, not the noise
    assert noise_sd(more) == pytest.approx(noise_sd(reals))
    more[[2, 3], [0, 1]] = 8.0, 9.0  # seeds that one mixture alone has: they tell o
    assert noise_sd(more) == pytest.approx(noise_sd(reals))


@pytest.mark.parametrize(
    "columns",
    [
        [[1.0, 4.0, 4.0, math.nan]],
        [[1.0, 3.0, math.nan, math.nan], [math.nan, math.nan, 5.0, 9.0]],
        [
            [1.0, 3.0, math.nan, math.nan],
            [math.nan, 2.0, 5.0, math.nan],
            [math.nan, math.nan, 5.0, 9.0],
        ],
    ],
    ids=["one mixture", "no seed in common", "a chain"],
)
def test_without_a_block_the_variance_within_mixtures_is_pooled(columns: list[list[float]]) -> None:
    kept = [[value for value in column if not math.isnan(value)] for column in columns]
    squares = sum(statistics.variance(column) * (len(column) - 1) for column in kept)
    expected = math.sqrt(squares / sum(len(column) - 1 for column in kept))
    assert noise_sd(np.array(columns).T) == pytest.approx(expected)


@pytest.mark.parametrize(
    "reals",
    [
        np.zeros((1, 5)),
        np.zeros((0, 5)),
        np.zeros((3, 0)),
        np.full((2, 3), np.nan),
        [[1, math.nan, 2], [math.nan, 3, math.nan]],
    ],
)
def test_where_no_mixture_has_two_seeds_the_noise_is_unknown(reals: Array) -> None:
    assert noise_sd(reals) is None


def test_no_noise_is_no_noise_and_noise_has_the_unit_of_the_objective() -> None:
    true, offsets = np.array([1e3, 2.0, -5.0]), np.array([[0.1], [0.7]])
    assert noise_sd(true + offsets) == pytest.approx(0, abs=1e-9)
    reals = world(3, 4, 2, noise=1, offset=1)
    assert noise_sd(1e-4 * reals + 3) == pytest.approx(1e-4 * (noise_sd(reals) or math.nan))


@pytest.mark.parametrize("reals", [[1.0, 2.0], np.zeros((2, 2, 2)), [[1.0, math.inf], [1.0, 2.0]]])
def test_what_has_no_noise_sd(reals: Array) -> None:
    with pytest.raises(ValueError, match="two-dimensional and hold no infinity"):
        noise_sd(reals)


# --- the ceiling


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_a_perfect_proxy_reaches_the_ceiling(noise: float) -> None:
    rng = np.random.default_rng(0)
    reached, ceilings = [], []
    for seed in range(60):
        # with 30 and the larger noise the ceiling, an estimate itself, is .02 low on average
        true = rng.normal(size=120)
        real = true + rng.normal(0, noise, size=120)
        reached.append(plain_spearman(true.tolist(), real.tolist()))
        ceilings.append(ceiling(real, noise, num_draws=50, seed=seed))
    assert np.mean(reached) == pytest.approx(np.mean(ceilings), abs=0.02)


def test_the_ceiling_falls_with_the_noise() -> None:
    real = np.random.default_rng(1).normal(size=25)
    spread = float(real.std(ddof=1))
    found = [ceiling(real, share * spread, num_draws=200) for share in (0.0, 0.3, 0.6, 0.9)]
    assert found[0] == pytest.approx(1)
    assert all(one > other for one, other in itertools.pairwise(found))


def test_the_ceiling_of_normal_objectives_is_that_of_a_bivariate_normal() -> None:
    # as many quantiles of the normal, so that the shape is exact; Kruskal 1958
    real = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 300) for i in range(300)])
    found = ceiling(real, 0.6 * float(real.std(ddof=1)), num_draws=200)
    assert found == pytest.approx(6 / math.pi * math.asin(0.8 / 2), abs=0.01)


def test_two_objectives_have_a_ceiling() -> None:
    """Each keeps its place if the noise between the two is below their distance, shrunk."""
    found, spread = ceiling([0.0, 1.0], 0.3), math.sqrt(1 - 0.3**2 / 0.5)
    kept = statistics.NormalDist(0, 0.3 * math.sqrt(2)).cdf(spread)
    assert found == pytest.approx(2 * kept - 1, abs=0.02)


def test_without_noise_even_tied_objectives_can_be_ranked_perfectly() -> None:
    assert ceiling([1, 1, 2, 2, 3], 0.0) == pytest.approx(1)


def test_where_noise_explains_all_there_is_nothing_to_reach() -> None:
    real = [1.0, 2.0, 3.0]
    assert ceiling(real, 1.0) == ceiling(real, 1.0, seed=9) == ceiling(real, 50.0) == 0


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_equal_objectives_have_no_ceiling(noise: float) -> None:
    assert math.isnan(ceiling([0.1] * 6, noise))


def test_a_ceiling_hangs_on_its_seed_alone() -> None:
    real = np.random.default_rng(2).normal(size=12)
    assert ceiling(real, 0.5, num_draws=20, seed=1) == ceiling(real, 0.5, num_draws=20, seed=1)
    assert ceiling(real, 0.5, num_draws=20, seed=1) != ceiling(real, 0.5, num_draws=20, seed=2)


@pytest.mark.parametrize(
    ("real", "noise", "num_draws", "named"),
    [
        ([1.0], 0.1, 5, "objectives >= 2"),
        ([1.0, math.nan], 0.1, 5, "real_M must be finite"),
        ([[1.0, 2.0]], 0.1, 5, "one-dimensional"),
        ([1.0, 2.0], -0.1, 5, "noise_sd >= 0"),
        ([1.0, 2.0], math.nan, 5, "noise_sd >= 0"),
        ([1.0, 2.0], math.inf, 5, "noise_sd >= 0"),
        ([1.0, 2.0], 0.1, 0, "num_draws >= 1"),
    ],
)
def test_what_has_no_ceiling(real: list[float], noise: float, num_draws: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ceiling(real, noise, num_draws=num_draws)

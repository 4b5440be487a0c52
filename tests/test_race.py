"""When a race stops a mixture: estimates by their formulas, and how often the best is stopped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from mergetomix.statistics import early_stopping as race
from mergetomix.statistics.early_stopping import (
    Paired,
    combination,
    difference,
    is_beaten,
    nearest,
    num_looks,
    stages,
)

ALPHA = 0.05


@given(num=st.integers(24, 20_000))
@example(num=24)
@example(num=31)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_stages_reach_every_example_in_blocks_that_are_not_small(num: int) -> None:
    ends = stages(num)
    sizes = [size for size in np.diff((0, *ends)) if size]
    assert len(ends) == len(race.FRACTIONS) and ends[-1] == num
    assert min(sizes) >= race.LEAST and len(sizes) >= 3
    assert all(
        abs(end - fraction * num) <= race.LEAST
        for end, fraction in zip(ends, race.FRACTIONS, strict=True)
    )


def test_a_look_is_a_stage_at_which_some_target_has_more() -> None:
    assert stages(400) == (6, 12, 25, 50, 100, 200, 400) and num_looks([400]) == 6
    assert stages(31) == (6, 6, 6, 6, 6, 16, 31) and num_looks([31]) == 2
    assert num_looks([31, 400]) == num_looks([400, 400]) == 6


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(
        ValueError, match=f"racing needs at least {race.MIN_EXAMPLES} examples, not 23"
    ):
        stages(race.MIN_EXAMPLES - 1)


def drawn(seed: int, num: int = 64) -> tuple[race.Array, race.Array, race.Array]:
    """Changes, what was foreseen of them, and tokens."""
    rng = np.random.default_rng(seed)
    foreseen = rng.normal(size=num)
    return (
        0.3 + 0.8 * foreseen + 0.4 * rng.normal(size=num),
        foreseen,
        rng.integers(1, 40, num).astype(float),
    )


def test_the_estimate_is_the_regression_estimator() -> None:
    """Beside numpy's least squares; the belief is four more examples of the whole's variance."""
    change, foreseen, weights = drawn(0)
    num = 20
    found = difference([Paired(change[:num], foreseen, weights)])
    w, z, d = weights[:num] / weights[:num].mean(), foreseen[:num], change[:num]
    mean_z, mean_all = np.average(z, weights=w), np.average(foreseen, weights=weights)
    around = np.sqrt(race.BELIEF * np.average((foreseen - mean_all) ** 2, weights=weights))
    root = np.sqrt(w)
    rows = np.vstack([np.column_stack([root, root * (z - mean_z)]), [[0, around]]])
    (level, slope), *_ = np.linalg.lstsq(rows, np.append(root * d, around), rcond=None)
    rest = d - level - slope * (z - mean_z)
    spread = w @ (z - mean_z) ** 2 + around**2
    variance = (1 - num / 64) / num * ((w * rest) ** 2).sum() / (num - 2)
    variance += w @ rest**2 / (num - 2) * (mean_all - mean_z) ** 2 / spread
    assert found.mean == pytest.approx(level + slope * (mean_all - mean_z), rel=1e-10)
    assert found.sd == pytest.approx(np.sqrt(variance), rel=1e-10) and found.dof == pytest.approx(
        num - 2
    )


def test_with_every_example_seen_nothing_is_estimated() -> None:
    change, foreseen, weights = drawn(1)
    found = difference([Paired(change, foreseen, weights)])
    assert (
        found.mean == pytest.approx(np.average(change, weights=weights), abs=1e-12)
        and found.sd < 1e-12
    )


def test_what_scores_the_same_everywhere_is_the_same_mixture() -> None:
    _, foreseen, weights = drawn(1)
    found = difference([Paired(np.full(12, 1e-17), foreseen, weights)] * 2)
    assert found == race.Difference(0.0, 0.0, np.inf, (0.0, 0.0))


def test_targets_add_up_by_their_shares() -> None:
    (a, za, wa), (b, zb, wb) = drawn(2), drawn(3, 100)
    one, other = (difference([Paired(*each)]) for each in ((a[:12], za, wa), (b[:50], zb, wb)))
    both = difference([Paired(a[:12], za, wa, 0.25), Paired(b[:50], zb, wb, 0.75)])
    assert both.mean == pytest.approx(0.25 * one.mean + 0.75 * other.mean) and both.means == (
        *one.means,
        *other.means,
    )
    assert both.sd**2 == pytest.approx((0.25 * one.sd) ** 2 + (0.75 * other.sd) ** 2)
    assert min(one.dof, other.dof) < both.dof < one.dof + other.dof


def test_what_is_foreseen_makes_a_difference_sure() -> None:
    change, foreseen, weights = drawn(4)
    blind = difference([Paired(change[:12], np.zeros(64), weights)])
    assert difference([Paired(change[:12], foreseen, weights)]).sd < 0.7 * blind.sd


def test_the_same_mixture_is_never_beaten() -> None:
    """Not at any level, whatever was foreseen of it, and not by rounding."""
    rng, weights = np.random.default_rng(5), np.ones(200)
    for num in stages(200):
        assert not is_beaten(difference([Paired(np.zeros(num), np.zeros(200), weights)]), 0.49)
        noise = -1e-8 + 1e-9 * rng.normal(size=num)
        assert not is_beaten(difference([Paired(noise, rng.normal(size=200), weights)]), 0.49)


def test_a_mixture_far_worse_is_beaten_at_the_first_look() -> None:
    rng = np.random.default_rng(6)
    change = rng.normal(-1, 0.2, 200)
    assert is_beaten(
        difference([Paired(change[: stages(200)[0]], np.zeros(200), np.ones(200))]),
        0.01 / num_looks([200]),
    )
    assert is_beaten(difference([Paired(np.full(6, -0.5), np.zeros(200), np.ones(200))]), 1e-9)


def populations(
    rng: np.random.Generator, num: int
) -> Iterator[tuple[str, race.Array, race.Array, race.Array]]:
    """Changes that are nothing on average, what is foreseen of them, and weights."""
    foreseen, one = rng.normal(size=num), np.ones(num)
    tokens = rng.lognormal(3, 0.7, num)
    yield "foreseen", foreseen + 0.5 * rng.normal(size=num), foreseen, one
    yield "not foreseen", rng.normal(size=num), np.zeros(num), one
    yield "foreseen wrongly", rng.normal(size=num), foreseen, one
    yield (
        "by tokens",
        (foreseen + 0.5 * rng.normal(size=num)) / np.sqrt(tokens),
        foreseen / np.sqrt(tokens),
        tokens,
    )
    skewed = rng.lognormal(0, 0.7, num)
    yield "skewed, foreseen", skewed + 0.3 * rng.normal(size=num), skewed, one


@pytest.mark.parametrize("num", [48, 200])
def test_the_best_is_stopped_no_more_often_than_stated(num: int) -> None:
    """The hardest case is a tie with the incumbent, over the order of the examples.

    At most three binomial standard deviations over alpha.
    """
    rng, num_races = np.random.default_rng(num), 250
    for name, change, foreseen, weights in populations(rng, num):
        tied = change - np.average(change, weights=weights)
        stopped = sum(
            is_stopped(tied, foreseen, weights, rng.permutation(num)) for _ in range(num_races)
        )
        most = stats.binom.isf(0.00135, num_races, ALPHA)
        assert stopped <= most, f"{name}: {stopped} of {num_races}"


def is_stopped(
    change: race.Array, foreseen: race.Array, weights: race.Array, order: race.Array
) -> bool:
    """Whether a race in some order ends before its last stage."""
    num, level = len(change), ALPHA / num_looks([len(change)])
    for end in sorted({*stages(num)})[:-1]:
        if is_beaten(
            difference([Paired(change[order][:end], foreseen[order], weights[order])]), level
        ):
            return True
    return False


def test_a_worse_mixture_is_stopped_sooner_where_it_is_foreseen() -> None:
    """Half a standard deviation worse: foreseen, it mostly stops before half of 200 examples."""
    rng = np.random.default_rng(7)
    foreseen = rng.normal(-0.2, 1, 200)
    change, seen = foreseen + 0.2 * rng.normal(size=200), {}
    for name, guess in (("blind", np.zeros(200)), ("foreseen", foreseen)):
        seen[name] = 0
        for _ in range(50):
            order = rng.permutation(200)
            for end in stages(200)[:-1]:
                found = difference([Paired(change[order][:end], guess[order], np.ones(200))])
                if is_beaten(found, ALPHA / 6):
                    break
            seen[name] += end
    assert seen["foreseen"] < 0.5 * seen["blind"]


def test_values_that_are_linear_in_the_weights_are_foreseen_exactly() -> None:
    rng = np.random.default_rng(8)
    weights_KN = np.vstack([np.eye(4), rng.dirichlet(np.ones(4), 5)])
    values_KE = weights_KN @ rng.normal(size=(4, 30))
    wanted_N = rng.dirichlet(np.ones(4))
    factors_K = combination(weights_KN, wanted_N)
    exact_E = wanted_N @ np.linalg.solve(weights_KN[:4], values_KE[:4])
    np.testing.assert_allclose(factors_K @ values_KE, exact_E, atol=1e-9)


def test_a_mixture_that_was_tried_is_foreseen_by_itself_and_bends_are_learnt() -> None:
    weights_KN = np.array([[1, 0], [0, 1], [0.5, 0.5]])
    bent_K = np.array([0.0, 0.0, 1.0])
    assert combination(weights_KN, weights_KN[2]) @ bent_K == pytest.approx(1, abs=0.02)
    assert 0.5 < combination(weights_KN, np.array([0.7, 0.3])) @ bent_K < 1


def test_the_nearest_are_kept() -> None:
    weights_KN = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.9, 0.1]])
    assert nearest(weights_KN, np.array([0.8, 0.2]), 2) == [0, 3]
    assert nearest(weights_KN, np.array([0.8, 0.2])) == [0, 1, 2, 3]

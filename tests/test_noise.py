"""The noise of examples and of seeds: beside plain resampling, and in worlds drawn from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import t as student

from mergetomix.records import Kind, Scores, gain
from mergetomix.stages.expectations import deviations, example_variance, on_examples, resolution
from mergetomix.statistics.noise import (
    Noise,
    OnExamples,
    chance_of_spread,
    mean_root,
    mean_variance,
    seed_share,
    thinned,
)
from mergetomix.statistics.posterior import (
    Array,
    Posterior,
    Prior,
    Unit,
    Views,
    posterior_of,
)

SUBSETS = [chosen for k in range(1, 5) for chosen in combinations(range(4), k)]
WEIGHTS = np.array([[(i in chosen) / len(chosen) for i in range(4)] for chosen in SUBSETS])
PLURAL = WEIGHTS.max(axis=1) < 1
SEVERAL = np.flatnonzero(PLURAL).tolist()


# --- examples


def resampled_means(values_ME: Array, weights_E: Array, num: int = 4000) -> Array:
    """Weighted means of every row over resamples of the examples, shape (num, M)."""
    size = len(weights_E)
    counts = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=num)
    weighted = counts * weights_E
    return weighted @ values_ME.T / weighted.sum(axis=1, keepdims=True)


def test_the_covariance_of_means_is_that_of_resampling() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=60)
    values, weights = (
        np.array([shared, shared + 0.1 * rng.normal(size=60), rng.normal(size=60)]),
        (rng.integers(1, 20, size=60).astype(float)),
    )
    root = mean_root(values, weights)
    narrow = student.ppf(0.95, 59) / student.ppf(0.95, 1e9)
    found, expected = root @ root.T / narrow**2, np.cov(resampled_means(values, weights).T)
    np.testing.assert_allclose(found, expected, atol=0.1 * float(expected.max()))
    # what two models share cancels out of their difference
    apart = ((root[0] - root[1]) ** 2).sum()
    assert apart < 0.05 * (root[0] ** 2).sum()


@pytest.mark.parametrize("num", [2, 3, 5, 30])
def test_the_spread_of_few_examples_is_taken_for_as_unsure_as_it_is(num: int) -> None:
    rng, held = np.random.default_rng(num), []
    for _ in range(4000):
        values = rng.normal(size=num)
        half = 1.645 * mean_variance(values, np.ones(num)) ** 0.5
        held.append(abs(values.mean()) <= half)
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_one_example_may_lie_as_far_off_as_it_lies_from_zero() -> None:
    assert mean_variance(np.array([2.0]), np.ones(1)) > 4.0
    assert mean_variance(np.zeros(1), np.ones(1)) == 0.0
    # examples without weight are none
    assert mean_variance(np.array([2.0, 9.0]), np.array([1.0, 0.0])) > 4.0
    three, padded = np.array([1.0, 2.0, 4.0]), np.array([1.0, 7.0, 2.0, 4.0, 7.0])
    weights = np.array([2.0, 0.0, 1.0, 3.0, 0.0])
    assert mean_variance(padded, weights) == pytest.approx(mean_variance(three, weights[[0, 2, 3]]))
    with pytest.raises(ValueError, match="must not all be zero"):
        mean_variance(np.ones(2), np.zeros(2))


@pytest.mark.parametrize("kind", ["loss", "score"])
def test_what_examples_add_to_a_gain_is_what_resampling_both_models_shows(kind: Kind) -> None:
    rng = np.random.default_rng(2)
    base_E, weights_E = rng.uniform(1, 5, 50), rng.integers(1, 9, size=50).astype(float)
    model_E = 0.6 * base_E + rng.normal(0, 0.1, 50)
    weights = tuple(weights_E.tolist()) if kind == "loss" else (1.0,) * 50
    base, model = (Scores(kind, tuple(v.tolist()), weights) for v in (base_E, model_E))
    found = mean_variance(deviations([model], base)[0], np.array(weights))
    gains = []
    for _ in range(4000):
        rows = rng.integers(50, size=50)
        drawn = [
            Scores(kind, tuple(s.values[i] for i in rows), tuple(s.weights[i] for i in rows))
            for s in (model, base)
        ]
        gains.append(gain(*drawn))
    assert found == pytest.approx(np.var(gains), rel=0.15)


def test_what_one_example_adds_is_the_whole_gain() -> None:
    base, model = (Scores("loss", (each,), (3.0,)) for each in (4.0, 1.0))
    assert deviations([model], base).tolist() == [[0.75]]
    # how far a check may be off is not known of one: it counts as it is
    assert example_variance(model, base, base) == 0.0


def test_right_answers_that_all_agree_are_still_a_sample() -> None:
    base, one = (Scores("score", (each,) * 20, (1.0,) * 20) for each in (0.0, 1.0))
    assert example_variance(one, one, base) == resolution(base) == (0.5 / 20) ** 2
    reward = Scores("score", (0.3,) * 20, (1.0,) * 20)
    assert resolution(reward) == 0.0
    loss = Scores("loss", (2.0,) * 20, (1.0,) * 20)
    assert example_variance(loss, loss, loss) == 0.0


def test_examples_put_together_keep_the_covariance() -> None:
    rng = np.random.default_rng(3)
    root = rng.normal(size=(5, 3000)) @ np.diag(rng.uniform(0.1, 2, 3000))
    root[1] = root[0] + 0.1 * root[1]
    few = thinned(root, 1024)
    assert few.shape == (5, 1024) and thinned(few, 1024) is few
    np.testing.assert_allclose(few @ few.T, root @ root.T, atol=0.1 * float((root[0] ** 2).sum()))
    apart, kept = (((each[0] - each[1]) ** 2).sum() for each in (root, few))
    assert kept == pytest.approx(apart, rel=0.2)


@pytest.mark.parametrize("effect", [0.0, 0.3])
def test_equal_mixtures_differ_by_chance_as_often_as_it_says(effect: float) -> None:
    """Mixtures that share most of their noise, as merges of the same experts do."""
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        weights = rng.integers(1, 9, size=60).astype(float)
        values = 3 * rng.normal(size=60) + WEIGHTS @ rng.normal(size=(4, 60))
        values += effect * (WEIGHTS @ rng.normal(size=(4, 1)))
        means = values @ weights / weights.sum()
        found.append(chance_of_spread(means, mean_root(values, weights)))
    below = np.mean(np.array(found) < 0.05)
    assert below > 0.5 if effect else 0.02 <= below <= 0.09


def test_a_spread_without_noise_is_none_or_certain() -> None:
    none = np.zeros((3, 5))
    assert chance_of_spread(np.array([1.0, 1.0, 1.0]), none) == 1
    assert chance_of_spread(np.array([1.0, 1.0, 1.1]), none) == 0
    wide = np.random.default_rng(0).normal(size=(3, 2))
    narrow = np.hstack([wide, np.zeros((3, 9))])
    means = np.array([1.0, 2.0, 3.0])
    assert chance_of_spread(means, wide) == pytest.approx(chance_of_spread(means, narrow))


def test_an_unchecked_mixture_is_taken_to_be_as_noisy_as_the_checked_are() -> None:
    found = OnExamples(0.1 * np.ones((4, 3)), unchecked=7.0, report_ratio=2.0)
    plural = np.array([False, True, True, True])
    assert found.noise({}, plural, 0.5).check_M.tolist() == [0.0, 7.0, 7.0, 7.0]
    noise = found.noise({1: 1.0, 3: 3.0}, plural, 0.5)
    assert noise.check_M.tolist() == [0.0, 1.0, 2.0, 3.0]
    np.testing.assert_allclose(noise.report_M, 2 * (0.03 + noise.check_M))
    some = noise.rows([3, 0])
    assert some.check_M.tolist() == [3.0, 0.0] and some.seed_sd == 0.5


def test_proxies_and_pools_say_what_examples_will_add() -> None:
    """Where merge and pool agree, examples add to the expected real what they add to both."""
    rng = np.random.default_rng(4)
    base = Scores("score", (0.0,) * 30, (1.0,) * 30)
    values = rng.normal(size=(len(SUBSETS), 30))
    scores = [Scores("score", tuple(row.tolist()), (1.0,) * 30) for row in values]
    found = on_examples(WEIGHTS, scores, scores, base, 1.0)
    mixed = np.sqrt(1 - (WEIGHTS**2).sum(axis=1))
    expected = mean_root(values * (1 + Prior().expected_slope * mixed)[:, None], np.ones(30))
    np.testing.assert_allclose(found.root_MR[:, :-1], expected)
    np.testing.assert_allclose(found.root_MR[:, -1], resolution(base) ** 0.5)
    assert found.unchecked == resolution(base) > 0


def test_an_expert_that_changes_no_answer_here_may_change_one_elsewhere() -> None:
    base = Scores("score", (1.0, 0.0) * 15, (1.0,) * 30)
    alike = on_examples(WEIGHTS, [base] * len(SUBSETS), [base] * len(SUBSETS), base, 1.0)
    noise = alike.noise({}, WEIGHTS.max(axis=1) < 1, 0.0)
    assert (noise.report_M > 0).all()
    # which says nothing of one model beside another
    first, *others = noise.examples_MR
    assert all((first == other).all() for other in others)
    assert chance_of_spread(np.zeros(len(SUBSETS)), noise.examples_MR) == 1.0


def test_a_sum_over_targets_has_the_noise_of_each() -> None:
    one = Noise(np.ones((2, 3)), np.array([0.0, 1.0]), np.array([1.0, 2.0]), 0.0)
    found = Noise.together([(1.0, one), (2.0, one)], 0.3)
    np.testing.assert_allclose(found.variance_M, 5 * one.variance_M)
    assert found.check_M.tolist() == [0.0, 5.0] and found.report_M.tolist() == [5.0, 10.0]
    assert found.seed_sd == 0.3


# --- seeds


@pytest.mark.parametrize("share", [0.03, 0.3])
def test_many_repeats_show_how_far_seeds_lie_apart(share: float) -> None:
    rng = np.random.default_rng(5)
    units = rng.uniform(0.1, 10, 400)
    examples = rng.uniform(0, 0.2, 400) * units**2 * share**2
    differences = rng.normal(0, np.sqrt(2 * (share * units) ** 2 + examples))
    found = seed_share(differences.tolist(), examples.tolist(), units.tolist())
    assert found == pytest.approx(share, rel=0.1)


def test_two_repeats_that_agree_do_not_make_the_noise_vanish() -> None:
    before, after = seed_share([], [], []), seed_share([0.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    assert 0.2 * before < after < 0.7 * before
    # what the examples explain says nothing of seeds
    assert seed_share([0.5], [100.0], [1.0]) == pytest.approx(before, rel=0.01)


# --- the posterior


def drawn_world(seed: int, noise: Noise) -> tuple[Views, Array, Array, Array]:
    """Views of a world, what its mixtures are worth, its fine-tunes' scores, and what is measured.

    Proxies are measured on the same examples as the reals.
    """
    rng = np.random.default_rng(seed)
    true_M = WEIGHTS @ rng.normal(size=4) + 0.2 * PLURAL * rng.normal(size=len(SUBSETS))
    whole = posterior_of(Views(WEIGHTS, true_M, true_M), {})
    worth_M = whole.draws(seed, num=1)[0]
    seeds_M = noise.seed_sd * rng.normal(size=len(SUBSETS))
    tuned_M = worth_M + seeds_M
    shared_M = noise.examples_MR @ rng.normal(size=noise.examples_MR.shape[1])
    measured_M = tuned_M + shared_M + np.sqrt(noise.check_M) * rng.normal(size=len(SUBSETS))
    proxy_M = np.where(PLURAL, true_M + shared_M, measured_M)
    report_M = tuned_M + np.sqrt(noise.report_M) * rng.normal(size=len(SUBSETS))
    return Views(WEIGHTS, proxy_M, proxy_M), worth_M, report_M, measured_M


def some_noise(scale: float) -> Noise:
    rng = np.random.default_rng(6)
    root = scale * (0.5 * np.ones((len(SUBSETS), 1)) + WEIGHTS @ rng.normal(size=(4, 6)))
    check_M = np.where(PLURAL, (0.3 * scale) ** 2, 0.0)
    return Noise(root, check_M, (root**2).sum(axis=1) + check_M, 0.2 * scale)


@pytest.mark.parametrize("scale", [0.1, 0.5])
@pytest.mark.parametrize("num", [0, 2, 5])
def test_intervals_hold_what_the_report_part_shows(scale: float, num: int) -> None:
    noise, held = some_noise(scale), []
    for seed in range(120):
        views, _, report_M, measured_M = drawn_world(seed, noise)
        rows = np.random.default_rng(seed).permutation(SEVERAL)[:num].tolist()
        known = {row: float(measured_M[row]) for row in rows}
        low_M, high_M = posterior_of(views, known, noise=noise).interval(0.9)
        held.append(((low_M <= report_M) & (report_M <= high_M)).mean())
    # all mixtures of a world are off together
    assert np.mean(held) == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("scale", [0.05, 0.15])
def test_a_pick_is_the_best_as_often_as_its_probability_says(scale: float) -> None:
    noise, promised, right = some_noise(scale), [], []
    for seed in range(200):
        views, worth_M, _, measured_M = drawn_world(seed, noise)
        found = posterior_of(views, {i: float(measured_M[i]) for i in SEVERAL[::2]}, noise=noise)
        pick = int(np.argmax(found.mean_M))
        promised.append(float(found.best_probabilities()[pick]))
        right.append(pick == int(np.argmax(worth_M)))
    assert np.mean(right) == pytest.approx(np.mean(promised), abs=0.1)
    assert 0.3 < np.mean(promised) < 0.9


def reference(
    views: Views, known: dict[int, float], again: dict[int, float], noise: Noise, factor: float
) -> tuple[Array, Array, Array, Array]:
    """Means and variances of worth and of fine-tunes, by the conditional of one large normal."""
    prior, unit, num = Prior(), Unit.of(views.proxy_M), len(views.proxy_M)
    none = posterior_of(views, {}, prior)
    mixed = np.sqrt(1 - (WEIGHTS**2).sum(axis=1))
    shared = none.scale_MM / unit.sd**2 - np.diag((0.5 * prior.own * mixed) ** 2)
    worth = shared + np.diag((factor * prior.own * mixed) ** 2)
    seed, alone = noise.seed_sd**2 / unit.sd**2, noise.check_M / unit.sd**2
    first, second = sorted(known), sorted(again)
    rows, is_first = first + second, [True] * len(first) + [False] * len(second)
    is_same = np.array(rows)[:, None] == np.array(rows)
    seen = worth[np.ix_(rows, rows)] + seed * np.eye(len(rows)) + is_same * alone[rows]
    to_worth = worth[:, rows]
    to_tuned = to_worth.copy()
    for column, (row, own) in enumerate(zip(rows, is_first, strict=True)):
        to_tuned[row, column] += seed * own
    residual = np.array([*(known[i] for i in first), *(again[i] for i in second)])
    residual -= none.mean_M[rows]
    solved = np.linalg.solve(seen, residual)
    amplitude = prior.dof * unit.sd**2 + residual @ solved
    amplitude /= prior.dof + len(rows)
    found = []
    for to, before in ((to_worth, np.diag(worth)), (to_tuned, np.diag(worth) + seed)):
        explained = np.einsum("mu,mu->m", to, np.linalg.solve(seen, to.T).T)
        found += [none.mean_M + to @ solved, amplitude * (before - explained)]
    assert len(found[0]) == num
    return found[0], found[1], found[2], found[3]


def test_the_posterior_is_that_of_one_large_normal() -> None:
    noise = some_noise(0.5)
    views, _, _, measured_M = drawn_world(3, noise)
    known = {row: float(measured_M[row]) for row in SEVERAL[::3]}
    again = {SEVERAL[0]: float(measured_M[SEVERAL[0]]) - 0.4}
    found = posterior_of(views, known, noise=noise, again=again)
    factors = (0.5, 1.0, 2.0, 4.0, 8.0)
    each = {factor: reference(views, known, again, noise, factor) for factor in factors}
    likeliest = min(factors, key=lambda f: float(np.abs(each[f][0] - found.mean_M)[SEVERAL].max()))
    mean_M, variance_M, tuned_mean_M, tuned_M = each[likeliest]
    np.testing.assert_allclose(found.mean_M[SEVERAL], mean_M[SEVERAL], atol=1e-6)
    np.testing.assert_allclose(found.sd_M[SEVERAL] ** 2, variance_M[SEVERAL], rtol=1e-4)
    np.testing.assert_allclose(found.tuned_mean_M[SEVERAL], tuned_mean_M[SEVERAL], atol=1e-6)
    np.testing.assert_allclose(found.tuned_scale_M[SEVERAL] ** 2, tuned_M[SEVERAL], rtol=1e-4)


def test_a_noisy_check_counts_for_less_than_an_exact_one() -> None:
    views, *_ = drawn_world(4, Noise.none(len(SUBSETS)))
    row = SEVERAL[0]
    far = float(views.proxy_M[row]) + 3.0
    moved = []
    for variance in (0.0, 0.5, 50.0):
        noise = replace(Noise.none(len(SUBSETS)), check_M=np.where(PLURAL, variance, 0.0))
        found = posterior_of(views, {row: far}, noise=noise)
        moved.append(float(found.mean_M[row]))
        assert found.known == {0, 1, 2, 3, row}
    assert moved[0] == pytest.approx(far) and moved[0] > moved[1] > moved[2]


def test_a_repeat_brings_the_mean_of_both_seeds() -> None:
    noise = some_noise(0.5)
    views, _, _, measured_M = drawn_world(5, noise)
    row = SEVERAL[2]
    known = {row: float(measured_M[row])}
    one = posterior_of(views, known, noise=noise)
    both = posterior_of(views, known, noise=noise, again={row: known[row] - 0.1})
    assert both.mean_M[row] < one.mean_M[row] and both.sd_M[row] < one.sd_M[row]
    # the fine-tune of this run's own seed is not the mean of both
    assert both.tuned_mean_M[row] > both.mean_M[row]
    with pytest.raises(ValueError, match="finite"):
        posterior_of(views, known, noise=noise, again={row: np.nan})


def test_a_repeat_teaches_nothing_of_the_examples() -> None:
    """Both fine-tunes are scored on the same ones; without noise of seeds it is the same number."""
    noise = replace(some_noise(0.5), seed_sd=1e-6)
    views, _, _, measured_M = drawn_world(5, noise)
    known = {SEVERAL[2]: float(measured_M[SEVERAL[2]])}
    one = posterior_of(views, known, noise=noise)
    both = posterior_of(views, known, noise=noise, again=known)
    np.testing.assert_allclose(both.mean_M, one.mean_M, atol=1e-6)


def test_a_difference_has_the_noise_that_the_two_do_not_share() -> None:
    noise = some_noise(0.5)
    views, _, _, measured_M = drawn_world(6, noise)
    found = posterior_of(views, {SEVERAL[0]: float(measured_M[SEVERAL[0]])}, noise=noise)
    drawn = found.draws(0, num=60_000)
    for one, other in ((SEVERAL[0], SEVERAL[1]), (0, 1), (0, SEVERAL[3])):
        difference, sd = found.difference(one, other)
        away = drawn[:, one] - drawn[:, other]
        assert difference == pytest.approx(away.mean(), abs=0.02)
        assert sd == pytest.approx(away.std(), rel=0.05)
    assert found.difference(2, 2)[0] == 0


def test_single_datasets_have_the_noise_of_their_seed() -> None:
    noise = replace(Noise.none(len(SUBSETS)), seed_sd=0.3)
    views, *_ = drawn_world(7, Noise.none(len(SUBSETS)))
    found: Posterior = posterior_of(views, {}, noise=noise)
    assert found.draws(0)[:, :4].std(axis=0) == pytest.approx(0.3, rel=0.1)
    assert found.tuned_scale_M[:4].tolist() == [0.0] * 4

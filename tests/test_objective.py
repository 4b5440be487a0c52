"""What a mixture is chosen by: laws of each objective, and what checks say of the smallest gain."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn_spaces import law
from hypothesis import given
from hypothesis import strategies as st

from mergetomix.objectives.objective import Aim, Objective, OverTargets, gains
from mergetomix.objectives.pareto import is_front
from mergetomix.records import Mixture, Scores, Trial
from mergetomix.report.target_gains import front_of, given_up
from mergetomix.results import Selection
from mergetomix.statistics import drawn_posterior, posterior
from mergetomix.statistics.noise import Noise
from mergetomix.statistics.posterior import Unit, Views
from mergetomix.statistics.standard_errors import standard_errors

WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5}
AIMS: tuple[Aim, ...] = ("gain", "standard_errors", "worst", "pareto")


def rows(num: int = 30, seed: int = 0) -> list[dict[str, float]]:
    return [
        dict(zip("abc", row, strict=True))
        for row in np.random.default_rng(seed).normal(size=(num, 3)).tolist()
    ]


def ready(
    aim: Aim, weights: dict[str, float] | None = None, seen: list[dict[str, float]] | None = None
) -> Objective:
    """An objective that knows its units, or its front."""
    units = {"a": 0.1, "b": 0.2, "c": 4.0} if aim == "standard_errors" else {}
    made = Objective(weights or WEIGHTS, aim, units)
    return made.settled(seen or rows()) if aim == "pareto" else made


def best(objective: Objective, values: list[dict[str, float]]) -> int:
    return int(np.argmax([objective.combine(each) for each in values]))


@pytest.mark.parametrize("aim", AIMS)
def test_better_everywhere_is_better_and_the_order_of_targets_does_not_matter(aim: Aim) -> None:
    objective = ready(aim)
    turned = ready(aim, {name: WEIGHTS[name] for name in "cba"})
    for each in rows(10, 1):
        value = objective.combine(each)
        assert turned.combine({name: each[name] for name in "bca"}) == pytest.approx(
            value, abs=1e-12
        )
        assert objective.combine({name: gain + 0.1 for name, gain in each.items()}) > value


@pytest.mark.parametrize("aim", AIMS)
def test_over_arrays_it_is_what_it_is_one_by_one(aim: Aim) -> None:
    objective, values = ready(aim), rows()
    columns = ((name, np.array([each[name] for each in values])) for name in "cab")
    assert objective.over(columns) == pytest.approx([objective.combine(each) for each in values])


def test_each_objective_is_its_formula() -> None:
    values = {"a": 0.2, "b": -0.1, "c": 0.4}
    assert ready("gain").combine(values) == pytest.approx((0.2 - 0.3 + 0.2) / 4.5)
    assert ready("standard_errors").combine(values) == pytest.approx(
        (0.2 / 0.1 - 3 * 0.1 / 0.2 + 0.5 * 0.4 / 4) / 4.5
    )
    assert ready("worst").combine(values) == -0.1
    before_a_front = Objective(WEIGHTS, "pareto")
    assert before_a_front.combine(values) == ready("gain").combine(values)


def test_one_target_or_equal_gains_make_worst_and_gain_the_same() -> None:
    worst, gain = Objective(WEIGHTS, "worst"), Objective(WEIGHTS)
    equal = dict.fromkeys("abc", 0.3)
    assert worst.combine(equal) == pytest.approx(gain.combine(equal))
    assert Objective({"a": 2.0}, "worst").combine({"a": 0.7}) == 0.7
    assert Objective({"a": 2.0}).combine({"a": 0.7}) == 0.7


def test_with_equal_units_standard_errors_are_gains_over_the_unit() -> None:
    plain = Objective(WEIGHTS)
    counted = Objective(WEIGHTS, "standard_errors", dict.fromkeys("abc", 0.05))
    for each in rows():
        assert counted.combine(each) == pytest.approx(plain.combine(each) / 0.05)


def test_a_noisy_target_does_not_rule_in_standard_errors() -> None:
    loud, quiet = {"a": 0.1, "b": 0.0}, {"a": 0.0, "b": 0.05}
    weights, units = {"a": 1.0, "b": 1.0}, {"a": 0.1, "b": 0.005}
    assert best(Objective(weights), [loud, quiet]) == 0
    assert best(Objective(weights, "standard_errors", units), [loud, quiet]) == 1


@law(20)
@given(st.integers(0, 10**6))
def test_the_knee_is_of_the_front_and_scaling_a_target_does_not_move_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 5, size=(25, 3)).astype(float)  # many are equal on a target
    values = [dict(zip("abc", row, strict=True)) for row in grid.tolist()]
    weights = dict(zip("abc", rng.uniform(0.5, 2, 3).tolist(), strict=True))
    knee = best(ready("pareto", weights, values), values)
    assert is_front(grid)[knee]
    scaled = [{"a": each["a"] * 1000, "b": each["b"] - 7, "c": each["c"] / 64} for each in values]
    assert scaled[best(ready("pareto", weights, scaled), scaled)] == scaled[knee]


def test_the_knee_is_between_the_ends_and_nearer_to_the_target_that_weighs_more() -> None:
    values = [{"a": x, "b": 1 - x * x} for x in np.linspace(0, 1, 101).tolist()]
    places = [
        best(Objective({"a": w, "b": 1.0}, "pareto").settled(values), values)
        for w in (0.2, 1.0, 5.0)
    ]
    assert 0 < places[0] < places[1] < places[2] < 100
    assert values[places[1]]["a"] == pytest.approx((5**0.5 - 1) / 2, abs=0.01)  # where x = 1 - x^2


def test_a_front_of_one_has_its_only_member_for_a_knee() -> None:
    values = [{"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 2.0}, {"a": 1.0, "b": 1.0}]
    objective = Objective({"a": 1.0, "b": 1.0}, "pareto").settled(values)
    assert best(objective, values) == 0
    assert objective.combine(values[0]) == pytest.approx(1, abs=0.01)
    alone = Objective({"a": 1.0, "b": 1.0}, "pareto").settled(values[:1])
    assert math.isfinite(alone.combine(values[1]))


@pytest.mark.parametrize("aim", AIMS)
def test_over_targets_a_search_has_the_objective_and_its_slopes(aim: Aim) -> None:
    """Slopes are compared with central differences; `pareto` has no front while a search runs."""
    objective = Objective(WEIGHTS, aim, ready(aim).units)
    over, values_TK = (
        OverTargets(objective, ("c", "a", "b")),
        np.random.default_rng(1).normal(size=(3, 20)),
    )
    columns = [dict(zip("cab", column, strict=True)) for column in values_TK.T.tolist()]
    assert over(values_TK) == pytest.approx([objective.combine(each) for each in columns])
    for target, step_T1 in enumerate(np.eye(3)[:, :, None] * 1e-6):
        slope_K = (over(values_TK + step_T1) - over(values_TK - step_T1)) / 2e-6
        assert over.slopes(values_TK)[target] == pytest.approx(slope_K, abs=1e-6)


def test_of_equal_smallest_gains_the_first_has_the_slope() -> None:
    over = OverTargets(Objective(WEIGHTS, "worst"), ("a", "b", "c"))
    assert over.slopes(np.array([[1.0], [0.5], [0.5]])).ravel().tolist() == [0.0, 1.0, 0.0]


# --- standard errors


def loss(values: list[float]) -> Scores:
    return Scores("loss", tuple(values), (1.0,) * len(values))


def test_the_standard_error_is_that_of_the_paired_difference_in_units_of_the_gain() -> None:
    rng = np.random.default_rng(0)
    start, noise = rng.uniform(3, 5, 200), rng.normal(0, 0.4, (3, 200))
    rows = zip((1, 2, 3), noise, strict=True)
    experts = [{"t": loss((start - 0.5 + sd * row).tolist())} for sd, row in rows]
    (unit,) = standard_errors(experts, {"t": loss(start.tolist())}).values()
    of_middle_expert = 2 * 0.4 / math.sqrt(200) / start.mean()
    assert unit == pytest.approx(of_middle_expert, rel=0.15)


def test_a_target_that_no_expert_moves_unevenly_has_no_standard_error() -> None:
    start = loss([1.0, 2.0, 3.0])
    moved, even = loss([0.5, 1.8, 2.0]), loss([0.7, 1.7, 2.7])
    alone = standard_errors([{"t": moved}], {"t": start})
    assert standard_errors([{"t": start}, {"t": moved}], {"t": start}) == alone
    for experts in ([{"t": start}], [{"t": even}]):
        with pytest.raises(ValueError, match=r"target t \(3 examples\) no expert"):
            standard_errors(experts, {"t": start})
    with pytest.raises(ValueError, match=r"\(1 examples\)"):
        standard_errors([{"t": loss([1.0])}], {"t": loss([2.0])})


# --- what checks say


def views(seed: int, level: float = 0.0, num: int = 4) -> Views:
    """Proxies of all subsets of some datasets."""
    rng = np.random.default_rng(seed)
    members = np.array(
        [[code >> bit & 1 for bit in range(num)] for code in range(1, 2**num)], dtype=float
    )
    proxies = level + rng.normal(0, 0.1, len(members))
    return Views(
        members / members.sum(axis=1, keepdims=True),
        proxies,
        proxies + rng.normal(0, 0.02, len(members)),
    )


def several_of(
    one: Views, other: Views, known: list[dict[int, float]]
) -> drawn_posterior.DrawnPosterior:
    units = {name: Unit.of(each.proxy_M) for name, each in (("a", one), ("b", other))}
    objective = Objective({"a": 1.0, "b": 1.0}, "worst")
    views, each = {"a": one, "b": other}, {"a": known[0], "b": known[1]}
    found = {
        name: posterior.posterior_of(views[name], each[name], unit=units[name]) for name in "ab"
    }
    return drawn_posterior.posterior_of(objective, found)


def test_where_one_target_is_always_the_worst_its_posterior_is_that_of_the_objective() -> None:
    low, high = views(0), views(1, level=100.0)
    known = {4: 0.2, 6: -0.1}
    found = several_of(low, high, [known, dict.fromkeys(known, 100.0)])
    alone = posterior.posterior_of(low, known, unit=Unit.of(low.proxy_M))
    sd_M = np.sqrt(np.diag(alone.scale_MM))
    assert found.known == alone.known
    assert np.abs(found.mean_M - alone.mean_M).max() < 0.1 * sd_M.max()
    assert np.sqrt(np.diag(found.scale_MM)) == pytest.approx(sd_M, rel=0.15)
    for one, other in zip(found.interval(0.9), alone.interval(0.9), strict=True):
        assert np.abs(one - other).max() < 0.2 * sd_M.max()


def test_what_is_known_is_exact_and_has_no_spread() -> None:
    one, other = views(0), views(1)
    known = [{4: 0.2, 6: -0.1}, {4: 0.3, 6: -0.3}]
    found = several_of(one, other, known)
    singles = np.flatnonzero((one.weights_MN == 1).any(axis=1))
    assert found.known == {4, 6, *singles.tolist()}
    assert found.mean_M[[4, 6]].tolist() == [0.2, -0.3]
    assert (
        found.mean_M[singles].tolist() == np.minimum(one.proxy_M, other.proxy_M)[singles].tolist()
    )
    rows = sorted(found.known)
    assert not found.scale_MM[rows].any()
    low_M, high_M = found.interval(0.9)
    assert low_M[rows].tolist() == high_M[rows].tolist() == found.mean_M[rows].tolist()
    assert found.best_probabilities().sum() == pytest.approx(1)


def test_the_smallest_of_two_is_expected_below_both() -> None:
    """The smaller of two normals, drawn apart, has mean m - s / sqrt(pi)."""
    same = views(0)
    found, alone = several_of(same, same, [{}, {}]), posterior.posterior_of(same, {})
    mixed = [row for row in range(15) if row not in found.known]
    spread_M = np.sqrt(np.diag(alone.scale_MM) * alone.dof / (alone.dof - 2))
    expected_M = alone.mean_M - spread_M / math.sqrt(math.pi)
    assert found.mean_M[mixed] == pytest.approx(expected_M[mixed], abs=0.1 * spread_M.max())


def test_intervals_of_the_smallest_hold_the_truth_as_often_as_they_say() -> None:
    """Reals are drawn from the model itself, target by target."""
    rng, hits = np.random.default_rng(0), []
    for world in range(40):
        pair, known, truth = [views(2 * world), views(2 * world + 1)], [], []
        for view in pair:
            real_M = posterior.posterior_of(view, {}).draws(seed=int(rng.integers(2**31)), num=1)[0]
            truth.append(real_M)
            known.append({row: float(real_M[row]) for row in (2, 6, 14)})
        found = several_of(*pair, known)
        low_M, high_M = found.interval(0.9)
        smallest_M = np.minimum(*truth)
        hits += [low_M[i] <= smallest_M[i] <= high_M[i] for i in range(15) if i not in found.known]
    assert 0.84 < np.mean(hits) < 0.96


def test_the_way_to_merge_is_chosen_by_all_targets_together() -> None:
    right, wrong = views(0), views(5)
    by_exponent, log_prior = {0.5: right, 1.0: wrong}, {1.0: 0.0, 0.5: -2.0}
    none, unit = Noise.none(len(right.proxy_M)), Unit.of(right.proxy_M)
    found = [
        posterior.likeliest(
            dict.fromkeys(names, by_exponent),
            dict.fromkeys(names, right.proxy_M),
            dict.fromkeys(names, unit),
            dict.fromkeys(names, none),
            log_prior,
        )
        for names in ("a", "ab")
    ]
    assert found == [0.5, 0.5]


def test_the_noise_of_the_examples_is_that_of_the_target_that_is_worst() -> None:
    weights, level = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1.0, 1.0])
    each = {}
    for name, gain, sd in (("calm", 1.0, 0.1), ("loud", 90.0, 5.0)):
        noise = Noise(sd * np.eye(2), np.zeros(2), np.zeros(2), 0.0)
        each[name] = posterior.posterior_of(
            Views(weights, gain * level, gain * level), {}, noise=noise
        )
    found = drawn_posterior.posterior_of(Objective({"calm": 1.0, "loud": 1.0}, "worst"), each)
    difference, sd = found.difference(0, 1)
    assert difference == pytest.approx(0, abs=0.01)
    assert sd == pytest.approx(math.hypot(0.1, 0.1), rel=0.05)


# --- what is given up


def selection_of(points: list[tuple[float, float]], aim: Aim) -> Selection:
    score = lambda value: Scores("score", (value,), (1.0,))  # noqa: E731
    base = {"a": score(0.0), "b": score(0.0)}
    scored = [{"a": score(a), "b": score(b)} for a, b in points]
    objective = Objective({"a": 1.0, "b": 1.0}, aim)
    if aim == "pareto":
        objective = objective.settled([gains(each, base) for each in scored])
    trials = [
        Trial(Mixture.union(f"d{i}" for i in range(k + 1)), s, objective.of(s, base))
        for k, s in enumerate(scored)
    ]
    trials.sort(key=lambda trial: -trial.objective)
    return Selection(trials[0].mixture, tuple(trials), "exhaustive", base, (), objective)


def test_what_is_given_up_is_the_distance_to_the_best_of_each_target() -> None:
    selection = selection_of([(0.9, 0.1), (0.6, 0.6), (0.1, 0.8), (0.2, 0.2)], "gain")
    a, b = given_up(selection)
    assert (a.target, a.gain, a.best, str(a.by)) == ("a", 0.6, 0.9, "d0")
    assert (b.target, b.gain, b.best, str(b.by)) == ("b", 0.6, 0.8, "d0 + d1 + d2")
    assert (a.less, b.less) == pytest.approx((0.3, 0.2))


def test_the_front_has_the_knee_first_and_its_volume_over_the_base() -> None:
    found = front_of(selection_of([(0.9, 0.1), (0.6, 0.6), (0.1, 0.8), (0.2, 0.2)], "pareto"))
    assert str(found.members[0].mixture) == "d0 + d1" and {
        len(trial.mixture) for trial in found.members
    } == {1, 2, 3}
    assert found.hypervolume == pytest.approx(0.9 * 0.1 + 0.6 * 0.5 + 0.1 * 0.2)

"""What search by regression alone promises: its fits, what it predicts over, its budget."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from worlds import CAPPED, World, is_in, search_through, setting_of

from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.records import Mixture
from mergetomix.search.budgets import default_budget
from mergetomix.search.candidates import NEAR, place_of, untried, weight_rows
from mergetomix.search.regression.regressors import fit, log_linear, process
from mergetomix.search.regression.sampling import many_of
from mergetomix.search.regression.strategy import Regression, rounds
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Options, SettingError, Told
from mergetomix.statistics.regression import boosted

NAMES = tuple("abcdef")
LAW = np.array([1.5, -2.0, 0.5, 0.0])


def drawn(num: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).dirichlet(np.ones(4), num)


def law(weights_KN: Any, k: float = 0.4) -> Any:
    return 0.3 + k * np.exp(weights_KN @ LAW)


@pytest.mark.parametrize("k", [0.4, -0.4])
def test_a_law_is_recovered_also_at_vertices_beyond_all_that_was_seen(k: float) -> None:
    there_KN = np.vstack([drawn(40, seed=1), np.eye(4)])
    found = log_linear(drawn(30), law(drawn(30), k))
    assert found.predict(there_KN) == pytest.approx(
        law(there_KN, k), abs=0.08 * np.ptp(law(there_KN, k))
    )


def test_auto_takes_the_law_where_there_is_one_and_else_the_process() -> None:
    points_MN, there_KN = drawn(12), drawn(50, seed=1)
    values = {"log_linear": law(points_MN), "gp": -((points_MN - 0.25) ** 2).sum(axis=1)}
    for kind, value_M in values.items():
        wanted_K = fit(kind, points_MN, value_M, 0)(there_KN)  # type: ignore[arg-type]
        assert np.array_equal(fit("auto", points_MN, value_M, 0)(there_KN), wanted_K)


def test_what_a_process_misses_is_what_the_others_say_of_each_trial() -> None:
    # the reference leaves each out with the kernel that is likeliest for all
    from sklearn.gaussian_process import GaussianProcessRegressor

    points_MN, value_M = drawn(9), law(drawn(9)) + 0.02 * np.random.default_rng(3).normal(size=9)
    found = process(points_MN, value_M)
    kernel: Any = found.predict.__self__.kernel_  # type: ignore[attr-defined]
    unit_M = (value_M - value_M.mean()) / value_M.std()
    for i in range(9):
        rest = np.arange(9) != i
        other = GaussianProcessRegressor(kernel, optimizer=None).fit(points_MN[rest], unit_M[rest])
        missed = value_M.std() * (unit_M[i] - other.predict(points_MN[[i]])[0])
        assert found.missed_M[i] == pytest.approx(missed, rel=1e-5)


def test_what_a_law_misses_is_near_to_what_the_others_say_of_each_trial() -> None:
    points_MN, value_M = drawn(25), law(drawn(25)) + 0.05 * np.random.default_rng(3).normal(size=25)
    others = [
        log_linear(np.delete(points_MN, i, 0), np.delete(value_M, i)).predict(points_MN[[i]])[0]
        for i in range(25)
    ]
    assert (
        np.corrcoef(log_linear(points_MN, value_M).missed_M, np.array(others) - value_M)[0, 1] > 0.9
    )


def test_values_that_are_all_the_same_are_predicted() -> None:
    for kind in ("log_linear", "gp", "auto"):
        assert fit(kind, drawn(6), np.full(6, 0.7), 0)(np.eye(4)) == pytest.approx(np.full(4, 0.7))  # type: ignore[arg-type]


def test_lightgbm_is_the_one_that_studies_use() -> None:
    points_MN, there_KN = drawn(12), drawn(5, seed=1)
    wanted_K = boosted(points_MN, law(points_MN), there_KN, 7)
    assert np.array_equal(fit("lightgbm", points_MN, law(points_MN), 7)(there_KN), wanted_K)


@pytest.mark.parametrize(
    "space", [Simplex(NAMES), CAPPED, Subsets(tuple(f"d{i:02}" for i in range(14)), 2, 9)]
)
def test_many_mixtures_are_in_their_space_and_every_row_stands_for_itself(space: Space) -> None:
    many, rng = many_of(space), np.random.default_rng(0)
    some_KN = many.draw(rng)
    around_KN = many.around(some_KN[:3], rng)
    assert len(some_KN) >= 100 and len(around_KN) >= 3
    for weights_N in [*some_KN[:100], *around_KN]:
        mixture = many.mixture(weights_N)
        assert is_in(space, mixture)
        assert weight_rows([mixture], space.allowed)[0] == pytest.approx(weights_N, abs=1e-9)


def test_untried_mixtures_were_not_tried_and_end_with_the_space() -> None:
    space, rng = Subsets(tuple("abc")), np.random.default_rng(0)
    tried = list(space)[:5]
    assert set(untried(space, tried, 4, rng)) == set(space) - set(tried)
    halves = Simplex(tuple("abc"), 2, 2, min_share=0.5)  # three mixtures that look continuous
    found = untried(halves, [], 10, rng)
    assert 1 <= len(found) <= 3 and len(untried(halves, found, 10, rng)) <= 3 - len(found)


def test_weights_next_to_each_other_are_the_same() -> None:
    def mixture(weight: float) -> Mixture:
        return Mixture(("a", "b"), (weight, 1 - weight))

    space, tried = Simplex(("a", "b")), [mixture(0.3), mixture(0.5)]
    assert place_of(space, mixture(0.5 + NEAR / 4), tried) == 1
    assert place_of(space, mixture(0.51), tried) is None


def test_it_finds_the_best_subset_of_a_quadratic_world_in_most_seeds() -> None:
    space, hits = Subsets(tuple("abcdefghi")), 0
    for seed in range(4):
        world = World(space.names, 1, seed, curved=False)
        state = search_through(build("regression", setting_of(space, seed)), world.told)
        assert len(state) == default_budget("regression", 9) < 50
        hits += max(told.objective for told in state) == max(map(world.worth, space))
    assert hits >= 3


def test_the_last_weights_are_the_mean_of_the_best_predicted_and_in_the_space() -> None:
    def told(asked: Any) -> Told:
        weights, ideal = asked.mixture.as_dict(), {"a": 0.25, "b": 0.3, "c": 0.45}
        value = -sum((weights.get(name, 0.0) - best) ** 2 for name, best in ideal.items())
        return Told(asked.mixture, value, {"t0": value})

    for seed in range(3):
        last = search_through(build("regression", setting_of(CAPPED, seed, 30)), told)[-1]
        assert last.mixture in CAPPED and last.objective > -5e-3


def test_it_asks_for_values_alone() -> None:
    setting = setting_of(Simplex(NAMES), 0, 12, differentiable=True)
    state = search_through(build("regression", setting), World(NAMES).told)
    assert len(state) == 12
    assert all(told.gradients is None for told in state)


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_too_small_a_budget_is_refused_with_both_numbers(budget: int) -> None:
    with pytest.raises(SettingError, match=f"at least 4 forward passes, not {budget}") as caught:
        build("regression", setting_of(Simplex(NAMES), budget=budget))
    assert caught.value.key == "budget"
    assert rounds(0) == [] and rounds(2) == [1, 1] and sum(rounds(10)) == 10


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(
        SettingError, match=r'lightgbm: pip install "mergetomix\[search\]"'
    ) as caught:
        Regression(setting_of(Simplex(NAMES), options=Options(regressor="lightgbm")))
    assert caught.value.key == "regressor"
    Regression(setting_of(Simplex(NAMES)))

"""What datasets add: Shapley values, interactions, and the regression behind what was not tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergetomix.records import Mixture, Scores, Trial
from mergetomix.stages.effects import Known, effects
from mergetomix.statistics import shapley
from mergetomix.statistics.posterior import Posterior
from mergetomix.statistics.untried import Untried, features


def by_orders(worth: Mapping[frozenset[int], float], num: int) -> list[float]:
    """Shapley values as they are defined: what each adds, averaged over all orders."""
    total = [0.0] * num
    for order in itertools.permutations(range(num)):
        before: frozenset[int] = frozenset()
        for each in order:
            total[each] += worth[before | {each}] - worth[before]
            before = before | {each}
    return [each / math.factorial(num) for each in total]


def game(num: int, seed: int) -> dict[frozenset[int], float]:
    rng = np.random.default_rng(seed)
    every = [
        frozenset(each) for k in range(num + 1) for each in itertools.combinations(range(num), k)
    ]
    return {each: float(rng.normal()) if each else 0.0 for each in every}


def worth_of(known: Mapping[frozenset[int], float]) -> shapley.Worth:
    def worth(is_in_SN: np.ndarray) -> np.ndarray:
        return np.array([[known[frozenset(np.flatnonzero(row).tolist())] for row in is_in_SN]])

    return worth


@given(st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_values_are_means_over_all_orders(num: int, seed: int) -> None:
    known = game(num, seed)
    found = shapley.values(worth_of(known), num)[0]
    assert found.tolist() == pytest.approx(by_orders(known, num))
    assert found.sum() == pytest.approx(known[frozenset(range(num))])


@given(st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_an_interaction_is_a_value_of_what_the_other_adds(num: int, seed: int) -> None:
    """I_ij is the value of i in the game of what j adds (Grabisch and Roubens 1999)."""
    known, last = game(num, seed), num - 1
    rest = [frozenset(each) for k in range(num) for each in itertools.combinations(range(last), k)]
    with_last = {
        each: known[each | {last}] - known[each] - known[frozenset({last})] for each in rest
    }
    found = shapley.interactions(worth_of(known), num)[0]
    assert found[:last, last].tolist() == pytest.approx(by_orders(with_last, last))
    assert np.allclose(found, found.T) and np.allclose(np.diag(found), 0)


def test_orders_that_are_drawn_come_near() -> None:
    num = shapley.MOST_EXACT + 3
    rng = np.random.default_rng(0)
    main, pair = rng.normal(size=num), np.triu(rng.normal(size=(num, num)) / 5, 1)

    def worth(is_in_SN: np.ndarray) -> np.ndarray:
        value = is_in_SN @ main + np.einsum("si,ij,sj->s", is_in_SN, pair, is_in_SN)
        return np.repeat(value[None], 50, axis=0)

    exact = main + (pair + pair.T).sum(axis=1) / 2
    found = shapley.values(worth, num)
    assert np.abs(found.mean(axis=0) - exact).max() < 0.05
    assert (found.std(axis=0) < 0.1).all()


def test_what_was_not_tried_comes_from_what_was() -> None:
    """Of a worth that is quadratic in the weights, within its own intervals."""
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.ones(5), size=120)
    shape = rng.normal(size=(1, features(weights).shape[1]))
    worth = (features(weights) @ shape.T)[:, 0]
    draws = worth[:80] + 0.01 * rng.standard_normal((300, 80))
    found = Untried(weights[:80], draws)(weights[80:])
    mean, sd = found.mean(axis=0), found.std(axis=0)
    assert np.corrcoef(mean, worth[80:])[0, 1] > 0.98
    inside = np.abs(mean - worth[80:]) < 1.645 * np.sqrt(sd**2 + (0.02 * worth.std()) ** 2)
    assert inside.mean() > 0.75


class State:
    """Trials whose worth is known: `a` helps, `b` helps less and overlaps with `a`, `c` harms."""

    def __init__(self, few: bool) -> None:
        names = ("a", "b", "c", "d")
        every = [each for k in range(1, 5) for each in itertools.combinations(names, k)]
        kept = every[:11] if few else every
        scores = {"t": Scores("loss", (1.0,), (1.0,))}
        self.trials = [Trial(Mixture.union(each), scores, 0.0) for each in kept]
        self.weights = {"t": 1.0}

    def posterior_on(self, target: str | None) -> Posterior:
        worth = [
            0.2 * ("a" in each)
            + 0.15 * ("b" in each)
            - 0.1 * ("c" in each)
            - 0.15 * ({"a", "b"} <= set(each))
            for each in (trial.mixture.datasets for trial in self.trials)
        ]
        return Drawn(np.array(worth))  # type: ignore[return-value]  # draws are all that is asked


class Drawn:
    def __init__(self, worth_M: np.ndarray) -> None:
        self._worth_M = worth_M

    def draws(self, seed: int, num: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.asarray(self._worth_M + 0.01 * rng.standard_normal((num, len(self._worth_M))))


@pytest.mark.parametrize("few", [False, True])
def test_helpful_harmful_and_redundant_are_told(few: bool) -> None:
    found = effects(State(few), Mixture.union("ac"), 0.9)
    assert found.is_exact is not few and found.num_known == (11 if few else 15)
    by_name = {each.dataset: each for each in found.datasets}
    assert found.datasets[0].dataset == "a" and found.datasets[-1].dataset == "c"
    if few:
        return
    assert by_name["a"].values["t"].value == pytest.approx(0.125, abs=0.01)
    assert found.harmful == ("c",)
    assert [each.datasets for each in found.redundant] == [("a", "b")]
    assert found.redundant[0].interaction.value == pytest.approx(-0.15, abs=0.01)
    assert by_name["c"].is_in_pick and by_name["c"].around.value == pytest.approx(-0.1, abs=0.01)
    assert not by_name["b"].is_in_pick and by_name["b"].around.value == pytest.approx(0.0, abs=0.01)
    frame = found.to_frame()
    assert list(frame.columns) == ["dataset", "target", "value", "low", "high"]
    assert len(frame) == 4 * 2


def test_known_subsets_are_taken_as_they_are() -> None:
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]])
    known = Known(weights, np.array([[1.0, 2.0, 5.0], [1.5, 2.5, 5.5]]), are_subsets=True)
    assert known.is_whole
    assert known(np.array([[1.0, 1.0], [1.0, 0.0]])).tolist() == [[5.0, 1.0], [5.5, 1.5]]

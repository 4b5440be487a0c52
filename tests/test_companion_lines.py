"""Companions in units of their scores, without which the targets of a search do not add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from worlds import World, best, search_through, setting_of

from mergetomix.mixtures.spaces import Subsets
from mergetomix.records import Mixture
from mergetomix.search.gradient.companions import (
    BELIEF,
    LEAST_SLOPE,
    in_units_of_scores,
    line,
    lines,
)
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Ask, Told

EIGHT, TEN = tuple("abcdefgh"), tuple("abcdefghij")


def blunt(world: World, factor: float) -> Callable[[Ask], Told]:
    """A world whose second target is a score, which rises `factor` times as its companion does."""

    def told(asked: Ask) -> Told:
        found = world.told(asked)
        values = {"t0": found.values["t0"], "t1": factor * float(np.tanh(found.values["t1"]))}
        objective = world.objective.combine(values)
        return Told(found.mixture, objective, values, found.gradients, found.values)

    return told


def test_a_line_is_that_of_least_squares_with_some_trials_of_belief_in_one() -> None:
    rng = np.random.default_rng(0)
    x_K = rng.normal(size=6)
    y_K = 5 * x_K + 2
    believed = BELIEF / 6
    found = line(x_K.tolist(), y_K.tolist())
    assert found.slope == pytest.approx((5 + believed) / (1 + believed))
    assert found.at(float(x_K.mean())) == pytest.approx(float(y_K.mean()))


@pytest.mark.parametrize(("companions", "scores"), [([0.3], [0.7]), ([0.2, 0.2], [0.1, 0.9])])
def test_without_any_spread_a_score_rises_as_its_companion(
    companions: list[float], scores: list[float]
) -> None:
    found = line(companions, scores)
    assert found.slope == 1.0 and found.at(companions[0]) == pytest.approx(np.mean(scores))


def test_a_companion_that_says_the_opposite_keeps_a_little_of_its_say() -> None:
    assert line([0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]).slope == LEAST_SLOPE


def test_what_has_a_derivative_of_its_own_stays_to_the_bit() -> None:
    answer = blunt(World(EIGHT), 10.0)
    told = [answer(Ask(mixture, gradient=True)) for mixture in Subsets(EIGHT).sample(5, 0)]
    found = lines(told)
    for each in told:
        after = in_units_of_scores(each, found)
        assert after.smooth is not None and each.smooth is not None
        assert after.gradients is not None and each.gradients is not None
        assert after.values == each.values and after.smooth["t0"] == each.smooth["t0"]
        assert after.gradients["t0"] == each.gradients["t0"]
        assert after.gradients["t1"] == pytest.approx(
            {n: found["t1"].slope * v for n, v in each.gradients["t1"].items()}
        )
        assert after.smooth["t1"] == found["t1"].at(each.smooth["t1"])
    assert found["t1"].slope > 3


def test_without_companions_nothing_changes() -> None:
    told = World(EIGHT).told(Ask(Mixture.union(["a"]), gradient=True))
    assert lines([told]) == {} and in_units_of_scores(told, {}) is told


def test_what_is_not_a_number_makes_no_line() -> None:
    told = [blunt(World(EIGHT), 10.0)(Ask(mixture)) for mixture in Subsets(EIGHT).sample(5, 0)]
    odd = replace(told[0], values={"t0": float("nan"), "t1": 1.0})
    assert lines([odd, *told[1:]]) == lines(told[1:]) and lines([odd]) == {}


@pytest.mark.parametrize("factor", [10.0, 0.1])
@pytest.mark.parametrize("seed", [0, 4, 5])
def test_a_score_that_rises_faster_than_its_companion_has_its_weight_in_the_search(
    seed: int, factor: float
) -> None:
    """Taken as they are, companions lead all six of these astray."""
    space = Subsets(TEN)
    told = blunt(World(TEN, 2, seed), factor)
    every = [told(Ask(mixture)) for mixture in space]
    state = search_through(
        build("gradient", setting_of(space, budget=38, differentiable=True)), told
    )
    assert best(state) == best(every)

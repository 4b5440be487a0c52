"""The contract that every strategy passes, over spaces and worlds that are drawn.

A strategy joins by its name in STRATEGIES; what it alone promises stands in a file of its own.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from drawn_spaces import law, subsets, weights
from hypothesis import example, given, reject
from hypothesis import strategies as st
from worlds import (
    ALL_SPACES,
    SPACES,
    Answer,
    Rugged,
    World,
    best,
    cost_of,
    is_in,
    search_through,
    searched,
    setting_of,
    tried,
)

from mergetomix.mixtures.spaces import Space, Subsets
from mergetomix.records import Mixture
from mergetomix.search.regression.strategy import NUM_ROUNDS
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Ask, Options, Setting, Strategy, Told

STRATEGIES = ["exhaustive", "gradient", "greedy", "optuna", "regression"]
OVER_WEIGHTS = ["gradient", "optuna", "regression"]
OTHER = Told(Mixture.union(["another"]), 1e9, {"t0": 1e9})


@dataclass(frozen=True)
class Case:
    """A strategy's search of a space in a world."""

    name: str
    setting: Setting
    answer: Answer

    @property
    def space(self) -> Space:
        return self.setting.space

    def build(self) -> Strategy:
        return build(self.name, self.setting)


def case_of(name: str, space: Space, seed: int = 0, budget: int | None = None) -> Case:
    world = World(space.names, seed=seed)
    return Case(name, setting_of(space, seed, budget, world=world), world.told)


@st.composite
def cases(
    draw: st.DrawFn, names: list[str] = STRATEGIES, budgets: st.SearchStrategy[int] | None = None
) -> Case:
    name = draw(st.sampled_from(names))
    space = draw(subsets() | weights() if name in OVER_WEIGHTS else subsets())
    seed, is_rugged = draw(st.integers(0, 9)), draw(st.booleans())
    world = Rugged(space.names, seed) if is_rugged else World(space.names, seed=seed)
    any_budget = st.integers(7, 14) if name in OVER_WEIGHTS else st.none() | st.integers(7, 14)
    budget = draw(any_budget if budgets is None else budgets)
    # the slow ones are in files of their own
    front = isinstance(space, Subsets) and draw(st.booleans())
    cheap = Options(regressor="log_linear")
    setting = setting_of(space, seed, budget, front=front, world=world, options=cheap)
    return Case(name, setting, world.told)


# --- what is tried


@law(25)
@given(cases())
@example(case_of("gradient", SPACES["one dataset"]))
@example(case_of("gradient", SPACES["nine"], budget=14))
@example(case_of("regression", SPACES["nothing to choose"]))
@example(case_of("regression", SPACES["two or three"], budget=20))
@example(case_of("optuna", SPACES["two or three"], budget=30))
@example(case_of("optuna", ALL_SPACES["capped weights"], budget=12))
def test_it_stays_in_the_space_and_the_budget_and_tries_nothing_twice(case: Case) -> None:
    state = search_through(case.build(), case.answer)
    assert state
    assert all(is_in(case.space, mixture) for mixture in tried(state))
    assert len(set(tried(state))) == len(state)
    assert case.setting.budget is None or cost_of(state) <= case.setting.budget


@law(20)
@given(cases(budgets=st.integers(1, 6)))
def test_a_budget_too_small_is_kept_or_refused_with_its_number(case: Case) -> None:
    budget = case.setting.budget
    try:
        strategy = case.build()
    except ValueError as error:
        assert f"forward passes, not {budget}" in str(error)
        return
    assert budget is not None
    assert 0 < cost_of(search_through(strategy, case.answer)) <= budget


@law(25)
@given(cases(["exhaustive", "greedy"], st.none()), st.integers(1, 40))
def test_a_search_that_learns_nothing_of_its_budget_is_cut_by_it(case: Case, budget: int) -> None:
    whole = search_through(case.build(), case.answer)
    cut = replace(case, setting=replace(case.setting, budget=budget))
    assert search_through(cut.build(), case.answer) == whole[:budget]


@law(15)
@given(cases(["exhaustive", "gradient", "optuna", "regression"], st.integers(70, 99)))
@example(case_of("gradient", SPACES["two or three"], budget=35))
@example(case_of("optuna", SPACES["two or three"], budget=35))
@example(case_of("regression", SPACES["two or three"], budget=35))
def test_a_budget_that_pays_for_every_mixture_finds_the_best_of_all(case: Case) -> None:
    if not isinstance(case.space, Subsets):
        reject()
    state = search_through(case.build(), case.answer)
    assert set(tried(state)) == set(case.space)
    every = [case.answer(Ask(mixture)) for mixture in case.space]
    assert best(state) == best(every)


@law(20)
@given(cases())
def test_what_is_no_number_is_lived_with(case: Case) -> None:
    def holed(asked: Ask) -> Told:
        told = case.answer(asked)
        if "b" not in asked.mixture.datasets:
            return told
        nothing = dict.fromkeys(told.values, math.nan)
        slopes = dict.fromkeys(case.space.names, math.nan)
        gradients = told.gradients and dict.fromkeys(told.gradients, slopes)
        return Told(told.mixture, math.nan, nothing, gradients)

    state = search_through(case.build(), holed)
    assert state
    assert all(is_in(case.space, mixture) for mixture in tried(state))
    assert len(set(tried(state))) == len(state)


# --- the seam


@law(20)
@given(cases())
def test_it_asks_the_same_until_it_is_told_and_takes_answers_in_that_order(case: Case) -> None:
    strategy, told = case.build(), list[Told]()
    while asked := strategy.ask():
        assert strategy.ask() == asked
        assert list(strategy.state()) == told
        assert len(told) + len(asked) <= strategy.expected() <= case.space.size
        last = asked[-1].mixture
        for wrong in (OTHER, replace(OTHER, mixture=last), *told[-1:]):
            if wrong.mixture != asked[0].mixture:
                with pytest.raises(ValueError, match="was not asked for"):
                    strategy.tell(wrong)
        if asked[0].gradient:
            with pytest.raises(ValueError, match=r"the gradient of .* was asked for"):
                strategy.tell(case.answer(Ask(asked[0].mixture)))
        assert (strategy.ask(), list(strategy.state())) == (asked, told)
        told.append(case.answer(asked[0]))
        strategy.tell(told[-1])
        if asked[1:]:
            assert strategy.ask() == asked[1:]
    assert list(strategy.state()) == told
    assert strategy.expected() == len(told)
    with pytest.raises(ValueError, match="was not asked for"):
        strategy.tell(told[-1])


@law(20)
@given(cases(), st.integers(0, 30))
def test_told_the_same_again_a_fresh_strategy_goes_on_the_same(case: Case, cut: int) -> None:
    whole = search_through(case.build(), case.answer)
    fresh = case.build()
    for told in whole[:cut]:
        assert fresh.ask()[0].mixture == told.mixture
        fresh.tell(told)
    assert search_through(fresh, case.answer) == whole


@law(25)
@given(cases(), st.integers(0, 4))
def test_what_is_asked_together_does_not_depend_on_the_answers(case: Case, step: int) -> None:
    """A batch stays what it is if its members turn out to be worth something else."""
    one, other = case.build(), case.build()
    for _ in range(step):
        for asked in one.ask():
            one.tell(case.answer(asked))
            other.tell(case.answer(asked))
    while len(waiting := one.ask()) > 1:
        told = case.answer(waiting[0])
        one.tell(told)
        values = {name: -3 * value - 1 for name, value in told.values.items()}
        other.tell(replace(told, objective=-3 * told.objective - 1, values=values))
        assert one.ask() == other.ask() == waiting[1:]


def batches(case: Case) -> list[list[Mixture]]:
    """What was asked together."""
    strategy, found = case.build(), list[list[Mixture]]()
    while asked := strategy.ask():
        found.append([each.mixture for each in asked])
        for each in asked:
            strategy.tell(case.answer(each))
    return found


def test_exhaustive_search_asks_all_at_once() -> None:
    space = SPACES["nine"]
    assert batches(case_of("exhaustive", space)) == [list(space)]
    assert batches(case_of("exhaustive", space, budget=5)) == [list(space)[:5]]


@law(15)
@given(cases(["greedy"]))
def test_greedy_search_asks_for_a_step_at_once(case: Case) -> None:
    """Each batch holds untried neighbours of one subset, all of one kind unless the budget ends."""
    space, known = case.space, set[frozenset[str]]()
    assert isinstance(space, Subsets)
    found = [{frozenset(each.datasets) for each in batch} for batch in batches(case)]
    for place, batch in enumerate(found):
        kinds = (space.larger, space.smaller, space.exchanged)
        steps = [set(kind(here)) - known for here in known for kind in kinds]
        is_cut = case.setting.budget is not None and place == len(found) - 1
        assert not known or any(batch <= step if is_cut else batch == step for step in steps)
        known |= batch


@pytest.mark.parametrize("name", ["nine", "capped weights"])
def test_regression_asks_for_a_round_at_once(name: str) -> None:
    found = batches(case_of("regression", ALL_SPACES[name], budget=24))
    assert len(found) == 1 + NUM_ROUNDS + 1
    first, *rounds, last = map(len, found)
    assert (first, sum(rounds), last) == (10, 13, 1)
    assert max(rounds) - min(rounds) <= 1


@pytest.mark.parametrize("strategy", ["gradient", "optuna"])
@pytest.mark.parametrize("name", ["nine", "capped weights"])
def test_gradients_and_samplers_ask_for_one_at_a_time(strategy: str, name: str) -> None:
    found = batches(case_of(strategy, ALL_SPACES[name], budget=16))
    assert len(found) > 5
    assert {len(batch) for batch in found} == {1}


# --- names and processes

CASES = [(name, "two or three") for name in STRATEGIES]
CASES += [(name, "capped weights") for name in OVER_WEIGHTS]


@pytest.mark.slow
def test_it_is_the_same_to_the_bit_in_a_process_of_another_hash_seed() -> None:
    code = "from worlds import searched; print([searched(*case) for case in {}])"
    paths = [str(Path(__file__).parents[level]) for level in (0, 1)]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code.format(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str([searched(*case) for case in CASES])


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_has_its_name(name: str) -> None:
    assert build(name, setting_of(SPACES["all"])).name == name


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="'exhuastive'"):
        build("exhuastive", setting_of(SPACES["all"]))

"""The contract that every strategy passes, over several spaces and objectives.

A strategy joins by its name in STRATEGIES; what it alone promises stands in a file of its own.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from worlds import ALL_SPACES, SPACES, WEIGHTS, Rugged, World, search_through, setting_of

from mergetomix.mixtures.spaces import Simplex, Space
from mergetomix.records import Mixture
from mergetomix.search.strategies import build, restore
from mergetomix.search.strategy import Ask, Strategy, Told

STRATEGIES = ["exhaustive", "gradient", "greedy", "optuna", "regression"]
OVER_WEIGHTS = ["gradient", "optuna", "regression"]
CASES = [(strategy, space) for strategy in STRATEGIES for space in SPACES]
CASES += [(strategy, space) for strategy in OVER_WEIGHTS for space in WEIGHTS]
BUDGETS = [1, 2, 3, 4, 7, 12, 25]

Answer = Callable[[Ask], Told]


@pytest.fixture(params=CASES, ids=" over ".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def name(case: tuple[str, str]) -> str:
    return case[0]


@pytest.fixture
def space(case: tuple[str, str]) -> Space:
    return ALL_SPACES[case[1]]


@pytest.fixture(params=[World, Rugged])
def answer(request: pytest.FixtureRequest, space: Space) -> Answer:
    return request.param(space.names).told


def is_in(space: Space, mixture: Mixture) -> bool:
    if isinstance(space, Simplex):
        return mixture in space
    datasets = frozenset(mixture.datasets)
    return datasets in space and mixture == space.mixture(datasets)


def test_it_stays_in_the_space_and_tries_nothing_twice(
    name: str, space: Space, answer: Answer
) -> None:
    asked = [told.mixture for told in search_through(build(name, setting_of(space)), answer)]
    assert asked
    assert all(is_in(space, mixture) for mixture in asked)
    assert len(set(asked)) == len(asked)


def test_it_asks_the_same_until_it_is_told(name: str, space: Space, answer: Answer) -> None:
    strategy = build(name, setting_of(space))
    while asked_now := strategy.ask():
        asked = asked_now[0]
        assert strategy.ask() == asked
        strategy.tell(answer(asked))
        assert strategy.ask() != asked
    assert strategy.ask() is None


def test_it_takes_no_answer_that_it_did_not_ask_for(
    name: str, space: Space, answer: Answer
) -> None:
    strategy = build(name, setting_of(space))
    other = Told(Mixture.union(["another"]), 1e9, {"t0": 1e9})
    while asked_now := strategy.ask():
        asked = asked_now[0]
        before = strategy.state()
        with pytest.raises(ValueError, match="another was not asked for"):
            strategy.tell(other)
        if asked.gradient:
            with pytest.raises(ValueError, match="the gradient of"):
                strategy.tell(answer(Ask(asked.mixture)))
        assert (strategy.ask(), strategy.state()) == (asked, before)
        strategy.tell(answer(asked))
    for told in strategy.state():
        with pytest.raises(ValueError, match="was not asked for"):
            strategy.tell(told)


def test_what_was_told_is_kept_in_order_and_never_more_than_expected(
    name: str, space: Space, answer: Answer
) -> None:
    strategy, told = build(name, setting_of(space)), []
    while asked_now := strategy.ask():
        asked = asked_now[0]
        assert list(strategy.state()) == told
        assert len(told) < strategy.expected() <= space.size
        told.append(answer(asked))
        strategy.tell(told[-1])
    assert list(strategy.state()) == told
    assert strategy.expected() == len(told)


def test_restored_at_any_cut_it_goes_on_as_if_uninterrupted(
    name: str, space: Space, answer: Answer
) -> None:
    whole = search_through(build(name, setting_of(space, seed=5)), answer)
    for cut in sorted({*range(min(6, len(whole))), len(whole) // 2, len(whole)}):
        part = search_through(build(name, setting_of(space, seed=5)), answer, cut)
        resumed = restore(build(name, setting_of(space, seed=5)), part)
        assert resumed.state() == part == whole[:cut]
        assert search_through(resumed, answer) == whole


def test_the_state_of_another_search_is_refused(name: str, space: Space) -> None:
    with pytest.raises(ValueError, match="another search"):
        restore(
            build(name, setting_of(space)), [Told(Mixture.union(["another"]), 1.0, {"t0": 1.0})]
        )


@pytest.mark.parametrize("budget", BUDGETS)
def test_it_ends_within_its_budget(name: str, space: Space, budget: int) -> None:
    try:
        strategy = build(name, setting_of(space, budget=budget))
    except ValueError as error:
        assert "budget" in str(error) and str(budget) in str(error)
        return
    spent, answer = 0, World(space.names).told
    while asked_now := strategy.ask():
        asked = asked_now[0]
        spent += asked.cost
        strategy.tell(answer(asked))
    assert 0 < spent <= budget
    assert strategy.expected() == len(strategy.state())


def test_stopped_at_any_time_it_has_a_best_that_only_gets_better(
    name: str, space: Space, answer: Answer
) -> None:
    state = search_through(build(name, setting_of(space)), answer)
    bests = list(itertools.accumulate((told.objective for told in state), max))
    assert bests == sorted(bests)
    assert bests[-1] == max(told.objective for told in state)


def test_nothing_depends_on_an_objective_that_is_no_number(
    name: str, space: Space, answer: Answer
) -> None:
    def holed(asked: Ask) -> Told:
        told = answer(asked)
        if "b" not in asked.mixture.datasets:
            return told
        gradients = told.gradients and {
            target: dict.fromkeys(each, float("nan")) for target, each in told.gradients.items()
        }
        return Told(told.mixture, float("nan"), dict.fromkeys(told.values, float("nan")), gradients)

    state = search_through(build(name, setting_of(space)), holed)
    assert state and all(is_in(space, told.mixture) for told in state)


def asked_in_a_new_process(hash_seed: str) -> str:
    code = (
        "from worlds import ALL_SPACES, World, search_through, setting_of\nfrom mergetomix.search.strategies import build\n"
        f"for name, key in {CASES}:\n    space = ALL_SPACES[key]\n"
        "    print(search_through(build(name, setting_of(space, 3)), World(space.names).told))\n"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{here}:{here.parent}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


def test_it_is_the_same_to_the_bit_in_a_new_process() -> None:
    one, other = (asked_in_a_new_process(hash_seed) for hash_seed in ("1", "2"))
    assert one == other
    assert len(one.splitlines()) == len(CASES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_has_its_name(name: str) -> None:
    strategy: Strategy = build(name, setting_of(SPACES["all"]))
    assert strategy.name == name


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="'exhuastive'"):
        build("exhuastive", setting_of(SPACES["all"]))

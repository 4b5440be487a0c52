"""Budgets in passes, examples and minutes; what a search says of its price while it runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from recipes import Heard, recipe_values, write_recipe
from worlds import SPACES, World, search_through, setting_of

import mergetomix as m2m
from mergetomix.errors import RecipeError
from mergetomix.mixtures.spaces import Subsets
from mergetomix.search.strategies import build
from mergetomix.session.session import open_session
from mergetomix.stages import pipeline, search, stopping
from mergetomix.stages.stopping import Limit, limit_of

DATASETS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store, so that experts are trained once."""
    return tmp_path_factory.mktemp("budget")


def recipe_of(folder: Path, wanted: Any, **search: Any) -> m2m.Recipe:
    values = recipe_values(folder, DATASETS, ("t", "u")) | {"search": {"budget": wanted, **search}}
    return m2m.load_recipe(write_recipe(folder, values))


def test_examples_are_passes_over_all_targets(folder: Path) -> None:
    with open_session(recipe_of(folder, "100 examples")) as session:
        each = sum(scorer.num_examples for scorer in session.inputs.targets("select").values())
        assert each == 12 and limit_of(session) == Limit(100 // 12)
    with open_session(recipe_of(folder, 7)) as session:
        assert limit_of(session) == Limit(7)
    with open_session(recipe_of(folder, None)) as session:
        assert limit_of(session) == Limit(None, None)


def test_minutes_are_what_the_base_took_and_stay_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(recipe_of(tmp_path, "2 minutes")) as session:
        assert limit_of(session) == Limit(None, 120.0)  # nothing was scored yet
        session.evaluations.base("select")
        monkeypatch.setattr(session.store, "seconds", lambda *rest: (0.0, 0.8))
        assert limit_of(session) == Limit(150, 120.0)
        monkeypatch.setattr(session.store, "seconds", lambda *rest: (0.0, 5.0))
        assert limit_of(session) == Limit(150, 120.0)
        assert limit_of(session).half() == limit_of(session).half(up=True) == Limit(75, 60.0)
    assert (Limit(7).half(), Limit(7).half(up=True), Limit().half()) == (
        Limit(3),
        Limit(4),
        Limit(),
    )


@pytest.mark.parametrize(
    ("wanted", "key", "message"),
    [
        (
            "11 examples",
            "search.budget",
            "11 examples, but the targets have 12 to score for every mixture",
        ),
        (
            "3 hours",
            "search.budget",
            "must be a number of forward passes, or such as .* not '3 hours'",
        ),
        (
            "0 minutes",
            "search.budget",
            "must be a number of forward passes, or such as .* not '0 minutes'",
        ),
        (0, "search.budget", "must be a number of forward passes, or such as .* not 0"),
        (True, "search.budget", "must not be true"),
    ],
)
def test_a_budget_that_is_none_is_named(folder: Path, wanted: Any, key: str, message: str) -> None:
    with (
        pytest.raises(RecipeError, match=message) as caught,
        open_session(recipe_of(folder, wanted)) as session,
    ):
        search.first_strategy(session)
    assert caught.value.where == key


def test_the_time_over_the_search_ends_with_its_best(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 25))  # seconds: every look at the clock takes 25
    with open_session(recipe_of(folder, "2 minutes", strategy="exhaustive")) as session:
        pipeline.train_experts(session)
        session.evaluations.base("select")
        monkeypatch.setattr(stopping.time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(session.store, "seconds", lambda *rest: (0.0, 1.0))
        found = search.search_mixtures(session)
    assert 1 <= len(found.trials) < 15
    assert found.mixture == max(found.trials, key=lambda trial: trial.objective).mixture


def test_half_of_a_limit_is_half_of_both() -> None:
    assert Limit(5, 3.0).half() == Limit(2, 1.5)
    assert Limit(None, 3.0).half(up=True) == Limit(None, 1.5)


def test_the_price_and_the_chance_of_more_are_said(folder: Path) -> None:
    heard = Heard()
    with open_session(recipe_of(folder, 12, strategy="gradient"), heard) as session:
        pipeline.train_experts(session)
        found = search.search_mixtures(session)
    assert len(heard.states) == len(found.trials)
    assert all("forward passes" in text for text in heard.states)
    assert " 12 forward passes" in heard.states[-1]
    assert f"best {found.trials[0].objective:+.4f} ({found.mixture})" in heard.states[-1]
    assert "chance that an untried mixture is better" in heard.states[-1]


def test_chances_are_chances_and_fall_to_none() -> None:
    for name, space in SPACES.items():
        strategy, answer = build("exhaustive", setting_of(space)), World(space.names).told
        last = 1.0
        while asked := strategy.ask():
            strategy.tell(answer(asked[0]))
            chance = strategy.chance()
            assert chance is not None and 0 <= chance < last, name
            last = chance
        assert last == pytest.approx(0)


def test_the_chance_that_gradients_give_is_high_before_and_low_after() -> None:
    space = Subsets(tuple("abcdefghij"))
    chances, answer = [], World(space.names, num_targets=1).told
    strategy = build("gradient", setting_of(space, budget=60))
    while asked := strategy.ask():
        strategy.tell(answer(asked[0]))
        chances.append(strategy.chance())
    known = [chance for chance in chances if chance is not None]
    assert all(0 <= chance <= 1 and not math.isnan(chance) for chance in known)
    assert known[-1] < 0.1 < max(known[:4])
    state = search_through(build("gradient", setting_of(space, budget=60)), answer)
    assert len(state) == len(chances)

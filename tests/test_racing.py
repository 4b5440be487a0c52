"""Races of real proxies: the same pick for fewer evaluations, which are kept in the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from recipes import WORDS, Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix.errors import DataError, RecipeError
from mergetomix.records import Mixture, Scores, Trial
from mergetomix.report import sentences
from mergetomix.report.result_json import stopped
from mergetomix.results import Selection
from mergetomix.search.strategy import Ask
from mergetomix.session.evaluations import trial_of
from mergetomix.session.inputs import Inputs
from mergetomix.session.session import open_session
from mergetomix.stages import pipeline, search
from mergetomix.stages import race as races
from mergetomix.stages.search import objective_of
from mergetomix.statistics import early_stopping

NUM_ROWS = 160
"""Rows of the target; half of them are the select part."""


def target_rows(folder: Path, num: int = NUM_ROWS) -> str:
    """Questions that no dataset has, answered as dataset a answers its own."""
    path = folder / "wide.jsonl"
    kinds = [f"what about a and {first} {second}?" for first in WORDS for second in WORDS] + [
        f"and then a and {first} {second}?" for first in WORDS for second in WORDS
    ]
    rows = [
        {"question": text, "answer": f" {WORDS[i % len(WORDS)]}"}
        for i, text in enumerate(kinds[:num])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def recipe_of(
    folder: Path, race: float | None, num_rows: int = NUM_ROWS, **changes: Any
) -> m2m.Recipe:
    values = recipe_values(folder, datasets=tuple("abcd"))
    values["targets"] = {
        "t": {"path": target_rows(folder, num_rows), "prompt": "question", "completion": "answer"}
    }
    values["search"] = {"racing": race, **changes.pop("search", {})}
    return m2m.load_recipe(write_recipe(folder, values | changes))


def searched(recipe: m2m.Recipe) -> Selection:
    with open_session(recipe, Heard()) as session:
        pipeline.train_experts(session)
        return search.search_mixtures(session)


def num_scores(recipe: m2m.Recipe) -> int:
    with open_session(recipe, Heard()) as session:
        return session.store.counts()["example_scores"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("races")


@pytest.fixture(scope="module")
def raced(folder: Path) -> tuple[m2m.Recipe, Selection, int]:
    """A race, and how many example scores the store holds after it."""
    recipe = recipe_of(folder, 0.05)
    return recipe, searched(recipe), num_scores(recipe)


@pytest.fixture(scope="module")
def whole(folder: Path, raced: tuple[m2m.Recipe, Selection, int]) -> Selection:
    """The same search on all examples, over the experts of the race."""
    return searched(recipe_of(folder, None))


def test_a_race_picks_the_same_for_fewer_evaluations(
    raced: tuple[m2m.Recipe, Selection, int], whole: Selection
) -> None:
    _, found, _ = raced
    assert found.mixture == whole.mixture and not whole.stopped
    assert {trial.mixture for trial in (*found.trials, *found.stopped)} == {
        trial.mixture for trial in whole.trials
    }
    assert len(found.stopped) >= 5 and found.num_evaluated < found.num_without_racing / 2
    assert whole.num_evaluated == whole.num_without_racing == found.num_without_racing


def test_only_trials_that_saw_everything_are_candidates(
    raced: tuple[m2m.Recipe, Selection, int], whole: Selection
) -> None:
    """Blocks put together are the scores in one go; a stopped trial is estimated, not ranked."""
    _, found, _ = raced
    exact = {trial.mixture: trial for trial in whole.trials}
    num = found.base["t"].num_examples
    for trial in (*found.trials, *found.singles):
        assert trial.complete and trial.num_examples == num
        assert trial.scores["t"].values == pytest.approx(
            exact[trial.mixture].scores["t"].values, abs=1e-5
        )
        assert trial.scores["t"].weights == exact[trial.mixture].scores["t"].weights
        assert trial.gains(found.base)["t"] == pytest.approx(trial.objective)
    spread = whole.trials[0].objective - whole.trials[-1].objective
    for trial in found.stopped:
        assert not trial.complete and early_stopping.LEAST <= trial.num_examples < num
        assert trial.objective < found.trials[0].objective
        assert trial.gains(found.base) == trial.estimates == {"t": pytest.approx(trial.objective)}
        assert trial.objective == pytest.approx(exact[trial.mixture].objective, abs=0.25 * spread)
    objectives = [trial.objective for trial in found.stopped]
    assert objectives == sorted(objectives, reverse=True)


def test_the_store_holds_every_score_once_and_a_second_race_adds_none(
    raced: tuple[m2m.Recipe, Selection, int], whole: Selection
) -> None:
    recipe, found, num = raced
    assert num == found.num_evaluated + found.base["t"].num_examples
    before = num_scores(recipe)
    again = recipe.model_copy(update={"search": recipe.search.model_copy(update={"racing": 0.1})})
    assert searched(again).stopped == ()  # the search without a race has scored all of them
    assert num_scores(recipe) == before


@pytest.fixture(scope="module")
def resumed_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[m2m.Recipe, tuple[Trial, ...], Selection, int]:
    """A race whose first four trials another process made: these, the outcome, the scores held."""
    folder = tmp_path_factory.mktemp("resumed")
    recipe = recipe_of(folder, 0.05, datasets=recipe_values(folder)["datasets"])
    with open_session(recipe, Heard()) as session:
        pipeline.train_experts(session)
        race = search.race_of(
            session,
            search.first_strategy(session),
            session.evaluations.base("select"),
            objective_of(session),
        )
        first = tuple(race.trial(Ask(mixture)) for mixture in list(session.spaces.searched)[:4])
    return recipe, first, searched(recipe), num_scores(recipe)


Resumed = tuple[m2m.Recipe, tuple[Trial, ...], Selection, int]


@pytest.fixture
def resumed(resumed_once: Resumed, tmp_path: Path) -> Resumed:
    """The same on a copy of its store: what a test scores changes later races."""
    recipe, *rest = resumed_once
    shutil.copytree(recipe.store, tmp_path / "store")
    return recipe.model_copy(update={"store": str(tmp_path / "store")}), *rest


def test_a_race_that_was_interrupted_goes_on_as_if_it_had_not_been(resumed: Resumed) -> None:
    recipe, first, found, num = resumed
    assert found.stopped and all(trial in (*found.trials, *found.stopped) for trial in first)
    assert num == found.num_evaluated + found.base["t"].num_examples
    again = searched(recipe)
    assert (again.trials, again.stopped) == (found.trials, found.stopped)
    assert num_scores(recipe) == num


def test_a_trial_with_a_gradient_is_not_raced(resumed: Resumed) -> None:
    recipe, _, found, _ = resumed
    with open_session(recipe, Heard()) as session:
        race = search.race_of(
            session, search.first_strategy(session), found.base, objective_of(session)
        )
        assert not race.trial(Ask(found.stopped[-1].mixture)).complete
        assert race.trial(Ask(found.stopped[-1].mixture, gradient=True)).complete


def test_a_search_that_does_not_ask_for_everything_has_no_incumbent_at_first(
    resumed: Resumed,
) -> None:
    """A mixture that the search has not asked for cannot be picked, so none is stopped for it."""
    recipe, _, found, _ = resumed
    with open_session(recipe, Heard()) as session:
        race = races.Race(session, found.base, objective_of(session), 0.05)
        race.start(all_asked=False)
        assert race.incumbent is None
        assert race.trial(Ask(found.stopped[0].mixture)).complete


def test_a_search_of_all_begins_with_what_the_experts_hold_to_be_best(
    resumed: Resumed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is complete before anything is raced, as the experts are."""
    recipe, _, found, _ = resumed
    pair = Mixture.union(["b", "c"])
    monkeypatch.setattr(races.Race, "_guessed", lambda *_: pair)
    with open_session(recipe, Heard()) as session:
        race = races.Race(session, found.base, objective_of(session), 0.05)
        race.start(all_asked=True)
        assert {each for each in race._values if len(each) > 1} == {pair}
        assert race.incumbent is not None and race.incumbent.complete


def test_what_one_more_of_a_value_is_in_gains() -> None:
    assert races.unit(Scores("score", (0.5,), (1.0,))) == 1
    assert races.unit(Scores("loss", (4.0,), (1.0,))) == -0.25
    assert races.unit(Scores("loss", (0.0,), (1.0,))) == -1  # a base that is right already


def test_what_checks_ask_for_is_completed_and_only_what_lacks_is_scored(resumed: Resumed) -> None:
    recipe, _, found, _ = resumed
    whole = found.base["t"].num_examples
    with open_session(recipe, Heard()) as session:
        for trial in found.stopped:
            assert (
                trial_of(
                    trial.mixture,
                    session.evaluations.proxy(trial.mixture, "select"),
                    found.base,
                    objective_of(session),
                ).num_examples
                == whole
            )
        assert session.store.counts()["example_scores"] == found.num_without_racing + whole
    again = searched(recipe)  # what is known since does not change a race
    assert (again.trials, again.stopped) == (found.trials, found.stopped)


def opened(recipe: m2m.Recipe) -> Inputs:
    with open_session(recipe, Heard()) as session:
        return session.inputs


def test_a_race_leaves_addresses_as_they_are_and_examples_in_an_order_of_their_own(
    folder: Path,
) -> None:
    plain, cut = (opened(recipe_of(folder, race)).targets("select")["t"] for race in (None, 0.05))
    assert plain.address == cut.address and not plain.blocks
    places = [place for block in cut.blocks for place in block.places]
    assert sorted(places) == list(range(cut.num_examples)) and places != sorted(places)
    assert [block.num_examples for block in cut.blocks] == [
        len(block.places) for block in cut.blocks
    ]
    assert len({*cut.addresses}) == 1 + len(cut.blocks)
    assert not opened(recipe_of(folder, 0.05)).targets("report")["t"].blocks


def test_what_was_stopped_is_told_apart(
    raced: tuple[m2m.Recipe, Selection, int], whole: Selection
) -> None:
    _, found, _ = raced
    text, tried = sentences.racing(found), len(found.trials) + len(found.stopped)
    assert f"{len(found.stopped)} of {tried} proxies were stopped early" in text
    assert (
        f"{found.num_evaluated:,} example evaluations instead of {found.num_without_racing:,}"
        in text
    )
    assert (
        sentences.num_proxies(found)
        == f"the {len(found.trials)} proxies of {tried} that saw every example"
    )
    assert not sentences.racing(whole) and sentences.num_proxies(whole) == "15 proxies"
    written = stopped(found.stopped[0])
    assert "objective" not in written and written["num_examples"] == {
        "t": found.stopped[0].num_examples
    }


def test_a_target_with_too_few_examples_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"targets\.t: search\.racing needs at least 24 select examples, and there are 10",
    ):
        opened(recipe_of(tmp_path, 0.05, num_rows=20))
    assert opened(recipe_of(tmp_path, None, num_rows=20)).targets("select")["t"].num_examples == 10


def scores_of_nothing(model: Any, processor: Any) -> list[float]:
    return [1.0] * 60


@pytest.mark.parametrize("racing", [0, 0.5, -1, True])
def test_the_error_probability_is_one(tmp_path: Path, racing: Any) -> None:
    with pytest.raises(RecipeError, match=r"search\.racing"):
        recipe_of(tmp_path, racing)


def test_a_function_without_data_cannot_be_raced(tmp_path: Path) -> None:
    function = {"f": {"score": "python", "function": "test_racing:scores_of_nothing"}}
    values = recipe_values(tmp_path) | {"targets": function, "search": {"racing": 0.05}}
    with pytest.raises(
        RecipeError,
        match=r"targets\.f is a function without data, which scores all its examples in every",
    ):
        m2m.load_recipe(write_recipe(tmp_path, values))

"""What search by Optuna's samplers promises: variables, fronts, resuming, trials in a database."""

from __future__ import annotations

import itertools
import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from worlds import ALL_SPACES, World, search_through, setting_of, tried

from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.objectives.pareto import is_front
from mergetomix.search.optuna.samplers import chosen
from mergetomix.search.optuna.storage import STUDY
from mergetomix.search.optuna.variables import ShareVariables, UnitVariables
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Ask, Options, SettingError, Told

EIGHT = Subsets(tuple("abcdefgh"))
BOUND = Subsets(tuple("abcdefg"), 3, 4, frozenset("g"), groups=(frozenset("ab"), frozenset("def")))


def units_in(space: Subsets, datasets: frozenset[str]) -> tuple[bool, ...]:
    return tuple(unit <= datasets for unit in space.units)


@pytest.mark.parametrize("space", [BOUND, ALL_SPACES["exactly three"], ALL_SPACES["in groups"]])
def test_values_that_make_no_mixture_stand_for_the_one_with_the_fewest_changes(
    space: Space,
) -> None:
    assert isinstance(space, Subsets)
    variables = UnitVariables(space, False, 0)
    every = [units_in(space, frozenset(mixture.datasets)) for mixture in space]

    def changes(one: tuple[bool, ...], other: tuple[bool, ...]) -> int:
        return sum(a != b for a, b in zip(one, other, strict=True))

    for bits in product([False, True], repeat=len(space.units)):
        mixture = variables.mixture(dict(zip(variables.distributions, bits, strict=True)))
        found = frozenset(mixture.datasets)
        assert found in space
        assert changes(bits, units_in(space, found)) == min(changes(bits, each) for each in every)


def test_relaxed_it_is_the_units_nearest_to_a_half_that_change() -> None:
    variables = UnitVariables(ALL_SPACES["exactly three"], True, 0)  # type: ignore[arg-type]
    lean = {"a": 0.9, "b": 0.55, "c": 0.8, "d": 0.7, "e": 0.1, "f": 0.2}
    assert variables.mixture(lean).datasets == ("a", "c", "d")
    assert variables.mixture(lean | {"b": 0.4, "d": 0.1, "e": 0.45}).datasets == ("a", "c", "e")


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_subset_as_variables_is_itself(relaxed: bool) -> None:
    variables = UnitVariables(BOUND, relaxed, 0)
    assert all(variables.mixture(variables.params(mixture)) == mixture for mixture in BOUND)


@pytest.mark.parametrize("name", ["weights", "capped weights"])
def test_weights_as_variables_are_themselves(name: str) -> None:
    space = ALL_SPACES[name]
    assert isinstance(space, Simplex)
    variables, rng = ShareVariables(space), np.random.default_rng(0)
    for mixture in [*space.sample(30, 0), *space.vertices()]:
        again = variables.mixture(variables.params(mixture)).as_dict()
        assert again == pytest.approx(mixture.as_dict(), abs=1e-3)
    for _ in range(50):
        assert variables.mixture({each: rng.uniform(1e-4, 1) for each in space.allowed}) in space


def test_uniform_variables_make_every_set_as_likely_and_its_weights_dirichlet() -> None:
    space = Simplex(("a", "b", "c"))
    variables, rng = ShareVariables(space), np.random.default_rng(0)
    values = rng.uniform(1e-4, 1, (3000, 3)).tolist()
    drawn = [variables.mixture(dict(zip(space.allowed, row, strict=True))) for row in values]
    whole = np.array([mixture.weights for mixture in drawn if len(mixture) == 3])
    assert len(whole) / 3000 == pytest.approx(1 / 8, abs=0.02)
    assert whole.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.04)
    assert whole.var(axis=0) == pytest.approx([1 / 18] * 3, rel=0.25)  # of Dirichlet(1, 1, 1)


@pytest.mark.parametrize(
    ("sampler", "front"),
    [("tpe", False), ("cmaes", False), ("gp", False), ("nsga2", True), ("nsga3", True)],
)
def test_every_sampler_goes_on_as_if_uninterrupted(sampler: Any, front: bool) -> None:
    for space in (BOUND if sampler == "gp" else EIGHT, ALL_SPACES["capped weights"]):
        budget = 13 if sampler == "gp" else 30
        setting = setting_of(space, 3, budget, front=front, options=Options(sampler=sampler))
        whole = search_through(build("optuna", setting), World(space.names).told)
        resumed = build("optuna", setting)
        for told in whole[: len(whole) // 2]:
            resumed.tell(told)
        assert search_through(resumed, World(space.names).told) == whole


def test_what_auto_is() -> None:
    assert chosen(setting_of(EIGHT), 5) == chosen(setting_of(EIGHT, front=True), 1) == "tpe"
    of_fronts = [chosen(setting_of(EIGHT, front=True), num) for num in (2, 3, 4, 9)]
    assert of_fronts == ["nsga2", "nsga2", "nsga3", "nsga3"]
    assert chosen(setting_of(EIGHT, options=Options(sampler="cmaes")), 1) == "cmaes"


def test_it_finds_most_of_a_small_front_and_more_than_draws() -> None:
    ours, drawn = [], []
    for seed in range(3):
        world = World(EIGHT.names, 2, seed)
        values = [list(world.told(Ask(mixture)).values.values()) for mixture in EIGHT]
        front = set(itertools.compress(EIGHT, is_front(values)))
        setting = setting_of(EIGHT, seed, 100, front=True)
        state = search_through(build("optuna", setting), world.told)
        ours.append(len(front & set(tried(state))) / len(front))
        drawn.append(len(front & set(EIGHT.sample(100, seed))) / len(front))
    assert np.mean(ours) > 0.7 and np.mean(ours) > np.mean(drawn) + 0.2


def study_in(path: Path) -> optuna.Study:
    return optuna.load_study(study_name=STUDY, storage=f"sqlite:///{path}")


def written(path: Path) -> list[tuple[int, Any]]:
    """What would change if a trial were written again."""
    return [(trial._trial_id, trial.datetime_complete) for trial in study_in(path).trials]


def weights_in(path: Path) -> list[Any]:
    return [trial.user_attrs["weights"] for trial in study_in(path).trials]


def run(path: Path, seed: int = 0, budget: int = 8, front: bool = False) -> list[Told]:
    options = Options(storage=f"sqlite:///{path}")
    setting = setting_of(EIGHT, seed, budget, front=front, options=options)
    return search_through(build("optuna", setting), World(EIGHT.names).told)


@pytest.mark.parametrize("front", [False, True])
def test_the_database_holds_every_trial_with_its_weights(tmp_path: Path, front: bool) -> None:
    state, study = run(tmp_path / "o.db", front=front), study_in(tmp_path / "o.db")
    assert study.metric_names == (["t0", "t1"] if front else ["objective"])
    for told, trial in zip(state, study.trials, strict=True):
        assert trial.user_attrs["weights"] == told.mixture.as_dict()
        assert trial.user_attrs["values"] == dict(told.values)
        assert trial.user_attrs["objective"] == told.objective
        assert trial.values == (list(told.values.values()) if front else [told.objective])
        assert set(trial.params) == set(EIGHT.names)
        assert trial.system_attrs == {}


def test_told_again_nothing_is_written_and_another_search_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    run(path)
    before = written(path)
    assert run(path)
    assert written(path) == before
    longer = run(path, budget=10)
    assert written(path)[:8] == before and len(written(path)) == len(longer) == 10
    state = run(path, seed=1)
    assert weights_in(path) == [told.mixture.as_dict() for told in state]
    front = run(path, seed=1, front=True)
    assert len(study_in(path).directions) == 2
    assert weights_in(path) == [told.mixture.as_dict() for told in front]


def test_a_database_changes_no_suggestion_also_if_it_is_of_another_search(tmp_path: Path) -> None:
    path, alone = tmp_path / "o.db", setting_of(EIGHT, 0, 8)
    expected = search_through(build("optuna", alone), World(EIGHT.names).told)
    run(path, seed=1, budget=12)
    assert run(path) == run(path) == expected
    assert optuna.get_all_study_names(f"sqlite:///{path}") == [STUDY]


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "o.db").write_text("no database")
    with pytest.raises(
        SettingError, match=r"o\.db cannot be opened as a storage of Optuna"
    ) as caught:
        run(tmp_path / "o.db")
    assert caught.value.key == "strategy"


def test_a_value_that_is_no_number_is_a_failed_trial(tmp_path: Path) -> None:
    def told(asked: Ask) -> Told:
        value = math.nan if "b" in asked.mixture.datasets else 0.5
        return Told(asked.mixture, value, {"t0": value})

    setting = setting_of(EIGHT, 0, 8, options=Options(storage=f"sqlite:///{tmp_path / 'o.db'}"))
    state = search_through(build("optuna", setting), told)
    failed = optuna.trial.TrialState.FAIL
    have_failed = [trial.state == failed for trial in study_in(tmp_path / "o.db").trials]
    assert have_failed == ["b" in each.mixture.datasets for each in state] and any(have_failed)


def test_nothing_is_written_before_the_first_answer(tmp_path: Path) -> None:
    options = Options(storage=f"sqlite:///{tmp_path / 'o.db'}")
    assert build("optuna", setting_of(EIGHT, options=options)).expected() > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "sampler", "key"), [("optuna", "auto", "strategy"), ("cmaes", "cmaes", "sampler")]
)
def test_a_package_that_is_not_there_is_named(
    package: str, sampler: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf'takes the package {package}: pip install "mergetomix\[search\]"'
    with pytest.raises(SettingError, match=message) as caught:
        build("optuna", setting_of(EIGHT, options=Options(sampler=sampler)))
    assert caught.value.key == key


def test_optuna_is_silent(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    before = optuna.logging.get_verbosity()
    search_through(build("optuna", setting_of(EIGHT, 0, 20, front=True)), World(EIGHT.names).told)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
    assert optuna.logging.get_verbosity() == before

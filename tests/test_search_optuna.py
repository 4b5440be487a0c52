"""What search by Optuna's samplers alone promises: variables, fronts, samplers that resume, trials in a database."""

from __future__ import annotations

import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from worlds import ALL_SPACES, World, search_through, setting_of

from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.search.samplers.samplers import chosen
from mergetomix.search.samplers.storage import STUDY
from mergetomix.search.samplers.variables import Members, Shares
from mergetomix.search.strategies import build, restore
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
    variables, every = (
        Members(space, False, 0),
        [units_in(space, frozenset(mixture.datasets)) for mixture in space],
    )
    for bits in product([False, True], repeat=len(space.units)):
        found = frozenset(
            variables.mixture(dict(zip(variables.distributions, bits, strict=True))).datasets
        )
        changes = [sum(a != b for a, b in zip(bits, other, strict=True)) for other in every]
        assert found in space
        assert sum(a != b for a, b in zip(bits, units_in(space, found), strict=True)) == min(
            changes
        )


def test_relaxed_it_is_the_units_nearest_to_a_half_that_change() -> None:
    variables = Members(ALL_SPACES["exactly three"], True, 0)  # type: ignore[arg-type]
    lean = {"a": 0.9, "b": 0.55, "c": 0.8, "d": 0.7, "e": 0.1, "f": 0.2}
    assert variables.mixture(lean).datasets == ("a", "c", "d")
    assert variables.mixture(lean | {"b": 0.4, "d": 0.1, "e": 0.45}).datasets == ("a", "c", "e")


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_subset_as_variables_is_itself(relaxed: bool) -> None:
    variables = Members(BOUND, relaxed, 0)
    assert all(variables.mixture(variables.params(mixture)) == mixture for mixture in BOUND)


@pytest.mark.parametrize("name", ["weights", "capped weights"])
def test_weights_as_variables_are_themselves(name: str) -> None:
    space = ALL_SPACES[name]
    assert isinstance(space, Simplex)
    variables, rng = Shares(space), np.random.default_rng(0)
    for mixture in [*space.sample(30, 0), *space.vertices()]:
        again = variables.mixture(variables.params(mixture)).as_dict()
        assert again == pytest.approx(mixture.as_dict(), abs=1e-3)
    for _ in range(50):
        assert variables.mixture({each: rng.uniform(1e-4, 1) for each in space.allowed}) in space


def test_uniform_variables_make_every_set_as_likely_and_its_weights_dirichlet() -> None:
    space = Simplex(("a", "b", "c"))
    variables, rng = Shares(space), np.random.default_rng(0)
    drawn = [
        variables.mixture(dict(zip(space.allowed, rng.uniform(1e-4, 1, 3), strict=True)))
        for _ in range(3000)
    ]
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
        setting, world = (
            setting_of(space, 3, budget, front=front, options=Options(sampler=sampler)),
            World(space.names),
        )
        whole = search_through(build("optuna", setting), world.told)
        for cut in (1, len(whole) // 2):
            assert (
                search_through(restore(build("optuna", setting), whole[:cut]), world.told) == whole
            )


def test_what_auto_is() -> None:
    assert chosen(setting_of(EIGHT), 5) == chosen(setting_of(EIGHT, front=True), 1) == "tpe"
    assert [chosen(setting_of(EIGHT, front=True), num) for num in (2, 3, 4, 9)] == [
        "nsga2",
        "nsga2",
        "nsga3",
        "nsga3",
    ]
    assert chosen(setting_of(EIGHT, options=Options(sampler="cmaes")), 1) == "cmaes"


def test_it_finds_most_of_a_small_front_and_more_than_draws() -> None:
    ours, drawn = [], []
    for seed in range(3):
        world = World(EIGHT.names, 2, seed)
        values = {
            mixture: np.array(list(world.told(Ask(mixture)).values.values())) for mixture in EIGHT
        }
        front = {
            one
            for one in values
            if not any(
                (v >= values[one]).all() and (v > values[one]).any() for v in values.values()
            )
        }
        state = search_through(
            build("optuna", setting_of(EIGHT, seed, 100, front=True)), world.told
        )
        ours.append(len(front & {told.mixture for told in state}) / len(front))
        drawn.append(len(front & set(EIGHT.sample(100, seed))) / len(front))
    assert np.mean(ours) > 0.7 and np.mean(ours) > np.mean(drawn) + 0.2


def kept(path: Path) -> optuna.Study:
    return optuna.load_study(study_name=STUDY, storage=f"sqlite:///{path}")


def run(path: Path, seed: int = 0, budget: int = 8, front: bool = False) -> list[Told]:
    options = Options(storage=f"sqlite:///{path}")
    return search_through(
        build("optuna", setting_of(EIGHT, seed, budget, front=front, options=options)),
        World(EIGHT.names).told,
    )


@pytest.mark.parametrize("front", [False, True])
def test_the_database_holds_every_trial_with_its_weights(tmp_path: Path, front: bool) -> None:
    state, study = run(tmp_path / "o.db", front=front), kept(tmp_path / "o.db")
    assert study.metric_names == (["t0", "t1"] if front else ["objective"])
    assert [trial.user_attrs["weights"] for trial in study.trials] == [
        told.mixture.as_dict() for told in state
    ]
    assert [trial.user_attrs["values"] for trial in study.trials] == [
        dict(told.values) for told in state
    ]
    assert [trial.values for trial in study.trials] == [
        list(told.values.values()) if front else [told.objective] for told in state
    ]
    assert all(set(trial.params) == set(EIGHT.names) for trial in study.trials)


def test_told_again_nothing_is_written_and_another_search_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    run(path)
    before = [(trial._trial_id, trial.datetime_complete) for trial in kept(path).trials]
    assert (
        run(path)
        and [(trial._trial_id, trial.datetime_complete) for trial in kept(path).trials] == before
    )
    state = run(path, seed=1)
    assert [trial.user_attrs["weights"] for trial in kept(path).trials] == [
        told.mixture.as_dict() for told in state
    ]
    assert run(path, seed=1, front=True) and len(kept(path).directions) == 2


def test_a_value_that_is_no_number_is_a_failed_trial(tmp_path: Path) -> None:
    def told(asked: Ask) -> Told:
        value = math.nan if "b" in asked.mixture.datasets else 0.5
        return Told(asked.mixture, value, {"t0": value})

    setting = setting_of(EIGHT, 0, 8, options=Options(storage=f"sqlite:///{tmp_path / 'o.db'}"))
    state = search_through(build("optuna", setting), told)
    failed = [
        trial.state == optuna.trial.TrialState.FAIL for trial in kept(tmp_path / "o.db").trials
    ]
    assert failed == ["b" in each.mixture.datasets for each in state] and any(failed)


def test_nothing_is_written_before_the_first_answer(tmp_path: Path) -> None:
    build(
        "optuna", setting_of(EIGHT, options=Options(storage=f"sqlite:///{tmp_path / 'o.db'}"))
    ).expected()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "sampler", "key"), [("optuna", "auto", "strategy"), ("cmaes", "cmaes", "sampler")]
)
def test_a_package_that_is_not_there_is_named(
    package: str, sampler: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SettingError, match=rf'takes the package {package}: pip install "mergetomix\[search\]"'
    ) as caught:
        build("optuna", setting_of(EIGHT, options=Options(sampler=sampler)))
    assert caught.value.key == key


def test_optuna_is_silent(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    before = optuna.logging.get_verbosity()
    search_through(build("optuna", setting_of(EIGHT, 0, 20, front=True)), World(EIGHT.names).told)
    assert (
        capfd.readouterr() == ("", "")
        and not list(recwarn)
        and optuna.logging.get_verbosity() == before
    )

"""Search by regression and by Optuna's samplers: what they alone promise."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from recipes import recipe_values, write_recipe
from worlds import World, best, search_through, setting_of

import mergetomix as m2m
from mergetomix.errors import RecipeError
from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Options, SettingError
from mergetomix.session.session import open_session
from mergetomix.stages import pipeline, search

SPACE = Subsets(tuple("abcdefgh"))


def found(
    name: str, seed: int, space: Space = SPACE, budget: int = 30, options: Options | None = None
) -> float:
    world = World(space.names, seed=seed, num_targets=1)
    setting = setting_of(space, seed, budget, options=options or Options())
    return world.worth(best(search_through(build(name, setting), world.told)))


@pytest.mark.parametrize("name", ["regression", "optuna"])
def test_it_is_better_than_random_draws_at_the_same_price(name: str) -> None:
    ours, drawn = [], []
    for seed in range(4):
        world = World(SPACE.names, seed=seed, num_targets=1)
        every = sorted(world.worth(mixture) for mixture in SPACE)
        place = {worth: i for i, worth in enumerate(every)}
        ours.append(place[found(name, seed)])
        drawn.append(max(place[world.worth(mixture)] for mixture in SPACE.sample(30, seed)))
    assert fmean(ours) > fmean(drawn)


@pytest.mark.parametrize("regressor", ["lightgbm", "log_linear", "gp"])
def test_every_regressor_searches_weights(regressor: Any) -> None:
    space = Simplex(tuple("abcd"), min_share=0.05)
    world = World(space.names, seed=1, num_targets=1)
    mean = fmean(world.worth(mixture) for mixture in space.sample(50, 0))
    assert found("regression", 1, space, 16, Options(regressor=regressor)) > mean


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "nsga2"])
def test_every_sampler_searches_subsets_and_resumes(sampler: Any) -> None:
    setting = setting_of(SPACE, 3, 12, options=Options(sampler=sampler))
    told = search_through(build("optuna", setting), World(SPACE.names).told)
    assert len({each.mixture for each in told}) == len(told) == 12
    assert search_through(build("optuna", setting), World(SPACE.names).told) == told


def test_what_a_sampler_cannot_do_is_named() -> None:
    with pytest.raises(SettingError, match="cmaes searches for one objective"):
        build("optuna", setting_of(SPACE, 0, 12, front=True, options=Options(sampler="cmaes")))
    with pytest.raises(SettingError, match="budget"):
        build("regression", setting_of(SPACE, 0, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "more"), [("regression", {"regressor": "gp"}), ("optuna", {"sampler": "tpe"})]
)
def test_a_recipe_searches_so(tmp_path: Path, strategy: str, more: dict[str, str]) -> None:
    values = recipe_values(tmp_path, ("a", "b", "c", "d")) | {
        "search": {"strategy": strategy, "budget": 6, **more}
    }
    with open_session(m2m.load_recipe(write_recipe(tmp_path, values))) as session:
        pipeline.train_experts(session)
        selection = search.search_mixtures(session)
    assert selection.strategy == strategy and len(selection.trials) == 6
    assert (tmp_path / "run" / "optuna.db").exists() == (strategy == "optuna")


def test_an_option_of_another_strategy_is_named(tmp_path: Path) -> None:
    values = recipe_values(tmp_path) | {"search": {"strategy": "greedy", "sampler": "tpe"}}
    with pytest.raises(RecipeError, match="sampler is for strategy: optuna, not greedy"):
        m2m.load_recipe(write_recipe(tmp_path, values))

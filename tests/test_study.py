"""The study: worlds whose answers are known, and one whole study of a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import WORDS, recipe_values, write_recipe
from typer.testing import CliRunner

import mergetomix as m2m
from mergetomix import training
from mergetomix.cli.main import app
from mergetomix.errors import TrainingError, UserError
from mergetomix.records import Mixture
from mergetomix.study import compare, document, rivals, study
from mergetomix.study.truth import World

NAMES = "abcd"
MIXTURES = tuple(Mixture.union(chosen) for k in range(1, 5) for chosen in combinations(NAMES, k))


def world(noise: float = 0.0, seed: int = 0) -> World:
    """Reals are linear in the weights; proxies are reals with noise, but for single datasets."""
    rng = np.random.default_rng(seed)
    values = dict(zip(NAMES, rng.permutation(4).astype(float), strict=True))
    real = np.array([sum(w * values[n] for n, w in m.as_dict().items()) for m in MIXTURES])
    single = np.array([len(m) == 1 for m in MIXTURES])
    proxy = np.where(single, real, real + noise * rng.normal(size=len(real)))
    tokens = np.array([100.0 * len(m) for m in MIXTURES])
    return World(
        seed,
        "t",
        "loss",
        MIXTURES,
        {1.0: proxy},
        1.0,
        proxy,
        proxy,
        real,
        real,
        0.0,
        0.0,
        tokens,
        400.0,
        10,
    )


def test_the_oracle_has_no_regret_and_a_random_pick_has_one() -> None:
    perfect = world()
    races = [compare.race(each, 1) for each in (perfect, replace(perfect, seed=1))]
    found = {each.name: each for each in compare.standings(races, 0.9)}
    assert found["Merge to Mix, unchecked"].normalised.value == 0
    assert found["Merge to Mix with checks"].rank.value == 1
    first = [next(rivals.random_choice(replace(perfect, seed=s), 1, 0.0))[0][1] for s in range(400)]
    regrets = (perfect.real_report_M.max() - perfect.real_report_M[first]) / compare.mean_regret(
        perfect
    )
    assert np.mean(regrets) == pytest.approx(1, abs=0.1)


def test_no_rival_spends_more_than_it_may() -> None:
    noisy = world(noise=1.0)
    for standing in compare.standings([compare.race(noisy, 5)], 0.9):
        assert standing.compute <= 1 + 1e-9, standing.name


def test_every_rival_that_may_spend_more_spends_the_budget() -> None:
    flat = world(noise=1.0)
    race = compare.race(flat, 3)
    for name in ("linear", "LightGBM (RegMix)"):
        for curve in race.curves[f"regression on real runs, {name}"]:
            affordable = [spent for spent, _ in curve if spent <= race.budget]
            cheapest = min(flat.check_cost(row) for row in range(len(MIXTURES)))
            largest = max(flat.check_cost(row) for row in range(len(MIXTURES)))
            assert race.budget - affordable[-1] < largest and affordable[-1] > cheapest
            assert curve[-1][0] > race.budget


def test_intervals_draw_targets_with_all_their_seeds() -> None:
    found = compare.estimate([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], ["a", "a", "a", "b", "b", "b"], 0.9)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_compute_counts_three_for_a_token_trained_and_one_for_a_token_read() -> None:
    flat = world()
    assert flat.check_cost(0) == 3 * 100 + 10
    assert flat.proxies_cost == 4 * 3 * 100 + 15 * 10
    steps = rivals.checked(flat, 1)
    assert steps[1].compute == steps[0].compute + flat.check_cost(steps[1].checked[0])


def test_checks_mend_a_choice_that_proxies_get_wrong() -> None:
    regrets = []
    for num in (0, 4):
        picks = [
            (w, rivals.checked(w, num)[-1].pick)
            for w in (world(noise=1.5, seed=s) for s in range(30))
        ]
        regrets.append(
            np.mean([w.real_select_M.max() - w.real_select_M[pick] for w, pick in picks])
        )
    assert regrets[1] < 0.7 * regrets[0]


def test_faith_is_one_for_perfect_proxies() -> None:
    (found,) = compare.faith([world(), replace(world(), seed=1)])
    assert found.spearman[1.0] == pytest.approx(1) and found.noise_sd == pytest.approx(0, abs=1e-9)


def test_a_whole_study_and_again_from_the_store(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["train"]["max_steps"] = 1
    values["study"] = {"seeds": [0, 1], "exponents": [0.5], "num_draws": 2}
    path = write_recipe(tmp_path, values)
    result = CliRunner().invoke(app, ["study", str(path)])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "run" / "study.json").read_text())
    assert written["num_finetunes"] == 14 and len(written["worlds"]) == 2
    assert {"proxy-real.svg", "regret-compute.svg", "study.md"} <= {
        file.name for file in (tmp_path / "run").iterdir()
    }
    (read, *_) = document.read_worlds(tmp_path / "run" / "study.json")
    again = study.run(m2m.load_recipe(path))
    assert read.mixtures == again.worlds[0].mixtures
    np.testing.assert_allclose(read.proxies[0.5], again.worlds[0].proxies[0.5], atol=1e-6)
    np.testing.assert_allclose(read.real_report_M, again.worlds[0].real_report_M, atol=1e-6)
    folder = study.write(again, m2m.load_recipe(path))
    assert json.loads((folder / "study.json").read_text())["standings"] == written["standings"]


def test_a_mixture_whose_training_fails_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = recipe_values(tmp_path)
    values["train"]["max_steps"] = 1
    values["study"] = {"seeds": [0, 1], "exponents": [0.5], "num_draws": 2}
    original = training.finetune

    def failing(family: Any, sequences: Any, settings: Any, *rest: Any) -> Any:
        if len(sequences) == 3 * len(WORDS) and settings.seed == 1:
            raise TrainingError("the loss is nan at step 1")
        return original(family, sequences, settings, *rest)

    monkeypatch.setattr(training, "finetune", failing)
    found = study.run(m2m.load_recipe(write_recipe(tmp_path, values)))
    assert [len(world.mixtures) for world in found.worlds] == [7, 6] and found.num_finetunes == 13
    assert str(found.worlds[1].failures[0][0]) == "a + b + c"
    assert found.faith[0].noise_sd is not None
    assert "seed 1: a + b + c (the loss is nan at step 1" in document.render(found)


def test_a_study_of_mixtures_of_several_datasets_alone(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["train"]["max_steps"] = 1
    values["search"] = {"min_datasets": 2}
    values["study"] = {"seeds": [0], "exponents": [], "num_draws": 2}
    found = study.run(m2m.load_recipe(write_recipe(tmp_path, values)))
    assert all(len(mixture) > 1 for mixture in found.worlds[0].mixtures)
    assert found.worlds[0].proxies_cost > 3 * found.worlds[0].expert_tokens > 0
    assert found.absent[
        "best single dataset"
    ] == 1 and "best single dataset: no answer for 1 of 1" in document.render(found)


def test_too_small_a_sample_is_refused(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, datasets=tuple("abcdef"))
    values["study"] = {"seeds": [0], "num_mixtures": 6}
    with pytest.raises(
        UserError, match=r"study.num_mixtures: 6 mixtures, .* at least 7 are needed"
    ):
        study.run(m2m.load_recipe(write_recipe(tmp_path, values)))


def test_a_large_study_says_its_cost_first(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["study"] = {"max_finetunes": 20}
    with pytest.raises(
        UserError, match=r"makes 21 fine-tunes, more than study.max_finetunes \(20\)"
    ):
        study.run(m2m.load_recipe(write_recipe(tmp_path, values)))

"""The study: worlds whose answers are known, and one whole study of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from mergetomix.cli.commands import app
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
    parts = (proxy, proxy, real, real, 0.0, 0.0, tokens, 400.0, 10)
    return World(seed, "t", "loss", MIXTURES, {1.0: proxy}, 1.0, *parts)


def test_the_oracle_has_no_regret_and_a_random_pick_has_one() -> None:
    perfect = world()
    contests = [compare.contest(each, 1) for each in (perfect, replace(perfect, seed=1))]
    found = {each.name: each for each in compare.standings(contests, 0.9)}
    assert found["Merge to Mix, unchecked"].normalised.value == 0
    assert found["Merge to Mix with checks"].rank.value == 1
    firsts = [rivals.random_choice(replace(perfect, seed=seed), 1, 0.0) for seed in range(400)]
    rows = [next(curves)[0][1] for curves in firsts]
    regrets = perfect.real_report_M.max() - perfect.real_report_M[rows]
    assert np.mean(regrets) / contests[0].random_regret == pytest.approx(1, abs=0.1)


def test_no_rival_spends_more_than_it_may() -> None:
    noisy = world(noise=1.0)
    for standing in compare.standings([compare.contest(noisy, 3)], 0.9):
        if "the floor" in standing.name:  # what noise leaves, at any price
            assert standing.compute > 1
        else:
            assert standing.compute <= 1 + 1e-9, standing.name


def test_the_floor_is_what_real_scores_alone_would_pick() -> None:
    noisy = world(noise=1.0)
    contest = compare.contest(noisy, 3)
    ((_, picked),) = contest.curves["best of all real runs by their select scores, the floor"][0]
    assert picked == int(np.argmax(noisy.real_select_M))
    (merges,) = contest.curves["the best merges, fine-tuned, the best kept"]
    best_first = np.argsort(-noisy.proxy_M, kind="stable")
    spent = [compute for compute, _ in merges]
    assert spent == sorted(spent) and spent[0] == noisy.proxies_cost
    assert merges[0][1] == merges[1][1] == best_first[0]
    of_three = max(best_first[:3], key=lambda row: noisy.real_select_M[row])
    assert merges[3][1] == of_three


def test_every_rival_that_may_spend_more_spends_the_budget() -> None:
    flat = world(noise=1.0)
    contest = compare.contest(flat, 2)
    costs = [flat.check_cost(row) for row in range(len(MIXTURES))]
    for name in ("linear", "LightGBM (RegMix)"):
        for curve in contest.curves[f"regression on real runs, {name}"]:
            affordable = [spent for spent, _ in curve if spent <= contest.budget]
            assert contest.budget - affordable[-1] < max(costs) and affordable[-1] > min(costs)
            # trees are fitted at some numbers of runs, of which the next may lie too far on
            assert curve[-1][0] > contest.budget or name != "linear"


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
    regrets: dict[int, list[float]] = {0: [], 4: []}
    for noisy in (world(noise=1.5, seed=seed) for seed in range(30)):
        for num, list_ in regrets.items():
            pick = rivals.checked(noisy, num)[-1].pick
            list_.append(float(noisy.real_select_M.max() - noisy.real_select_M[pick]))
    assert np.mean(regrets[4]) < 0.7 * np.mean(regrets[0])


def test_ranks_are_perfect_for_perfect_proxies() -> None:
    (found,) = compare.target_ranks([world(), replace(world(), seed=1)])
    assert found.spearman[1.0] == pytest.approx(1) and found.noise_sd == pytest.approx(0, abs=1e-9)


# --- one study of a tiny model, in which one mixture's training fails


def values_of(folder: Path, **changes: Any) -> dict[str, Any]:
    values = recipe_values(folder)
    values["train"]["max_steps"] = 1
    return {**values, "study": {"seeds": [0, 1], "exponents": [0.5], "num_draws": 1}, **changes}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a study, made by the command line; the union of all fails with seed 1."""
    folder, original = tmp_path_factory.mktemp("study"), training.finetune

    def failing(family: Any, sequences: Any, settings: Any, *rest: Any) -> Any:
        if len(sequences) == 3 * len(WORDS) and settings.seed == 1:
            raise TrainingError("the loss is nan at step 1")
        return original(family, sequences, settings, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "finetune", failing)
        result = CliRunner().invoke(app, ["study", str(write_recipe(folder, values_of(folder)))])
        assert result.exit_code == 0, result.output
        yield folder


@pytest.mark.slow
def test_a_whole_study_and_again_from_the_store(finished: Path) -> None:
    run, recipe = finished / "run", m2m.load_recipe(finished / "recipe.yaml")
    written = json.loads((run / "study.json").read_text())
    assert written["num_finetunes"] == 13 and len(written["worlds"]) == 2
    pictures = {"proxy-real.svg", "regret-compute.svg"}
    assert pictures <= {file.name for file in run.iterdir()}
    (read, _) = document.read_worlds(run / "study.json")
    again = study.run(recipe)
    assert read.mixtures == again.worlds[0].mixtures
    np.testing.assert_allclose(read.proxies[0.5], again.worlds[0].proxies[0.5], atol=1e-6)
    np.testing.assert_allclose(read.real_report_M, again.worlds[0].real_report_M, atol=1e-6)
    assert document.to_dict(again)["standings"] == written["standings"]
    assert document.render(again) == (run / "study.md").read_text()


@pytest.mark.slow
def test_a_mixture_whose_training_fails_is_left_out_and_named(finished: Path) -> None:
    worlds = document.read_worlds(finished / "run" / "study.json")
    assert [len(each.mixtures) for each in worlds] == [7, 6]
    assert str(worlds[1].failures[0][0]) == "a + b + c"
    page = (finished / "run" / "study.md").read_text()
    assert "seed 1: a + b + c (the loss is nan at step 1" in page
    (ranks,) = compare.target_ranks(worlds)
    assert ranks.noise_sd is not None


@pytest.mark.slow
def test_a_study_of_mixtures_of_several_datasets_alone(finished: Path) -> None:
    options = {"seeds": [0], "exponents": [], "num_draws": 1}
    values = values_of(finished, search={"min_datasets": 2}, study=options)
    found = study.run(m2m.load_recipe(write_recipe(finished, values, "several.yaml")))
    assert all(len(mixture) > 1 for mixture in found.worlds[0].mixtures)
    assert found.worlds[0].proxies_cost > 3 * found.worlds[0].expert_tokens > 0
    assert found.absent["best single dataset"] == 1
    assert "best single dataset: no answer for 1 of 1" in document.render(found)


def test_too_small_a_sample_is_refused(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, datasets=tuple("abcdef"))
    values["study"] = {"seeds": [0], "num_mixtures": 6}
    said = r"study.num_mixtures: 6 mixtures, .* at least 7 are needed"
    with pytest.raises(UserError, match=said):
        study.run(m2m.load_recipe(write_recipe(tmp_path, values)))


def test_a_large_study_says_its_cost_first(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["study"] = {"max_finetunes": 20}
    said = r"makes 21 fine-tunes, more than study.max_finetunes \(20\)"
    with pytest.raises(UserError, match=said):
        study.run(m2m.load_recipe(write_recipe(tmp_path, values)))

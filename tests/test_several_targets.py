"""Runs with two targets on a tiny real model: each objective from the search to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix.cli import console
from mergetomix.errors import RecipeError
from mergetomix.objectives.objective import gains
from mergetomix.objectives.pareto import is_front
from mergetomix.recipe.recipe import Recipe
from mergetomix.session.session import open_session
from mergetomix.stages import search
from mergetomix.stages.stopping import Limit
from mergetomix.statistics.agreement import paired_difference

AIMS = ("gain", "standard_errors", "worst", "pareto")
Runs = dict[str, tuple[m2m.Result, dict[str, Any], str]]


def values_of(
    folder: Path, aim: str, targets: tuple[str, ...] = ("t", "u"), **search: Any
) -> dict[str, Any]:
    values = recipe_values(folder, targets=targets)
    values["train"]["max_steps"] = 2
    final = {"baselines": [], "train": aim == "pareto"}
    return values | {
        "search": {"objective": aim, **search},
        "run_dir": f"run-{aim}",
        "final": final,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aims")


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    """A run for each objective, all with one store."""
    found = {}
    for aim in AIMS:
        result = m2m.run(write_recipe(folder, values_of(folder, aim)), Heard())
        written = json.loads((folder / f"run-{aim}" / "result.json").read_text())
        found[aim] = (result, written, (folder / f"run-{aim}" / "report.md").read_text())
    return found


def gains_of(result: m2m.Result) -> np.ndarray:
    """The gains of all trials on both targets, in the order of their mixtures."""
    trials = sorted(result.selection.trials, key=lambda trial: trial.mixture)
    return np.array(
        [
            [gains(trial.scores, result.selection.base)[name] for name in ("t", "u")]
            for trial in trials
        ]
    )


def objectives_of(result: m2m.Result) -> np.ndarray:
    return np.array(
        [
            trial.objective
            for trial in sorted(result.selection.trials, key=lambda trial: trial.mixture)
        ]
    )


def test_every_objective_is_its_formula_over_the_same_trials(runs: Runs) -> None:
    values = gains_of(runs["gain"][0])
    assert len(values) == 7
    assert all(np.array_equal(gains_of(result), values) for result, _, _ in runs.values())
    assert objectives_of(runs["gain"][0]) == pytest.approx(values.mean(axis=1))
    assert objectives_of(runs["worst"][0]) == pytest.approx(values.min(axis=1))
    knees = objectives_of(runs["pareto"][0])
    front = values[is_front(values)]
    wide = np.where(np.ptp(front, axis=0) > 0, np.ptp(front, axis=0), np.ptp(values, axis=0))
    parts = 1 - (front.max(axis=0) - values) / wide
    assert knees == pytest.approx(parts.min(axis=1) + 1e-3 * parts.mean(axis=1))
    assert is_front(values)[knees.argmax()]


def test_the_standard_errors_are_those_of_the_experts(runs: Runs) -> None:
    selection = runs["standard_errors"][0].selection
    units = {}
    for name, base in selection.base.items():
        each = [
            paired_difference(e.scores[name].values, base.values, base.weights)[1]
            for e in selection.singles
        ]
        units[name] = float(np.median(each)) / base.mean
    expected = (gains_of(runs["gain"][0]) / [units["t"], units["u"]]).mean(axis=1)
    assert objectives_of(runs["standard_errors"][0]) == pytest.approx(
        expected, rel=0.2
    )  # other draws of the examples
    assert selection.objective is not None and set(selection.objective.units) == {"t", "u"}


@pytest.mark.parametrize("aim", AIMS)
def test_checks_and_the_final_table_go_by_the_objective_of_the_search(runs: Runs, aim: str) -> None:
    result = runs[aim][0]
    objective, found = result.selection.objective, result.verification
    assert objective is not None and objective.aim == aim and found is not None and found.checks
    for check in found.checks:
        assert check.real == pytest.approx(objective.of(check.scores, result.selection.base))
        line = next(each for each in found.predictions if each.mixture == check.mixture)
        assert line.measured and line.low < line.high
    base = result.table[0].scores
    assert [row.gain for row in result.table] == pytest.approx(
        [objective.of(row.scores, base) for row in result.table]
    )
    for line in found.predictions:
        assert line.low < line.mean < line.high


@pytest.mark.parametrize("aim", AIMS)
def test_the_report_shows_what_each_target_gives_up(runs: Runs, aim: str) -> None:
    result, written, report = runs[aim]
    values = gains_of(result)
    trials = sorted(result.selection.trials, key=lambda trial: trial.mixture)
    picked = next(i for i, trial in enumerate(trials) if trial.mixture == result.selected)
    for column, name in enumerate(("t", "u")):
        line = written["given_up"][name]
        assert (line["gain"], line["best"]) == pytest.approx(
            (values[picked, column], values[:, column].max())
        )
        assert line["less"] == pytest.approx(line["best"] - line["gain"]) and line["less"] >= 0
        assert f"| {name} | {line['gain']:+.4f} | {line['best']:+.4f} |" in report
    assert "## What each target gives up" in report
    assert written["objective"]["aim"] == aim and written["objective"]["weights"] == {
        "t": 1,
        "u": 1,
    }
    assert (
        ("one standard error of t is" in report)
        == (aim == "standard_errors")
        == ("standard_errors" in written["objective"])
    )
    said = {
        "gain": "mean over targets",
        "standard_errors": "in standard errors",
        "worst": "smallest over",
        "pareto": "distance",
    }
    assert said[aim] in report


def test_the_front_is_a_table_with_its_knee(runs: Runs) -> None:
    result, written, report = runs["pareto"]
    front, values = written["front"], gains_of(result)
    assert len(front["members"]) == is_front(values).sum()
    assert (
        front["knee"]["datasets"]
        == list(result.selection.mixture.datasets)
        == front["members"][0]["datasets"]
    )
    assert f"Hypervolume over the base: {front['hypervolume']:.4g}" in report
    assert f"| {result.selection.mixture} | {front['members'][0]['gains']['t']:+.4f} |" in report
    assert "| knee" in report
    for aim in ("gain", "standard_errors", "worst"):
        assert runs[aim][1]["front"] is None and "## Front" not in runs[aim][2]


def test_the_terminal_shows_front_and_what_is_given_up(
    runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path, "pareto")))
    console.show_result(runs["pareto"][0], recipe)
    shown = capsys.readouterr().out
    assert "Front: " in shown and "Hypervolume" in shown and "What each target gives up" in shown


def test_every_new_key_is_documented(runs: Runs) -> None:
    documented = (Path(__file__).parent.parent / "docs" / "result.md").read_text()
    written = runs["pareto"][1]
    keys = {
        *written,
        *written["objective"],
        *written["front"],
        *written["given_up"]["t"],
        "standard_errors",
    }
    assert [key for key in sorted(keys) if f"`{key}`" not in documented] == []


def test_one_target_shows_nothing_new_and_any_scale_of_it_picks_the_same(
    runs: Runs, folder: Path
) -> None:
    picks = []
    for aim in ("gain", "standard_errors", "worst"):
        values = values_of(folder, aim, targets=("t",)) | {
            "verify": {"budget": 0},
            "run_dir": "one",
        }
        picks.append(m2m.run(write_recipe(folder, values), Heard()).selected)
        assert "gives up" not in (folder / "one" / "report.md").read_text()
        written = json.loads((folder / "one" / "result.json").read_text())
        assert written["given_up"] is None and written["front"] is None
    assert picks[0] == picks[1] == picks[2]


def test_a_selection_without_an_objective_gets_the_one_that_its_trials_make(
    runs: Runs, tmp_path: Path
) -> None:
    for aim in AIMS:
        selection = runs[aim][0].selection
        bare = m2m.Selection(
            selection.mixture, selection.trials, "", selection.base, selection.singles
        )
        with open_session(
            m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path, aim))), Heard()
        ) as session:
            assert search.objective_of_selection(session, bare) == selection.objective


def test_greedy_says_that_it_looks_for_no_front(tmp_path: Path) -> None:
    recipe = m2m.load_recipe(
        write_recipe(tmp_path, values_of(tmp_path, "pareto", strategy="greedy"))
    )
    with open_session(recipe, Heard()) as session:
        strategy, objective = search.first_strategy(session), search.objective_of(session)
        search.announce(session, strategy, session.spaces.searched, Limit(), objective)
        assert [text for text in session.opened.warnings if "front" in text] == [
            "greedy search goes by the mean of the gains: the front is of the mixtures that it"
            " tries on its way"
        ]


@pytest.mark.parametrize(
    ("aim", "targets", "weights", "said"),
    [
        (
            "pareto",
            ("t",),
            {},
            "search.objective: pareto needs at least two targets; with one, the best gain is",
        ),
        (
            "worst",
            ("t", "u"),
            {"t": 2},
            r"search.objective: worst takes the smallest gain, whatever the weights \(t 2, u 1\)",
        ),
        ("best", ("t", "u"), {}, "search.objective"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, aim: str, targets: tuple[str, ...], weights: dict[str, float], said: str
) -> None:
    values = values_of(tmp_path, aim, targets)
    for name, weight in weights.items():
        values["targets"][name]["weight"] = weight
    with pytest.raises(RecipeError, match=said):
        m2m.load_recipe(write_recipe(tmp_path, values))


def test_worst_takes_weights_that_are_all_the_same(tmp_path: Path) -> None:
    values = values_of(tmp_path, "worst")
    for target in values["targets"].values():
        target["weight"] = 3
    assert isinstance(m2m.load_recipe(write_recipe(tmp_path, values)), Recipe)

"""Whole runs whose targets are tasks of the LM Evaluation Harness."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness_tasks import docs, write_kinds, write_task
from recipes import Heard, recipe_values, result_of, without_times, write_recipe
from test_harness import theirs

import mergetomix
from mergetomix.errors import DataError
from mergetomix.recipe.recipe import parse
from mergetomix.session.session import open_session

HERE = Path(__file__).parent
NAMES = ("a", "b", "c", "d", "e", "f")


def values(folder: Path, names: tuple[str, ...] = NAMES[:3]) -> dict[str, Any]:
    """Two benchmarks and a loss, of tiny tasks whose files lie beside the recipe."""
    found = recipe_values(folder, names)
    write_kinds(folder / "tasks", num=20)
    bench = {"score": "harness", "include_path": "tasks"}
    found["targets"]["choice"] = {**bench, "task": "choice", "metric": "acc_norm"}
    told = {"max_gen_toks": 3, "until": ["no such text"]}
    answers = {"metric": "exact_match,word", "gen_kwargs": told, "num_fewshot": 1}
    found["targets"]["answers"] = {**bench, "task": "generate", **answers}
    found["train"] |= {"max_steps": 3, "learning_rate": 0.03}  # so that models differ
    found["final"]["num_random"] = 1
    return found


def test_benchmarks_and_a_loss_from_beginning_to_end(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, values(tmp_path))
    heard = Heard()
    plan = mergetomix.check(recipe, heard)
    shown = {target.name: target for target in plan.targets}
    assert (shown["choice"].num_select, shown["choice"].num_report) == (10, 10)
    text = "".join(piece for piece, _ in shown["choice"].samples[0][0])
    assert "sat on" in text and "Answer:" in text
    result = mergetomix.run(recipe, heard)
    assert len(result.selection.trials) == 7
    assert set(result.table[0].scores) == {"t", "choice", "answers"}
    assert all(0 <= row.scores["choice"].mean <= 1 for row in result.table)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "came to max_gen_toks: 3 before they ended" in report
    first = without_times(result_of(tmp_path), tmp_path)
    mergetomix.run(recipe, Heard())  # what was odd about the answers is said again
    assert without_times(result_of(tmp_path), tmp_path) == first


def test_a_proxy_has_the_score_that_the_harness_gives_its_folder(tmp_path: Path) -> None:
    """Over all documents, which are the select part and the report part together."""
    recipe = parse(values(tmp_path), tmp_path)
    mergetomix.train_experts(recipe)
    mergetomix.write_proxy(recipe, ["a", "c"], tmp_path / "merged")
    with open_session(recipe) as session:
        (mixture,) = [each for each in session.spaces.subsets if each.datasets == ("a", "c")]
        parts = [session.evaluations.proxy(mixture, part) for part in ("select", "report")]
    for task, target, told in (
        ("choice", "choice", {}),
        ("generate", "answers", {"num_fewshot": 1}),
    ):
        if told:
            told["gen_kwargs"] = {"max_gen_toks": 3}
        said = theirs(str(tmp_path / "merged"), task, tmp_path / "tasks", **told)
        own = [value for scores in parts for value in scores[target].values]
        metric = recipe.targets[target].metric
        key = metric if "," in metric else f"{metric},none"
        assert len(own) == 20 and sum(own) / 20 == said["results"][task][key]


def test_a_search_of_63_mixtures_is_killed_and_goes_on(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    recipes = []
    for folder in folders:
        folder.mkdir()
        recipes.append(write_recipe(folder, values(folder, NAMES)))
    command = [sys.executable, str(HERE / "killed_run.py")]
    subprocess.run([*command, str(recipes[0]), "0"], check=True, capture_output=True)
    for moment in (150,):
        killed = subprocess.run([*command, str(recipes[1]), str(moment)], capture_output=True)
        assert killed.returncode == -signal.SIGKILL
    subprocess.run([*command, str(recipes[1]), "0"], check=True, capture_output=True)
    found = [without_times(result_of(folder), folder) for folder in folders]
    assert found[0] == found[1]
    assert len(found[0]["trials"]) == 63
    subprocess.run(
        [sys.executable, "-m", "mergetomix", "store", "verify", str(folders[1] / "store")],
        check=True,
    )


def test_gradients_go_by_the_loss_of_right_answers(tmp_path: Path) -> None:
    given = values(tmp_path)
    given["search"] = {"strategy": "gradient", "budget": 9}
    with open_session(parse(given, tmp_path)) as session:
        assert session.gradients.are_there
        assert set(session.gradients.companions()) == {"choice", "answers"}
        companion = session.inputs.companion("answers")
        assert companion is not None and companion.num_examples == 10
    assert mergetomix.run(parse(given, tmp_path)).selection.mixture


def test_documents_that_stand_in_a_dataset_are_leaks(tmp_path: Path) -> None:
    given = values(tmp_path)
    rows = [{"q": each["question"], "a": each["options"][each["right"]]} for each in docs(3)]
    given["datasets"]["a"] = {
        "rows": [*rows, {"q": "other?", "a": "yes"}],
        "prompt": "q",
        "completion": "a",
    }
    with open_session(parse(given, tmp_path)) as session:
        (line,) = [each for each in session.inputs.warnings if "targets.choice: 3 of its" in each]
    assert "stand in datasets.a" in line
    with pytest.raises(DataError, match=r"targets\.choice: 3 of its 20 examples"):
        mergetomix.check(parse({**given, "leaks": "stop"}, tmp_path))


def test_a_test_split_is_said_in_the_report(tmp_path: Path) -> None:
    given = values(tmp_path)
    from harness_tasks import CHOICE

    write_task(tmp_path / "tasks", "tested", CHOICE, test=docs(8))
    bench = {"score": "harness", "task": "tested", "include_path": "tasks", "metric": "acc"}
    given["targets"] = {"x": {**bench, "allow_test_split": True}}
    mergetomix.run(parse(given, tmp_path))
    report = (tmp_path / "run" / "report.md").read_text()
    assert "mixtures are chosen on documents of the test split of tested" in report


def test_races_see_documents_in_blocks(tmp_path: Path) -> None:
    given = values(tmp_path)
    write_kinds(tmp_path / "tasks", num=90)
    del given["targets"]["answers"], given["targets"]["t"]
    given["search"] = {"racing": 0.05}
    result = mergetomix.run(parse(given, tmp_path))
    assert result.selection.mixture
    given["targets"]["choice"] = {
        **given["targets"]["choice"],
        "task": "rolling",
        "metric": "bits_per_byte",
    }
    assert mergetomix.run(parse(given, tmp_path)).selection.mixture
    assert math.isfinite(result.table[0].scores["choice"].mean)

"""The whole method on a tiny real model: what a run gives, reuses, and keeps when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from recipes import (
    WORDS,
    Heard,
    recipe_values,
    result_of,
    without_times,
    write_recipe,
)

import mergetomix as m2m
from mergetomix.demo.text import BASE
from mergetomix.session.session import open_session
from mergetomix.store.store import Store

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, m2m.Result, Heard]:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    heard = Heard()
    result = m2m.run(write_recipe(folder, recipe_values(folder)), heard)
    return folder, result, heard


def test_result_has_every_documented_key(finished: tuple[Path, m2m.Result, Heard]) -> None:
    result = result_of(finished[0])
    assert result["schema"] == 1
    assert set(result["selected"]) == {"datasets", "weights"}
    assert len(result["trials"]) == 7
    objectives = [trial["objective"] for trial in result["trials"]]
    assert objectives == sorted(objectives, reverse=True)
    assert result["verification"]["selected"] == result["selected"]
    assert set(result["trials"][0]["targets"]["t"]) == {"loss", "num_examples"}
    assert {"dataset", "num_examples", "num_tokens", "train_s", "path"} == set(result["experts"][0])
    assert set(result["final"]) >= {"path", "targets"}
    assert {"base", "best_expert", "proxy", "all", "random"} <= set(result["baselines"])
    times = {"experts_s", "merge_s", "evaluate_s", "final_s", "total_s", "brute_force_s_estimate"}
    assert times <= set(result["cost"])
    assert {"versions", "device", "seeds"} <= set(result["environment"])
    documented = (HERE.parent / "docs" / "result.md").read_text()
    lines = [
        result["verification"],
        *(result["verification"][key][0] for key in ("checks", "predictions")),
    ]
    keys = {key for line in (result, *lines) for key in line} | set(
        result["verification"]["fidelity"]["objective"]
    )
    assert [key for key in sorted(keys) if f"`{key}`" not in documented] == []


def test_every_mixture_is_tried_once(finished: tuple[Path, m2m.Result, Heard]) -> None:
    tried = [trial.mixture.datasets for trial in finished[1].selection.trials]
    assert len(set(tried)) == len(tried) == 7


def test_the_search_never_sees_the_report_part(finished: tuple[Path, m2m.Result, Heard]) -> None:
    with open_session(m2m.load_recipe(finished[0] / "recipe.yaml")) as session:
        parts = [session.inputs.targets(part)["t"] for part in ("select", "report")]
        sequences = [{s.ids for s in part.target.sequences} for part in parts]
    assert sequences[0] and sequences[1] and not sequences[0] & sequences[1]
    assert parts[0].num_examples + parts[1].num_examples == len(WORDS)


def test_the_final_model_loads_and_scores_as_reported(
    finished: tuple[Path, m2m.Result, Heard],
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, result, _ = finished
    model = AutoModelForCausalLM.from_pretrained(folder / "run" / "final").eval()
    AutoTokenizer.from_pretrained(folder / "run" / "final")
    with open_session(m2m.load_recipe(folder / "recipe.yaml")) as session:
        scores = session.inputs.targets("report")["t"].score(model)
    final = result.row("final")
    assert final is not None
    assert scores.mean == pytest.approx(final.scores["t"].mean, abs=1e-6)


def test_brute_force_is_every_mixture_fine_tuned_and_evaluated(
    finished: tuple[Path, m2m.Result, Heard],
) -> None:
    from itertools import combinations

    from mergetomix.stages import costs

    with open_session(m2m.load_recipe(finished[0] / "recipe.yaml")) as session:
        estimate = costs.brute_force_s(session, experts_s=3 * 7.0, evaluate_s=0.5, num_trials=7)
        fixed = m2m.load_recipe(finished[0] / "recipe.yaml", ["train.max_steps=2"])
    mixtures = [chosen for k in (1, 2, 3) for chosen in combinations("abc", k)]
    assert estimate == pytest.approx(sum(len(chosen) * 7.0 + 0.5 for chosen in mixtures))
    with open_session(fixed) as session:
        assert costs.brute_force_s(session, 3 * 7.0, 0.5, 7) == pytest.approx(len(mixtures) * 7.5)


def test_the_same_recipe_again_does_nothing_twice(finished: tuple[Path, m2m.Result, Heard]) -> None:
    folder = finished[0]
    before, heard = result_of(folder), Heard()
    with Store(folder / "store") as store:
        counts = store.counts()
    m2m.run(folder / "recipe.yaml", heard)
    with Store(folder / "store") as store:
        assert store.counts() == counts
    assert heard.trained() == []
    assert without_times(result_of(folder), folder) == without_times(before, folder)


def test_a_new_dataset_costs_one_expert_and_its_mixtures(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values |= {"verify": {"budget": 0}, "final": {"train": False, "baselines": []}}
    smaller = {**values, "datasets": {name: values["datasets"][name] for name in ("a", "b")}}
    m2m.run(write_recipe(tmp_path, smaller))
    with Store(tmp_path / "store") as store:
        before = store.counts()
    heard = Heard()
    m2m.run(write_recipe(tmp_path, values), heard)
    with Store(tmp_path / "store") as store:
        after = store.counts()
    assert heard.trained() == ["experts: expert c"]
    assert after["trials"] - before["trials"] == 4


def test_a_new_target_only_evaluates(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, targets=("t", "u"))
    values |= {"verify": {"budget": 0}, "final": {"train": False, "baselines": []}}
    m2m.run(write_recipe(tmp_path, {**values, "targets": {"t": values["targets"]["t"]}}))
    with Store(tmp_path / "store") as store:
        before = store.counts()
    heard = Heard()
    m2m.run(write_recipe(tmp_path, values), heard)
    with Store(tmp_path / "store") as store:
        after = store.counts()
    assert heard.trained() == []
    assert after["trials"] == before["trials"]
    assert after["example_scores"] == 2 * before["example_scores"]


def test_a_baseline_that_fails_leaves_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergetomix import training

    values = recipe_values(tmp_path)
    values["search"] = {
        "max_datasets": 2
    }  # so that the union of all, which is made to fail, is never the selection
    path = write_recipe(tmp_path, values)
    original = training.finetune

    def failing(family: Any, sequences: Any, *rest: Any) -> Any:
        if len(sequences) == 3 * len(WORDS):
            raise m2m.TrainingError("the loss is nan at step 1")
        return original(family, sequences, *rest)

    monkeypatch.setattr(training, "finetune", failing)
    result = m2m.run(path)
    assert result.row("final") is not None and result.row("all") is None
    assert any("all datasets" in text and "nan" in text for text in result.warnings)


def test_the_best_expert_is_known_where_no_single_dataset_may_be_chosen(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values |= {
        "search": {"min_datasets": 2},
        "verify": {"budget": 0},
        "final": {"train": False, "baselines": []},
    }
    result = m2m.run(write_recipe(tmp_path, values))
    assert len(result.selection.trials) == 4 and len(result.selection.singles) == 3
    assert len(result_of(tmp_path)["baselines"]["best_expert"]["datasets"]) == 1


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Standard output and standard error of a process that must succeed."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


def status_of(path: Path) -> str:
    command = [sys.executable, "-m", "mergetomix", "status", str(path)]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout


def test_killed_at_six_moments_the_result_is_the_same(tmp_path: Path) -> None:
    """One store, killed six times on the way, against one that was left alone."""
    folders = [tmp_path / "killed", tmp_path / "whole"]
    recipes = []
    for folder in folders:
        folder.mkdir()
        values = recipe_values(folder)
        values["train"]["max_steps"] = 1
        recipes.append(write_recipe(folder, values))
    finish(start(HERE / "killed_run.py", recipes[1], "0"))
    stages = []
    # as a rehearsal is written down, in a fine-tune, between an artifact and its row, after it,
    # between and within trials, in the final table: each counts from where the last was killed
    names = ("final", "search", "experts", "check")
    for moment in (5, 14, 27, 18, 22, 26):
        killed = start(HERE / "killed_run.py", recipes[0], str(moment))
        _, errors = killed.communicate(timeout=300)
        assert killed.returncode == -signal.SIGKILL, errors
        begun = {line.split(":")[0] for line in errors.splitlines()}
        stages.append(next(stage for stage in names if stage in begun))
    assert set(names) <= set(stages), stages
    _, errors = finish(start(HERE / "killed_run.py", recipes[0], "0"))
    assert (
        "experts: 3 of 3 were in the store" in errors
        and "trials: 7 of 7 were in the store" in errors
    )
    killed_result, whole_result = (without_times(result_of(folder), folder) for folder in folders)
    assert killed_result == whole_result


def test_two_runs_at_once_share_a_store(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    first = write_recipe(tmp_path, values)
    second = write_recipe(tmp_path, {**values, "run_dir": "other"}, "other.yaml")
    processes = [start("-m", "mergetomix", "run", path) for path in (first, second)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "other")
    ]
    for result in results:
        del result["final"]["path"]
    assert without_times(results[0], tmp_path) == without_times(results[1], tmp_path)
    with Store(tmp_path / "store") as store:
        assert store.counts()["experts"] == 3
        assert store.counts()["trials"] == 7


def test_interrupted_it_says_how_to_go_on_and_status_knows(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["train"]["max_steps"] = 500
    path = write_recipe(tmp_path, values)
    process = start("-m", "mergetomix", "run", path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("experts: expert a"):
            break
    time.sleep(1)
    assert "running: experts: a" in status_of(path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "interrupted" in errors and "goes on from there" in errors
    assert "interrupted" in status_of(path)


def test_stages_with_objects_instead_of_files(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"q": f"what about {word}?", "a": f" {word}"} for word in WORDS]
    recipe = {
        "base": str(BASE),
        "datasets": {
            "x": {"rows": Dataset.from_list(rows), "prompt": "q", "completion": "a"},
            "y": {
                "rows": [{"q": row["q"], "a": row["a"][::-1]} for row in rows],
                "prompt": "q",
                "completion": "a",
            },
        },
        "targets": {"norm": {"score": "python", "function": small_norm}},
        "train": {
            "method": "lora",
            "max_steps": 2,
            "max_length": 32,
            "lora": {"rank": 2, "alpha": 4},
        },
        "verify": {"budget": 0},
        "final": {"baselines": []},
        "device": "cpu",
        "store": str(tmp_path / "store"),
        "run_dir": str(tmp_path / "run"),
    }
    assert [expert.dataset for expert in m2m.train_experts(recipe)] == ["x", "y"]
    selection = m2m.search_mixtures(recipe)
    assert len(selection.trials) == 3
    plan = m2m.check(recipe)
    assert plan.num_finetunes == 3 and plan.num_reused >= 2
    assert isinstance(plan, m2m.Plan)
    finalized = m2m.finalize(recipe, selection)
    result = m2m.run(m2m.load_recipe(recipe))
    assert result.selected == selection.mixture
    assert result.table == finalized.table
    m2m.write_proxy(recipe, ["x", "y"], tmp_path / "merged", [1, 3])
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def small_norm(model: Any, tokenizer: Any) -> list[float]:
    """Four scores that depend on the params."""
    total = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
    return [total + i for i in range(4)]


def test_everything_public_is_there_and_nothing_more() -> None:
    for name in m2m.__all__:
        assert getattr(m2m, name) is not None
    documented = [name for name in m2m.__all__ if name != "__version__"]
    assert all(getattr(m2m, name).__doc__ for name in documented)


def test_weights_are_equal_or_by_sequences_or_by_tokens_of_the_answers(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    long = [{"question": f"say it {i}", "answer": " " + "again " * 9} for i in range(3)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    found = {}
    for weighting in ("equal", "size", "tokens"):
        recipe = m2m.load_recipe(
            write_recipe(tmp_path, values | {"merge": {"weighting": weighting}})
        )
        with open_session(recipe, Heard()) as session:
            found[weighting] = session.spaces.searched.mixture(["a", "b"]).weights
            own = {name: session.inputs.sequences(name) for name in "ab"}
    scored = {
        name: sum(label != -100 for each in rows for label in each.labels[1:])
        for name, rows in own.items()
    }
    assert found["equal"] == (0.5, 0.5) and found["size"] == pytest.approx((12 / 15, 3 / 15))
    assert found["tokens"] == pytest.approx(
        (scored["a"] / sum(scored.values()), scored["b"] / sum(scored.values()))
    )
    assert abs(found["tokens"][0] - found["size"][0]) > 0.05


def test_a_result_says_what_was_read(finished: tuple[Path, m2m.Result, Heard]) -> None:
    from mergetomix.store.address import sha256_of

    folder, _, _ = finished
    result = result_of(folder)
    read = result["inputs"]
    files = read["base"]["files"]
    assert files["model.safetensors"] == sha256_of(BASE / "model.safetensors")
    assert {file.name for file in BASE.glob("*.json")} <= set(files)
    assert set(read["datasets"]) == set("abc") and set(read["targets"]) == {"t"}
    picked = "+".join(result["selected"]["datasets"])
    assert set(read["finetunes"]) == {*"abc", picked}
    final = sha256_of(folder / "run" / "final" / "model.safetensors")
    assert read["finetunes"][picked]["model.safetensors"] == final

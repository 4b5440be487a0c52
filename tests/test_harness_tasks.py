"""Finding and loading tasks of the LM Evaluation Harness: groups, metrics, splits, bad input."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness_tasks import (
    CHOICE,
    FILES,
    GENERATE,
    LIKELIHOOD,
    PLAIN,
    WHERE,
    docs,
    group,
    opened,
    section,
    write_kinds,
    write_task,
    write_yaml,
    written,
)
from test_harness import ours, theirs

from mergetomix.data import splits
from mergetomix.errors import DataError, RecipeError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.recipe.each_task import each_task
from mergetomix.recipe.paths import resolve_target
from mergetomix.targets.harness import library, tasks
from mergetomix.targets.harness.kind import HarnessTarget
from mergetomix.targets.harness.library import quiet

Told = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = write_kinds(tmp_path_factory.mktemp("tasks"))
    for name, num, shift in (("one", 4, 2), ("two", 10, 3)):
        write_task(found, name, CHOICE, validation=docs(num, shift))
    return found


# --- groups


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_is_one_target_with_its_own_mean(
    family: CausalLM, folder: Path, by_size: bool
) -> None:
    listed = [{"metric": name, "weight_by_size": by_size} for name in ("acc", "acc_norm")]
    group(folder, "both", aggregate_metric_list=listed)
    said = theirs(family.base.path, "both", folder)["results"]["both"]
    model = family.load()
    for metric in ("acc", "acc_norm,none"):
        documents = opened(family, "both", folder, metric=metric)
        found = ours(documents, model)
        assert found.num_examples == 14
        wanted = said[f"{metric.partition(',')[0]},none"]
        assert found.mean == pytest.approx(wanted, rel=1e-12)
        # of some documents the weights are what they are of all
        some = documents.over(documents.examples.items[2:9]).score(model)
        assert some.weights == found.weights[2:9]
    assert len(set(found.weights)) == (1 if by_size else 2)


def test_a_group_within_a_group_and_a_group_of_a_file(family: CausalLM, folder: Path) -> None:
    group(folder, "inner")
    path = group(folder, "outer", task=["inner", "choice"])
    said = theirs(family.base.path, "outer", folder)["results"]["outer"]
    for told in ({"task": "outer"}, {"task": str(path), "folder": folder}):
        found = ours(opened(family, told["task"], folder, metric="acc"), family.load())
        assert found.mean == pytest.approx(said["acc,none"], rel=1e-12)


def test_each_task_of_a_group_is_a_target(folder: Path) -> None:
    group(folder, "both")
    given = {"score": "harness", "task": "both", "include_path": folder.name, "each": True}
    found = each_task(
        {"x": {**given, "weight": 3.0, "limit": 2}, "y": {"path": "p"}}, folder.parent
    )
    assert list(found) == ["x_one", "x_two", "y"]
    assert [found[name].task for name in ("x_one", "x_two")] == ["one", "two"]
    assert {each.weight for name, each in found.items() if name != "y"} == {1.5}
    assert found["x_two"].limit == 2 and not found["x_two"].each
    assert found["x_two"].folders == [str(folder)]
    beside = each_task({"o": {**given, "task": "both.yaml", "include_path": None}}, folder)
    assert list(beside) == ["o_one", "o_two"] and beside["o_one"].folders == [str(folder)]
    assert each_task(found, folder) == found
    with pytest.raises(RecipeError, match=r"targets\.x: x_one stands twice"):
        each_task({"x_one": {}, "x": given}, folder.parent)
    with pytest.raises(RecipeError, match=r"each: one is one task, and no group"):
        each_task({"x": {**given, "task": "one"}}, folder.parent)


def test_a_tag_is_its_tasks(family: CausalLM, tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_task(tmp_path, name, {**CHOICE, "tag": "marked"}, validation=docs(3))
    with pytest.raises(RecipeError, match=r"stands for 2 tasks \(a, b, \.\.\.\) and is no group"):
        opened(family, "marked", tmp_path, metric="acc")
    given = {"score": "harness", "task": "marked", "include_path": str(tmp_path), "each": True}
    assert list(each_task({"t": given}, tmp_path)) == ["t_a", "t_b"]


def test_a_task_without_the_metric_is_left_out_of_its_group(family: CausalLM, folder: Path) -> None:
    group(folder, "mixed", task=["one", "generate"])
    documents = opened(family, "mixed", folder, metric="acc")
    assert len(documents.examples.items) == 4
    assert f"{WHERE}: 1 of 2 tasks lack acc,none and are left out, as the harness does" in (
        documents.examples.notes
    )
    said = theirs(family.base.path, "mixed", folder)["results"]["mixed"]
    assert ours(documents, family.load()).mean == said["acc,none"]


@pytest.mark.parametrize(
    "changes, metric, says",
    [
        ({"aggregate_metric_list": None}, None, "group bad has no number of its own"),
        ({}, "acc_norm", r"the group bad has acc,none, not acc_norm$"),
        ({}, "acc,other", r"the group bad has acc,none, not acc,other$"),
        (
            {"task": ["likelihood"], "aggregate_metric_list": [{"metric": "perplexity"}]},
            None,
            "perplexity,none of the group bad is no mean over documents",
        ),
        (
            {"aggregate_metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
            None,
            "the group bad has acc,none, acc_norm,none: name one",
        ),
    ],
)
def test_groups_without_such_a_number(
    family: CausalLM, folder: Path, changes: Told, metric: str | None, says: str
) -> None:
    group(folder, "bad", **changes)
    with pytest.raises(RecipeError, match=says):
        opened(family, "bad", folder, metric=metric)


def test_a_group_in_which_one_task_shows_no_examples(family: CausalLM, folder: Path) -> None:
    write_task(folder, "bare", {**CHOICE, "num_fewshot": 0}, train=docs(5, 5), validation=docs(3))
    group(folder, "mixedshots", task=["bare", "choice"])
    documents = opened(family, "mixedshots", folder, metric="acc", num_fewshot=1)
    (note,) = [each for each in documents.examples.notes if "num_fewshot" in each]
    assert "bare is a task of num_fewshot: 0" in note and note.endswith("it shows none")
    asked = [each.instances[0].args[0].count("Answer:") for each in documents._documents]
    assert asked == [1] * 3 + [2] * 12


# --- metrics


@pytest.mark.parametrize("metric", ["f1", "mcc"])
def test_one_number_of_all_documents_is_taken_apart(
    family: CausalLM, tmp_path: Path, metric: str
) -> None:
    rows = [
        {**each, "options": ["no", "the yes"], "right": i % 2} for i, each in enumerate(docs(9))
    ]
    aggregate = {"f1": "f1", "mcc": "matthews_corrcoef"}[metric]
    listed = [{"metric": metric, "aggregation": aggregate, "higher_is_better": True}]
    write_task(tmp_path, "whole", {**CHOICE, "metric_list": listed}, validation=rows)
    said = theirs(family.base.path, "whole", tmp_path)["results"]["whole"][f"{metric},none"]
    documents = opened(family, "whole", tmp_path)
    found = ours(documents, family.load())
    assert found.kind == "score" and found.mean == pytest.approx(said, abs=1e-9)
    assert documents.whole_only
    assert len(set(found.values)) > 1 or said in (0, 1)


def test_a_metric_of_which_less_is_better_is_turned_round(family: CausalLM, tmp_path: Path) -> None:
    listed = [{"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}]
    write_task(tmp_path, "brier", {**CHOICE, "metric_list": listed}, validation=docs(6))
    said = theirs(family.base.path, "brier", tmp_path)["results"]["brier"]["brier_score,none"]
    found = ours(opened(family, "brier", tmp_path), family.load())
    assert found.kind == "score" and found.mean == pytest.approx(-said, rel=1e-6)


def test_a_task_with_several_metrics_or_filters_wants_one_named(
    family: CausalLM, folder: Path
) -> None:
    with pytest.raises(RecipeError, match=r"metric: choice has acc,none and acc_norm,none and"):
        opened(family, "choice", folder)
    with pytest.raises(RecipeError, match=r"choice has acc,none, .*, not accuracy"):
        opened(family, "choice", folder, metric="accuracy")
    with pytest.raises(RecipeError, match=r"generate has the filters whole, word: name one"):
        opened(family, "generate", folder, metric="exact_match")
    with pytest.raises(
        RecipeError, match=r"exact_match,whole, exact_match,word, not exact_match,x"
    ):
        opened(family, "generate", folder, metric="exact_match,x")


# --- which documents


def test_a_test_split_is_chosen_on_only_where_that_is_said(
    family: CausalLM, tmp_path: Path
) -> None:
    write_task(tmp_path, "both", CHOICE, validation=docs(4), test=docs(6, shift=2))
    write_task(tmp_path, "test", CHOICE, test=docs(5))

    def get(task: str, **told: Any) -> Any:
        return opened(family, task, tmp_path, metric="acc", **told).examples

    with pytest.raises(RecipeError, match=r"split: both has a validation and a test split: say"):
        get("both")
    assert len(get("both", split="validation").items) == 4
    with pytest.raises(
        RecipeError, match=r"allow_test_split: mixtures would be chosen on the test"
    ):
        get("both", split="test")
    with pytest.raises(RecipeError, match=r"chosen on the test split, and test has no other"):
        get("test")
    with pytest.raises(RecipeError, match=r"split: test has test alone, not validation"):
        get("test", split="validation")
    found = get("both", split="test", allow_test_split=True)
    assert len(found.items) == 6
    (note,) = found.notes
    assert "mixtures are chosen on documents of the test split of both" in note
    assert get("both", split="validation").notes == ()


def test_documents_are_examples_of_what_they_ask(family: CausalLM, folder: Path) -> None:
    (first, *_), row = opened(family, "choice", folder, metric="acc").examples.items, docs(1)[0]
    assert (first.prompt, first.completion) == (row["question"], row["options"][row["right"]])
    documents = opened(family, "choice", folder, metric="acc", num_fewshot=1)
    (answer, *_) = documents.answered(documents.examples.items)
    assert answer.prompt.endswith(f"{row['question']}\nAnswer:")
    assert answer.completion == f" {row['options'][row['right']]}"
    assert answer.options == tuple(f" {each}" for each in row["options"])
    documents = opened(family, "generate", folder, metric="exact_match,word")
    (answer, *_) = documents.answered(documents.examples.items)
    assert answer.prompt == f"{row['question']}\nAnswer:" and answer.completion == " <s>"
    documents = opened(family, "rolling", folder, metric="bits_per_byte")
    (answer, *_) = documents.answered(documents.examples.items)
    assert answer.text == row["text"]


def test_a_right_answer_is_among_the_options(family: CausalLM, tmp_path: Path) -> None:
    write_task(tmp_path, "slip", {**CHOICE, "doc_to_target": "rihgt"}, validation=docs(4))
    with pytest.raises(DataError, match=r"task: the right answer of document 0, 'rihgt', is none"):
        opened(family, "slip", tmp_path, metric="acc")
    rows = docs(4)
    write_task(tmp_path, "one", CHOICE, validation=[*rows[:3], {**rows[3], "right": 9}])
    documents = opened(family, "one", tmp_path, metric="acc")
    (note,) = documents.examples.notes
    assert "1 of 4 documents count as wrong" in note and "document 3, '9'" in note
    assert ours(documents, family.load()).values[3] == 0.0
    write_task(tmp_path, "same", {**GENERATE, "doc_to_target": "answr"}, validation=rows)
    (note,) = opened(family, "same", tmp_path, metric="exact_match,word").examples.notes
    assert "all 4 documents have the right answer 'answr'" in note


# --- what may not be loaded


def test_an_unknown_task_names_the_nearest(
    family: CausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {**tasks.index((str(folder),), builtin=False)}
    monkeypatch.setattr(tasks, "index", lambda *_, **__: both)  # without the ten seconds
    with pytest.raises(RecipeError, match=r"task: lm-eval has no .* 'choise'") as caught:
        opened(family, "choise", folder)
    assert caught.value.hint == "the nearest are choice"
    assert "choice" in both


@pytest.mark.slow
def test_tasks_that_the_harness_brings(family: CausalLM, folder: Path) -> None:
    """The whole index, once: a name in it, one that is not, and data that nobody has here."""
    with pytest.raises(RecipeError, match=r"no task or group called 'gsm9k'") as caught:
        opened(family, "gsm9k", folder)
    assert "gsm8k" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"task: the data of gsm8k is not to be had") as missing:
        opened(family, "gsm8k", folder, metric="exact_match,strict-match", allow_test_split=True)
    assert "HF_HUB_OFFLINE" in str(missing.value.hint)
    with pytest.raises(RecipeError, match=r"humaneval runs code that the model writes") as code:
        opened(family, "humaneval", folder)
    assert "confirm_run_unsafe_code: true" in str(code.value.hint)
    names = tasks.names(section("mmlu_stem", folder), WHERE)
    assert len(names) == 19 and "mmlu_anatomy" in names


def test_a_folder_of_the_name_hides_no_task(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    found = resolve_target(HarnessTarget(score="harness", task="gsm8k"), tmp_path)
    assert isinstance(found, HarnessTarget) and found.task == "gsm8k"


def test_only_tasks_of_the_user_take_no_whole_index(
    family: CausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    before = tasks.index

    def index(folders: tuple[str, ...], builtin: bool) -> Any:
        asked.append(builtin)
        return before(folders, builtin)

    monkeypatch.setattr(tasks, "index", index)
    group(folder, "both")
    for task in ("choice", "both", str(folder / "choice.yaml"), str(folder / "both.yaml")):
        opened(family, task, folder, metric="acc")
    assert asked and not any(asked)


@pytest.mark.parametrize(
    "config, told, says",
    [
        ({**CHOICE, "doc_to_text": "{{nothing}}"}, {}, r"task: made cannot be loaded: Undefined"),
        ({**CHOICE, "metric_list": [{"metric": "acurracy"}]}, {}, r"has no metric 'acurracy'"),
        ({**CHOICE, "output_type": "multiple_choices"}, {}, r"Got invalid output_type"),
        ({**CHOICE, "num_fewshot": 0}, {"num_fewshot": 2}, r"num_fewshot: made is a task of"),
        ({**CHOICE, "unsafe_code": True}, {}, r"task: made runs code that the model writes"),
        (GENERATE, {"gen_kwargs": {"max_gen_toks": 96}}, r"gen_kwargs: max_gen_toks must be under"),
        (GENERATE, {"gen_kwargs": {"max_gen_toks": "abc"}}, r"gen_kwargs: max_gen_toks and"),
        (
            GENERATE,
            {"gen_kwargs": {"max_gen_tok": 3}},
            r"gen_kwargs: nothing is called",
        ),
        (GENERATE, {"gen_kwargs": {"do_sample": "maybe"}}, r"gen_kwargs: do_sample must be"),
        (GENERATE, {"gen_kwargs": {"until": [1]}}, r"gen_kwargs: until must be texts"),
        (CHOICE, {"gen_kwargs": {"max_gen_toks": 3}}, r"gen_kwargs: made generates nothing"),
        (GENERATE, {"num_fewshot": 50}, r"num_fewshot: made has 9 documents to show, and 50"),
        (CHOICE, {"apply_chat_template": True}, r"apply_chat_template: the tokenizer of the base"),
        ({**LIKELIHOOD, "doc_to_target": ""}, {}, r"document 0 has nothing to score"),
        ({**CHOICE, "doc_to_choice": ["a"], "doc_to_target": "{{x"}, {}, r"cannot be loaded"),
    ],
)
def test_tasks_that_cannot_be_asked(
    family: CausalLM, tmp_path: Path, config: Told, told: Told, says: str
) -> None:
    write_task(tmp_path, "made", config, train=docs(9, 4), validation=docs(4))
    metric = "exact_match,word" if config["output_type"] == "generate_until" else "acc"
    with pytest.raises(RecipeError, match=says) as caught:
        opened(family, "made", tmp_path, **{"metric": metric, **told})
    assert caught.value.where.startswith(WHERE) and "\n" not in caught.value.message


def test_files_that_are_not_there_or_say_nothing(family: CausalLM, tmp_path: Path) -> None:
    written(tmp_path, PLAIN + FILES)
    with pytest.raises(DataError, match=r"task: the data of made is not to be had: .*v\.jsonl"):
        opened(family, "made", tmp_path, metric="acc")
    (tmp_path / "v.jsonl").write_text("")
    with pytest.raises(DataError, match=r"targets\.bench\.task: "):
        opened(family, "made", tmp_path, metric="acc")
    hub = yaml.safe_dump({**yaml.safe_load(PLAIN), "dataset_path": "someone/nothing"})
    written(tmp_path, hub + "validation_split: validation\n")
    with pytest.raises(DataError, match=r"task: the data of made is not to be had"):
        opened(family, "made", tmp_path, metric="acc")
    for text, says in (
        ("task: [", "cannot be read as a task file"),
        ("- 1\n", "cannot be read as a task file"),
        ("some: thing\n", "cannot be read as a task file: ValueError: Unknown config shape"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError, match=says):
            opened(family, str(path), tmp_path)
    for named, says in (
        (None, "has dataset_path: json, and no files"),
        ({"validation": str(tmp_path)}, "names the folder .* among its files"),
    ):
        kwargs = {"dataset_kwargs": {"data_files": named}}
        written(tmp_path, PLAIN + yaml.safe_dump({**kwargs, "validation_split": "validation"}))
        with pytest.raises(DataError, match=says):
            opened(family, "made", tmp_path, metric="acc")
    write_yaml(tmp_path, "named", {**yaml.safe_load(PLAIN + FILES), "task": {"a": 1}})
    with pytest.raises(RecipeError, match=r"the name of its task must be a text"):
        opened(family, str(tmp_path / "named.yaml"), tmp_path)
    with pytest.raises(RecipeError, match=r"none\.yaml is not there"):
        opened(family, str(tmp_path / "none.yaml"), tmp_path)
    with pytest.raises(RecipeError, match=r"include_path: there is no folder"):
        opened(family, "made", tmp_path / "none")


def test_documents_that_cannot_be_split(family: CausalLM, folder: Path) -> None:
    documents = opened(family, "choice", folder, metric="acc", limit=1)
    with pytest.raises(DataError, match=r"needs at least 2 distinct examples, not 1") as caught:
        splits.split(documents.examples, 0.5, 0)
    assert "limit" in str(caught.value.hint)


@pytest.mark.parametrize(
    "values, says",
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"fewshot_as_multiturn": True}, "needs apply_chat_template: true"),
        ({"gen_kwargs": {"max_length": 9}}, "say max_gen_toks"),
        ({"prompt": "{q}"}, "prompt"),
        ({"task": ""}, "task"),
    ],
)
def test_sections_that_say_the_wrong_thing(folder: Path, values: Told, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        section(**{"task": "choice", "folder": folder, **values})


# --- the package


def test_another_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.4.12" if name == "lm_eval" else real(name)
    )
    with pytest.raises(RecipeError, match=r"lm-eval 0\.4\.12 is installed, and 0\.4\.13 is the"):
        tasks.find(section("choice", folder), WHERE)


def test_it_may_not_be_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(RecipeError, match=r"lm-eval, which is not installed") as caught:
        tasks.find(section("choice", folder), WHERE)
    assert caught.value.hint == library.INSTALL


def test_the_version_is_that_of_the_extra() -> None:
    required = metadata.requires("mergetomix") or []
    (own,) = [each for each in required if "lm-eval" in each or "lm_eval" in each]
    assert library.TESTED in own


def test_lm_eval_is_imported_only_where_a_recipe_asks_for_it(tmp_path: Path) -> None:
    code = "import sys, mergetomix, mergetomix.targets.kinds, mergetomix.session.session as s;"
    code += "import mergetomix.targets.harness.documents;"
    code += "print([name for name in sys.modules if name.startswith('lm_eval')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_printed_or_logged(
    family: CausalLM, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    documents = opened(family, "generate", folder, metric="exact_match,word", num_fewshot=2)
    ours(documents, family.load())
    assert capfd.readouterr() == ("", "")
    with quiet() as lines:
        pass
    assert lines == []

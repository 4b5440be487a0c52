"""The command line: what it prints, its exit codes, and one message for every mistake."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes import recipe_values, write_recipe

import mergetomix
from mergetomix.cli import main
from mergetomix.demo import text as demo
from mergetomix.errors import Fault
from mergetomix.report import files
from mergetomix.store.store import Store

Outcome = tuple[int, str, str]
Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Runs the command line in this process: exit code, standard output, standard error."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mergetomix", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main.main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


Break = Callable[[Path, dict[str, Any]], None]


def unknown_key(folder: Path, values: dict[str, Any]) -> None:
    values["train"]["learning_rat"] = 1


def missing_file(folder: Path, values: dict[str, Any]) -> None:
    (folder / "a.jsonl").unlink()


def empty_dataset(folder: Path, values: dict[str, Any]) -> None:
    (folder / "a.jsonl").write_text("")


def no_such_column(folder: Path, values: dict[str, Any]) -> None:
    values["datasets"]["a"]["completion"] = "anser"


def no_such_column_in_format(folder: Path, values: dict[str, Any]) -> None:
    values["datasets"]["a"]["prompt"] = "Q: {questio}"


def empty_completion(folder: Path, values: dict[str, Any]) -> None:
    rewrite(
        folder / "a.jsonl", [{"question": "x", "answer": "y"}, {"question": "x", "answer": " "}]
    )


def no_chat_template(folder: Path, values: dict[str, Any]) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rewrite(folder / "a.jsonl", [{"messages": turns}])
    values["datasets"]["a"] = {"path": "a.jsonl", "messages": "messages"}


def shared_target(folder: Path, values: dict[str, Any]) -> None:
    shutil.copy(folder / "a.jsonl", folder / "t.jsonl")


def not_yaml(folder: Path, values: dict[str, Any]) -> None:
    values["base"] = "}\n: - {"


def one_dataset(folder: Path, values: dict[str, Any]) -> None:
    values["datasets"] = {"a": values["datasets"]["a"]}


def no_dataset(folder: Path, values: dict[str, Any]) -> None:
    values["datasets"] = {}


def dataset_of_hub(folder: Path, values: dict[str, Any]) -> None:
    values["datasets"]["a"]["path"] = "someone/something"


def base_of_hub(folder: Path, values: dict[str, Any]) -> None:
    values["base"] = "someone/something"


def missing_base(folder: Path, values: dict[str, Any]) -> None:
    values["base"] = "./nowhere"


def newer_store(folder: Path, values: dict[str, Any]) -> None:
    Store(folder / "store").close()
    with sqlite3.connect(folder / "store" / "ledger.sqlite") as ledger:
        ledger.execute("UPDATE meta SET schema = 99")


def expert_of(folder: Path, values: dict[str, Any], **changes: int) -> None:
    """Makes a model with a configuration unlike the base's the expert of dataset a."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(demo.BASE, **changes)
    LlamaForCausalLM(config).save_pretrained(folder / "expert")
    values["datasets"]["a"]["expert"] = "expert"


def expert_of_another_vocabulary(folder: Path, values: dict[str, Any]) -> None:
    expert_of(folder, values, vocab_size=100)


def expert_of_another_shape(folder: Path, values: dict[str, Any]) -> None:
    expert_of(folder, values, intermediate_size=64)


def missing_function(folder: Path, values: dict[str, Any]) -> None:
    values["targets"]["t"] = {"score": "python", "function": "nowhere:score"}


MISTAKES: list[tuple[Break, str, str]] = [
    (unknown_key, "train.learning_rat", "did you mean 'learning_rate'"),
    (missing_file, "datasets.a.path", "a.jsonl"),
    (empty_dataset, "datasets.a", "no rows"),
    (no_such_column, "datasets.a.completion", "answer"),
    (no_such_column_in_format, "datasets.a.prompt", "question"),
    (empty_completion, "datasets.a.completion", "row 1"),
    (no_chat_template, "datasets.a.messages", "no chat template"),
    (shared_target, "targets.t", "datasets.a"),
    (one_dataset, "datasets", "at least two datasets, not 1"),
    (no_dataset, "datasets", "at least two datasets, not 0"),
    (dataset_of_hub, "datasets.a.path", "someone/something"),
    (base_of_hub, "base.path", "someone/something"),
    (missing_base, "base.path", "nowhere"),
    (newer_store, "schema 99", "uses schema 1"),
    (expert_of_another_vocabulary, "datasets.a.expert", "embed_tokens"),
    (expert_of_another_shape, "datasets.a.expert", "mlp"),
    (missing_function, "targets.t.function", "nowhere"),
]


@pytest.mark.parametrize(
    ("mistake", "where", "what"), MISTAKES, ids=[mistake.__name__ for mistake, _, _ in MISTAKES]
)
def test_a_mistake_is_one_message_before_any_training(
    tmp_path: Path, call: Call, mistake: Break, where: str, what: str
) -> None:
    values = recipe_values(tmp_path)
    mistake(tmp_path, values)
    path = write_recipe(tmp_path, values)
    for command in ("check", "run"):
        code, _, errors = call(command, path)
        message = errors[errors.index("error: ") :]
        assert code == 2
        assert where in message and what in message
        assert "Traceback" not in errors
        assert "experts: expert" not in errors


def test_a_recipe_that_is_no_yaml(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("base: }\n - {")
    code, _, errors = call("run", path)
    assert code == 2 and "not valid YAML" in errors and str(path) in errors


def test_no_recipe_says_how_to_get_one(tmp_path: Path, call: Call) -> None:
    code, _, errors = call("run", tmp_path / "none.yaml")
    assert code == 2 and "mergetomix init" in errors


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_that_expert_alone(tmp_path: Path, call: Call) -> None:
    values = recipe_values(tmp_path)
    values["train"] |= {"learning_rate": 1e30, "max_steps": 3}
    code, _, errors = call("run", write_recipe(tmp_path, values))
    assert code == 1
    message = errors[errors.index("error: ") :]
    assert all(f"expert {name}" in message for name in "abc") and "at step" in message
    with Store(tmp_path / "store") as store:
        assert store.counts()["experts"] == 0
        assert not list((tmp_path / "store" / "artifacts").rglob("*.safetensors"))


def test_no_disk_space_is_said_before_training(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda self: 1_000_000)
    code, _, errors = call("run", write_recipe(tmp_path, recipe_values(tmp_path)))
    assert code == 2 and "MB free, and the fine-tunes need" in errors
    assert "experts: expert" not in errors


def test_long_examples_are_counted(tmp_path: Path, call: Call) -> None:
    values = recipe_values(tmp_path)
    long = [{"question": f"{i} " + "why " * 300, "answer": "so"} for i in range(3)]
    rewrite(tmp_path / "a.jsonl", long)
    code, _, errors = call("check", write_recipe(tmp_path, values))
    assert code == 0 and "examples over 32 tokens lose the beginning of their prompt: a 3" in errors


def test_long_answers_and_prompts_without_room_are_counted(tmp_path: Path, call: Call) -> None:
    values = recipe_values(tmp_path)
    rewrite(
        tmp_path / "a.jsonl",
        [{"question": "why?", "answer": "so " * 300}, {"question": "how?", "answer": "so"}],
    )
    values["train"]["max_length"] = 256
    rewrite(
        tmp_path / "t.jsonl",
        [{"question": f"{i} " + "why " * 150, "answer": "so"} for i in range(4)],
    )
    values["targets"]["t"] |= {"score": "generate", "max_new_tokens": 200}
    code, _, errors = call("check", write_recipe(tmp_path, values))
    assert code == 0
    assert "answers that alone are over 256 tokens lose their end: a 1" in errors
    assert "leave room for max_new_tokens: t 4" in errors


def test_a_function_beside_the_recipe_is_found(tmp_path: Path, call: Call) -> None:
    values = recipe_values(tmp_path)
    (tmp_path / "scoring.py").write_text(
        "def score(model, tokenizer):\n    return [0.1, 0.2, 0.3]\n"
    )
    values["targets"]["t"] = {"score": "python", "function": "scoring:score"}
    code, output, _ = call("check", write_recipe(tmp_path, values))
    assert code == 0 and "python" in output


def test_some_shared_rows_are_a_warning(tmp_path: Path, call: Call) -> None:
    values = recipe_values(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps(rows[0]) + "\n")
    code, _, errors = call("check", write_recipe(tmp_path, values))
    assert code == 0 and "targets.t: 1 of its 12 examples (8%) stand in datasets.a" in errors


def test_check_shows_rows_and_the_plan_and_trains_nothing(tmp_path: Path, call: Call) -> None:
    code, output, _ = call("check", write_recipe(tmp_path, recipe_values(tmp_path)))
    assert code == 0
    assert "what about a and red?" in output and "[ red]" in output
    assert "7 of 7" in output and "fine-tuning on every mixture" in output
    with Store(tmp_path / "store") as store:
        assert store.counts()["experts"] == 0


def test_what_only_looks_is_no_run(tmp_path: Path, call: Call) -> None:
    path = write_recipe(tmp_path, recipe_values(tmp_path))
    assert call("check", path)[0] == 0
    code, output, _ = call("status", path)
    assert code == 0 and "finished" not in output


def test_status_is_watched_until_nothing_runs(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path / "store") as store:
        run = store.begin_run(str(tmp_path / "first"), {})
        store.heartbeat(run, "search", 1, 3)
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 2:
                store.end_run(run, "finished")

        monkeypatch.setattr("mergetomix.cli.commands.time.sleep", sleep)
        code, output, _ = call("status", tmp_path / "store", "--watch", "--every", "0.5")
    assert code == 0 and slept == [0.5, 0.5]
    assert output.count("running: search, 1 of 3") == 2 and output.count("finished") == 1


def test_a_plan_shows_itself(tmp_path: Path) -> None:
    plan = mergetomix.check(write_recipe(tmp_path, recipe_values(tmp_path)))
    assert str(plan).startswith(f"{plan.num_finetunes} fine-tunes, of which 0 are in the store")
    frame = plan.to_frame()
    assert list(frame["dataset"]) == ["a", "b", "c"] and list(frame["rows"]) == [12] * 3
    assert "<table" in plan._repr_html_() and "7 mixtures to try" in plan._repr_html_()


@pytest.mark.slow
def test_the_stages_alone_then_status_and_merge(tmp_path: Path, call: Call) -> None:
    values = recipe_values(tmp_path)
    values["train"]["max_steps"] = 1
    values["final"] = {"baselines": []}
    path = write_recipe(tmp_path, values)
    code, output, _ = call("experts", path)
    assert code == 0 and all(name in output for name in "abc")
    code, output, errors = call("search", path)
    assert (
        code == 0 and "best by proxy: " in output and "experts: 3 of 3 were in the store" in errors
    )
    code, output, errors = call("final", path)
    assert code == 0 and "Final table" in output and "trials: 7 of 7 were in the store" in errors
    for place in (path, tmp_path / "run", tmp_path / "store"):
        code, output, _ = call("status", place)
        assert code == 0 and "finished" in output
    code, output, _ = call("merge", path, "a,c", "-o", tmp_path / "merged")
    assert code == 0 and (tmp_path / "merged" / "model.safetensors").exists()
    code, _, errors = call("merge", path, "a,c", "-o", tmp_path / "merged")
    assert code == 2 and "no empty folder" in errors
    code, _, errors = call("merge", path, "a,z", "-o", tmp_path / "other")
    assert code == 2 and "'z'" in errors
    assert not (tmp_path / "other").exists()
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## Final table" in report and "## Cost" in report
    resolved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert resolved["train"]["max_steps"] == 1
    code, _, errors = call("run", tmp_path / "run" / "recipe.yaml")
    assert code == 0 and "experts: 3 of 3 were in the store" in errors


@pytest.mark.slow
def test_merge_as_model_and_as_adapter(tmp_path: Path, call: Call) -> None:
    values = recipe_values(tmp_path)
    values["train"] |= {"method": "lora", "max_steps": 1, "lora": {"rank": 2, "alpha": 4}}
    path = write_recipe(tmp_path, values)
    shown = ["--weights", "3,1", "--dtype", "bfloat16", "--max-shard-size", "1MB"]
    code, output, errors = call("merge", path, "a,c", "-o", tmp_path / "model", *shown)
    assert code == 0 and f"wrote {tmp_path / 'model'}: the merged model in bfloat16" in output, (
        errors
    )
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| a | 0.75 | 0.75 |" in card and "| c | 0.25 | 0.25 |" in card
    code, output, _ = call("merge", path, "a, c", "--out", tmp_path / "exact", "--adapter")
    assert code == 0 and "an adapter in float32" in output
    assert "rank 4, exact up to rounding; the experts' ranks sum to 4" in output
    code, output, _ = call(
        "merge", path, "c,a", "--out", tmp_path / "low", "--adapter", "--rank", "1"
    )
    assert (
        code == 0
        and "rank 1, the nearest of this rank" in output
        and "over all params, at most" in output
    )
    code, output, _ = call(
        "merge", path, "c,a", "--out", tmp_path / "high", "--adapter", "--rank", "9"
    )
    assert code == 0 and "rank 9 was asked for, which is over that sum" in output


MERGES: dict[str, tuple[list[str], str]] = {
    "rank of a model": (["a", "--rank", "4"], "add --adapter"),
    "rank of none": (["a", "--adapter", "--rank", "0"], "at least 1, not 0"),
    "adapter of full experts": (["a,b", "--adapter"], "the expert of 'a' is a full model"),
    "number type": (["a", "--dtype", "int4"], "float32, bfloat16, float16, not 'int4'"),
    "size": (["a", "--max-shard-size", "big"], "such as 5GB, not 'big'"),
    "sizes of an adapter": (
        ["a", "--adapter", "--max-shard-size", "5GB"],
        "an adapter is one file",
    ),
    "names": (["a,maths"], "no dataset is called 'maths'"),
    "no names": ([","], "at least one dataset"),
    "a name twice": (["a,b,a"], "'a' stands twice"),
    "words for weights": (["a,b", "--weights", "x,y"], "--weights needs numbers"),
    "too few weights": (["a,b", "--weights", "1"], "2 datasets need as many weights"),
    "no weight": (["a,b", "--weights", "0,0"], "not all zero"),
}


@pytest.mark.parametrize("case", MERGES)
def test_a_mistake_in_merge_is_one_message_before_any_training(
    tmp_path: Path, call: Call, case: str
) -> None:
    given, message = MERGES[case]
    code, output, errors = call(
        "merge", write_recipe(tmp_path, recipe_values(tmp_path)), *given, "-o", tmp_path / "out"
    )
    assert code == 2 and message in errors[errors.index("error: ") :] and output == ""
    assert "Traceback" not in errors and "experts: " not in errors
    assert not list(tmp_path.glob("*out*"))


def test_init_writes_a_recipe_that_loads(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_values(tmp_path)
    (tmp_path / "notes.md").write_text("some text")
    path = tmp_path / "recipe.yaml"
    flags = [
        "--base",
        demo.BASE,
        "--dataset",
        "x=a.jsonl",
        "--dataset",
        "y=notes.md",
        "--target",
        "t=t.jsonl",
    ]
    code, output, _ = call("init", path, *flags)
    assert code == 0 and "mergetomix check" in output
    loaded = mergetomix.load_recipe(path)
    x = loaded.datasets["x"]
    assert (x.prompt, x.completion) == ("Question: {question}\nAnswer:", " {answer}")
    assert loaded.datasets["y"].text is True
    code, _, errors = call("init", path)
    assert code == 2 and "exists" in errors
    code, _, errors = call("init", tmp_path / "other.yaml", "--dataset", "oops")
    assert code == 2 and "NAME=PATH" in errors


def test_init_without_anything_is_an_example(tmp_path: Path, call: Call) -> None:
    code, _, _ = call("init", tmp_path / "recipe.yaml")
    assert code == 0
    assert mergetomix.load_recipe(tmp_path / "recipe.yaml").train.method == "lora"
    first = (tmp_path / "recipe.yaml").read_text().splitlines()[0]
    assert json.loads((tmp_path / first.rpartition("=")[2]).read_text())["title"] == "Recipe"


def test_the_shipped_schema_is_the_recipes(call: Call) -> None:
    code, output, _ = call("schema")
    assert code == 0
    schema = json.loads(output)
    assert schema == json.loads(
        (Path(__file__).parents[1] / "docs" / "recipe.schema.json").read_text()
    )
    assert set(schema["required"]) == {"base", "targets"}


def test_set_overrides_and_its_mistakes(tmp_path: Path, call: Call) -> None:
    path = write_recipe(tmp_path, recipe_values(tmp_path))
    code, _, errors = call("check", path, "--set", "train.epochs=-1")
    assert code == 2 and "train.epochs" in errors
    code, _, errors = call("check", path, "--set", "nonsense")
    assert code == 2 and "key=value" in errors


def test_usage_mistakes_are_exit_code_two(call: Call) -> None:
    assert call("run")[0] == 2
    assert call("fly")[0] == 2
    assert call("--help")[0] == 0
    assert mergetomix.__version__ in call("--version")[1]


def test_status_of_nothing(tmp_path: Path, call: Call) -> None:
    code, _, errors = call("status", tmp_path / "none")
    assert code == 2 and "none" in errors and not (tmp_path / "none").exists()


def test_help_and_import_load_nothing_heavy() -> None:
    script = (
        "import sys, mergetomix.cli.main;"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pydantic', 'rich.progress'};"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_the_demo_leaves_an_ordinary_recipe(tmp_path: Path) -> None:
    path = demo.write_recipe(tmp_path)
    loaded = mergetomix.load_recipe(path)
    assert len(loaded.datasets) >= 6 and 2 ** len(loaded.datasets) - 1 >= 63
    assert not set(loaded.datasets) & set(loaded.targets)
    path.write_text(path.read_text() + "# changed\n")
    assert demo.write_recipe(tmp_path).read_text().endswith("# changed\n")


def test_a_disk_too_full_for_the_final_model_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).write_text("{}")

    def full(one: str, other: str, **_: Any) -> None:
        raise OSError(28, "No space left on device", one, None, other)

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(
        Fault, match=r"written to .*final: \[Errno 28\] No space left on device\nhint: "
    ) as caught:
        files.hand_over(source, tmp_path / "final", "")
    assert str(source) in str(caught.value.hint) and [each.name for each in tmp_path.iterdir()] == [
        "source"
    ]

"""Recipes as files: paths, YAML, `--set`, recipes of earlier releases, and the way back."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from said import PAIR, TEXT, TINY, at, refused, small

from mergetomix.errors import RecipeError, UserError
from mergetomix.recipe.recipe import Recipe, dump, load, parse
from mergetomix.targets.kinds import KINDS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    return path


# --- paths


def test_paths_start_at_the_recipe_and_hub_ids_stay(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    recipe, folder = load(file), file.parent
    assert (recipe.base.path, recipe.datasets["math"].path) == ("Qwen/Qwen2.5-0.5B", "openai/gsm8k")
    assert recipe.datasets["chats"].path == str(folder / "data/chats.jsonl")
    assert recipe.datasets["notes"].path == str(folder / "docs/**/*.md")
    assert recipe.targets["held"].path == str(folder / "data/held.jsonl")
    assert (recipe.store, recipe.run_dir) == (
        str(folder / ".mergetomix"),
        str(folder / "runs/first"),
    )


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("owner/name", False),
        ("name", False),
        ("./name", True),
        ("../name", True),
        ("/name", True),
        ("a/b/c", True),
        ("x.jsonl", True),
        ("a/x.CSV.gz", True),
        ("a/*", True),
        ("there", True),
        ("~nobody-of-that-name/x", True),
    ],
)
def test_a_data_path_is_local_where_it_is_written_so_or_is_there(
    path: str, local: bool, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    recipe = parse(small(datasets__a={"path": path, "text": "t"}), tmp_path)
    assert recipe.datasets["a"].path == (str(tmp_path / path) if local else path)


@pytest.mark.parametrize(
    ("path", "local"), [("owner/name", False), ("./m", True), ("a/b/c", True), ("there", True)]
)
def test_a_base_is_local_where_it_is_written_so_or_is_there(
    path: str, local: bool, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    assert parse(small(base=path), tmp_path).base.path == (
        str((tmp_path / path).resolve()) if local else path
    )


def test_home_experts_and_files_of_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    python = {"score": "python", "function": "a/scoring.py:f"}
    raw = small(
        store="~/s",
        datasets__a__expert="experts/a",
        targets__u=python,
        targets__v={**python, "function": "mod:f"},
    )
    recipe = parse(raw, tmp_path)
    assert (recipe.store, recipe.datasets["a"].expert) == (
        "/home/me/s",
        str(tmp_path / "experts/a"),
    )
    assert (recipe.targets["u"].function, recipe.targets["v"].function) == (
        f"{tmp_path}/a/scoring.py:f",
        "mod:f",
    )


@pytest.mark.parametrize(
    "key", ["base", "datasets__a__path", "store", "run_dir", "datasets__a__expert"]
)
def test_an_empty_path_does_not_mean_the_folder_of_the_recipe(key: str) -> None:
    where = "base.path" if key == "base" else key.replace("__", ".")
    refused(where, "at least 1 character", **{key: ""})


def test_resolving_again_changes_nothing(file: Path) -> None:
    recipe = load(file)
    assert recipe.resolved(Path("/elsewhere")) == recipe == parse(recipe, Path("/elsewhere"))


# --- files


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base: [", "not valid YAML"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("a: {b: 1, 'b': 2}", "'b' stands twice"),
        ("a: [{b: 1, c: 3, b: 2}]", "'b' stands twice"),
        ("? [a]\n: 1", "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("- base", "must be a mapping"),
        (b"a: \xff", "not text in UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(text: str | bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=named) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe at") as caught:
        load(tmp_path / "gone.yaml")
    assert caught.value.hint == f"`mergetomix init {tmp_path / 'gone.yaml'}` writes a commented one"
    with pytest.raises(RecipeError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load(tmp_path / ("x" * 300))


def test_anchors_and_merged_keys_may_be_overridden(file: Path) -> None:
    file.write_text(
        "base: b\n"
        "datasets:\n"
        "  one: &one {path: x.csv, text: t, seed: 1}\n"
        "  two: &two {<<: *one, seed: 2}\n"
        "  three: {<<: *two, seed: 3}\n"
        "targets:\n"
        "  t: {<<: *two, split: dev}\n"
    )
    recipe = load(file)
    assert [(source.text, source.seed) for source in recipe.datasets.values()] == [
        ("t", 1),
        ("t", 2),
        ("t", 3),
    ]
    assert (recipe.targets["t"].seed, recipe.targets["t"].split) == (2, "dev")


# --- --set


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("train.lora.rank=4", "train.lora.rank", 4),
        ("train.lora={rank: 2}", "train.lora.rank", 2),
        ("train.max_steps=", "train.max_steps", None),
        ("search.require=[math, notes]", "search.require", ["math", "notes"]),
        ("targets.svamp.prompt='a=b'", "targets.svamp.prompt", "a=b"),
        ("targets.svamp.pattern=a=b", "targets.svamp.pattern", "a=b"),
        ("base=gpt2", "base.path", "gpt2"),
        ("base.revision=v2", "base.revision", "v2"),
        (" select_fraction = 0.25", "select_fraction", 0.25),
    ],
)
def test_an_override_changes_its_key_alone(
    override: str, where: str, value: Any, file: Path
) -> None:
    before, after = load(file), load(file, [override])
    assert functools.reduce(at, where.split("."), after) == value
    changed = {key for key in Recipe.model_fields if getattr(before, key) != getattr(after, key)}
    assert changed == {where.split(".")[0]} or value is None


def test_an_override_makes_the_sections_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small()) + "merge:\n")
    recipe = load(
        path,
        [
            "merge.scale.exponent=0.5",
            "train.lora.rank=3",
            "datasets.c.path=x.csv",
            "datasets.c.text=t",
        ],
    )
    assert (recipe.merge.scale.exponent, recipe.train.lora.rank, recipe.datasets["c"].text) == (
        0.5,
        3,
        "t",
    )


def test_a_base_given_as_a_string_can_be_refined(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small(base="x/y")))
    base = load(path, ["base.revision=v1", "base.dtype=float32"]).base
    assert (base.path, base.revision, base.dtype) == ("x/y", "v1", "float32")


def test_a_name_with_dots_can_be_reached(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(small(**{"datasets__v1.2": dict(TINY), "datasets__v1": dict(TINY)}))
    )
    recipe = load(path, ["datasets.v1.2.seed=7", "datasets.v1.seed=8"])
    assert (recipe.datasets["v1.2"].seed, recipe.datasets["v1"].seed) == (7, 8)


def test_later_overrides_win(file: Path) -> None:
    assert load(file, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.seed", "key=value"),
        ("=3", "key=value"),
        (" =3", "key=value"),
        ("train.seed=[", "not valid YAML"),
        ("train={seed: 1, seed: 2}", "stands twice"),
        ("train.seed.x=1", "seed is not a section"),
        ("train.seed=2024-13-45", "not valid YAML"),
        ("trian.seed=1", "did you mean 'train'"),
        ("train.lora.rnak=1", "did you mean 'rank'"),
        ("train.seed=two", "train.seed"),
        ("train..seed=1", "unknown key"),
    ],
)
def test_a_broken_override_is_the_user_s_to_mend(override: str, named: str, file: Path) -> None:
    with pytest.raises(UserError, match=named):
        load(file, [override])


# --- and back


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "train.learning_rate=1e-5",
            "targets.svamp.stop=[]",
            "search.forbid=[math]",
            "final.train=false",
        ],
        [
            "datasets.math={rows: [{q: é, a: 2024-01-01}, {q: 'no', a: null}], text: '{q}'}",
            "targets.svamp.stop=['\\n', ' ']",
        ],
        [
            "targets.svamp.function=scoring.py:f",
            "targets.held.rows=[]",
            "targets.held.path=",
            "base.path=~/m",
        ],
    ],
)
def test_a_recipe_that_is_written_and_read_is_the_same(
    overrides: list[str], file: Path, tmp_path: Path
) -> None:
    recipe = load(file, overrides)
    again = tmp_path / "elsewhere" / "again.yaml"
    again.parent.mkdir()
    again.write_text(dump(recipe))
    assert load(again) == recipe
    assert dump(load(again)) == dump(recipe)


# what YAML escapes, guesses to be another type, or cannot hold (surrogates)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(
    [
        "no",
        "null",
        "1e3",
        "2024-01-01",
        "0x1f",
        "~",
        "{a: b}",
        "- a",
        "a: b",
        " #",
        "\x85",
        "=",
        "<<",
    ]
)
CELLS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.dates()


@given(
    prompt=TEXTS,
    stop=st.lists(TEXTS, max_size=3),
    rows=st.lists(st.dictionaries(TEXTS, CELLS), min_size=1, max_size=3),
    rate=st.floats(min_value=1e-12, max_value=10),
    seed=st.integers(0, 2**32 - 1),
)
@example(prompt="\x85", stop=["a\x85"], rows=[{"\x85": None}], rate=1.0, seed=0)
@settings(deadline=None, max_examples=20, derandomize=True)
def test_any_text_and_number_comes_back_as_it_was(
    prompt: str, stop: list[str], rows: list[Any], rate: float, seed: int
) -> None:
    target = {"prompt": prompt, "completion": "c", "score": "generate", "stop": stop, "path": "/x"}
    recipe = parse(
        small(
            targets__t=target,
            datasets__a={"rows": rows, "text": prompt},
            train={"learning_rate": rate, "seed": seed},
        )
    )
    assert parse(yaml.safe_load(dump(recipe))) == recipe


class Rows:
    """Rows that only Python knows."""

    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize("rows", [Rows(), [{"t": np.float32(1)}] * 5])
@pytest.mark.parametrize("function", [len, functools.partial(len), Rows.__len__])
def test_what_yaml_cannot_hold_is_named(rows: Any, function: Any) -> None:
    raw = small(datasets__a__rows=rows, targets__t={"score": "python", "function": function})
    text = dump(parse(raw))
    assert "<5 rows given from Python>" in text
    assert "given from Python" in yaml.safe_load(text)["targets"]["t"]["function"]


# --- recipes of earlier releases


EARLIER = r"""
base: {path: some/model, revision: main}
datasets:
  math: {path: /data/math.jsonl, prompt: question, completion: answer, split: train}
  notes: {path: /data/notes, text: true, split: train}
targets:
  held: {path: /data/held.jsonl, messages: messages, weight: 2, split: test}
  quiz: {path: /data/quiz.jsonl, prompt: "Q: {question}\nA:", completion: " {answer}",
         score: choice, options: [a, b], option_format: " {option}", normalize: false, split: test}
  sums: {path: /data/sums.jsonl, prompt: question, completion: answer,
         score: generate, metric: regex, pattern: '(\d+)', stop: [], split: test}
  mine: {score: python, split: test, function: "/data/scoring.py:score"}
merge: {weighting: equal}
search: {objective: gain}
store: /data/store
run_dir: /data/run
"""


def test_an_anchor_from_python_is_named_in_the_file() -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"t": "a"}])
    anchor = {"dataset": {"rows": rows, "text": "t", "map": lambda row: row}, "share": 0.5}
    written = yaml.safe_load(dump(parse(small(train={"anchor": anchor}))))
    kept = written["train"]["anchor"]["dataset"]
    assert kept["rows"] == "<1 rows given from Python>" and "lambda" in kept["map"]


def test_a_resolved_recipe_of_an_earlier_release_says_the_same() -> None:
    """Every target there holds the keys of all kinds, those of the others at their defaults."""
    resolved = Path(__file__).parent / "fixtures" / "resolved-0.1.yaml"
    assert "normalize: true" in resolved.read_text()
    assert load(resolved) == parse(yaml.safe_load(EARLIER))


@given(st.sampled_from(list(KINDS)), st.data())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_a_key_of_another_kind_is_dropped_at_its_default_and_refused_else(
    score: str, data: st.DataObject
) -> None:
    own = {"score": score, **PAIR, **{"choice": {"options": "o"}}.get(score, {})}
    own = {"score": score, "task": "gsm8k"} if score == "harness" else own
    own |= {"function": "scoring.py:f"} if score == "python" else {}
    others = {key: kind for kind in KINDS.values() for key in kind.model_fields}
    key = data.draw(st.sampled_from(sorted(set(others) - {"task", *KINDS[score].model_fields})))
    default = others[key].model_fields[key].default
    assert parse(small(targets__t={**own, key: default})) == parse(small(targets__t=own))
    refused(f"targets.t.{key}", "is for score: ", targets__t={**own, key: "something else"})

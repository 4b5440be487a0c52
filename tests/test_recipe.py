"""The laws of the recipe: what it says is what is loaded, and what it must not say is refused by the path of the key."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mergetomix.errors import RecipeError, UserError
from mergetomix.recipe.recipe import Recipe, Section, dump, load, parse
from mergetomix.sections.source import Source
from mergetomix.sections.train import Anchor, Augment

TEXT = r"""
base: {path: Qwen/Qwen2.5-0.5B, revision: main}
datasets:
  math:  {path: openai/gsm8k, name: main, split: train, prompt: question, completion: answer, max_examples: 5000}
  chats: {path: data/chats.jsonl, messages: messages}
  notes: {path: "docs/**/*.md", text: true}
targets:
  svamp: {path: data/svamp.jsonl, prompt: "Q: {input}\nA:", completion: " {output}", score: generate, metric: number,
          weight: 2}
  held:  {path: data/held.jsonl, messages: messages, score: loss}
train:  {method: lora, epochs: 1, max_steps: null, learning_rate: 2.0e-4, batch_size: 8, max_length: 1024, seed: 0,
         lora: {rank: 16, alpha: 32}}
images: {head: auto}
merge:  {method: linear, scale: {exponent: 1.0}, weighting: equal}
search: {strategy: auto, min_datasets: 1, max_datasets: null, require: [], forbid: []}
verify: {budget: null, confidence: 0.95, repeats: 1}
study:  {seeds: [0, 1, 2], max_finetunes: 100}
final:  {train: true, baselines: [all, random]}
select_fraction: 0.5
store: .mergetomix
run_dir: runs/first
"""
RAW: dict[str, Any] = yaml.safe_load(TEXT)
SECTIONS = [
    ("", "run_dri", "run_dir"),
    ("base", "revison", "revision"),
    ("datasets.math", "promt", "prompt"),
    ("targets.svamp", "metrc", "metric"),
    ("train", "learning_rte", "learning_rate"),
    ("train.lora", "rnak", "rank"),
    ("images", "hed", "head"),
    ("merge", "weigthing", "weighting"),
    ("merge.scale", "exponnet", "exponent"),
    ("search", "strtegy", "strategy"),
    ("verify", "budgt", "budget"),
    ("study", "sedes", "seeds"),
    ("final", "baselnes", "baselines"),
]
TINY = {"rows": [{"t": "x"}], "text": "t"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    return path


def small(**changes: Any) -> dict[str, Any]:
    """The least that a recipe must say, with keys such as `train__seed` changed."""
    raw: dict[str, Any] = {
        "base": "b",
        "datasets": {"a": dict(TINY), "b": dict(TINY)},
        "targets": {"t": dict(TINY)},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = raw
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return raw


def refused(where: str, *named: str, **changes: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse(small(**changes))
    assert caught.value.where == where
    for thing in named:
        assert thing in caught.value.message
    return caught.value


# --- what is said is what is loaded -----------------------------------------------------------------------------------


def given(raw: Any, loaded: Any, where: str = "") -> list[str]:
    """The paths of the keys whose loaded value is not the given one."""
    if isinstance(raw, dict):
        pairs = [
            (value, loaded[key] if isinstance(loaded, dict) else getattr(loaded, key), key)
            for key, value in raw.items()
        ]
        return [
            path
            for value, mine, key in pairs
            for path in given(value, mine, f"{where}.{key}".strip("."))
        ]
    return [] if raw == loaded and type(raw) is type(loaded) else [where]


def test_every_value_is_loaded_as_it_is_said(file: Path) -> None:
    recipe = load(file)
    assert set(given(RAW, recipe)) == {
        # made absolute
        "datasets.chats.path", "datasets.notes.path", "targets.svamp.path", "targets.held.path", "store", "run_dir",
        # whole numbers where any number will do
        "targets.svamp.weight", "train.epochs", "train.lora.alpha",
    }  # fmt: skip
    assert (recipe.targets["svamp"].weight, recipe.train.epochs, recipe.train.lora.alpha) == (
        2,
        1,
        32,
    )
    assert recipe.targets["svamp"].prompt == "Q: {input}\nA:"
    assert (recipe.datasets["notes"].files, recipe.datasets["chats"].files) == (True, False)


def test_a_section_that_is_left_out_is_the_one_that_says_the_defaults() -> None:
    whole = parse(RAW)
    for section in ("train", "merge", "search", "final", "select_fraction", "store", "run_dir"):
        assert parse({key: value for key, value in RAW.items() if key != section}) == whole


def test_a_target_is_tested_and_a_dataset_trained_on_by_default() -> None:
    recipe = parse(small())
    assert (recipe.datasets["a"].split, recipe.targets["t"].split) == ("train", "test")


def test_base_may_be_its_path_alone() -> None:
    assert parse(small(base="x/y")) == parse(small(base={"path": "x/y"}))


def test_a_recipe_cannot_be_changed(file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(file).train.seed = 3  # type: ignore[misc]


def test_parsing_leaves_the_given_values_alone() -> None:
    raw = small()
    before = copy.deepcopy(raw)
    parse(raw)
    assert raw == before


# --- paths ------------------------------------------------------------------------------------------------------------


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


# --- keys and values that must not be --------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "key", "nearest"), SECTIONS)
def test_an_unknown_key_is_named_with_the_nearest(where: str, key: str, nearest: str) -> None:
    raw = copy.deepcopy(RAW)
    place = functools.reduce(
        lambda section, part: section[part], where.split(".") if where else [], raw
    )
    place[key] = 1
    with pytest.raises(RecipeError) as caught:
        parse(raw)
    assert (caught.value.where, caught.value.message) == (
        f"{where}.{key}".strip("."),
        f"{where}.{key}".strip(".") + f": unknown key; did you mean '{nearest}'?",
    )


def test_every_section_is_among_those_tested() -> None:
    sections = {
        type(functools.reduce(at, where.split(".") if where else [], parse(RAW)))
        for where, *_ in SECTIONS
    }
    assert sections == set(descendants(Section)) - {Source, Anchor, Augment}


def test_a_section_that_may_be_null_knows_its_keys_too() -> None:
    with pytest.raises(
        RecipeError, match=r"train\.augment\.flp: unknown key; did you mean 'flip'\?"
    ):
        parse(small(train__augment={"flp": 0.5}))
    anchor = {"dataset": dict(TINY), "shar": 0.5}
    with pytest.raises(
        RecipeError, match=r"train\.anchor\.shar: unknown key; did you mean 'share'\?"
    ):
        parse(small(train__anchor=anchor))


def at(place: Any, part: str) -> Any:
    return place[part] if isinstance(place, dict) else getattr(place, part)


def descendants(section: type[Section]) -> list[type[Section]]:
    return [found for child in section.__subclasses__() for found in (child, *descendants(child))]


def test_a_key_like_no_other_comes_with_the_known_ones() -> None:
    assert (
        "known here: rank, alpha, dropout, target_modules"
        in refused("train.lora.zzz", train__lora__zzz=1).message
    )


def test_a_dataset_called_as_a_key_has_the_keys_of_a_dataset() -> None:
    refused("datasets.path.promt", "did you mean 'prompt'", datasets__path={**TINY, "promt": "x"})


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("train__batch_size", "many", "'many'"),
        ("train__batch_size", 1.5, "1.5"),
        ("train__batch_size", [1], "integer"),
        ("train__batch_size", 0, "greater than or equal to 1, not 0"),
        ("train__learning_rate", float("inf"), "finite"),
        ("train__learning_rate", float("nan"), "finite"),
        ("train__method", "qlora", "'lora' or 'full', not 'qlora'"),
        ("train__seed", -1, "-1"),
        ("train__seed", 2**32, str(2**32)),
        ("train__max_steps", True, "must not be true"),
        ("base", {"path": "b", "revision": False}, "must not be false"),
        ("datasets__a__seed", -1, "-1"),
        ("datasets__a__text", 5, "string"),
        ("targets__t__options", 5, "list"),
        ("targets__t__function", 5, "callable"),
        ("targets__t__pattern", "(", "not a regular expression"),
        ("targets__t__function", "scoring.py", "'scoring.py'"),
        ("targets__t__weight", 0, "greater than 0"),
        ("train", [1], "mapping"),
        ("train__lora", "r16", "mapping"),
        ("base", 5, "mapping"),
        ("datasets", None, "mapping"),
        ("datasets__a", None, "mapping"),
        ("merge__scale__exponent", "one", "'one'"),
        ("search__require", "a", "list"),
        ("select_fraction", 1, "less than 1"),
        ("device", 0, "string"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_by_its_path(key: str, value: Any, named: str) -> None:
    where = "base.revision" if isinstance(value, dict) else key.replace("__", ".")
    assert "\n" not in refused(where, named, **{key: value}).message


@pytest.mark.parametrize(
    ("key", "where", "value"),
    [
        ("targets__t__stop", "targets.t.stop.1", ["a", 1]),
        ("targets__t__options", "targets.t.options", ["a", {}]),
        ("final__baselines", "final.baselines.0", ["none"]),
    ],
)
def test_a_place_in_a_list_is_part_of_the_path(key: str, where: str, value: list[Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(small(**{key: value}))
    assert caught.value.where.startswith(where)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "_a", "ä", "a\n", "../a"])
@pytest.mark.parametrize("section", ["datasets", "targets"])
def test_a_name_must_do_as_a_file_name(section: str, name: str) -> None:
    refused(f"{section}.{name}", "a name starts with", **{f"{section}__{name}": dict(TINY)})


def test_a_name_must_be_text() -> None:
    raw = small()
    raw["datasets"][False] = dict(TINY)  # what YAML makes of `no:`
    with pytest.raises(RecipeError, match="a name must be text, not False: quote it"):
        parse(raw)


@pytest.mark.parametrize("key", ["base", "datasets", "targets"])
def test_what_must_be_there(key: str) -> None:
    with pytest.raises(RecipeError, match="required, but not given") as caught:
        parse({name: value for name, value in RAW.items() if name != key})
    assert caught.value.where == key


def test_all_problems_are_told_at_once() -> None:
    lines = refused(
        "train.seed", train__seed="x", search__min_datasets=0, merge__method="mean"
    ).message.split("\n")
    assert [line.partition(":")[0] for line in lines] == [
        "train.seed",
        "merge.method",
        "search.min_datasets",
    ]


@pytest.mark.parametrize("num", [0, 1])
def test_a_choice_needs_two_datasets(num: int) -> None:
    refused(
        "datasets", f"at least two datasets, not {num}", datasets=dict.fromkeys("ab"[:num], TINY)
    )


def test_a_target_is_needed() -> None:
    refused("targets", "at least one", targets={})


@pytest.mark.parametrize(
    ("where", "named", "search"),
    [
        ("search.require", "'aa'; did you mean 'a'", {"require": ["aa"]}),
        ("search.forbid", "'zzz'", {"forbid": ["zzz"]}),
        ("search", "a both required and forbidden", {"require": ["a"], "forbid": ["a"]}),
        ("search", "at least 2 and at most 1", {"min_datasets": 2, "max_datasets": 1}),
        ("search", "at least 3 and at most 2", {"min_datasets": 3}),
        ("search", "at least 2 and at most 1", {"require": ["a", "b"], "max_datasets": 1}),
        ("search", "at least 1 and at most 0", {"forbid": ["a", "b"]}),
    ],
)
def test_a_search_without_any_mixture(where: str, named: str, search: dict[str, Any]) -> None:
    refused(where, named, search=search)


def test_a_search_with_one_mixture() -> None:
    for search in (
        {"min_datasets": 2},
        {"require": ["a", "a"], "max_datasets": 1},
        {"forbid": ["b", "b"]},
    ):
        parse(small(search=search))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"path": "x.csv", "rows": [], "text": "t"}, "path or rows"),
        ({"text": "t"}, "give a path"),
        ({"path": "x.csv"}, "how a row becomes an example"),
        ({"path": "x.csv", "prompt": "p"}, "how a row becomes an example"),
        ({"path": "x.csv", "text": False}, "how a row becomes an example"),
        ({"path": "x.csv", "text": "t", "messages": "m"}, "not messages and text"),
        ({"path": "x.csv", "text": "t", "prompt": "p"}, "prompt needs a completion"),
    ],
)
def test_a_source_that_does_not_say_what_its_rows_are(fields: dict[str, Any], named: str) -> None:
    refused("datasets.a", named, datasets__a=fields)
    refused("targets.t", named, targets__t=fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"score": "choice", "prompt": "p", "completion": "c"}, "needs options"),
        ({"score": "choice", "messages": "m", "options": ["a", "b"]}, "prompt and completion"),
        ({"score": "choice", "completion": "c", "options": ["a", "b"]}, "prompt and completion"),
        ({"score": "generate", "completion": "c"}, "prompt and completion"),
        ({"score": "generate", "text": "t"}, "prompt and completion"),
        ({"score": "generate", "prompt": "p", "completion": "c", "metric": "regex"}, "pattern"),
        (
            {"score": "generate", "prompt": "p", "completion": "c", "metric": "function"},
            "name a function",
        ),
        ({"score": "python"}, "name a function"),
    ],
)
def test_a_score_that_lacks_what_it_needs(fields: dict[str, Any], named: str) -> None:
    refused("targets.t", named, targets__t={"path": "x.csv", **fields})


def test_scores_that_have_what_they_need() -> None:
    pair = {"path": "x.csv", "prompt": "p", "completion": "c"}
    for fields in (
        {**pair, "score": "choice", "options": "o"},
        {**pair, "score": "generate"},
        {
            "path": "x.csv",
            "messages": "m",
            "score": "generate",
            "metric": "regex",
            "pattern": r"\d+",
        },
        {"score": "python", "function": print},
        {"score": "python", "function": "scoring.py:f", "path": "x.csv", "prompt": "p"},
    ):
        parse(small(targets__t=fields))


# --- files ------------------------------------------------------------------------------------------------------------


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
    shared = "  one: &one {path: x.csv, text: t, seed: 1}\n  two: &two {<<: *one, seed: 2}\n  three: {<<: *two, seed: 3}\n"
    file.write_text(f"base: b\ndatasets:\n{shared}targets:\n  t: {{<<: *two, split: dev}}\n")
    recipe = load(file)
    assert [(source.text, source.seed) for source in recipe.datasets.values()] == [
        ("t", 1),
        ("t", 2),
        ("t", 3),
    ]
    assert (recipe.targets["t"].seed, recipe.targets["t"].split) == (2, "dev")


# --- --set ------------------------------------------------------------------------------------------------------------


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


# --- and back ---------------------------------------------------------------------------------------------------------


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


class Rows:
    """Rows that only Python knows."""

    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize("rows", [Rows(), [{"t": np.float32(1)}] * 5])
@pytest.mark.parametrize("function", [len, functools.partial(len), Rows()])
def test_what_yaml_cannot_hold_is_named(rows: Any, function: Any) -> None:
    if isinstance(function, Rows):
        function = Rows.__len__
    raw = small(datasets__a__rows=rows, targets__t={"score": "python", "function": function})
    text = dump(parse(raw))
    assert "<5 rows given from Python>" in text
    assert "given from Python" in yaml.safe_load(text)["targets"]["t"]["function"]


def test_every_field_of_every_section_says_what_it_is() -> None:
    schema = Recipe.model_json_schema()
    models = {"Recipe": schema, **schema["$defs"]}
    assert set(models) == {section.__name__ for section in descendants(Section)} - {"Source"}
    for name, model in models.items():
        assert model["description"]
        for field, about in model["properties"].items():
            # pydantic leaves a text out that is the section's own
            section = models.get(about.get("$ref", "").rpartition("/")[2], {})
            assert (about.get("description") or section.get("description", "")).strip(), (
                f"{name}.{field}"
            )

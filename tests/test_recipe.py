"""The laws of the recipe: what it says is loaded; what it must not say is refused by its key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from said import PAIR, RAW, TEXT, TINY, at, place_of, refused, small

from mergetomix.errors import RecipeError
from mergetomix.recipe.recipe import Recipe, Section, load, parse
from mergetomix.sections.source import DatasetsFrom
from mergetomix.targets.kinds import KINDS
from mergetomix.targets.target import TargetKind

ANCHOR = {"dataset": {"path": "data/all.txt", "text": "text"}, "share": 0.5}
BENCH = {"score": "harness", "task": "gsm8k"}
WHOLE = {
    **RAW,
    "targets": {**RAW["targets"], "bench": BENCH},
    "train": {
        **RAW["train"],
        "anchor": ANCHOR,
        "augment": {"flip": 0.5},
        "launch": {"processes": 2},
    },
    "executor": {"kind": "local"},
}
"""With the sections that are null unless given."""
SECTIONS = [
    ("", "run_dri", "run_dir"),
    ("base", "revison", "revision"),
    ("datasets.math", "promt", "prompt"),
    ("targets.svamp", "metrc", "metric"),
    ("targets.held", "hed", "head"),
    ("targets.quiz", "optons", "options"),
    ("targets.own", "functon", "function"),
    ("targets.bench", "num_fewshots", "num_fewshot"),
    ("train", "learning_rte", "learning_rate"),
    ("train.lora", "rnak", "rank"),
    ("train.anchor", "shar", "share"),
    ("train.augment", "flp", "flip"),
    ("train.launch", "proceses", "processes"),
    ("executor", "wrkers", "workers"),
    ("images", "hed", "head"),
    ("merge", "weigthing", "weighting"),
    ("merge.scale", "exponnet", "exponent"),
    ("search", "strtegy", "strategy"),
    ("verify", "budgt", "budget"),
    ("study", "sedes", "seeds"),
    ("final", "baselnes", "baselines"),
]


# --- what is said is what is loaded


def changed(raw: Any, loaded: Any, where: str = "") -> list[str]:
    """The paths of the keys whose loaded value is not the given one."""
    if isinstance(raw, dict):
        return [
            path
            for key, value in raw.items()
            for path in changed(value, at(loaded, key), f"{where}.{key}".strip("."))
        ]
    return [] if raw == loaded and type(raw) is type(loaded) else [where]


def test_every_value_is_loaded_as_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(TEXT)
    recipe = load(file)
    assert set(changed(RAW, recipe)) == {
        # made absolute
        "datasets.chats.path", "datasets.notes.path", "targets.svamp.path", "targets.held.path",
        "targets.quiz.path", "targets.own.function", "store", "run_dir",
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
    both = recipe.datasets["a"], recipe.targets["t"]
    assert [(each.split, each.default_split) for each in both] == [(None, "train"), (None, "test")]


def test_base_may_be_its_path_alone() -> None:
    assert parse(small(base="x/y")) == parse(small(base={"path": "x/y"}))


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(RAW).train.seed = 3  # type: ignore[misc]


def test_parsing_leaves_the_given_values_alone() -> None:
    raw = small()
    before = copy.deepcopy(raw)
    parse(raw)
    assert raw == before


# --- keys and values that must not be


@pytest.mark.parametrize(("where", "key", "nearest"), SECTIONS)
def test_an_unknown_key_is_named_with_the_nearest(where: str, key: str, nearest: str) -> None:
    raw = copy.deepcopy(WHOLE)
    place_of(where, raw)[key] = 1
    path = f"{where}.{key}".strip(".")
    with pytest.raises(RecipeError) as caught:
        parse(raw)
    assert caught.value.where == path
    assert caught.value.message == f"{path}: unknown key; did you mean '{nearest}'?"


@given(st.data())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_any_key_with_a_letter_less_is_refused_with_its_path(data: st.DataObject) -> None:
    where = data.draw(st.sampled_from([where for where, *_ in SECTIONS]))
    known = type(place_of(where, parse(WHOLE))).model_fields
    key = data.draw(st.sampled_from(list(known)))
    cut = data.draw(st.integers(0, len(key) - 1))
    typo = key[:cut] + key[cut + 1 :]
    assume(typo and not any(typo in kind.model_fields for kind in KINDS.values()))
    raw = copy.deepcopy(WHOLE)
    place_of(where, raw)[typo] = 1
    with pytest.raises(RecipeError) as caught:
        parse(raw)
    path = f"{where}.{typo}".strip(".")
    assert caught.value.message.startswith(f"{path}: unknown key; ")


def test_every_section_is_among_those_tested() -> None:
    tested = {type(place_of(where, parse(WHOLE))) for where, *_ in SECTIONS}
    # an image's accuracy cannot stand beside texts, and several datasets from one become datasets
    assert tested == sections_in(Recipe) - {KINDS["accuracy"], DatasetsFrom}


def sections_in(annotation: Any) -> set[type[Section]]:
    """Every section that a value of a type may hold."""
    if annotation is TargetKind:
        return {found for kind in KINDS.values() for found in sections_in(kind)}
    if isinstance(annotation, type) and issubclass(annotation, Section):
        fields = [field.annotation for field in annotation.model_fields.values()]
        return {annotation, *(found for each in fields for found in sections_in(each))}
    return {found for part in get_args(annotation) for found in sections_in(part)}


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
        (
            "targets__t__score",
            "los",
            "'loss', 'accuracy', 'choice', 'generate', 'python' or 'harness'",
        ),
        ("targets__t__score", 5, "not 5"),
        ("targets__t__score", None, "not None"),
        ("targets__t__score", ["loss"], "'loss'"),
        ("targets__t__stop", "x", "is for score: generate, not loss"),
        ("targets__t__function", "scoring.py:f", "is for score: generate or python, not loss"),
        ("targets__t__stop", [], "is for score: generate, not loss"),
        ("targets__t__weight", 0, "greater than 0"),
        ("train", [1], "mapping"),
        ("train__lora", "r16", "mapping"),
        ("base", 5, "mapping"),
        ("datasets", None, "mapping"),
        ("datasets__a", None, "mapping"),
        ("targets__t", None, "mapping"),
        ("targets__t", 5, "mapping"),
        ("targets__t", ["loss"], "mapping"),
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
    ("score", "key", "value", "named"),
    [
        ("choice", "options", 5, "list"),
        ("choice", "normalize", "perhaps", "'perhaps'"),
        ("generate", "function", 5, "callable"),
        ("generate", "pattern", "(", "not a regular expression"),
        ("generate", "max_new_tokens", 0, "greater than or equal to 1, not 0"),
        (
            "generate",
            "metric",
            "bleu",
            "'exact', 'words', 'f1', 'number', 'regex' or 'function', not 'bleu'",
        ),
        ("generate", "normalize", False, "is for score: choice, not generate"),
        ("python", "function", "scoring.py", "'scoring.py'"),
        ("python", "metric", "number", "is for score: generate or harness, not python"),
    ],
)
def test_a_value_of_a_kind_of_target_is_named_by_its_path(
    score: str, key: str, value: Any, named: str
) -> None:
    refused(f"targets.t.{key}", named, targets__t={**PAIR, "score": score, key: value})


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"targets__t": {**PAIR, "score": "generate", "stop": ["a", 1]}}, "targets.t.stop.1"),
        ({"targets__t": {**PAIR, "score": "choice", "options": ["a", {}]}}, "targets.t.options.1"),
        ({"final__baselines": ["none"]}, "final.baselines.0"),
    ],
)
def test_a_place_in_a_list_is_part_of_the_path(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(small(**changes))
    assert where in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "_a", "ä", "a\n", "../a"])
@pytest.mark.parametrize("section", ["datasets", "targets"])
def test_a_name_must_do_as_a_file_name(section: str, name: str) -> None:
    refused(f"{section}.{name}", "a name starts with", **{f"{section}__{name}": dict(TINY)})


def test_a_name_must_be_text() -> None:
    raw = small()
    raw["datasets"][False] = dict(TINY)  # what YAML makes of `no:`
    with pytest.raises(RecipeError, match="a name must be text, not False: quote it"):
        parse(raw)


@pytest.mark.parametrize("key", ["base", "targets"])
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
        ("search.require", "a both required and forbidden", {"require": ["a"], "forbid": ["a"]}),
        ("search.max_datasets", "min_datasets is 2", {"min_datasets": 2, "max_datasets": 1}),
        ("search.min_datasets", "3, but there are 2 datasets", {"min_datasets": 3}),
        (
            "search.min_datasets",
            "2, but there are 2 datasets, 1",
            {"min_datasets": 2, "forbid": ["a"]},
        ),
        ("search.max_datasets", "require names 2", {"require": ["a", "b"], "max_datasets": 1}),
        ("search.forbid", "leaves none of 2 datasets", {"forbid": ["a", "b"]}),
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
    for fields in (
        {**PAIR, "score": "choice", "options": "o"},
        {**PAIR, "score": "generate"},
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


# --- the schema, by which editors complete and check


SCHEMA: dict[str, Any] = Recipe.model_json_schema()


def test_every_field_of_every_section_says_what_it_is() -> None:
    models = {"Recipe": SCHEMA, **SCHEMA["$defs"]}
    assert set(models) == {section.__name__ for section in sections_in(Recipe)}
    for name, model in models.items():
        assert model["description"]
        for field, about in model["properties"].items():
            # pydantic leaves a text out that is the section's own
            section = models.get(about.get("$ref", "").rpartition("/")[2], {})
            assert (about.get("description") or section.get("description", "")).strip(), (
                f"{name}.{field}"
            )


def test_an_editor_knows_a_target_by_its_score() -> None:
    (target,) = SCHEMA["properties"]["targets"]["patternProperties"].values()
    kinds = [SCHEMA["$defs"][each["$ref"].rpartition("/")[2]] for each in target["oneOf"]]
    assert [kind["properties"]["score"]["const"] for kind in kinds] == list(KINDS)
    # without a score it is the loss
    assert ["score" in kind.get("required", []) for kind in kinds] == [
        score != "loss" for score in KINDS
    ]
    for kind in kinds:
        assert kind["additionalProperties"] is False

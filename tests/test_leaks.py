"""Leaks: what targets and datasets share, whatever form it has, and what is done about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipes import Heard, recipe_values
from sources import target_section

import mergetomix
from mergetomix.data.examples import Example, Examples
from mergetomix.data.leaks import COMMON, WORDS, Affixes, Said, overlap, said_by, squeezed, words
from mergetomix.data.reading import read
from mergetomix.data.splits import Sides, split
from mergetomix.errors import DataError
from mergetomix.progress import Silent
from mergetomix.recipe.recipe import Recipe, parse
from mergetomix.session.inputs import Inputs, read_inputs


def pair(prompt: str, completion: str, row: int = 0) -> Example:
    return Example(row, prompt=prompt, completion=completion)


def said(*items: Example, **affixes: str) -> list[Said]:
    return list(said_by(items, {key: Affixes.of(each) for key, each in affixes.items()}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("He said he won 't go .", "he said he won\u2019t go"),
        ("The  CAT\tsat, on a mat!", "the cat sat on a mat"),
        ("\uff46\uff55\uff4c\uff4c width", "full width"),
        ("can not", "cannot"),
        ("1,000 dollars", "1000 dollars"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("猫が 好き", "猫が好き"),
    ],
)
def test_forms_of_one_text_are_the_same(one: str, other: str) -> None:
    assert squeezed(words(one)) == squeezed(words(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 + 2 =", "2 - 2 ="),
        ("2 * 3", "2 / 3"),
        ("12 3", "1 23"),
        ("1.5", "15"),
        ("it is -5", "it is 5"),
        ("x < y", "x > y"),
        (":-)", ":-("),
    ],
)
def test_what_means_something_else_is_not(one: str, other: str) -> None:
    assert squeezed(words(one)) != squeezed(words(other))


def test_the_same_examples_are_found_in_whatever_form_a_recipe_writes_them() -> None:
    dataset = said(
        pair("Q: What is it? A:", " A cat", 0),
        pair("Q: Who? A:", " me", 1),
        prompt="Q: {q} A:",
        completion=" {a}",
    )
    target = said(
        pair("Answer this. what is it", "a cat."),
        pair("Answer this. who", "You"),
        pair("Answer this. when", "now"),
        prompt="Answer this. {q}",
    )
    found = overlap(dataset, target)
    assert (found.whole, found.runs, found.prompts) == ({0: 0}, {}, {1: 1})
    assert found.places == {0} and found.leaked == {0: 0}


def test_a_chat_and_a_pair_that_say_the_same_are_the_same() -> None:
    chat = Example(0, messages=(("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")))
    assert overlap(said(chat), said(pair("why", "so"))).whole == {0: 0}
    assert not overlap(said(chat), said(pair("be brief why", "so"))).whole


def test_options_do_not_count() -> None:
    asked = Example(0, prompt="ok then", completion="yes", options=("yes", "no"))
    assert overlap(said(pair("OK, then?", "yes")), said(asked)).whole == {0: 0}


def many(num: int, first: int = 0) -> str:
    return " ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(first, first + num))


def test_many_words_in_a_row_are_a_leak_and_fewer_are_none() -> None:
    shared = many(WORDS)
    dataset = said(pair(f"before {shared.upper()} behind", "x"))
    inside = said(pair(f"here: {shared}. there", "y"), pair(many(WORDS - 1), "z"))
    found = overlap(dataset, inside)
    assert (found.whole, found.runs) == ({}, {0: 0})
    # over the edge of prompt and answer, too
    assert overlap(dataset, said(pair(many(5), many(WORDS - 5, 5)))).runs == {0: 0}


def test_words_that_many_examples_hold_are_a_form() -> None:
    head = many(WORDS + 4)
    dataset = said(*(pair(f"{head} question {i}", "x") for i in range(COMMON + 1)))
    target = said(pair(f"{head} something", "y"))
    assert not overlap(dataset, target).leaked
    assert overlap(dataset[:COMMON], target).runs == {0: 0}


# --- in a recipe


def rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"q": q, "a": a} for q, a in pairs]


LONG = many(WORDS + 2, 40)
OWN = [
    (f"own question number {word}", word)
    for word in ["red", "green", "blue", "cyan", "pink", "gold"]
]
LEAKY = [
    ("Is it so?", "yes"),
    (f"a text: {LONG}", "yes"),
    ("which one", "other"),
]
ASKED = [
    ("is it so", "Yes."),
    (f"another text: {LONG}", "no"),
    ("Which one?", "this"),
    ("is it not", "no"),
    ("what else", "none"),
]


def recipe_of(tmp_path: Path, **changes: Any) -> Recipe:
    values = recipe_values(tmp_path, datasets=("a", "b"))
    columns = {"prompt": "q", "completion": "a"}
    values["datasets"] = {
        "a": {"rows": rows(*OWN, *LEAKY), **columns},
        "b": {"rows": rows(*[(f"{q} too", a) for q, a in OWN]), **columns},
    }
    values["targets"] = {"t": {"rows": rows(*ASKED), **columns}}
    values |= {"store": str(tmp_path / "store"), "run_dir": str(tmp_path / "run"), **changes}
    return parse(values)


def inputs_of(recipe: Recipe) -> Inputs:
    return read_inputs(recipe, Silent())


def test_a_leak_is_said_with_its_kind_and_place(tmp_path: Path) -> None:
    lines = [line for line in inputs_of(recipe_of(tmp_path)).warnings if "stand in" in line]
    assert len(lines) == 2
    assert "targets.t: 2 of its 5 examples (40%) stand in datasets.a" in lines[0]
    assert "1 are the same but for case, marks and spaces and 1 share 13 words" in lines[0]
    assert "row 0 is row 6 of datasets.a: 'is it so'" in lines[0]
    assert "1 of its 5 prompts stand in datasets.a with other answers" in lines[1]


def test_what_is_not_trained_on_is_no_leak(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    seen = set()
    for seed in range(12):
        few = recipe.datasets["a"].model_copy(update={"max_tokens": 40, "seed": seed})
        some = recipe.model_copy(update={"datasets": {**recipe.datasets, "a": few}})
        inputs = inputs_of(some)
        kept = {each.example for each in inputs.sequences("a")}
        said_so = any("examples (" in line and "stand in" in line for line in inputs.warnings)
        assert said_so == bool(kept & {6, 7})
        seen.add(said_so)
    assert seen == {True, False}


def test_leaks_are_left_out_where_the_recipe_says_so(tmp_path: Path) -> None:
    inputs = inputs_of(recipe_of(tmp_path, leaks="drop"))
    kept = [item.prompt for item in inputs.candidates["a"].examples.items]
    assert kept == [q for q, _ in OWN] + ["which one"]
    assert any("left out 2 rows that targets hold too" in line for line in inputs.warnings)
    assert not any("examples (" in line and "stand in" in line for line in inputs.warnings)
    clean = inputs_of(recipe_of(tmp_path / ".", leaks="warn"))
    assert clean.content("b") == inputs.content("b") and clean.content("a") != inputs.content("a")


def test_leaks_stop_a_run_where_the_recipe_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        inputs_of(recipe_of(tmp_path, leaks="stop"))
    assert caught.value.where == "targets.t" and "2 of its 5 examples" in caught.value.message


def test_a_target_that_is_all_leaked_says_nothing(tmp_path: Path) -> None:
    columns = {"prompt": "q", "completion": "a"}
    targets = {"t": {"rows": rows(*[(q.upper(), a) for q, a in OWN]), **columns}}
    with pytest.raises(DataError, match=r"every example is also in datasets\.a"):
        inputs_of(recipe_of(tmp_path, targets=targets))
    dropped = inputs_of(recipe_of(tmp_path, targets=targets, leaks="drop"))
    assert len(dropped.candidates["a"].examples.items) == len(LEAKY)
    only = {"a": {"rows": rows(*OWN), **columns}, "b": {"rows": rows(("u", "v")), **columns}}
    with pytest.raises(DataError, match="every row is an example of a target"):
        inputs_of(recipe_of(tmp_path, datasets=only, targets=targets, leaks="drop"))


def test_a_form_of_a_few_rows_is_no_end_of_a_run(tmp_path: Path) -> None:
    """Ten rows or fewer with one long instruction look like leaks, and may be none."""
    columns = {"prompt": "q", "completion": "a"}
    form = f"{many(WORDS + 3)}: "
    some = {
        "a": {"rows": rows(*[(form + q, a) for q, a in OWN]), **columns},
        "b": {"rows": rows(("u", "v")), **columns},
    }
    targets = {"t": {"rows": rows(*[(form + q, a) for q, a in ASKED]), **columns}}
    found = inputs_of(recipe_of(tmp_path, datasets=some, targets=targets)).warnings
    assert any("5 of its 5 examples (100%) stand in datasets.a" in line for line in found)


def test_the_same_data_under_two_names_is_said(tmp_path: Path) -> None:
    columns = {"prompt": "q", "completion": "a"}
    twice = {
        "a": {"rows": rows(*OWN, *OWN[:1]), **columns},
        "b": {"rows": rows(*[(q.upper(), a) for q, a in OWN[:4]]), **columns},
    }
    found = inputs_of(recipe_of(tmp_path, datasets=twice)).warnings
    assert "datasets.a and datasets.b share 4 examples (100% of the smaller one)" in found
    assert "datasets.a: 1 of its 7 examples repeat an earlier one" in found
    twice["b"]["rows"] = rows(*OWN)
    found = inputs_of(recipe_of(tmp_path, datasets=twice)).warnings
    assert "datasets.a and datasets.b hold the same 6 examples: one would do" in found


def test_examples_shown_before_a_chat_hide_no_leak() -> None:
    def said(**lines: Any) -> list[Any]:
        asked = [{"role": "user", "content": f"what about {q}"} for q, _ in OWN]
        some = [{"p": [one], "a": a} for one, (_, a) in zip(asked, OWN, strict=True)]
        section = target_section(rows=some, prompt="p", completion="a", **lines)
        return list(said_by(read(section, "targets.t").items, {}))

    assert said(shots=2) == said()


# --- select and report


def test_what_is_asked_is_on_one_side_of_every_target(tmp_path: Path) -> None:
    """One file as two targets, of its losses and of choices among options."""
    asked = [(f"number {word} or so", ["yes", "no"][len(word) % 2]) for word in many(40).split()]
    columns = {"prompt": "q", "completion": "a"}
    more = [(f"more {q}", a) for q, a in asked[:9]]
    targets = {
        "loss": {"rows": rows(*asked, *more), **columns},
        "choice": {
            "rows": rows(*asked[::-1]),
            "prompt": "Q: {q}",
            "completion": "a",
            "score": "choice",
            "options": ["yes", "no"],
        },
    }
    inputs = inputs_of(recipe_of(tmp_path, targets=targets))
    select = {each.prompt.removeprefix("Q: ") for each in inputs.select_examples("choice")}
    wanted = {each.prompt for each in inputs.select_examples("loss")} & {q for q, _ in asked}
    assert select == wanted and 15 <= len(select) <= 25
    names = {"loss": "z", "choice": "a"}  # neither names nor their order matter
    renamed = {names[key]: each for key, each in reversed(targets.items())}
    again = inputs_of(recipe_of(tmp_path, targets=renamed))
    for key, name in names.items():
        assert again.select_examples(name) == inputs.select_examples(key)


def test_a_prompt_with_several_answers_is_on_one_side() -> None:
    items = tuple(pair(f"q {i // 4}", f"a {i}", i) for i in range(40))
    examples = Examples("targets.t", items, len(items))
    for seed in range(5):
        select, report = split(examples, 0.5, seed, [item.prompt for item in items])
        assert not {item.prompt for item in select} & {item.prompt for item in report}
        assert len(select) == len(report) == 20


def test_a_target_all_on_one_side_of_another_is_split_by_itself() -> None:
    items = tuple(pair(f"q {i}", "a", i) for i in range(8))
    sides: Sides = {item.prompt: True for item in items}
    examples = Examples("targets.t", items, len(items))
    select, report = split(examples, 0.5, 0, [item.prompt for item in items], sides)
    assert len(select) == len(report) == 4 and all(sides.values())


def test_parts_that_share_many_words_are_said(tmp_path: Path) -> None:
    columns = {"prompt": "q", "completion": "a"}
    alike = [(f"{word} {many(20)}", word) for word in ("one", "two", "three", "four")]
    targets = {"t": {"rows": rows(*alike), **columns}}
    heard = Heard()
    mergetomix.check(recipe_of(tmp_path, targets=targets), heard)
    (line,) = [line for line in heard.warnings if "report examples share" in line]
    assert line.startswith("targets.t: 2 of its 2 report examples share many words in a row")

"""Mapping, drawing and splitting: every rule, and every error by its key and row."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sources import (
    ANSWER,
    NUMBERED,
    ROWS,
    USER,
    WHERE,
    choice,
    encoded,
    fails,
    get,
    put,
    target_section,
)

from mergetomix.data.examples import Example
from mergetomix.data.leaks import overlap, said_by
from mergetomix.data.reading import read, read_rows
from mergetomix.data.splits import split
from mergetomix.errors import DataError
from mergetomix.sections.source import Dataset

REAL = Path(__file__).parents[2] / "shared/data/text"

# --- mapping


@pytest.mark.parametrize(
    ("pattern", "result"),
    [
        ("q", "Why?"),
        ("n", "3"),
        ("{q}", "Why?"),
        ("{{{q}}}", "{Why?}"),
        ("{n:03d}|{f:.1f}", "003|2.5"),
        ("{q!r}", "'Why?'"),
        ("{nested[text]}", "deep"),
        ("{nested[list][1]}", "b"),
        ("{q:>{n}}", "Why?"),
        ("{odd name}", "odd"),
        ("odd {column}", "odd too"),
        ("a.b", "dotted"),
    ],
)
def test_columns_and_format_strings(pattern: str, result: str) -> None:
    nested = {"text": "deep", "list": ["a", "b"]}
    row = {
        "q": "Why?",
        "n": 3,
        "f": 2.5,
        "nested": nested,
        "odd name": "odd",
        "odd {column}": "odd too",
        "a.b": "dotted",
    }
    example = get(rows=[row], prompt=pattern, completion=pattern).items[0]
    assert (example.prompt, example.completion) == (result, result)
    assert get(rows=[row], text=pattern).items[0].text == result


def test_without_a_prompt_it_is_empty_but_one_that_is_named_must_hold_something() -> None:
    assert get(rows=ROWS, completion="a").items[0] == Example(0, completion="1")
    with pytest.raises(DataError, match=r"prompt: row 0 .* 'q' gives an empty text"):
        get(rows=[{"q": "", "a": "x"}], prompt="q", completion="a")


@pytest.mark.parametrize("key", ["prompt", "completion", "text"])
@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("questoin", ["no column 'questoin'", "'question'", "answer"]),
        ("Say: {questoin}", ["no column 'questoin'", "did you mean 'question'"]),
        ("{question:{width}}", ["no column 'width'"]),
        ("zzz", ["no column 'zzz'; the columns are question, answer"]),
        ("{{questoin}}", ["no column 'questoin'", "did you mean 'question'"]),
        ("{% if questoin %}x{% endif %}", ["no column 'questoin'"]),
        ("{% if question %}x", ["broken template", "line 1"]),
        ("{% if question %}{question}{% endif %}", ["{question}", "{{ question }}"]),
        ("{}", ["no column ''"]),
        ("{0}", ["no column '0'"]),
        ("{question", ["broken format string", "'{question'"]),
        ("question}", ["broken format string"]),
        ("{question.__class__}", ["no '__class__' in a value of type str"]),
        ("{question[0].real}", ["no 0 in a value of type str"]),
        ("{question:{answer.real}}", ["no 'real' in a value of type str"]),
        ("{question!}", ["broken format string"]),
        ("{question.}", ["no place in the column 'question'"]),
        ("question.", ["no column 'question.'"]),
    ],
)
def test_strings_that_name_no_column(key: str, pattern: str, named: list[str]) -> None:
    fields = {"completion": "answer"} if key == "prompt" else {}
    fails(key, *named, rows=[{"question": "x", "answer": "y"}], **{**fields, key: pattern})


@pytest.mark.parametrize("key", ["prompt", "completion", "text"])
@pytest.mark.parametrize(
    ("value", "pattern", "named"),
    [
        (None, "t", "missing"),
        (None, "a {t}", "missing"),
        (float("nan"), "t", "missing"),
        (["x"], "t", "list"),
        ({"x": 1}, "a {t}", "dict"),
        (b"x", "t", "bytes"),
        ({"x": 1}, "{t[y]}", "'y'"),
        (["x"], "{t[3]}", "item 3"),
        ("x", "{t:d}", "'d'"),
        (None, "{t[y]}", "{t[y]}"),
    ],
)
def test_values_that_are_no_text_name_the_row(
    key: str, value: Any, pattern: str, named: str
) -> None:
    good = {"x": "x", "y": "y"} if "[y]" in pattern else list("abcd") if "[3]" in pattern else 1
    fields = {"completion": "ok"} if key == "prompt" else {}
    rows = [{"t": good, "ok": "y"}, {"t": value, "ok": "y"}]
    first = [{"t": good if "[" in pattern else 1, "ok": "y"}]
    get(rows=first, **{**fields, key: pattern})
    fails(key, "row 1 (counting from 0)", named, rows=rows, **{**fields, key: pattern})


@pytest.mark.parametrize("key", ["completion", "text"])
@pytest.mark.parametrize(("value", "pattern"), [("", "t"), (" \n", "t"), ("", " {t}\n")])
def test_an_empty_answer_or_text_is_an_error(key: str, value: str, pattern: str) -> None:
    fails(
        key, "row 1 (counting from 0)", "empty", rows=[{"t": "x"}, {"t": value}], **{key: pattern}
    )


def test_a_row_without_the_column_has_it_missing() -> None:
    fails("completion", "row 1", "missing", rows=[{"a": "x"}, {"b": "y"}], completion="a")


def test_messages_in_every_format_that_has_lists(tmp_path: Path) -> None:
    rows = [{"m": [USER, ANSWER]}, {"m": [{"role": "system", "content": ""}, ANSWER]}]
    for kind in ("jsonl", "json", "parquet"):
        examples = get(
            path=put(tmp_path / f"x.{kind}", encoded(kind, rows, tmp_path)), messages="m"
        )
        assert examples.items[0] == Example(0, messages=(("user", "hi"), ("assistant", "hello")))
        assert examples.items[1].messages[0] == ("system", "")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, "list"),
        ("hi", "list"),
        ([], "no turn of the assistant"),
        ([USER], "no turn of the assistant"),
        ([USER, {"role": "assistant", "content": " "}], "empty"),
        ([ANSWER, {"role": "assistant", "content": ""}], "empty"),
        ([USER, {"role": "assistant", "content": None}], "turn 1 (assistant) has no content"),
        ([USER, {"role": "assistant"}], "turn 1 (assistant) has no content"),
        ([USER, {"role": "assistant", "content": 4}], "content of type int"),
        ([USER, {"role": "bot", "content": "hi"}], "turn 1 has the role 'bot'; the roles are"),
        ([{"content": "hi"}], "turn 0 has the role None"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "part of type 'image'"),
        ([USER, {"role": "assistant", "content": "a\ud83d"}], "lone surrogate"),
        ([{"from": "human", "value": "hi"}], "no turn of the assistant"),
        (["hi"], "no turn of the assistant"),
        ([5], "role and content"),
    ],
)
def test_messages_that_teach_nothing(value: Any, named: str) -> None:
    fails(
        "messages",
        "row 1 (counting from 0)",
        named,
        rows=[{"m": [ANSWER]}, {"m": value}],
        messages="m",
    )


def test_messages_name_a_column() -> None:
    fails(
        "messages",
        "'mesages'",
        "did you mean 'messages'",
        rows=[{"messages": [ANSWER]}],
        messages="mesages",
    )


# --- options


def test_shared_options_and_a_row_s_own() -> None:
    rows = [
        {"q": "?", "a": "yes", "o": ["yes", "no"]},
        {"q": "!", "a": "3", "o": {"text": [3, "4"], "label": ["A", "B"]}},
    ]
    shared_options = get(target_section, **choice(rows[:1], options=["no", "yes"]))
    assert shared_options.items[0] == Example(
        0, prompt="?", completion=" yes", options=(" no", " yes")
    )
    own = get(target_section, **choice(rows, options="o"))
    assert [item.options for item in own.items] == [(" yes", " no"), (" 3", " 4")]


def test_options_of_a_dataset_formatted_as_arrays() -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"q": "?", "a": "yes", "o": ["yes", "no"]}]).with_format(
        "numpy"
    )
    assert get(target_section, **choice(rows, options="o")).items[0].options == (" yes", " no")


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize(
    ("options", "named"),
    [(["yes"], "at least 2"), (["yes", "yes"], "not all alike"), (["yes", " "], "' '")],
)
def test_options_must_be_several_and_distinct(options: list[str], named: str, column: bool) -> None:
    rows = [{"q": "?", "a": "yes", "o": ["yes", "no"]}, {"q": "?", "a": "yes", "o": options}]
    error = fails(
        "options", named, source=target_section, **choice(rows, options="o" if column else options)
    )
    assert ("row 1 (counting from 0)" in error.message) == column


@pytest.mark.parametrize(
    ("key", "fields", "named"),
    [
        ("completion", {"options": ["no", "maybe"]}, ["row 0", "' yes'", "' maybe'"]),
        ("options", {"options": "choices"}, ["no column 'choices'"]),
        ("options", {"options": "q"}, ["row 0", "str"]),
        ("options", {"options": "m"}, ["row 0", "NoneType"]),
        ("option_format", {"options": ["yes", "no"], "option_format": "option"}, ["{option}"]),
        ("option_format", {"options": ["yes", "no"], "option_format": "{option} {q}"}, ["'q'"]),
        ("option_format", {"options": ["yes", "no"], "option_format": "{option"}, ["broken"]),
    ],
)
def test_options_that_do_not_fit(key: str, fields: dict[str, Any], named: list[str]) -> None:
    fails(
        key,
        *named,
        source=target_section,
        **choice([{"q": "?", "a": "yes", "m": {"label": ["A"]}}], **fields),
    )


def test_a_python_target_may_have_prompts_alone_but_not_nothing() -> None:
    fields = {"score": "python", "function": print, "rows": ROWS}
    assert get(target_section, **fields, prompt="q").items[0] == Example(0, prompt="one?")
    fails("", "say how a row becomes an example", source=target_section, **fields)


# --- drawing


@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_a_draw_is_seeded_without_replacement_and_in_order(size: int, seed: int) -> None:
    examples = get(rows=NUMBERED, text="t", max_examples=size, seed=seed)
    rows = [item.row for item in examples.items]
    assert rows == sorted(set(rows)) and len(rows) == min(size, 50)
    assert all(item.text == f"row {item.row}" for item in examples.items)
    assert examples.num_rows == 50
    assert examples == get(rows=NUMBERED, text="t", max_examples=size, seed=seed)


def test_another_seed_draws_others() -> None:
    first, second = (get(rows=NUMBERED, text="t", max_examples=20, seed=s) for s in (1, 2))
    assert first.items != second.items


def test_rows_that_are_not_drawn_are_not_mapped_and_errors_name_the_row_of_the_source() -> None:
    drawn = [item.row for item in get(rows=NUMBERED, text="t", max_examples=5).items]
    left = next(row for row in range(50) if row not in drawn)
    get(
        rows=[{"t": ""} if row == left else NUMBERED[row] for row in range(50)],
        text="t",
        max_examples=5,
    )
    broken = [{"t": ""} if row == drawn[-1] else NUMBERED[row] for row in range(50)]
    fails("text", f"row {drawn[-1]} (", rows=broken, text="t", max_examples=5)


def test_a_draw_from_plain_text_takes_no_blank_line(tmp_path: Path) -> None:
    file = put(tmp_path / "x.txt", "a\n\nb\n\nc\n\nd\n")
    for seed in range(5):
        drawn = get(path=file, text="text", max_examples=3, seed=seed)
        assert [item.row % 2 for item in drawn.items] == [0, 0, 0]


def test_rows_are_drawn_as_examples_are_but_not_mapped(tmp_path: Path) -> None:
    drawn = get(rows=NUMBERED, text="t", max_examples=5, seed=3)
    rows = read_rows(
        target_section(rows=NUMBERED, score="python", function=print, max_examples=5, seed=3),
        "targets.x",
    )
    assert rows == [{"t": item.text} for item in drawn.items]
    assert read_rows(
        Dataset(path=str(put(tmp_path / "x.csv", "t\ny\n")), text="no column"), WHERE
    ) == [{"t": "y"}]
    with pytest.raises(DataError, match="no rows") as caught:
        read_rows(Dataset(rows=[], text="t"), WHERE)
    assert caught.value.where == f"{WHERE}.rows"


def test_some_of_the_examples() -> None:
    examples = get(rows=NUMBERED, text="t")
    assert [item.row for item in examples.take([4, 2]).items] == [4, 2]
    assert examples.take(range(50)) == examples


# --- fingerprint, split


def test_the_fingerprint_is_of_the_contents_in_order() -> None:
    mark = get(rows=NUMBERED, text="t").fingerprint()
    assert len(mark) == 64
    renamed = [{"other": row["t"]} for row in NUMBERED]
    assert read(Dataset(rows=renamed, text="other"), "targets.x").fingerprint() == mark
    assert get(rows=NUMBERED[::-1], text="t").fingerprint() != mark
    assert get(rows=NUMBERED[1:], text="t").fingerprint() != mark
    assert get(rows=NUMBERED, completion="t").fingerprint() != mark
    # where one string ends and the next begins counts
    pairs = [
        get(rows=[row], prompt="p", completion="c")
        for row in ({"p": "ab", "c": "c"}, {"p": "a", "c": "bc"})
    ]
    assert pairs[0].fingerprint() != pairs[1].fingerprint()


def test_half_a_surrogate_pair_is_the_rows_fault(tmp_path: Path) -> None:
    rows = put(tmp_path / "x.jsonl", '{"t": "x"}\n{"t": "a \\ud83d"}\n{"t": "y"}\n')
    fails("text", "row 1 (counting from 0)", "lone surrogate", path=rows, text="t")
    examples = get(path=rows, text="t", on_bad_row="skip")
    assert [item.row for item in examples.items] == [0, 2]
    (note,) = examples.notes
    assert "passed over 1 bad rows; the first" in note and "row 1" in note


@given(
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
    numbers=st.lists(st.integers(0, 30), min_size=2, max_size=60),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_a_split_is_disjoint_complete_in_order_and_near_the_size_asked_for(
    fraction: float, seed: int, numbers: list[int]
) -> None:
    counts = Counter(numbers)
    assume(len(counts) > 1)
    examples = get(rows=[{"t": f"row {number}"} for number in numbers], text="t")
    select, report = split(examples, fraction, seed)
    assert sorted(select + report, key=lambda item: item.row) == list(examples.items)
    assert not texts(select) & texts(report)  # equal examples stay together
    assert select and report
    assert abs(len(select) - fraction * len(numbers)) <= max(counts.values()) + 0.5
    for part in (select, report):
        assert [item.row for item in part] == sorted(item.row for item in part)
    assert split(examples, fraction, seed) == (select, report)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.99])
def test_distinct_examples_split_to_the_size_asked_for_and_by_the_seed(fraction: float) -> None:
    examples = get(rows=NUMBERED, text="t")
    select, _ = split(examples, fraction, 0)
    assert len(select) == min(max(round(50 * fraction), 1), 49)
    assert split(examples, fraction, 1)[0] != select


def texts(part: tuple[Example, ...]) -> set[str]:
    return {item.text for item in part}


def test_a_split_depends_on_the_contents_alone() -> None:
    examples = get(rows=NUMBERED, text="t")
    backwards = read(target_section(rows=NUMBERED[::-1], text="t"), "targets.other")
    assert texts(split(examples, 0.5, 0)[0]) == texts(split(backwards, 0.5, 0)[0])


def test_a_few_rows_more_move_few_examples() -> None:
    before = texts(split(get(rows=NUMBERED, text="t"), 0.5, 0)[0])
    after = texts(split(get(rows=[*NUMBERED, {"t": "new 1"}, {"t": "new 2"}], text="t"), 0.5, 0)[0])
    assert len((before ^ after) - {"new 1", "new 2"}) <= 2


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_two_distinct_examples_give_one_to_each_part(fraction: float) -> None:
    select, report = split(get(rows=[{"t": "a"}, {"t": "b"}, {"t": "a"}], text="t"), fraction, 0)
    assert {frozenset(texts(select)), frozenset(texts(report))} == {frozenset("a"), frozenset("b")}


@pytest.mark.parametrize("rows", [NUMBERED[:1], NUMBERED[:1] * 3])
def test_one_distinct_example_cannot_be_split(rows: list[dict[str, str]]) -> None:
    with pytest.raises(DataError, match="at least 2 distinct examples, not 1") as caught:
        split(get(rows=rows, text="t"), 0.5, 0)
    assert caught.value.where == WHERE and caught.value.hint


# --- the module, and real data


def test_importing_is_cheap() -> None:
    heavy = {"torch", "datasets", "pyarrow", "numpy"}
    code = f"import sys, mergetomix.data.reading; print([*{heavy!r} & set(sys.modules)])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data at ../shared/data/text is absent")
def test_real_data() -> None:
    fields = {"prompt": "{input}\nAnswer:", "completion": " {output}"}
    train = get(path=REAL / "gsm8k.train.jsonl.gz", **fields)
    test = read(target_section(path=str(REAL / "gsm8k.test.jsonl.gz"), **fields), "targets.gsm8k")
    assert (len(train.items), len(test.items)) == (7473, 1319)
    assert all(
        item.prompt.endswith("\nAnswer:") and "####" in item.completion for item in train.items
    )
    # the folder's README says that exact duplicates of train and test are removed
    some, others = (list(said_by(each.items, {})) for each in (train, test))
    found = overlap(some, others)
    assert not found.whole and 0 < len(found.runs) < 30  # near-duplicates may remain
    assert len(overlap(others, others).whole) == 1319
    select, report = split(test, 0.5, 0)
    assert abs(len(select) - len(report)) <= 2
    letters = list("abcde")
    quiz = target_section(
        path=str(REAL / "commonsense_qa.test.jsonl.gz"),
        score="choice",
        options=letters,
        prompt="input",
        completion="output",
    )
    spaced = tuple(f" {letter}" for letter in letters)
    assert {item.options for item in read(quiz, "targets.quiz").items} == {spaced}

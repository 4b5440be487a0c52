"""Which rows are taken and what is made of them: splits, conditions, functions, bad rows, shots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sources import jsonl, put, target_section

from mergetomix.data.examples import Examples
from mergetomix.data.reading import read
from mergetomix.errors import DataError, RecipeError, UserError
from mergetomix.recipe.recipe import dump, parse
from mergetomix.sections.source import Dataset

ROWS = [{"q": f"q{i}", "a": f"a{i}", "s": "even" if i % 2 == 0 else "odd"} for i in range(20)]
PAIR = {"prompt": "{q}\n", "completion": "a"}


def get(rows: Any = None, **lines: Any) -> Examples:
    source = {"rows": ROWS if rows is None else rows} if "path" not in lines else {}
    return read(Dataset.model_validate({**source, **PAIR, **lines}), "datasets.x")


def numbers(found: Examples) -> list[int]:
    return [int(item.completion[1:]) for item in found.items]


# --- splits


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        ("train[:3]", [0, 1, 2]),
        ("train[17:]", [17, 18, 19]),
        ("train[-2:]", [18, 19]),
        ("train[10%:20%]", [2, 3]),
        ("train[:-90%]", [0, 1]),
        ("train[5:7]+train[:1]", [5, 6, 0]),
        ("train", list(range(20))),
        ("train[30:]", None),
        ("train[3:1]", None),
    ],
)
def test_a_split_of_a_file_takes_what_it_says(
    tmp_path: Path, split: str, wanted: list[int] | None
) -> None:
    path = str(put(tmp_path / "x.jsonl", jsonl(ROWS)))
    if wanted is None:
        with pytest.raises(DataError, match="no rows in") as caught:
            get(path=path, split=split)
        assert caught.value.where == "datasets.x.split"
        return
    assert numbers(get(path=path, split=split)) == wanted


def test_splits_of_a_folder_and_what_is_no_split(tmp_path: Path) -> None:
    put(tmp_path / "d" / "train.jsonl", jsonl(ROWS[:10]))
    put(tmp_path / "d" / "validation.jsonl", jsonl(ROWS[10:]))
    path = str(tmp_path / "d")
    assert numbers(get(path=path)) == list(range(10))
    assert numbers(get(path=path, split="dev")) == list(range(10, 20))
    assert numbers(get(path=path, split="train[:1]+validation[:1]")) == [0, 10]
    for split, says in {
        "nope": "no split 'nope'",
        "train[:x]": "is not a name",
        "train[:200%]": "more than 100%",
    }.items():
        with pytest.raises(DataError) as caught:
            get(path=path, split=split)
        assert says in caught.value.message and caught.value.where == "datasets.x.split"
    one = str(put(tmp_path / "one.jsonl", jsonl(ROWS)))
    with pytest.raises(DataError, match=r"no split 'validation' in .* there: train"):
        get(path=one, split="validation")
    named = str(put(tmp_path / "one.validation.jsonl", jsonl(ROWS)))
    assert len(get(path=named, split="validation").items) == 20


def test_a_split_of_a_glob_goes_by_the_names_of_its_files(tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:4]), ("test", ROWS[4:6])):
        put(tmp_path / f"{name}.jsonl", jsonl(rows))
    path = str(tmp_path / "*.jsonl")
    assert len(get(path=path).items) == 6
    assert numbers(get(path=path, split="train")) == [0, 1, 2, 3]
    assert numbers(get(path=path, split="test+train[:1]")) == [4, 5, 0]
    target = target_section(path=path, split="test", **PAIR)
    assert [item.completion for item in read(target, "targets.t").items] == ["a4", "a5"]
    one = target_section(path=str(tmp_path / "train.jsonl"), split="test", **PAIR)
    with pytest.raises(DataError, match=r"no split 'test' in .*; there: train"):
        read(one, "targets.t")


def test_rows_of_a_part_keep_their_numbers(tmp_path: Path) -> None:
    rows = [*ROWS[:5], {"q": "x", "a": ""}, *ROWS[6:]]
    path = str(put(tmp_path / "x.jsonl", jsonl(rows)))
    with pytest.raises(DataError, match=r"row 5 \(counting from 0\)"):
        get(path=path, split="train[4:8]")


def test_a_split_of_rows_and_of_documents(tmp_path: Path) -> None:
    assert numbers(get(split="train[:2]+train[4:6]")) == [0, 1, 4, 5]
    with pytest.raises(DataError, match="no split 'nope' in the rows given"):
        get(split="nope")
    for split, name in (("train", "a.txt"), ("test", "test_b.txt"), ("train", "test_c.txt")):
        put(tmp_path / "d" / split / name, f"{split} {name}")
    lines: dict[str, Any] = {"path": str(tmp_path / "d"), "prompt": None, "completion": None}
    lines["text"] = True
    assert len(get(**lines).items) == 3
    assert [item.text for item in get(**lines, split="test").items] == ["test test_b.txt"]
    with pytest.raises(DataError, match="no split 'nope'"):
        get(**lines, split="nope")
    one = {**lines, "path": str(tmp_path / "d" / "test" / "test_b.txt")}
    assert len(get(**one, split="train[:1]").items) == 1
    globbed = {**lines, "path": str(tmp_path / "d" / "**" / "*.txt")}
    assert len(get(**globbed, split="train").items) == 2
    with pytest.raises(ValueError, match="give a path"):
        get(path=[])


def test_several_paths_are_one_source(tmp_path: Path) -> None:
    paths = [str(put(tmp_path / f"{i}.jsonl", jsonl(ROWS[i : i + 2]))) for i in (4, 0)]
    paths.append(str(put(tmp_path / "more.json", json.dumps({"version": 1, "data": ROWS[7:9]}))))
    assert numbers(get(path=paths)) == [4, 5, 0, 1, 7, 8]


# --- conditions and functions


def test_a_condition_takes_rows() -> None:
    assert numbers(get(where="s == 'odd' and q != 'q3'")) == [1, *range(5, 20, 2)]
    with pytest.raises(DataError, match="none of 20 rows meets") as caught:
        get(where="s == 'neither'")
    assert caught.value.where == "datasets.x.where"


def several(row: dict[str, Any]) -> Any:
    number = int(row["q"][1:])
    if number % 3 == 0:
        return None
    made = [{"prompt": f"{row['q']} {k}\n", "completion": row["a"]} for k in range(number % 3)]
    row.clear()  # its own copy
    return made


def test_a_function_makes_a_row_one_several_or_none() -> None:
    found = get(map=several, prompt=None, completion=None)
    prompts = [item.prompt for item in found.items]
    assert prompts[:4] == ["q1 0\n", "q2 0\n", "q2 1\n", "q4 0\n"]
    assert [item.row for item in found.items] == list(range(len(prompts)))
    assert ROWS[1]["q"] == "q1"
    # other keys may still say what its columns mean
    other = get(map=lambda row: {"t": row["q"].upper()}, prompt=None, completion=None, text="t")
    assert other.items[0].text == "Q0"


def test_a_function_may_stand_in_a_file_beside_the_recipe(tmp_path: Path) -> None:
    put(tmp_path / "rows.py", "def made(row):\n    return {'text': row['q'] * 2}\n")
    put(tmp_path / "x.jsonl", jsonl(ROWS))
    raw = {
        "base": "b",
        "datasets": {
            "x": {"path": "x.jsonl", "map": "rows.py:made"},
            "y": {"path": "x.jsonl", "text": "a"},
        },
        "targets": {"t": {"path": "x.jsonl", "text": "q"}},
    }
    recipe = parse(raw, tmp_path)
    assert recipe.datasets["x"].map == f"{tmp_path / 'rows.py'}:made"
    assert read(recipe.datasets["x"], "datasets.x").items[1].text == "q1q1"
    assert parse(json.loads(json.dumps(raw)), tmp_path) == recipe
    with pytest.raises(RecipeError, match="no file") as caught:
        read(Dataset(rows=ROWS, map=str(tmp_path / "none.py:made")), "datasets.x")
    assert caught.value.where == "datasets.x.map"


def broken(row: dict[str, Any]) -> Any:
    if row["q"] == "q4":
        raise KeyError("nothing here")
    return {"text": row["q"]}


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (broken, ["row 4 (counting from 0)", "KeyError", "in broken", 'raise KeyError("nothing']),
        (lambda row: 5, ["row 0", "must return a mapping of columns"]),
        (lambda row: [5], ["must return a mapping of columns"]),
        (lambda row: None, ["gives no row for any of 20 rows"]),
        (lambda row: {"wrong": 1}, ["columns wrong", "prompt and completion"]),
        (lambda row: {"text": str(id(object())) + str(len(seen.append(1) or seen))}, ["another"]),
    ],
)
def test_what_a_function_does_wrong_is_named(function: Any, says: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        get(map=function, prompt=None, completion=None)
    assert caught.value.where == "datasets.x.map"  # type: ignore[attr-defined]
    for each in says:
        assert each in str(caught.value)
    assert "data/selected.py" not in str(caught.value)


seen: list[int] = []


def test_rows_that_a_function_refuses_are_passed_over_and_counted() -> None:
    found = get(map=broken, prompt=None, completion=None, on_bad_row="skip")
    assert len(found.items) == 19
    assert any("passed over 1 bad rows" in note and "row 4" in note for note in found.notes)
    assert all("\n" not in note for note in found.notes)


def test_a_condition_on_what_is_missing_is_a_bad_row() -> None:
    rows = [{**row, "score": i or None} for i, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r"row 0 .*missing \(null\)"):
        get(rows, where="score > 17")
    assert numbers(get(rows, where="score and score > 17")) == [18, 19]
    found = get(rows, where="score > 17", on_bad_row="skip")
    assert numbers(found) == [18, 19] and "passed over 1 bad rows" in found.notes[0]


def test_a_condition_is_on_what_the_function_gives() -> None:
    def graded(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "grade": int(row["q"][1:]) // 10}

    assert numbers(get(map=graded, where="grade == 1")) == list(range(10, 20))


# --- rows that are not well


def test_bad_rows_are_counted_by_reason_and_have_a_ceiling() -> None:
    rows = [*ROWS, {"q": "x", "a": None}, {"q": "", "a": "y"}, {"q": " ", "a": "z"}]
    found = get(rows, on_bad_row="skip", max_bad="20%")
    (note,) = found.notes
    assert "passed over 3 bad rows" in note and "13.04% of 23 rows" in note
    assert "the first of 2: " in note and "row 21" in note and "row 20" in note
    assert len(found.items) == 20
    with pytest.raises(DataError, match=r"13.04% of 23 rows are bad, over 10.00%") as caught:
        get(rows, on_bad_row="skip", max_bad=0.1)
    assert caught.value.where == "datasets.x.max_bad"
    for bad in (rows[:-1], rows[21:]):
        with pytest.raises(DataError) as caught:
            get(bad)
        assert "on_bad_row: skip" in str(caught.value.hint)


def test_the_ceiling_counts_each_row_where_it_was_refused() -> None:
    rows = [{**row, "n": None if i < 1 else i} for i, row in enumerate(ROWS * 5)]
    found = get(rows, where="n > 0", max_examples=5, on_bad_row="skip", max_bad="5%")
    assert len(found.items) == 5 and "1.00% of 100 rows" in found.notes[0]
    with pytest.raises(DataError, match=r"1.00% of 100 rows are bad"):
        get(rows, where="n > 0", max_examples=5, on_bad_row="skip", max_bad="0.5%")


def test_words_that_run_into_one_another_are_said() -> None:
    rows = [{"q": "meeting", "a": "calendar set"}, {"q": "mail", "a": " send"}]
    (note,) = get(rows, prompt="q", completion="a").notes
    assert "1 of 2 prompts run into their answer" in note and "'meetingcalendar set'" in note
    assert get(rows, prompt="{q}:", completion="a").notes == ()


# --- shots


def shown(**lines: Any) -> Examples:
    values = {"rows": ROWS, **PAIR, **lines}
    return read(target_section(**values), "targets.t")


def test_shots_are_others_drawn_by_the_seed_and_the_row() -> None:
    found = shown(shots=3)
    for item in found.items:
        parts = item.before.split("\n\n")
        assert len(parts) == 4 and parts[-1] == ""
        assert len(set(parts[:3])) == 3 and item.prompt + item.completion not in parts
    assert found == shown(shots=3)
    assert found != shown(shots=3, seed=1)
    backwards = shown(shots=3, rows=ROWS[::-1])
    assert [item.prompt for item in backwards.items] == [i.prompt for i in found.items][::-1]
    some = shown(shots=2, shot_separator="\n##\n").items[0].before
    assert some.count("\n##\n") == 2


def test_shots_may_come_from_another_split_or_file(tmp_path: Path) -> None:
    put(tmp_path / "d" / "train.jsonl", jsonl(ROWS[:8]))
    put(tmp_path / "d" / "test.jsonl", jsonl(ROWS[8:]))
    other = str(put(tmp_path / "other.jsonl", jsonl([{"q": f"z{i}", "a": "b"} for i in range(5)])))
    lines = {"path": str(tmp_path / "d"), **PAIR, "shots": 2}
    for where, first in (("train", "q"), (other, "z")):
        found = read(target_section(**lines, shots_from=where), "targets.t")
        assert len(found.items) == 12
        for item in found.items:
            assert all(part[0] == first for part in item.before.split("\n\n")[:2])
            assert not any(f"q{i}\n" in item.before for i in range(8, 20))
    with pytest.raises(DataError, match="40 wanted, and there are 19 other examples"):
        shown(shots=40)


def test_shots_for_rows_from_python_and_from_a_part(tmp_path: Path) -> None:
    other = str(put(tmp_path / "other.jsonl", jsonl([{"q": f"z{i}", "a": "b"} for i in range(5)])))
    assert all(item.before.startswith("z") for item in shown(shots=1, shots_from=other).items)
    some = shown(shots=2, shots_from="train[:3]").items[9].before
    assert set(some.split()) <= {"q0", "q1", "q2", "a0", "a1", "a2"}
    raw = {
        "base": "b",
        "datasets": {name: {"path": "x.jsonl", **PAIR} for name in "xy"},
        "targets": {"t": {"path": "x.jsonl", **PAIR, "shots": 1, "shots_from": "train[:3]"}},
    }
    (tmp_path / "train").mkdir()
    for given, kept in (("train[:3]", True), ("train", True), ("more.jsonl", False)):
        raw["targets"]["t"]["shots_from"] = given  # type: ignore[index]
        assert (parse(raw, tmp_path).targets["t"].shots_from == given) == kept
    rows = [{"q": f"{i}?", "o": ["x", "y", "z"], "a": 1 + i % 2} for i in range(6)]
    pool = [{"q": f"p{i}?", "o": ["x", "y"], "a": i % 2} for i in range(6)]
    file = str(put(tmp_path / "pool.jsonl", jsonl(pool)))
    lines = {"prompt": "q", "options": "o", "answer": "a", "score": "choice", "shots": 6}
    section = target_section(rows=rows, **lines, shots_from=file)
    found = read(section, "targets.t").items[0]
    # as the target's rows count, from 0 where nothing says otherwise
    assert "p0? x" in found.before and "p1? y" in found.before


def test_shots_of_a_chat_are_earlier_turns() -> None:
    found = shown(shots=2, chat=True, system="Be brief.")
    item = found.items[0]
    roles = [role for role, _ in item.messages]
    assert roles == ["system", *["user", "assistant"] * 3]
    assert item.trained_from == 5 and item.messages[-1] == ("assistant", "a0")


def test_the_last_word_alone() -> None:
    rows = [{"t": "He sat under the oak \n"}, {"t": "alone"}]
    found = read(target_section(rows=rows[:1], text="t", last_word=True), "targets.t")
    assert (found.items[0].prompt, found.items[0].completion) == ("He sat under the", " oak")
    assert found.items[0].is_open
    with pytest.raises(DataError, match="one word"):
        read(target_section(rows=rows, text="t", last_word=True), "targets.t")


# --- one source as many candidates


def recipe(tmp_path: Path, **section: Any) -> dict[str, Any]:
    rows = [{**row, "meta": {"src": row["s"]}} for row in ROWS]
    rows += [{"q": f"r{i}", "a": "x", "s": f"rare {i}", "meta": {"src": None}} for i in range(3)]
    put(tmp_path / "x.jsonl", jsonl(rows))
    return {
        "base": "b",
        "datasets_from": {"path": "x.jsonl", **PAIR, "by": "s", "min_rows": 5, **section},
        "targets": {"t": {"path": "x.jsonl", **PAIR}},
    }


def test_one_source_is_a_dataset_for_each_value_and_one_for_the_rest(tmp_path: Path) -> None:
    found = parse(recipe(tmp_path), tmp_path)
    assert sorted(found.datasets) == ["even", "odd", "rest"] and found.datasets_from is None
    sizes = {name: len(read(each, name).items) for name, each in found.datasets.items()}
    assert sizes == {"even": 10, "odd": 10, "rest": 3}
    # the resolved recipe says which rows each takes, and reads back as it is
    import yaml

    assert parse(yaml.safe_load(dump(found)), tmp_path) == found
    assert found.datasets["even"].where == 's == "even"'


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"rest": None}, ["even", "odd"]),
        ({"rest": "others", "prefix": "x-"}, ["x-even", "x-odd", "x-others"]),
        ({"by": "meta.src"}, ["even", "odd", "rest"]),
        ({"by": "meta['src']"}, ["even", "odd", "rest"]),
        ({"min_rows": 1, "where": "q != 'r1'"}, ["even", "odd", "rare-0", "rare-2"]),
    ],
)
def test_names_and_what_is_left_over(
    tmp_path: Path, section: dict[str, Any], names: list[str]
) -> None:
    found = parse(recipe(tmp_path, **section), tmp_path)
    assert sorted(found.datasets) == names


@pytest.mark.parametrize(
    ("values", "by", "names"),
    [
        ([1.0, 1.5, None], "s", ["1.0", "1.5", "rest"]),
        ([1, 2], "s", ["1", "2"]),
        ([["a", 1], ["b", 1]], "s[0]", ["a", "b"]),
        ([{"sub-src": "x"}, {"sub-src": "y"}], "s.sub-src", ["x", "y"]),
        (["中文", "Русский"], "s", None),
    ],
)
def test_values_of_every_kind(
    tmp_path: Path, values: list[Any], by: str, names: list[str] | None
) -> None:
    rows = [{"q": f"q{i}", "a": "a", "s": values[i % len(values)], "row": 1} for i in range(30)]
    put(tmp_path / "v.jsonl", jsonl(rows))
    found = parse(recipe(tmp_path, path="v.jsonl", by=by), tmp_path).datasets
    assert len(found) == len(values)
    assert names is None or sorted(found) == names
    sizes = [len(read(each, name).items) for name, each in found.items()]
    assert sizes == [30 // len(values)] * len(values)


def test_values_are_those_of_the_rows_that_are_taken(tmp_path: Path) -> None:
    section = {"where": "s != 'odd'", "min_rows": 1, "map": "made.py:made", "by": "kind"}
    put(tmp_path / "made.py", "def made(row):\n    return {**row, 'kind': row['q'][:1]}\n")
    found = parse(recipe(tmp_path, **section), tmp_path).datasets
    assert sorted(found) == ["q", "r"]
    assert [len(read(found[name], name).items) for name in "qr"] == [10, 3]
    with pytest.raises(UserError, match="makes the name 'q', too"):
        parse(recipe(tmp_path, **section, rest="q"), tmp_path)


def test_a_part_counts_options_as_the_whole_does(tmp_path: Path) -> None:
    rows = [
        {"q": f"q{i}?", "o": ["x", "y"], "a": 1 + i % 2, "s": "one" if i % 2 == 0 else "two"}
        for i in range(20)
    ]
    put(tmp_path / "v.jsonl", jsonl(rows))
    section = {"path": "v.jsonl", "prompt": "q", "completion": None, "options": "o", "answer": "a"}
    found = parse(recipe(tmp_path, **section), tmp_path).datasets
    answers = {
        name: {item.completion for item in read(each, name).items} for name, each in found.items()
    }
    assert answers == {"one": {" x"}, "two": {" y"}}


def test_beside_datasets_that_are_named(tmp_path: Path) -> None:
    raw = recipe(tmp_path)
    raw["datasets"] = {"mine": {"path": "x.jsonl", **PAIR}}
    assert sorted(parse(raw, tmp_path).datasets) == ["even", "mine", "odd", "rest"]
    raw["datasets"] = {"odd": {"path": "x.jsonl", **PAIR}}
    with pytest.raises(RecipeError, match="'odd' stands twice"):
        parse(raw, tmp_path)
    raw["datasets_from"] = [{**raw["datasets_from"], "prefix": "x-"}]
    assert sorted(parse(raw, tmp_path).datasets) == ["odd", "x-even", "x-odd", "x-rest"]


@pytest.mark.parametrize(
    ("section", "key", "says"),
    [
        ({"by": "nothing"}, "datasets_from.by", "no column 'nothing'"),
        ({"by": "{s}"}, "datasets_from.by", "no column '{s}'"),
        ({"min_rows": 500}, "datasets_from.by", "5 values, none with 500 rows; the most is 10"),
        ({"path": "one.jsonl"}, "datasets_from.by", "all rows have 'a' there"),
        ({"path": "many.jsonl", "min_rows": 1}, "datasets_from.by", "10,000 values have 1 rows"),
        ({"path": "none.jsonl"}, "datasets_from.path", "no file"),
        ({"completion": None}, "datasets_from", "say how a row becomes an example"),
        ({"bye": "s"}, "datasets_from", "bye"),
    ],
)
def test_a_column_that_makes_no_candidates(
    tmp_path: Path, section: dict[str, Any], key: str, says: str
) -> None:
    put(tmp_path / "one.jsonl", jsonl([{"q": "1", "a": "2", "s": "a"}] * 9))
    put(tmp_path / "many.jsonl", jsonl([{"q": "1", "a": "2", "s": i} for i in range(10_000)]))
    with pytest.raises(UserError) as caught:
        parse(recipe(tmp_path, **section), tmp_path)
    assert str(caught.value.where).startswith(key)  # type: ignore[attr-defined]
    assert says in str(caught.value)

"""Opening a source: every format gives the same rows, every broken file is named."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sources import (
    FORMATS,
    NUMBERED,
    PAIR,
    ROWS,
    WHERE,
    encoded,
    fails,
    get,
    jsonl,
    put,
    target_section,
)

from mergetomix.data import reading
from mergetomix.data.examples import Example
from mergetomix.data.reading import read_rows
from mergetomix.sections.source import Dataset

# --- formats


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_examples(kind: str, gz: str, tmp_path: Path) -> None:
    given = get(rows=ROWS, **PAIR)
    examples = get(
        path=put(tmp_path / "x" / f"data.{kind}{gz}", encoded(kind, ROWS, tmp_path)), **PAIR
    )
    assert examples.items == given.items
    assert examples.fingerprint() == given.fingerprint()
    assert examples.columns == ("q", "a", "n")
    assert (examples.num_rows, examples.notes) == (3, ())
    assert examples.items[1] == Example(1, prompt="Q: NA (8)", completion="2020-01-01T00:00:00")
    assert examples.where == WHERE


CELLS = st.text(st.characters(exclude_categories=["Cs"]))


@given(kind=st.sampled_from(FORMATS), cells=st.lists(st.tuples(CELLS, CELLS), min_size=1))
@example(kind="csv", cells=[("\r", '"'), ("", ""), ("a\r\nb", "\0")])
@settings(deadline=None, max_examples=50, derandomize=True)
def test_any_text_comes_out_of_every_format_as_it_went_in(
    kind: str, cells: list[tuple[str, str]]
) -> None:
    rows = [{"t": first, "u u": second} for first, second in cells]
    with TemporaryDirectory() as folder:
        file = put(Path(folder) / f"x.{kind}.gz", encoded(kind, rows, Path(folder)))
        assert read_rows(Dataset(path=str(file), text="t"), WHERE) == rows


def test_json_lines_in_a_json_file_and_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = put(tmp_path / "data.json", "\ufeff" + jsonl(ROWS[:2]) + "\n" + jsonl(ROWS[2:]))
    assert get(path=file, **PAIR).items == get(rows=ROWS, **PAIR).items


def test_a_whole_number_stays_whole_beside_a_missing_one(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]
    for kind in ("jsonl", "parquet"):
        file = put(tmp_path / f"data.{kind}", encoded(kind, rows, tmp_path))
        assert get(path=file, completion="b").items[1].completion == "y"
        fails("completion", "row 1 (counting from 0)", "missing", path=file, completion="a")
    assert get(rows=rows[:1], completion="a").items[0].completion == "1"


def test_a_field_may_be_longer_than_the_csv_library_allows(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    file = put(tmp_path / "data.csv", "a\n" + "x" * (limit + 1) + "\n")
    assert len(get(path=file, completion="a").items[0].completion) == limit + 1
    assert csv.field_size_limit() == limit


def test_line_ends_within_a_csv_field_stay_as_they_are(tmp_path: Path) -> None:
    file = put(tmp_path / "data.csv", 'a\r\n"one\r\ntwo"\r\n')
    assert get(path=file, completion="a").items == (Example(0, completion="one\r\ntwo"),)


def test_plain_text_gives_a_row_per_line_and_counts_the_blank_ones(tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt.gz", "one\n \ntwo\u2028still two\r\n\nthree")
    examples = get(path=file, text="text")
    assert [(item.row, item.text) for item in examples.items] == [
        (0, "one"),
        (2, "two\u2028still two"),
        (4, "three"),
    ]
    assert (examples.num_rows, examples.columns) == (5, ("text",))
    assert examples.notes == (f"{WHERE}: passed over 2 empty rows",)
    assert get(path=file, text="<{text}>").items[0].text == "<one>"


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", jsonl([{"t": "wrong"}]))
    file = put(tmp_path / "[a].jsonl", jsonl([{"t": "right"}]))
    assert get(path=file, text="t").items[0].text == "right"


def test_a_glob_reads_its_files_in_order_of_names_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl", "c/d/e.jsonl.gz"):
        put(tmp_path / name, jsonl([{"t": name}]))
    put(tmp_path / "other.csv", "t\nx\n")
    examples = get(path=tmp_path / "**/*.jsonl*", text="t")
    assert [item.text for item in examples.items] == ["a/z.jsonl", "b.jsonl", "c/d/e.jsonl.gz"]
    assert [item.row for item in examples.items] == [0, 1, 2]


def test_files_with_different_columns_give_all_of_them(tmp_path: Path) -> None:
    for kind in ("jsonl", "parquet"):
        put(tmp_path / kind / f"1.{kind}", encoded(kind, [{"t": "x"}], tmp_path))
        put(tmp_path / kind / f"2.{kind}", encoded(kind, [{"t": "y", "u": 1}], tmp_path))
        examples = get(path=tmp_path / kind, text="t")
        assert examples.columns == ("t", "u")
        rows = read_rows(Dataset(path=str(tmp_path / kind), text="t"), WHERE)
        assert rows == [{"t": "x", "u": None}, {"t": "y", "u": 1}]


# --- folders


def test_a_folder_with_several_splits_gives_the_one_asked_for(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl", "valid/x.jsonl"):
        put(tmp_path / name, jsonl([{"t": name}]))
    put(tmp_path / "README.md", "not data")
    put(tmp_path / ".hidden.csv", "t\nx\n")

    def texts(wanted: str) -> list[str]:
        return [item.text for item in get(path=tmp_path, text="t", split=wanted).items]

    assert texts("train") == ["train-0.jsonl", "train-1.jsonl"]
    assert texts("test") == ["test.jsonl"]
    assert texts("validation") == texts("dev") == ["valid/x.jsonl"]
    fails(
        "split", "'held_out'", "test, train, validation", path=tmp_path, text="t", split="held_out"
    )


def test_a_folder_whose_names_say_no_split_is_read_whole(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        put(tmp_path / "train" / name, jsonl([{"t": name}]))
    assert len(get(path=tmp_path / "train", text="t").items) == 2
    fails("split", "'anything'", "train", path=tmp_path / "train", text="t", split="anything")


def test_a_readme_beside_plain_text_is_no_data(tmp_path: Path) -> None:
    put(tmp_path / "README.md", "no")
    put(tmp_path / "a.txt", "yes\n")
    assert [item.text for item in get(path=tmp_path, text="text").items] == ["yes"]


def test_a_folder_with_one_split_does_not_pass_for_another(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", jsonl([{"t": "x"}]))
    fails("split", "'test'", "train", source=target_section, path=tmp_path, text="t")


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    import datasets

    first, second = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    first.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": first, "test": second}).save_to_disk(str(tmp_path / "two"))
    assert get(path=tmp_path / "one", **PAIR).items == get(rows=ROWS, **PAIR).items
    assert len(get(path=tmp_path / "two", **PAIR).items) == 3
    assert len(get(target_section, path=tmp_path / "two", **PAIR).items) == 1
    fails("split", "'dev'", "test, train", path=tmp_path / "two", split="dev", **PAIR)
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"broken")
    fails("path", str(tmp_path / "one"), path=tmp_path / "one", **PAIR)


def test_reading_leaves_nothing_behind_and_progress_bars_as_they_were(tmp_path: Path) -> None:
    import datasets

    put(tmp_path / "a.parquet", encoded("parquet", ROWS, tmp_path))
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    before = sorted(tmp_path.rglob("*"))
    for name in ("a.parquet", "saved"):
        get(path=tmp_path / name, **PAIR)
    assert sorted(tmp_path.rglob("*")) == before
    assert not datasets.are_progress_bars_disabled()


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    for kind in FORMATS:
        file = put(tmp_path / f"x.{kind}", encoded(kind, [{"t": "old"}], tmp_path))
        stat = file.stat()
        assert get(path=file, text="t").items[0].text == "old"
        put(file, encoded(kind, [{"t": "new"}], tmp_path))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert get(path=file, text="t").items[0].text == "new"


# --- text: true


def test_every_file_is_a_document(tmp_path: Path) -> None:
    put(tmp_path / "b.py", "x = 1\r\n")
    put(tmp_path / "a/c.gz", "packed é")
    put(tmp_path / "LICENSE", " \n")
    put(tmp_path / "empty", "")
    put(tmp_path / "image.bin", b"\x89PNG\0\0")
    put(tmp_path / "__pycache__/x.txt", "no")
    put(tmp_path / ".git/x", "no")
    put(tmp_path / ".env", "no")
    examples = get(path=tmp_path, text=True)
    assert [item.text for item in examples.items] == ["packed é", "x = 1\r\n"]
    assert (examples.num_rows, examples.columns) == (4, ())
    rows = read_rows(Dataset(path=str(tmp_path), text=True), WHERE)
    assert rows[0] == {"file": str(tmp_path / "a/c.gz"), "text": "packed é"}
    assert examples.notes == (
        f"{WHERE}: passed over 2 empty files",
        f"{WHERE}: passed over 1 binary files",
    )
    with_text = sorted(tmp_path / name for name in ("b.py", "a/c.gz", "LICENSE", "empty"))
    assert [item.row for item in examples.items] == [
        with_text.index(tmp_path / name) for name in ("a/c.gz", "b.py")
    ]


def test_one_file_and_a_glob_are_documents_too(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", '{"not": "parsed"}\n')
    put(tmp_path / "b.txt", "two\nlines\n")
    assert [item.text for item in get(path=file, text=True).items] == ['{"not": "parsed"}\n']
    assert get(path=tmp_path / "*.txt", text=True).items == (Example(0, text="two\nlines\n"),)
    assert get(path=tmp_path, text=True, max_examples=1).num_rows == 2


def test_documents_that_are_no_text(tmp_path: Path) -> None:
    latin = put(tmp_path / "x/latin.txt", b"caf\xe9")
    fails("path", str(latin), "UTF-8", path=tmp_path / "x", text=True)
    binary = put(tmp_path / "y/data.bin", b"a\0b")
    fails("path", str(binary), "zero bytes", path=binary, text=True)
    fails("path", str(tmp_path / "y"), "1 hold no text", path=tmp_path / "y", text=True)
    put(tmp_path / "z/blank", "\n")
    fails("path", str(tmp_path / "z"), "1 are empty", path=tmp_path / "z", text=True)


def test_documents_need_a_local_path() -> None:
    fails("text", "path", rows=ROWS, text=True)
    fails("text", "path", path="owner/name", text=True)


def test_arrays_of_rows_are_told_apart() -> None:
    one = np.zeros((64, 64), np.uint8)
    other = one.copy()
    other[40, 40] = 1
    assert reading.plain_content({"x": one}) == reading.plain_content({"x": one.copy()})
    assert reading.plain_content({"x": one}) != reading.plain_content({"x": other})


# --- rows from Python


def test_a_dataset_from_python_whatever_its_format() -> None:
    import datasets

    dataset = datasets.Dataset.from_list(ROWS).with_format("numpy")
    assert get(rows=dataset, **PAIR).items == get(rows=ROWS, **PAIR).items
    assert get(rows=dataset, **PAIR).columns == ("q", "a", "n")


class Lazy:
    """The least that rows must be: columns, a length, indexing."""

    column_names = ("q", "a", "n")

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return ROWS[index]


def test_rows_need_columns_and_indexing_only() -> None:
    assert get(rows=Lazy(), **PAIR).items == get(rows=ROWS, **PAIR).items


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([], "no rows"),
        ([{"t": "x"}, "y"], "row 1"),
        ([{1: "x"}], "row 0"),
        ("text", "not str"),
        (7, "not int"),
        (iter([]), "datasets.Dataset"),
    ],
)
def test_rows_that_are_none(rows: Any, named: str) -> None:
    fails("rows", named, rows=rows, text="t")


def test_a_dataset_dict_is_several_splits() -> None:
    import datasets

    rows = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    fails("rows", "train", rows=rows, **PAIR)


# --- files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("x.jsonl", '{"t": "x"}\n\n{"t": \n', "line 3"),
        ("x.jsonl", '{"t": "x"}\n["y"]\n', "line 2: a row must be a JSON object, not list"),
        ("x.jsonl.gz", '{"t": "x"\n', "line 1"),
        ("x.json", '[{"t": "x"},\n{"t" "y"}]', "line 2"),
        ("x.json", '{"t": "x"}\n{"t":\n', "line 2"),
        ("x.json", '[{"t": "x"}, "y"]', "item 1"),
        ("x.json", "7", "item 0"),
        ("x.csv", "t,u\n1,2\n1,2,3\n", "line 3: 3 fields, but the header has 2"),
        ("x.csv", "t,u\n1\n", "line 2: 1 fields"),
        ("x.csv", "t,t\n1,2\n", "twice"),
        ("x.tsv", 't\tu\n"open\t2\n', "line 2: not valid"),
        ("x.parquet", "PAR1 no", "parquet"),
        ("x.parquet.gz", "no", "parquet"),
        ("x.jsonl", b'{"t": "caf\xe9"}\n', "UTF-8"),
        ("x.csv", b"t\ncaf\xe9\n", "UTF-8"),
        ("x.txt", b"caf\xe9\n", "UTF-8"),
        ("x.xlsx", "t", "known suffixes"),
        ("x", "t", "known suffixes"),
    ],
)
def test_a_malformed_file_is_named(
    name: str, content: str | bytes, named: str, tmp_path: Path
) -> None:
    file = put(tmp_path / name, content)
    fails("path", str(file), named, path=file, text="t")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_not_compressed_or_cut_short(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"x.{kind}.gz"
    content = encoded(kind, NUMBERED, tmp_path)
    file.write_bytes(content)
    fails("path", str(file), "gzip", path=file, text="t")
    file.write_bytes(gzip.compress(content)[:-9])
    fails("path", str(file), "cannot be read", path=file, text="t")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv", "x.txt", "x.json"])
def test_an_empty_source(name: str, tmp_path: Path) -> None:
    for content in {"x.csv": ("", "t,u\n"), "x.json": ("[]", ""), "x.txt": ("", " \n\n")}.get(
        name, ("",)
    ):
        file = put(tmp_path / name, content)
        fails("path", str(file), "no rows", path=file, text="t")


def test_paths_without_files(tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    put(tmp_path / "images/x.png", b"\0")
    fails("path", str(tmp_path / "gone.jsonl"), path=tmp_path / "gone.jsonl", text="t")
    fails("path", str(tmp_path / "*.csv"), path=tmp_path / "*.csv", text="t")
    fails("path", str(tmp_path / "hollow"), path=tmp_path / "hollow", text="t")
    fails("path", "no data file", path=tmp_path / "images", text="t")
    fails("path", str(tmp_path / "gone"), path=tmp_path / "gone", text=True)


def test_files_of_several_kinds(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a.jsonl", jsonl(ROWS)), put(tmp_path / "b.csv.gz", "q,a\n1,2\n")
    for path in (tmp_path, tmp_path / "*"):
        fails("path", f"csv ({second})", f"json ({first})", path=path, **PAIR)


# --- the hub


def test_a_hub_id_that_cannot_be_reached() -> None:
    error = fails(
        "path",
        "nobody/nothing-of-that-name",
        "neither a local file nor a hub dataset",
        path="nobody/nothing-of-that-name",
        text="t",
    )
    assert error.hint
    fails("path", "neither a local file nor", path="not a/valid id", text="t")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub whose `owner/name` lies in a folder; gives the list of what was asked for."""
    import datasets

    load, asked = datasets.load_dataset, []
    card = "---\nconfigs:\n- config_name: main\n  data_files:\n" + "".join(
        f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("train", "test")
    )
    put(tmp_path / "hub/README.md", card + "- config_name: other\n  data_files: test.jsonl\n---\n")
    put(tmp_path / "hub/train.jsonl", jsonl(ROWS))
    put(tmp_path / "hub/test.jsonl", jsonl(ROWS[:1]))

    def from_folder(path: str, name: str | None, split: str, revision: str | None) -> Any:
        asked.append((path, name, split, revision))
        return load(str(tmp_path / "hub"), name, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return asked


def test_a_hub_dataset_by_configuration_split_and_revision(hub: list[tuple[Any, ...]]) -> None:
    examples = get(path="owner/name", name="main", revision="abc", **PAIR)
    assert examples.items == get(rows=ROWS, **PAIR).items
    assert len(get(target_section, path="owner/name", name="main", **PAIR).items) == 1
    assert hub == [("owner/name", "main", "train", "abc"), ("owner/name", "main", "test", None)]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("key", "fields", "named"),
    [
        ("split", {"name": "main", "split": "dev"}, ["owner/name", "dev", "train"]),
        ("name", {"name": "mian"}, ["owner/name", "mian", "main"]),
        ("name", {}, ["owner/name", "main", "other"]),
    ],
)
def test_an_unknown_configuration_or_split(
    key: str, fields: dict[str, Any], named: list[str]
) -> None:
    fails(key, *named, path="owner/name", **fields, **PAIR)


@pytest.mark.parametrize("text", [True, "t"])
def test_a_name_that_no_file_system_allows_is_refused(text: str | bool) -> None:
    fails("path", "File name too long", path="/" + "x" * 300 + ".jsonl", text=text)
    fails("path", "no file", path="/a\0b.jsonl", text=text)

"""Which files a path means: globs, links, folders with odd names, what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mergetomix.data.files import all_files
from mergetomix.data.reading import read
from mergetomix.errors import DataError
from mergetomix.recipe.paths import resolve_data_path
from mergetomix.sections.source import Dataset

WHERE = "datasets.d"


def put(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"t": "{name}"}}\n')


def names(pattern: str | Path, folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in all_files(str(pattern), WHERE).files]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "x/c.jsonl", "x/y/d.jsonl"]),
        ("**", ["a.jsonl", "b.jsonl", "note.txt", "x/c.jsonl", "x/y/d.jsonl"]),
        ("x/**", ["x/c.jsonl", "x/y/d.jsonl"]),
        ("x/**/d.jsonl", ["x/y/d.jsonl"]),
        ("*/**/d.jsonl", ["x/y/d.jsonl"]),
        ("**.jsonl", ["a.jsonl", "b.jsonl"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("?.jsonl", ["a.jsonl", "b.jsonl"]),
        (".*.jsonl", [".hidden.jsonl"]),
        ("x/../*.jsonl", ["a.jsonl", "b.jsonl"]),
    ],
)
def test_a_glob_means_what_it_does_in_a_shell(
    tmp_path: Path, pattern: str, wanted: list[str]
) -> None:
    shown = ("a.jsonl", "b.jsonl", "note.txt", "x/c.jsonl", "x/y/d.jsonl")
    put(tmp_path, *shown, ".hidden.jsonl", ".git/e.jsonl")
    found = all_files(resolve_data_path(pattern, tmp_path), WHERE)
    assert [Path(os.path.normpath(each)) for each in found.files] == [tmp_path / w for w in wanted]
    assert found.notes == ()


@pytest.mark.parametrize("folder", ["exp[12]", "a*b", "what?", "[!x]", "[", "]["])
def test_the_folder_of_a_recipe_is_taken_as_it_is_called(tmp_path: Path, folder: str) -> None:
    for other in ("exp1", "exp2", "aXb", "whatX", "y"):
        put(tmp_path / other, "theirs.jsonl", "data/theirs.jsonl")
    home = tmp_path / folder
    put(home, "mine.jsonl", "data/mine.jsonl")
    for pattern in ("*.jsonl", "mine.jsonl", "data", "data/*.jsonl", "./**/*.jsonl"):
        found = names(resolve_data_path(pattern, home), tmp_path)
        assert found and all("mine" in each for each in found), pattern
    for absent in ("theirs.jsonl", "data/theirs.jsonl", "the*.jsonl"):
        with pytest.raises(DataError, match=r"no file") as caught:
            all_files(resolve_data_path(absent, home), WHERE)
        assert str(home / absent) in caught.value.message


def test_a_hidden_folder_of_the_users_hides_nothing_and_shows_nothing(tmp_path: Path) -> None:
    home = tmp_path / ".proj[1]"
    put(home, "a.jsonl", "x/b.jsonl", ".hid/c.jsonl", "x/.d.jsonl")
    found = names(resolve_data_path("**/*.jsonl", home), home)
    assert found == ["a.jsonl", "x/b.jsonl"]


def test_a_file_whose_name_is_a_glob_is_that_file(tmp_path: Path) -> None:
    put(tmp_path, "run[1].jsonl", "run1.jsonl")
    assert names(resolve_data_path("run[1].jsonl", tmp_path), tmp_path) == ["run[1].jsonl"]


def test_two_stars_descend_into_no_linked_folder_and_say_so(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl", "x/c.jsonl")
    (tmp_path / "latest").symlink_to(".")
    (tmp_path / "x" / "up").symlink_to("..")
    (tmp_path / "x" / "down").symlink_to("../x")
    found = all_files(str(tmp_path / "**" / "*.jsonl"), WHERE)
    assert [file.name for file in found.files] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    (note,) = found.notes
    assert note.startswith("linked folders are not descended into: 3, the first ")
    inside = all_files(str(tmp_path / "x" / "**"), WHERE)
    assert len(inside.files) == 1 and "into: 2" in inside.notes[0]
    whole = all_files(str(tmp_path), WHERE)
    assert len(whole.files) == 3 and "into: 3" in whole.notes[0]
    # the notes are the user's to see
    data = read(Dataset(path=str(tmp_path), text="t"), WHERE)
    assert len(data.items) == 3 and any("linked folders" in each for each in data.notes)


def test_every_real_file_counts_once(tmp_path: Path) -> None:
    put(tmp_path, "run1/a.jsonl", "run2/b.jsonl")
    (tmp_path / "best").symlink_to("run2")
    (tmp_path / "run1" / "zz.jsonl").symlink_to("a.jsonl")
    (tmp_path / "run1" / "0.jsonl").symlink_to("a.jsonl")
    found = all_files(str(tmp_path / "*" / "*.jsonl"), WHERE)
    assert len(found.files) == 2
    assert tmp_path / "run1" / "a.jsonl" in found.files
    (note,) = found.notes
    assert note.startswith("3 paths of ")
    # a link that the path names is meant
    assert names(tmp_path / "best" / "*.jsonl", tmp_path) == ["best/b.jsonl"]
    assert names(tmp_path / "best", tmp_path) == ["best/b.jsonl"]


@pytest.mark.parametrize("path", ["/" + "x" * 300, "/" + "y/" * 3000 + "*.jsonl", "/" + "z" * 5000])
def test_a_name_that_is_too_long_is_the_users_mistake(path: str) -> None:
    with pytest.raises(DataError, match=r"^datasets\.d"):
        all_files(path, WHERE)


@pytest.mark.skipif(os.geteuid() == 0, reason="to root every folder is readable")
def test_a_folder_that_cannot_be_read_is_the_users_mistake(tmp_path: Path) -> None:
    put(tmp_path, "a/b.jsonl")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(DataError, match="Permission denied"):
            all_files(str(tmp_path), WHERE)
    finally:
        (tmp_path / "a").chmod(0o700)


def test_an_error_of_the_system_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/b.jsonl")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"^datasets\.d.* cannot be read: Permission denied"):
        all_files(str(tmp_path), WHERE)

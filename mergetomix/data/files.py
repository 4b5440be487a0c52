"""Find the files that a path of the recipe means: one, a folder's, a glob's, a split's."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mergetomix.data.errors import no_data
from mergetomix.errors import DataError
from mergetomix.sections.source import Source

DOCUMENTS = (".md", ".rst", ".py")
TEXTS = (".txt", *DOCUMENTS)
KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
KINDS |= {".npz": "npz", **dict.fromkeys(TEXTS, "text")}
PHOTOS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".bmp", ".gif")
IMAGE_SUFFIXES = (*PHOTOS, ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
SPLIT_WORDS = dict.fromkeys(("train", "training"), "train")
SPLIT_WORDS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SPLIT_WORDS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")


def all_files(path: str, where: str) -> list[Path]:
    """Returns the file, those in the folder, or the glob's, in the order of their names."""
    try:
        is_file, is_folder = Path(path).is_file(), Path(path).is_dir()
    except OSError:  # from a name that is too long
        is_file = is_folder = False
    if is_file:
        return [Path(path)]
    if is_folder:
        found = _walk(path)
    elif glob.has_magic(path):
        # Path.glob needs a folder to start from, which an absolute pattern does not name
        found = filter(os.path.isfile, glob.glob(path, recursive=True))  # noqa: PTH207
    else:
        raise no_data(where, f"there is no file or folder {path}")
    files = sorted(set(map(Path, found)))
    if not files:
        raise no_data(where, f"no file at {path}")
    return files


def _walk(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if each[0] != "." and each != "__pycache__"]
        yield from (str(Path(place, name)) for name in files if name[0] != ".")


def suffix_of(file: Path) -> str:
    """Returns the suffix in lower case, without `.gz`.

    >>> suffix_of(Path("Train.JSONL.gz"))
    '.jsonl'
    """
    return Path(file.name.lower().removesuffix(".gz")).suffix


def kind_of(file: Path) -> str | None:
    """Returns the kind of a file of data, such as `json`; None for another file."""
    return KINDS.get(suffix_of(file))


def data_files(every: list[Path], source: Source, where: str) -> list[Path]:
    """Returns the files of data among a source's; of its split, if names in a folder say any."""
    folder = Path(str(source.path))
    if not folder.is_dir():
        return every
    data = [file for file in every if kind_of(file) is not None]
    # a README or a script lies beside the data of many folders
    data = [file for file in data if suffix_of(file) not in DOCUMENTS] or data
    if not data:
        raise no_data(where, f"no data file in {folder}; known suffixes are {', '.join(KINDS)}")
    wanted = split_called(source.split)
    words = {file: re.split(r"[^a-z0-9]+", str(file.relative_to(folder)).lower()) for file in data}
    said = {
        file: {
            split_called(word)
            for word in some
            if split_called(word) in SPLIT_WORDS or word == wanted
        }
        for file, some in words.items()
    }
    known = set().union(*said.values())
    if known and wanted not in known:
        raise no_split(source, where, known)
    return [file for file in data if wanted in said[file]] if len(known) > 1 else data


def split_called(word: str) -> str:
    """Returns the split that a word means; a year or a number behind it says nothing.

    >>> split_called("Dev"), split_called("train2017"), split_called("held_out")
    ('validation', 'train', 'held_out')
    """
    bare = word.lower().rstrip("0123456789").rstrip("-_")
    return SPLIT_WORDS.get(word.lower(), SPLIT_WORDS.get(bare, word.lower()))


def no_split(source: Source, where: str, known: Iterable[str]) -> DataError:
    """Returns the error of a split that is not among those of a source."""
    listed = ", ".join(sorted(known))
    hint = f"set split to one of {listed}, or name the files in path"
    message = f"no split {source.split!r} in {source.path}; there: {listed}"
    return DataError(f"{where}.split", message, hint=hint)

"""Find the files that a path of the recipe means: one, a folder's, a glob's, a split's."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Found:
    """The files that a path means, in the order of their names, and what of them is odd."""

    files: list[Path]
    notes: tuple[str, ...] = ()


def all_files(path: str, where: str) -> Found:
    """Returns the file, those in the folder, or the glob's.

    A folder that is a link is descended into only where the path names it, and never by `**`; of a
    glob's files each counts once, however many links lead to it.

    Raises:
        DataError: there is none, or the system does not let it be read.
    """
    try:
        is_file, is_folder = Path(path).is_file(), Path(path).is_dir()
        if is_file:
            return Found([Path(path)])
        if is_folder:
            found = _in_folder(Path(path))
        elif glob.has_magic(path):
            found = _globbed(Path(path))
        else:
            raise no_data(where, f"there is no file or folder {path}")
    except OSError as error:
        problem = f"{path[:200]} cannot be read: {error.strerror or error}"
        raise no_data(where, problem) from None
    if not found.files:
        raise no_data(where, f"no file at {shown(path)}")
    return found


def shown(pattern: str) -> str:
    """Returns a glob as its user would write it, where a folder's own brackets are escaped.

    >>> shown("/runs/exp[[]12]/*.jsonl")
    '/runs/exp[12]/*.jsonl'
    """
    return re.sub(r"\[([\[*?])\]", r"\1", pattern)


def _in_folder(folder: Path) -> Found:
    found, links = [], []
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [each for each in folders if each[0] != "." and each != "__pycache__"]
        links += [each for name in folders if (each := Path(place, name)).is_symlink()]
        found += [Path(place, name) for name in names if name[0] != "."]
    return Found(sorted(found), _said_of(links))


def _globbed(pattern: Path) -> Found:
    root, parts = _parted(pattern)
    if not parts:
        return Found([root] if root.is_file() else [])
    # at the end two stars mean all files below
    parts += ["*"] if parts[-1] == "**" else []
    wanted = str(Path(*parts))
    is_hidden = re.compile(r"(^|/)\.(?!$|/|\.)")
    found = [each for each in root.glob(wanted) if each.is_file()]
    if not is_hidden.search(wanted):
        found = [each for each in found if not is_hidden.search(str(each.relative_to(root)))]
    links = _links_below(root, wanted.partition("**")[0]) if "**" in parts else []
    once: dict[str, Path] = {}
    for file in sorted(found, key=lambda each: (each.is_symlink(), each)):
        once.setdefault(os.path.realpath(file), file)
    notes = _said_of(links)
    if len(once) < len(found):
        num = len(found) - len(once)
        notes += (f"{num} paths of {shown(str(pattern))} lead to files that it has already",)
    return Found(sorted(once.values()), notes)


def _parted(pattern: Path) -> tuple[Path, list[str]]:
    """Returns the folder that a glob starts from, as it is called, and the rest of the glob."""
    parts, literal = list(pattern.parts), []
    while parts and (not glob.has_magic(parts[0]) or glob.escape(shown(parts[0])) == parts[0]):
        literal.append(shown(parts.pop(0)))
    # two stars within a name mean one
    return Path(*literal), [part if part == "**" else part.replace("**", "*") for part in parts]


def _links_below(root: Path, pattern: str) -> list[Path]:
    """Returns the linked folders below those that a pattern means; the root's where it is empty."""
    starts = list(root.glob(pattern)) if pattern else [root]
    return [
        each
        for start in starts
        for place, folders, _ in os.walk(start, onerror=_raise)
        for name in folders
        if (each := Path(place, name)).is_symlink()
    ]


def _said_of(links: list[Path]) -> tuple[str, ...]:
    if not links:
        return ()
    first = min(links)
    return (f"linked folders are not descended into: {len(links)}, the first {first}",)


def _raise(error: OSError) -> None:
    raise error


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
    """Returns the files of data among a source's; of its split, if their names say any.

    Of a file or glob names count only if the recipe asks for a split. Where no name says one, all
    is `train`, as the `datasets` library has it.
    """
    folder = Path(str(source.path))
    is_folder = folder.is_dir()
    data = every
    if is_folder:
        data = [file for file in every if kind_of(file) is not None]
        # a README or a script lies beside the data of many folders
        data = [file for file in data if suffix_of(file) not in DOCUMENTS] or data
        if not data:
            known = ", ".join(KINDS)
            raise no_data(where, f"no data file in {folder}; known suffixes are {known}")
    elif source.split is None:
        return every
    if all(kind_of(file) == "npz" for file in data):
        return data  # which says by the names of its arrays
    places = {file: str(file.relative_to(folder)) if is_folder else file.name for file in data}
    return _of_split(places, source, where)


def documents_of(every: list[Path], source: Source, where: str) -> list[Path]:
    """Returns the documents of the split that a source asks for, by the folders that they lie in.

    Names of documents say nothing: `test_x.py` is no test split.
    """
    root = Path(str(source.path))
    start = root if root.is_dir() else root.parent if root.is_file() else _parted(root)[0]
    places = {file: str(file.relative_to(start).parent) for file in every}
    return _of_split(places, source, where)


def _of_split(places: Mapping[Path, str], source: Source, where: str) -> list[Path]:
    """Returns the files of a source's split, by the words of the places that they are known by.

    Raises DataError for a split that none of these says.
    """
    wanted = split_called(source.split or source.default_split)
    words = {file: re.split(r"[^a-z0-9]+", place.lower()) for file, place in places.items()}
    said = {
        file: {
            split_called(word)
            for word in some
            if split_called(word) in SPLIT_WORDS or word == wanted
        }
        for file, some in words.items()
    }
    known = set().union(*said.values())
    is_default = wanted in ("train", source.default_split)
    if source.split is not None and not known and not is_default:
        raise no_split(source, where, ["train"])
    if known and wanted not in known:
        raise no_split(source, where, known)
    return [file for file in places if wanted in said[file]] if len(known) > 1 else list(places)


def means_path(text: str) -> bool:
    """Returns whether a text that may be a split is a path: it has a slash, or a known suffix.

    >>> means_path("train[:100]"), means_path("other.jsonl"), means_path("owner/name")
    (False, True, True)
    """
    return "/" in text or text.startswith("~") or kind_of(Path(text)) is not None


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
    wanted = source.split or source.default_split
    message = f"no split {wanted!r} in {source.path}; there: {listed}"
    return DataError(f"{where}.split", message, hint=hint)

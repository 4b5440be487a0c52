"""Open a recipe's dataset or target as a table of rows, from a file, a folder, a glob, the hub or Python.

JSON, CSV and plain text are read as written: the loaders of `datasets` guess types (dates are rewritten, the word NA
becomes null, whole numbers beside a null become floats) and take `[a].jsonl` for a pattern. Parquet, folders written by
`save_to_disk` and hub ids go through `datasets`.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from mergetomix.errors import DataError
from mergetomix.sections.source import Source

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
KINDS[".npz"] = "npz"
KINDS |= dict.fromkeys((".txt", ".md", ".rst", ".py"), "text")
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
SPLIT_WORDS = dict.fromkeys(("train", "training"), "train")
SPLIT_WORDS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SPLIT_WORDS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
SAVED = (("dataset_dict.json",), ("dataset_info.json", "state.json"))
"""What `save_to_disk` writes into a folder, for a DatasetDict and for a Dataset."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows by index: a list of mappings, or a `datasets.Dataset`. `empty` are the indices to pass over.

    `names` are the classes of columns that hold labels, where the source knows them; file names in a column are relative to
    `folder`.
    """

    columns: tuple[str, ...]
    rows: Any
    empty: frozenset[int] = frozenset()
    num_binary: int = 0
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = None

    def kept(self) -> list[int]:
        """The indices of the rows that are not empty, in order."""
        return [index for index in range(len(self.rows)) if index not in self.empty]

    def take(self, indices: Sequence[int]) -> list[Row]:
        """The rows at these indices, in the order given; each holds every column, None where it is missing."""
        if hasattr(self.rows, "with_format"):
            # a format such as "torch" would give tensors
            rows: Iterable[Row] = self.rows.with_format(None).select(indices)
        else:
            rows = (self.rows[index] for index in indices)
        return [{column: row.get(column) for column in self.columns} for row in rows]

    def take_column(self, column: str) -> list[Any]:
        """One column of all rows that are not empty."""
        if hasattr(self.rows, "select_columns"):
            return [row[column] for row in self.rows.select_columns([column]).with_format(None)]
        return [self.rows[index].get(column) for index in self.kept()]


@dataclass(frozen=True)
class Place:
    """A key of the recipe at a row of the data."""

    where: str
    row: int

    def error(self, message: str, hint: str | None = None) -> DataError:
        """The error that names the key and the row."""
        return DataError(self.where, f"row {self.row} (counting from 0): {message}", hint=hint)


def open_table(source: Source, where: str) -> Table:
    """The rows of one source, `where` being its place in the recipe, such as `datasets.math`.

    Raises:
        DataError: the source cannot be read, or no row is left once the empty ones are passed over.
    """
    table = _documents(source, where) if source.files else _table(source, where)
    if not table.kept():
        raise DataError(_origin(source, where), f"no rows in {_shown(source)}" + _why_empty(table))
    return table


def _origin(source: Source, where: str) -> str:
    return f"{where}.rows" if source.rows is not None else f"{where}.path"


def _shown(source: Source) -> str:
    return "the rows given" if source.rows is not None else str(source.path)


def _why_empty(table: Table) -> str:
    reasons = [f"{len(table.empty)} are empty"] if table.empty else []
    reasons += [f"{table.num_binary} hold no text"] if table.num_binary else []
    return f" ({', '.join(reasons)})" if reasons else ""


# --- where rows come from


def _table(source: Source, where: str) -> Table:
    if source.rows is not None:
        return _given(source.rows, f"{where}.rows")
    path = str(source.path)
    if not Path(path).is_absolute():
        return _of_dataset(_from_hub(source, where))
    if any(all(_is_file(Path(path, name)) for name in names) for names in SAVED):
        return _of_dataset(_from_disk(source, where))
    if source.label and Path(path).is_dir() and not _holds_data(source, where):
        return _image_folder(source, where)
    files = _data_files(source, where)
    kinds = {_kind(file): file for file in reversed(files)}
    if None in kinds:
        message = f"{kinds[None]} is of no known kind; known suffixes are {', '.join(KINDS)}, each also with .gz"
        raise DataError(f"{where}.path", message, hint="text: true reads any file as one document")
    if len(kinds) > 1:
        several = ", ".join(f"{kind} ({file})" for kind, file in sorted(kinds.items(), key=str))
        raise DataError(
            f"{where}.path",
            f"the files must be of one kind, not {several}",
            hint="narrow it with a glob",
        )
    kind = next(iter(kinds))
    if kind == "npz":
        return _arrays(files, source, where)
    folder = Path(path) if Path(path).is_dir() else files[0].parent
    return (
        _parquet(files, where)
        if kind == "parquet"
        else replace(_in_memory(str(kind), files, where), folder=folder)
    )


def _given(rows: Any, where: str) -> Table:
    if isinstance(rows, list | tuple):
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
                raise Place(where, index).error(f"must map column names to values, not {row!r:.80}")
        return _of_mappings(rows)
    names = getattr(rows, "column_names", None)
    if isinstance(names, dict):
        raise DataError(
            where, f"these are several splits: {', '.join(names)}", hint="give one of them"
        )
    if names is None or not hasattr(rows, "__getitem__") or not hasattr(rows, "__len__"):
        raise DataError(
            where, f"must be a list of mappings or a datasets.Dataset, not {type(rows).__name__}"
        )
    return _of_dataset(rows)


def _of_mappings(rows: Sequence[Row]) -> Table:
    return Table(tuple(dict.fromkeys(column for row in rows for column in row)), rows)


def _of_dataset(rows: Any) -> Table:
    """A table of a `datasets.Dataset`; images stay encoded, as decoding all of them at once would fill the memory."""
    import datasets

    features = getattr(rows, "features", None) or {}
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    names = {
        column: tuple(each.names)
        for column, each in features.items()
        if isinstance(each, datasets.ClassLabel)
    }
    return Table(tuple(rows.column_names), rows, names=names)


def _from_hub(source: Source, where: str) -> Any:
    import datasets
    from huggingface_hub.errors import HFValidationError

    try:
        with _quiet():
            return datasets.load_dataset(
                str(source.path), source.name, split=source.split, revision=source.revision
            )
    except (OSError, HFValidationError) as error:
        message = f"{source.path}: neither a local file nor a hub dataset that can be reached ({_one_line(error)})"
        hint = "write a local path with a suffix or a leading ./; for the hub check the id, the network and your login"
        raise DataError(f"{where}.path", message, hint=hint) from None
    except (ValueError, datasets.exceptions.DatasetsError, RuntimeError) as error:
        reason = _one_line(error.__cause__ or error)
        raise DataError(_blamed(reason, where), f"{source.path}: {reason}") from None


def _blamed(reason: str, where: str) -> str:
    """The key of the recipe that an error of `load_dataset` is about; the library says so in words alone."""
    about = {"split": "split", "builderconfig": "name", "config name": "name"}
    return f"{where}.{next((key for word, key in about.items() if word in reason.lower()), 'path')}"


def _from_disk(source: Source, where: str) -> Any:
    import datasets
    import pyarrow as pa

    try:
        with _quiet():
            loaded = datasets.load_from_disk(str(source.path))
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        message = (
            f"{source.path} was written by save_to_disk but cannot be read: {_one_line(error)}"
        )
        raise DataError(f"{where}.path", message) from None
    if not isinstance(loaded.column_names, dict):
        return loaded
    if source.split not in loaded:
        raise _no_split(source, where, loaded)
    return loaded[source.split]


def _no_split(source: Source, where: str, known: Iterable[str]) -> DataError:
    listed = ", ".join(sorted(known))
    message = f"no split {source.split!r} in {source.path}; there: {listed}"
    return DataError(
        f"{where}.split", message, hint=f"set split to one of {listed}, or name the files in path"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """With the progress bars of `datasets` off."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- local files


def _files(source: Source, where: str) -> list[Path]:
    """Every file of the path, in the order of their names: the file, those in the folder, or the glob's."""
    path = str(source.path)
    if _is_file(path):
        return [Path(path)]
    if os.path.isdir(path):  # noqa: PTH112 (see _is_file)
        found = list(_walk(path))
    elif glob.has_magic(path):
        # Path.glob needs a folder to start from, which an absolute pattern does not name
        found = [file for file in glob.glob(path, recursive=True) if _is_file(file)]  # noqa: PTH207
    else:
        raise DataError(f"{where}.path", f"there is no file or folder {path}")
    if not found:
        raise DataError(f"{where}.path", f"no file at {path}")
    return sorted({Path(file) for file in found})


def _walk(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and name != "__pycache__"
        ]
        yield from (str(Path(place, name)) for name in files if not name.startswith("."))


def _is_file(path: str | Path) -> bool:
    # Path.is_file raises where a name is longer than the file system allows
    return os.path.isfile(path)  # noqa: PTH113


def _suffix(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _kind(file: Path) -> str | None:
    return KINDS.get(_suffix(file))


def _data_files(source: Source, where: str) -> list[Path]:
    files = _files(source, where)
    folder = Path(str(source.path))
    if not folder.is_dir():
        return files
    data = [file for file in files if _kind(file) is not None]
    # a README or a script lies beside the data of many folders
    data = [file for file in data if _kind(file) != "text" or _suffix(file) == ".txt"] or data
    if not data:
        raise DataError(
            f"{where}.path", f"no data file in {folder}; known suffixes are {', '.join(KINDS)}"
        )
    return _of_split(data, source, where)


def _of_split(files: list[Path], source: Source, where: str) -> list[Path]:
    """The files whose names say the split, where names say splits at all."""
    wanted = SPLIT_WORDS.get(source.split.lower(), source.split.lower())
    said = {file: _splits_named(file.relative_to(str(source.path)), wanted) for file in files}
    known = set().union(*said.values())
    if known and wanted not in known:
        raise _no_split(source, where, known)
    return [file for file in files if wanted in said[file]] if len(known) > 1 else files


def _splits_named(file: Path, wanted: str) -> set[str]:
    words = re.split(r"[^a-z0-9]+", str(file).lower())
    return {SPLIT_WORDS.get(word, word) for word in words if word in SPLIT_WORDS or word == wanted}


@contextmanager
def _reading(file: Path, where: str) -> Iterator[None]:
    """What goes wrong with a file, in words that name it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}.path", f"{file} is not text in UTF-8: {error.reason} at byte {error.start}"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}.path", f"{file} cannot be read: {_one_line(error)}") from None


def _bytes(file: Path) -> bytes:
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix.lower() == ".gz" else content


def _open_text(file: Path, newline: str | None = None) -> TextIO:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline=newline)
    return file.open(encoding="utf-8-sig", newline=newline)


def _documents(source: Source, where: str) -> Table:
    """Every file as one row."""
    if source.path is None or not Path(source.path).is_absolute():
        raise DataError(
            f"{where}.text",
            "text: true reads local files, so path must be a file, a folder or a glob",
        )
    files = _files(source, where)
    alone = _is_file(source.path)
    rows, num_binary = [], 0
    for file in files:
        with _reading(file, where):
            content = _bytes(file)
            if b"\0" in content and not alone:
                num_binary += 1
            elif b"\0" in content:
                raise DataError(f"{where}.path", f"{file} is not text: it holds zero bytes")
            else:
                pieces = _pieces(content.decode("utf-8-sig"), source.lines_per_example)
                rows += [{"file": str(file), "text": piece} for piece in pieces]
    empty = frozenset(index for index, row in enumerate(rows) if not row["text"].strip())
    return Table(("file", "text"), rows, empty, num_binary)


def _pieces(text: str, num_lines: int | None) -> list[str]:
    """A document in pieces of so many lines; those of whitespace alone are dropped, unless the document is all of that."""
    if num_lines is None:
        return [text]
    lines = text.splitlines(keepends=True)
    pieces = [
        "".join(lines[start : start + num_lines]) for start in range(0, len(lines), num_lines)
    ]
    return [piece for piece in pieces if piece.strip()] or [text]


def _parquet(files: list[Path], where: str) -> Table:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file in files:
        try:
            with _reading(file, where):
                tables.append(pq.ParquetFile(io.BytesIO(_bytes(file))).read())
        except pa.ArrowException as error:
            raise DataError(
                f"{where}.path", f"{file} is not valid parquet: {_one_line(error)}"
            ) from None
    try:
        together = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"{where}.path", f"the files' columns do not fit together: {_one_line(error)}"
        ) from None
    # as a Dataset, so that columns come out as the library that wrote them means them
    return _of_dataset(datasets.Dataset(datasets.table.InMemoryTable(together)))


# --- images


def _holds_data(source: Source, where: str) -> bool:
    """Whether a folder holds tables, which may name images, and not images alone: a table among a class's images is none."""
    files, root = _files(source, where), Path(str(source.path))
    tables = [file for file in files if _kind(file) not in (None, "text")]
    return any(file.parent == root for file in tables) or len(tables) == len(files)


def _image_folder(source: Source, where: str) -> Table:
    """A folder for each class, within a folder for each split where there are several."""
    root = Path(str(source.path))
    files = [file for file in _files(source, where) if _suffix(file) in IMAGE_SUFFIXES]
    if not files:
        raise DataError(
            f"{where}.path", f"no image in {root}; known suffixes are {', '.join(IMAGE_SUFFIXES)}"
        )
    for file in files:
        if file.parent == root:
            message = f"{file} lies in no class's folder"
            raise DataError(
                f"{where}.path",
                message,
                hint="make one folder for each class, or a table of names and labels",
            )
    split_of = {file: SPLIT_WORDS.get(file.relative_to(root).parts[0].lower()) for file in files}
    splits = {
        split for file, split in split_of.items() if split and len(file.relative_to(root).parts) > 2
    }
    wanted = SPLIT_WORDS.get(source.split.lower(), source.split.lower())
    if splits and wanted not in splits:
        raise _no_split(source, where, splits)
    names = tuple(sorted({file.parent.name for file in files}))
    if splits:
        files = [file for file in files if split_of[file] == wanted]
    rows = [{"image": str(file), "label": file.parent.name} for file in files]
    return Table(("image", "label"), rows, names={"label": names})


def _arrays(files: Sequence[Path], source: Source, where: str) -> Table:
    """Images (x) and labels (y) of NumPy's archives; `x_train` and `y_train` for a split."""
    import numpy as np

    rows: list[Row] = []
    wanted = SPLIT_WORDS.get(source.split.lower(), source.split.lower())
    for file in files:
        with _reading(file, where):
            try:
                archive = np.load(file, allow_pickle=False)
                known = dict(archive.items())
            except (ValueError, KeyError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"{where}.path", f"{file} is no archive of plain arrays: {_one_line(error)}"
                ) from None
        pair = ("x", "y") if {"x", "y"} <= set(known) else (f"x_{wanted}", f"y_{wanted}")
        if not set(pair) <= set(known):
            message = f"{file} holds {', '.join(sorted(known)) or 'nothing'}, but neither x and y nor {' and '.join(pair)}"
            raise DataError(f"{where}.path", message)
        x, y = known[pair[0]], known[pair[1]]
        x = x if x.ndim else x[None]
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1 or len(x) != len(y):
            message = f"{file}: {pair[0]} {x.shape} and {pair[1]} {y.shape} must have one label for each image"
            raise DataError(f"{where}.path", message)
        rows += [
            {"image": pixels, "label": value} for pixels, value in zip(x, y.tolist(), strict=True)
        ]
    return Table(("image", "label"), rows)


def _in_memory(kind: str, files: list[Path], where: str) -> Table:
    readers = {"json": _json_rows, "csv": _csv_rows, "tsv": _csv_rows, "text": _line_rows}
    rows: list[Row] = []
    for file in files:
        with _reading(file, where):
            rows.extend(readers[kind](file, where))
    if kind != "text":
        return _of_mappings(rows)
    return Table(
        ("text",),
        rows,
        frozenset(index for index, row in enumerate(rows) if not row["text"].strip()),
    )


def _line_rows(file: Path, where: str) -> Iterator[Row]:
    with _open_text(file) as lines:
        for line in lines:
            yield {"text": line.removesuffix("\n")}


def _json_rows(file: Path, where: str) -> Iterator[Row]:
    if _suffix(file) == ".jsonl":
        with _open_text(file) as lines:
            yield from _json_lines(lines, file, where)
        return
    with _open_text(file) as stream:
        text = stream.read()
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise DataError(
                f"{where}.path", f"{file}, line {error.lineno}: not valid JSON: {error.msg}"
            ) from None
        # many files named .json hold JSON Lines
        yield from _json_lines(io.StringIO(text), file, where)
        return
    for index, row in enumerate(whole if isinstance(whole, list) else [whole]):
        yield _object(row, f"{file}, item {index} (counting from 0)", where)


def _json_lines(lines: Iterable[str], file: Path, where: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}.path", f"{file}, line {number}: not valid JSON: {error.msg}"
            ) from None
        yield _object(row, f"{file}, line {number}", where)


def _object(row: Any, place: str, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            f"{where}.path", f"{place}: a row must be a JSON object, not {type(row).__name__}"
        )
    return row


def _csv_rows(file: Path, where: str) -> Iterator[Row]:
    # the library's limit of 128 KiB a field is one for the process, and shorter than a long document
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with _open_text(file, newline="") as stream:
            delimiter = "\t" if _kind(file) == "tsv" else ","
            yield from _csv_records(
                csv.reader(stream, delimiter=delimiter, strict=True), file, where
            )
    finally:
        csv.field_size_limit(limit)


def _csv_records(reader: Any, file: Path, where: str) -> Iterator[Row]:
    try:
        header: list[str] = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(
                f"{where}.path", f"{file}: the header names a column twice: {', '.join(header)}"
            )
        for record in reader:
            if record and len(record) != len(header):
                message = f"{file}, line {reader.line_num}: {len(record)} fields, but the header has {len(header)}"
                raise DataError(f"{where}.path", message)
            if record:
                yield dict(zip(header, record, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{where}.path", f"{file}, line {reader.line_num}: not valid: {error}"
        ) from None

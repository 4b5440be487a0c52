"""Read the rows of one file: JSON, CSV, plain text, whole documents, parquet, archives of arrays.

JSON, CSV and text are read as written: the loaders of `datasets` guess types (dates are rewritten,
the word NA becomes null, whole numbers beside a null become floats) and take `[a].jsonl` for a
pattern.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from mergetomix.bounds import MOST_CHARACTERS, MOST_RATIO
from mergetomix.data.errors import no_data, one_line
from mergetomix.data.files import kind_of, suffix_of

WRAPPERS = ("data", "rows", "examples", "instances", "items", "records")
"""What an object that is a whole file calls its rows."""
MOST_CELLS = 2**31
"""Of a parquet file: repeated values take no room there, and all of it in memory."""
Bytes: TypeAlias = gzip.GzipFile | io.BufferedReader


class Malformed(Exception):
    """What is wrong with a file; the text goes on behind the file's name."""


@contextmanager
def reading(file: Path, where: str) -> Iterator[None]:
    """Turns what goes wrong with a file into a DataError that names it."""
    try:
        yield
    except Malformed as error:
        raise no_data(where, f"{file}{error}") from None
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise no_data(where, f"{file} is not text in UTF-8: {reason}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise no_data(where, f"{file} cannot be read: {one_line(error)}") from None


class Unpacked(gzip.GzipFile):
    """What a `.gz` holds. Raises Malformed where that is beyond all measure for its size."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._most = MOST_CHARACTERS + MOST_RATIO * file.stat().st_size
        self._num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        """Reads at most `size` bytes, or all that is left."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read1(), b""))
        return self._counted(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        """Reads what is at hand."""
        return self._counted(super().read1(size))

    def _counted(self, data: bytes) -> bytes:
        self._num_read += len(data)
        if self._num_read > self._most:
            raise Malformed(f" holds more than {MOST_RATIO} times its size: unpack it first")
        return data


def opened(file: Path) -> Bytes:
    """Opens a file for its bytes, which are those behind the compression of a `.gz`."""
    return Unpacked(file) if file.suffix.lower() == ".gz" else file.open("rb")


def _text(stream: Bytes, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def _lines(stream: Bytes) -> Iterator[str]:
    """Yields the lines of a text. Raises Malformed for one that is too long to read."""
    text, number = _text(stream), 0
    while line := text.readline(MOST_CHARACTERS + 1):
        number += 1
        if len(line) > MOST_CHARACTERS:
            raise Malformed(f", line {number}: longer than {MOST_CHARACTERS:,} characters")
        yield line


def rows_of(file: Path, split: str, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file that is no parquet; an archive of arrays may have some of a split.

    What is odd but can be read goes to `notes`, a line each.

    Raises:
        Malformed: the file does not hold what its name says.
    """
    kind = kind_of(file)
    if kind == "npz":
        yield from _arrays(file, split)
        return
    with opened(file) as stream:
        if kind == "json":
            doubled: list[str] = []
            yield from _json_rows(stream, suffix_of(file) == ".jsonl", doubled)
            if doubled:
                what = f"{file}: the key {doubled[0]!r} stands twice in an object"
                notes.append(f"{what} ({len(doubled)} in all); the last one counts")
        elif kind == "text":
            yield from ({"text": line.removesuffix("\n")} for line in _lines(stream))
        else:
            yield from _csv_rows(stream, delimiter="\t" if kind == "tsv" else ",")


def _json_rows(stream: Bytes, is_lines: bool, doubled: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of JSON; keys that stand twice in one object go to `doubled`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            doubled.extend(key for key in found if sum(key == each for each, _ in pairs) > 1)
        return found

    decode = json.JSONDecoder(object_pairs_hook=once).decode
    if is_lines:
        yield from _json_lines(_lines(stream), decode)
        return
    text = _text(stream).read()
    try:
        whole = decode(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            raise Malformed(_invalid(error)) from None
        # many files named .json hold JSON Lines
        doubled.clear()
        yield from _json_lines(io.StringIO(text), decode)
        return
    rows = whole if isinstance(whole, list) else _rows_within(whole)
    for index, row in enumerate(rows):
        yield _object(row, f"item {index} (counting from 0)")


def _rows_within(whole: Any) -> list[Any]:
    """Returns the rows that one JSON object holds under a name such as `data`, else the object."""
    for key in WRAPPERS if isinstance(whole, dict) else ():
        found = whole.get(key)
        if isinstance(found, list) and found and all(isinstance(each, dict) for each in found):
            return found
    return [whole]


def _json_lines(lines: Iterable[str], decode: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = decode(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise Malformed(_invalid(error, number)) from None
        if line.strip():
            yield _object(row, f"line {number}")


def _invalid(error: ValueError | RecursionError, line: int | None = None) -> str:
    """Returns what is wrong with JSON: its grammar, a number too long to read, its depth."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        reason, line = error.msg, error.lineno if line is None else line
    elif isinstance(error, ValueError):
        reason = "a number has too many digits"
    place = "" if line is None else f", line {line}"
    return f"{place}: not valid JSON: {reason}"


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise Malformed(f", {place}: a row must be a JSON object, not {type(row).__name__}")
    return row


def _csv_rows(stream: Bytes, delimiter: str) -> Iterator[dict[str, Any]]:
    # the library's limit of 128 KiB a field is one for the process, and too short for documents
    limit = csv.field_size_limit(MOST_CHARACTERS)
    reader = csv.reader(_text(stream, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise Malformed(f": the header names a column twice: {', '.join(header)}")
        for record in filter(None, reader):
            if len(record) != len(header):
                counts = f"{len(record)} fields, but the header has {len(header)}"
                raise Malformed(f", line {reader.line_num}: {counts}")
            yield dict(zip(header, record, strict=True))
    except csv.Error as error:
        raise Malformed(f", line {reader.line_num}: not valid: {error}") from None
    finally:
        csv.field_size_limit(limit)


def document(file: Path) -> str | None:
    """Returns the text of a whole file; None if it holds zero bytes, and so no text."""
    with opened(file) as stream:
        content = stream.read(MOST_CHARACTERS + 1)
    if len(content) > MOST_CHARACTERS:
        raise Malformed(f" is a text of more than {MOST_CHARACTERS:,} bytes: cut it into files")
    return None if b"\0" in content else content.decode("utf-8-sig")


def pieces(text: str, num_lines: int | None) -> list[str]:
    r"""Returns a document in pieces of so many lines; None keeps it whole.

    Pieces of whitespace alone are dropped, unless the document is all of that.

    >>> pieces("one\ntwo\nthree\n", 2)
    ['one\ntwo\n', 'three\n']
    """
    if num_lines is None:
        return [text]
    lines = text.splitlines(keepends=True)
    cut = ["".join(lines[i : i + num_lines]) for i in range(0, len(lines), num_lines)]
    return [piece for piece in cut if piece.strip()] or [text]


def parquet(file: Path) -> Any:
    """Returns a parquet file as an Arrow table. Raises Malformed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(file) as stream:
            found = pq.ParquetFile(io.BytesIO(stream.read()))
            if found.metadata.num_rows * max(1, found.metadata.num_columns) > MOST_CELLS:
                raise Malformed(f" says that it holds {found.metadata.num_rows:,} rows")
            return found.read()
    except pa.ArrowException as error:
        raise Malformed(f" is not valid parquet: {one_line(error)}") from None


def _arrays(file: Path, split: str) -> list[dict[str, Any]]:
    """Returns images (x) and labels (y) of a NumPy archive; `x_train`, `y_train` if it has splits.

    Raises:
        Malformed: it is no such archive.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(file) as packed:
            declared = sum(each.file_size for each in packed.infolist())
        if declared > MOST_CHARACTERS + MOST_RATIO * file.stat().st_size:
            raise Malformed(f" holds more than {MOST_RATIO} times its size: unpack it first")
        known = dict(np.load(file, allow_pickle=False).items())
    except (ValueError, KeyError, zipfile.BadZipFile, AttributeError, MemoryError) as error:
        raise Malformed(f" is no archive of plain arrays: {one_line(error)}") from None
    pair = ("x", "y") if {"x", "y"} <= set(known) else (f"x_{split}", f"y_{split}")
    if not set(pair) <= set(known):
        listed = ", ".join(sorted(known)) or "nothing"
        raise Malformed(f" holds {listed}, but neither x and y nor {' and '.join(pair)}")
    x, y = np.atleast_1d(known[pair[0]]), known[pair[1]]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(x) != len(y):
        shapes = f"{pair[0]} {x.shape} and {pair[1]} {y.shape}"
        raise Malformed(f": {shapes} must have one label for each image")
    return [{"image": image, "label": label} for image, label in zip(x, y.tolist(), strict=True)]

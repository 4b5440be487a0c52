"""Read a recipe's dataset or target, and map every row to an example.

Where the rows come from is the business of `rows`; nothing here knows a tokenizer.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import math
import numbers
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergetomix.errors import DataError
from mergetomix.image import LabelSpace, Picture
from mergetomix.recipe import Source, Target
from mergetomix.rows import Place, Row, open_table


@dataclass(frozen=True)
class Example:
    """One row (or document), mapped. `row` is its index in the source before drawing; error messages name it.

    `prompt` is not trained on, `completion` is; `text` is trained on whole; `messages` are pairs of role and content;
    `options` are the formatted options of a target with `score: choice`. An image has a `picture`, its class as `label`, and
    the `space` of classes that the label is of.
    """

    row: int
    prompt: str = ""
    completion: str = ""
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    label: str = ""
    picture: Picture | None = None
    space: LabelSpace | None = None

    def content(self) -> tuple[Any, ...]:
        """Everything but `row`: what makes two examples the same."""
        if self.picture is not None:
            return (self.picture.digest, self.label)
        return (self.prompt, self.completion, self.text, self.messages, self.options)


@dataclass(frozen=True)
class Examples:
    """What one source gives: its examples in the order of the source.

    `num_rows` counts the rows (or documents) before drawing, the empty ones included. `num_empty_files` counts the
    empty documents (`text: true`) or whitespace-only lines (plain text) passed over, `num_binary_files` the files in a
    folder or glob that hold no text; `passed` says what else was passed over. `columns` is empty for `text: true`; `raw` holds
    the first three rows.
    """

    name: str
    where: str
    items: tuple[Example, ...]
    num_rows: int
    num_empty_files: int
    columns: tuple[str, ...]
    raw: tuple[Row, ...]
    num_binary_files: int = 0
    passed: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """The SHA-256 (hex) of the contents in order: the same whatever the path, the name or the file format."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(_canonical(item) + b"\n")
        return digest.hexdigest()

    def take(self, places: Sequence[int]) -> Examples:
        """The same source with the items at these places alone, in the order given."""
        return replace(self, items=tuple(self.items[place] for place in places))

    def notes(self) -> tuple[str, ...]:
        """What was passed over, one line each, for the user to see."""
        noun = "rows" if self.columns else "files"
        counts = {f"empty {noun}": self.num_empty_files, "binary files": self.num_binary_files}
        return (*(f"{self.where}: passed over {count} {what}" for what, count in counts.items() if count), *self.passed)


def read(source: Source, where: str) -> Examples:
    """The examples of one source, `where` being its place in the recipe, such as `datasets.math`.

    Raises:
        DataError: the source cannot be read, is empty, or a row cannot be mapped; names the key, and the file or row.
    """
    table = open_table(source, where)
    kept = table.kept()
    to_example = _mapping(source, where, table.columns)
    drawn = draw(kept, source)
    items = tuple(to_example(index, row) for index, row in zip(drawn, table.take(drawn), strict=True))
    return Examples(
        name=where.partition(".")[2] or where,
        where=where,
        items=items,
        num_rows=len(table.rows),
        num_empty_files=len(table.empty),
        columns=() if source.files else table.columns,
        raw=tuple(table.take(kept[:3])),
        num_binary_files=table.num_binary,
    )


def read_rows(source: Source, where: str) -> list[Row]:
    """The rows that `read` would draw, as they are: for a function of the user's, which needs no mapping.

    Raises:
        DataError: the source cannot be read or is empty.
    """
    table = open_table(source, where)
    return table.take(draw(table.kept(), source))


def plain_content(row: Row) -> dict[str, str]:
    """What a row is made of, as plain values."""
    return {str(key): repr(value) for key, value in row.items()}


def split(examples: Examples, select_fraction: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """A target's examples in two disjoint parts, select and report, each in the order of the rows.

    Distinct contents are ranked by SHA-256(seed, content) and the first `select_fraction` (0 to 1) of the examples are
    selected. So an example's part depends on no other target and not on the order of rows, equal examples stay
    together, and a few rows more move few examples to the other part.

    Raises:
        DataError: fewer than two distinct examples.
    """
    sizes = Counter(_canonical(item) for item in examples.items)
    if len(sizes) < 2:
        message = f"splitting into select and report needs at least 2 distinct examples, not {len(sizes)}"
        raise DataError(examples.where, message, hint="give the target more rows, or raise max_examples")
    ranked = sorted(sizes, key=lambda content: hashlib.sha256(b"%d:" % seed + content).digest())
    chosen = set(ranked[: _num_selected([sizes[content] for content in ranked], select_fraction)])
    select = tuple(item for item in examples.items if _canonical(item) in chosen)
    report = tuple(item for item in examples.items if _canonical(item) not in chosen)
    return select, report


def drawn_order(items: Sequence[Example], seed: int) -> list[int]:
    """Places of examples in the order of SHA-256("order", seed, content): one that depends on no example's place, and not on
    which other examples there are. Equal examples stay in their order."""
    keys = [hashlib.sha256(b"order:%d:" % seed + _canonical(item)).digest() for item in items]
    return sorted(range(len(items)), key=lambda place: keys[place])


def shared(dataset: Examples, target: Examples) -> list[tuple[int, int]]:
    """Pairs (row of the dataset, row of the target) that say the same once whitespace around each string is trimmed.

    Prompt and completion, the text, or all messages must be equal; options do not count.
    """
    rows: dict[tuple[Any, ...], list[int]] = {}
    for item in target.items:
        rows.setdefault(_trimmed(item), []).append(item.row)
    return [(item.row, row) for item in dataset.items for row in rows.get(_trimmed(item), ())]


# --- drawing, splitting


def draw(kept: list[int], source: Source) -> list[int]:
    """The rows to take of those kept, in order: all, or `max_examples` drawn by the source's seed."""
    if source.max_examples is None or source.max_examples >= len(kept):
        return kept
    import numpy as np

    places = np.random.default_rng(source.seed).choice(len(kept), size=source.max_examples, replace=False)
    return [kept[place] for place in sorted(places.tolist())]


def _num_selected(sizes: list[int], fraction: float) -> int:
    """How many groups to select so that their examples come nearest to the fraction; one at least on each side."""
    goal, taken, groups = round(fraction * sum(sizes)), 0, 0
    for size in sizes:
        if taken + size / 2 > goal:
            break
        taken, groups = taken + size, groups + 1
    return min(max(groups, 1), len(sizes) - 1)


def _canonical(item: Example) -> bytes:
    # escaped, because JSON may hold lone surrogates, which UTF-8 cannot
    return json.dumps(item.content(), separators=(",", ":")).encode("ascii")


def _trimmed(item: Example) -> tuple[Any, ...]:
    if item.picture is not None:
        return item.content()
    messages = tuple((role, content.strip()) for role, content in item.messages)
    return (item.prompt.strip(), item.completion.strip(), item.text.strip(), messages)


# --- from a row to an example


def _mapping(source: Source, where: str, columns: tuple[str, ...]) -> Callable[[int, Row], Example]:
    """The function that maps a row; what is wrong with the recipe's strings is raised here, before any row is read."""
    if source.label:
        hint = "family: image-classifier fine-tunes on images"
        raise DataError(f"{where}.label", "labelled images are not for a language model", hint=hint)
    if source.text:
        pattern = "text" if source.text is True else source.text
        text = _Text.parse(f"{where}.text", pattern, columns)
        return lambda index, row: Example(index, text=text.filled(index, row))
    if source.messages:
        key, column = f"{where}.messages", _column(f"{where}.messages", source.messages, columns)
        return lambda index, row: Example(index, messages=_messages(Place(key, index), row[column]))
    return _pair_mapping(source, where, columns)


def _pair_mapping(source: Source, where: str, columns: tuple[str, ...]) -> Callable[[int, Row], Example]:
    if source.prompt is None and source.completion is None:
        raise DataError(where, "say how a row becomes an example: prompt and completion, messages, or text")
    prompt = None if source.prompt is None else _Text.parse(f"{where}.prompt", source.prompt, columns)
    completion = None if source.completion is None else _Text.parse(f"{where}.completion", source.completion, columns)
    options = _options(source, where, columns)

    def to_example(index: int, row: Row) -> Example:
        given = prompt.of(index, row) if prompt else ""
        wanted = completion.filled(index, row) if completion else ""
        listed = options(index, row)
        if listed and wanted not in listed:
            raise Place(f"{where}.completion", index).error(f"{wanted!r} is not among the options {list(listed)}")
        return Example(index, prompt=given, completion=wanted, options=listed)

    return to_example


@dataclass(frozen=True)
class _Text:
    """A key of the recipe that gives a string for every row: a column, or a format string over columns."""

    where: str
    pattern: str
    is_column: bool

    @classmethod
    def parse(cls, where: str, pattern: str, columns: tuple[str, ...]) -> _Text:
        if pattern in columns:
            return cls(where, pattern, is_column=True)
        if not _fields(where, pattern):
            raise no_column(where, pattern, columns)
        for field in _fields(where, pattern):
            _check_field(where, field, columns)
        return cls(where, pattern, is_column=False)

    def of(self, index: int, row: Row) -> str:
        try:
            return str(_plain(row[self.pattern])) if self.is_column else _Filler().vformat(self.pattern, (), row)
        except KeyError as error:
            reason = f"there is no {error.args[0]!r}"
        except (ValueError, TypeError, IndexError) as error:
            reason = str(error)
        raise Place(self.where, index).error(f"{self.pattern!r}: {reason}") from None

    def filled(self, index: int, row: Row) -> str:
        """The string, which must hold more than whitespace."""
        text = self.of(index, row)
        if not text.strip():
            raise Place(self.where, index).error(f"{self.pattern!r} gives an empty text, which nothing can be learnt from")
        return text


class _Filler(string.Formatter):
    """`str.format` whose fields must hold text or numbers."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        value, used = super().get_field(field_name, args, kwargs)
        return _plain(value), used


def _plain(value: Any) -> str | numbers.Number | datetime.date | datetime.time:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("the value is missing (null)")
    if not isinstance(value, str | numbers.Number | datetime.date | datetime.time):
        raise TypeError(f"the value is of type {type(value).__name__}, but must be text or a number")
    return value


def _fields(where: str, pattern: str) -> list[str]:
    """The fields of a format string, those within format specs included."""
    try:
        parts = [(field, spec) for _, field, spec, _ in string.Formatter().parse(pattern) if field is not None]
    except ValueError as error:
        hint = "write a literal brace twice: {{ or }}"
        raise DataError(where, f"{pattern!r} is a broken format string: {error}", hint=hint) from None
    return [name for field, spec in parts for name in (field, *_fields(where, spec or ""))]


def _check_field(where: str, field: str, columns: tuple[str, ...]) -> None:
    name = re.split(r"[.\[]", field, maxsplit=1)[0]
    rest = field.removeprefix(name)
    if "." in re.sub(r"\[[^\]]*\]", "", rest):
        hint = "reach into a column with brackets, such as {answers[text]}"
        raise DataError(where, f"{{{field}}} reaches for an attribute, which is not allowed", hint=hint)
    if name not in columns:
        raise no_column(where, name, columns)


def _column(where: str, name: str, columns: tuple[str, ...]) -> str:
    if name not in columns:
        raise no_column(where, name, columns)
    return name


def no_column(where: str, name: str, columns: tuple[str, ...]) -> DataError:
    """The error of a column that is not there, with the nearest one that is."""
    close = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    nearest = f", did you mean {close[0]!r}" if close else ""
    hint = "name a column, or write a format string such as 'Q: {column}'"
    return DataError(where, f"no column {name!r}{nearest}; the columns are {', '.join(columns)}", hint=hint)


def _messages(place: Place, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(_is_message(turn) for turn in value):
        raise place.error("messages must be a list of mappings with role and content, both text")
    turns = tuple((turn["role"], turn["content"]) for turn in value)
    answers = [content for role, content in turns if role == "assistant"]
    if not answers:
        raise place.error("no turn of the assistant, so there is nothing to learn")
    if not all(content.strip() for content in answers):
        raise place.error("a turn of the assistant is empty")
    return turns


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _options(source: Source, where: str, columns: tuple[str, ...]) -> Callable[[int, Row], tuple[str, ...]]:
    if not isinstance(source, Target) or source.score != "choice" or source.options is None:
        return lambda index, row: ()
    key, pattern = f"{where}.options", source.option_format
    if "option" not in _fields(f"{where}.option_format", pattern):
        raise DataError(f"{where}.option_format", f"{pattern!r} must hold {{option}}")
    written = _Text.parse(f"{where}.option_format", pattern, ("option",))
    if not isinstance(source.options, str):
        same = _distinct(source.options, written, lambda message: DataError(key, message))
        return lambda index, row: same
    column = _column(key, source.options, columns)
    return lambda index, row: _distinct(_listed(row[column]), written, Place(key, index).error)


def _listed(value: Any) -> Any:
    """The list of options, which multiple-choice data sets often keep under `text` beside their labels."""
    return value.get("text") if isinstance(value, Mapping) else value


def _distinct(values: Any, written: _Text, error: Callable[[str], DataError]) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise error(f"options must be a list, or a mapping with a list under text, not {type(values).__name__}")
    for value in values:
        if not isinstance(value, str | numbers.Number) or not str(value).strip():
            raise error(f"an option must be a text that is not empty, not {value!r}")
    options = tuple(written.of(place, {"option": value}) for place, value in enumerate(values))
    if len(options) < 2 or len(set(options)) < len(options):
        raise error(f"options must be at least 2 and distinct, not {list(options)}")
    return options

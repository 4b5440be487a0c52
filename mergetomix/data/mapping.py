"""Map rows to examples, by the columns and format strings that the recipe names."""

from __future__ import annotations

import datetime
import math
import numbers
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergetomix.data.errors import Place, missing_column
from mergetomix.data.examples import Example
from mergetomix.data.tables import Row
from mergetomix.errors import DataError
from mergetomix.sections.source import Source
from mergetomix.sections.target import WithOptions

Columns = tuple[str, ...]


def mapping(source: Source, where: str, columns: Columns) -> Callable[[int, Row], Example]:
    """Returns the function that maps a row and its index.

    Raises:
        DataError: the recipe's strings fit no row; raised before any row is read.
    """
    if source.label:
        hint = "family: image-classifier fine-tunes on images"
        raise DataError(f"{where}.label", "labelled images are not for a language model", hint=hint)
    if source.text:
        pattern = "text" if source.text is True else source.text
        text = _Text.parse(f"{where}.text", pattern, columns)
        return lambda index, row: Example(index, text=text.filled(index, row))
    if source.messages:
        key, column = f"{where}.messages", source.messages
        if column not in columns:
            raise missing_column(key, column, columns)
        return lambda index, row: Example(index, messages=_messages(Place(key, index), row[column]))
    if source.prompt is None and source.completion is None:
        known = "prompt and completion, messages, or text"
        raise DataError(where, f"say how a row becomes an example: {known}")
    return _pair_mapping(source, where, columns)


def _pair_mapping(source: Source, where: str, columns: Columns) -> Callable[[int, Row], Example]:
    """Returns the function that maps a row with a prompt, a completion or both."""
    prompt, completion = (
        None if pattern is None else _Text.parse(f"{where}.{key}", pattern, columns)
        for key, pattern in (("prompt", source.prompt), ("completion", source.completion))
    )
    options = _options(source, where, columns)

    def to_example(index: int, row: Row) -> Example:
        given = prompt.of(index, row) if prompt else ""
        wanted = completion.filled(index, row) if completion else ""
        listed = options(index, row)
        if listed and wanted not in listed:
            problem = f"{wanted!r} is not among the options {list(listed)}"
            raise Place(f"{where}.completion", index).error(problem)
        return Example(index, prompt=given, completion=wanted, options=listed)

    return to_example


# --- columns and format strings


@dataclass(frozen=True)
class _Text:
    """A key of the recipe that gives a string for every row: a column, or a format string."""

    where: str
    pattern: str
    is_column: bool

    @classmethod
    def parse(cls, where: str, pattern: str, columns: Columns) -> _Text:
        if pattern in columns:
            return cls(where, pattern, is_column=True)
        fields = _fields(where, pattern)
        if not fields:
            raise missing_column(where, pattern, columns)
        for field in fields:
            name = re.split(r"[.\[]", field, maxsplit=1)[0]
            if "." in re.sub(r"\[[^\]]*\]", "", field.removeprefix(name)):
                problem = f"{{{field}}} reaches for an attribute, which is not allowed"
                hint = "reach into a column with brackets, such as {answers[text]}"
                raise DataError(where, problem, hint=hint)
            if name not in columns:
                raise missing_column(where, name, columns)
        return cls(where, pattern, is_column=False)

    def of(self, index: int, row: Row) -> str:
        """Returns the string of a row. Raises DataError for a value that is no text or number."""
        try:
            if self.is_column:
                return str(_plain(row[self.pattern]))
            return _Filler().vformat(self.pattern, (), row)
        except KeyError as error:
            reason = f"there is no {error.args[0]!r}"
        except (ValueError, TypeError, IndexError) as error:
            reason = str(error)
        raise Place(self.where, index).error(f"{self.pattern!r}: {reason}") from None

    def filled(self, index: int, row: Row) -> str:
        """Returns the string of a row, which must hold more than whitespace."""
        text = self.of(index, row)
        if not text.strip():
            problem = f"{self.pattern!r} gives an empty text, which nothing can be learnt from"
            raise Place(self.where, index).error(problem)
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
        kind = type(value).__name__
        raise TypeError(f"the value is of type {kind}, but must be text or a number")
    return value


def _fields(where: str, pattern: str) -> list[str]:
    """Returns the fields of a format string, those within format specs included."""
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        hint = "write a literal brace twice: {{ or }}"
        problem = f"{pattern!r} is a broken format string: {error}"
        raise DataError(where, problem, hint=hint) from None
    found = [(field, spec or "") for _, field, spec, _ in parts if field is not None]
    return [name for field, spec in found for name in (field, *_fields(where, spec))]


# --- chats and options


def _messages(place: Place, value: Any) -> tuple[tuple[str, str], ...]:
    """Returns the turns of a chat as pairs of role and content."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(_is_message(turn) for turn in value):
        raise place.error("messages must be a list of mappings with role and content, both text")
    turns = tuple((turn["role"], turn["content"]) for turn in value)
    answers = [content for role, content in turns if role == "assistant"]
    if not answers:
        raise place.error("no turn of the assistant, so there is nothing to learn")
    if not all(content.strip() for content in answers):
        raise place.error("a turn of the assistant is empty")
    return turns


def _is_message(turn: Any) -> bool:
    keys = ("role", "content")
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in keys)


def _options(source: Source, where: str, columns: Columns) -> Callable[[int, Row], tuple[str, ...]]:
    """Returns the function that gives the options of a row, none for most sources."""
    if not isinstance(source, WithOptions) or source.options is None:
        return lambda index, row: ()
    key, given, pattern = f"{where}.options", source.options, source.option_format
    if "option" not in _fields(f"{where}.option_format", pattern):
        raise DataError(f"{where}.option_format", f"{pattern!r} must hold {{option}}")
    written = _Text.parse(f"{where}.option_format", pattern, ("option",))
    if not isinstance(given, str):
        same = _distinct(given, written, lambda message: DataError(key, message))
        return lambda index, row: same
    if given not in columns:
        raise missing_column(key, given, columns)

    def own(index: int, row: Row) -> tuple[str, ...]:
        value = row[given]
        # data sets of multiple choice often keep the list under `text`, beside its labels
        listed = value.get("text") if isinstance(value, Mapping) else value
        return _distinct(listed, written, Place(key, index).error)

    return own


def _distinct(values: Any, written: _Text, error: Callable[[str], DataError]) -> tuple[str, ...]:
    """Returns options as they are written, which must be two or more and all different."""
    if not isinstance(values, list | tuple):
        kind = type(values).__name__
        raise error(f"options must be a list, or a mapping with a list under text, not {kind}")
    for value in values:
        if not isinstance(value, str | numbers.Number) or not str(value).strip():
            raise error(f"an option must be a text that is not empty, not {value!r}")
    options = tuple(written.of(place, {"option": value}) for place, value in enumerate(values))
    if len(options) < 2 or len(set(options)) < len(options):
        raise error(f"options must be at least 2 and distinct, not {list(options)}")
    return options

"""From a row to an example."""

from __future__ import annotations

import datetime
import difflib
import math
import numbers
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergetomix.data.examples import Example
from mergetomix.data.tables import Place, Row
from mergetomix.errors import DataError
from mergetomix.sections.source import Source, WithOptions


def mapping(source: Source, where: str, columns: tuple[str, ...]) -> Callable[[int, Row], Example]:
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


def _pair_mapping(
    source: Source, where: str, columns: tuple[str, ...]
) -> Callable[[int, Row], Example]:
    if source.prompt is None and source.completion is None:
        raise DataError(
            where, "say how a row becomes an example: prompt and completion, messages, or text"
        )
    prompt = (
        None if source.prompt is None else _Text.parse(f"{where}.prompt", source.prompt, columns)
    )
    completion = (
        None
        if source.completion is None
        else _Text.parse(f"{where}.completion", source.completion, columns)
    )
    options = _options(source, where, columns)

    def to_example(index: int, row: Row) -> Example:
        given = prompt.of(index, row) if prompt else ""
        wanted = completion.filled(index, row) if completion else ""
        listed = options(index, row)
        if listed and wanted not in listed:
            raise Place(f"{where}.completion", index).error(
                f"{wanted!r} is not among the options {list(listed)}"
            )
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
            return (
                str(_plain(row[self.pattern]))
                if self.is_column
                else _Filler().vformat(self.pattern, (), row)
            )
        except KeyError as error:
            reason = f"there is no {error.args[0]!r}"
        except (ValueError, TypeError, IndexError) as error:
            reason = str(error)
        raise Place(self.where, index).error(f"{self.pattern!r}: {reason}") from None

    def filled(self, index: int, row: Row) -> str:
        """The string, which must hold more than whitespace."""
        text = self.of(index, row)
        if not text.strip():
            raise Place(self.where, index).error(
                f"{self.pattern!r} gives an empty text, which nothing can be learnt from"
            )
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
        raise TypeError(
            f"the value is of type {type(value).__name__}, but must be text or a number"
        )
    return value


def _fields(where: str, pattern: str) -> list[str]:
    """The fields of a format string, those within format specs included."""
    try:
        parts = [
            (field, spec)
            for _, field, spec, _ in string.Formatter().parse(pattern)
            if field is not None
        ]
    except ValueError as error:
        hint = "write a literal brace twice: {{ or }}"
        raise DataError(
            where, f"{pattern!r} is a broken format string: {error}", hint=hint
        ) from None
    return [name for field, spec in parts for name in (field, *_fields(where, spec or ""))]


def _check_field(where: str, field: str, columns: tuple[str, ...]) -> None:
    name = re.split(r"[.\[]", field, maxsplit=1)[0]
    rest = field.removeprefix(name)
    if "." in re.sub(r"\[[^\]]*\]", "", rest):
        hint = "reach into a column with brackets, such as {answers[text]}"
        raise DataError(
            where, f"{{{field}}} reaches for an attribute, which is not allowed", hint=hint
        )
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
    return DataError(
        where, f"no column {name!r}{nearest}; the columns are {', '.join(columns)}", hint=hint
    )


def _messages(place: Place, value: Any) -> tuple[tuple[str, str], ...]:
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(_is_message(turn) for turn in value)
    ):
        raise place.error("messages must be a list of mappings with role and content, both text")
    turns = tuple((turn["role"], turn["content"]) for turn in value)
    answers = [content for role, content in turns if role == "assistant"]
    if not answers:
        raise place.error("no turn of the assistant, so there is nothing to learn")
    if not all(content.strip() for content in answers):
        raise place.error("a turn of the assistant is empty")
    return turns


def _is_message(turn: Any) -> bool:
    return (
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
    )


def _options(
    source: Source, where: str, columns: tuple[str, ...]
) -> Callable[[int, Row], tuple[str, ...]]:
    if not isinstance(source, WithOptions) or source.options is None:
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
        raise error(
            f"options must be a list, or a mapping with a list under text, not {type(values).__name__}"
        )
    for value in values:
        if not isinstance(value, str | numbers.Number) or not str(value).strip():
            raise error(f"an option must be a text that is not empty, not {value!r}")
    options = tuple(written.of(place, {"option": value}) for place, value in enumerate(values))
    if len(options) < 2 or len(set(options)) < len(options):
        raise error(f"options must be at least 2 and distinct, not {list(options)}")
    return options

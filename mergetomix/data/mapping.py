"""Map rows to examples, by the columns and format strings that the recipe names."""

from __future__ import annotations

import datetime
import math
import numbers
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergetomix.bounds import MOST_CHARACTERS, MOST_WIDTH
from mergetomix.data.chats import (
    Turn,
    as_json,
    check_replies,
    is_plain,
    text_of,
    tools_of,
    turns_of,
)
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
        return _chat_mapping(source, where, columns)
    if source.prompt is None and source.completion is None:
        known = "prompt and completion, messages, or text"
        raise DataError(where, f"say how a row becomes an example: {known}")
    return _pair_mapping(source, where, columns)


def _pair_mapping(source: Source, where: str, columns: Columns) -> Callable[[int, Row], Example]:
    """Returns the function that maps a row with a prompt, a completion or both.

    If both are columns of messages, as in TRL's conversational data, the row is a chat whose
    completion is trained on.
    """
    prompt, completion = (
        None if pattern is None else _Text.parse(f"{where}.{key}", pattern, columns)
        for key, pattern in (("prompt", source.prompt), ("completion", source.completion))
    )
    options = _options(source, where, columns)
    chat = _Chat(source, where, columns)

    def to_example(index: int, row: Row) -> Example:
        parts = [
            row[each.pattern] if each and each.is_column else "" for each in (prompt, completion)
        ]
        if _is_chat(parts[1]):
            place = Place(f"{where}.completion", index)
            before = turns_of(place, parts[0]) if parts[0] else []
            return chat.example(
                index, row, place, [*before, *turns_of(place, parts[1])], len(before)
            )
        given = prompt.filled(index, row, "asks nothing") if prompt else ""
        wanted = completion.filled(index, row) if completion else ""
        listed = options(index, row)
        if listed and wanted not in listed:
            problem = f"{wanted!r} is not among the options {list(listed)}"
            raise Place(f"{where}.completion", index).error(problem)
        found = Example(index, prompt=given, completion=wanted, options=listed)
        if not source.chat:
            return found
        turns = [{"role": "user", "content": given}, {"role": "assistant", "content": wanted}]
        rendered = chat.example(index, row, Place(f"{where}.prompt", index), turns)
        return replace(found, messages=rendered.messages, chat=rendered.chat)

    return to_example


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, Mapping) for each in value)


def _chat_mapping(source: Source, where: str, columns: Columns) -> Callable[[int, Row], Example]:
    """Returns the function that maps a row with a chat."""
    key, column = f"{where}.messages", source.messages or ""
    if column not in columns:
        raise missing_column(key, column, columns)
    chat = _Chat(source, where, columns)

    def to_example(index: int, row: Row) -> Example:
        place = Place(key, index)
        return chat.example(index, row, place, turns_of(place, row[column]))

    return to_example


class _Chat:
    """What the recipe adds to the chat of every row: tools, a system turn, what is trained on."""

    def __init__(self, source: Source, where: str, columns: Columns) -> None:
        self._key, self._last_alone = f"{where}.tools", source.train_on == "last"
        self._tools = source.tools or ("tools" if source.messages and "tools" in columns else None)
        if self._tools is not None and self._tools not in columns:
            raise missing_column(self._key, self._tools, columns)
        self._system: _Text | None = None
        self._said = source.system or ""
        if self._said and (self._said in columns or _is_written(self._said, columns)):
            self._system = _Text.parse(f"{where}.system", self._said, columns)

    def example(
        self, index: int, row: Row, place: Place, turns: Sequence[Turn], first: int = 0
    ) -> Example:
        """Returns an example of turns, whose replies from turn `first` on are trained on."""
        check_replies(place, turns, first)
        said = self._said
        if self._system is not None:
            said = self._system.of(index, row)
        if said.strip() and turns[0]["role"] not in ("system", "developer"):
            turns, first = [{"role": "system", "content": said}, *turns], first + 1
        if self._last_alone:
            first = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        tools = None
        if self._tools is not None:
            tools = tools_of(Place(self._key, index), row[self._tools])
        pairs = tuple((turn["role"], _encodable(place, text_of(turn))) for turn in turns)
        chat = "" if is_plain(turns, tools) else as_json(place, turns, tools)
        return Example(index, messages=pairs, chat=chat, trained_from=first)


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
                text = str(_plain(row[self.pattern]))
            else:
                text = _Filler().vformat(self.pattern, (), row)
            return _encodable(Place(self.where, index), text)
        except KeyError as error:
            reason = f"there is no {error.args[0]!r}"
        except (ValueError, TypeError, IndexError) as error:
            reason = str(error)
        raise Place(self.where, index).error(f"{self.pattern!r}: {reason}") from None

    def filled(self, index: int, row: Row, why: str = "nothing can be learnt from") -> str:
        """Returns the string of a row, which must hold more than whitespace."""
        text = self.of(index, row)
        if not text.strip():
            problem = f"{self.pattern!r} gives an empty text, which {why}"
            hint = "bad_rows: skip passes over such rows"
            raise Place(self.where, index).error(problem, hint=hint)
        return text


class _Filler(string.Formatter):
    """`str.format` whose fields must hold text or numbers."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        value, used = super().get_field(field_name, args, kwargs)
        return _plain(value), used

    def format_field(self, value: Any, format_spec: str) -> str:
        if any(len(each) > 5 or int(each) > MOST_WIDTH for each in re.findall(r"\d+", format_spec)):
            raise ValueError(f"a width or precision must be at most {MOST_WIDTH:,}")
        return str(super().format_field(value, format_spec))


def _plain(value: Any) -> str | numbers.Number | datetime.date | datetime.time:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("the value is missing (null)")
    if not isinstance(value, str | numbers.Number | datetime.date | datetime.time):
        kind = type(value).__name__
        raise TypeError(f"the value is of type {kind}, but must be text or a number")
    return value


def _is_written(pattern: str, columns: Columns) -> bool:
    """Returns whether a text has fields, all of them columns; a single word must be a column."""
    if len(pattern.split()) == 1 and "{" not in pattern:
        return True
    try:
        return bool(_fields("", pattern))
    except DataError:
        return False  # a brace that means itself


def _encodable(place: Place, text: str) -> str:
    """Returns a text.

    Raises DataError for half of a pair of surrogates, which nothing can read, and for a text that
    is too long to.
    """
    if len(text) > MOST_CHARACTERS:
        raise place.error(f"a text of {len(text):,} characters, and {MOST_CHARACTERS:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = text[error.start]
        hint = "the row was cut within a character, or is not UTF-8"
        message = f"a lone surrogate {lone!a} at character {error.start} of {text[:20]!a}..."
        raise place.error(message, hint=hint) from None
    return text


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


# --- options


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

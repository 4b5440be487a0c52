"""A shape of rows: how it is told by columns and what stands in them, and its recipe lines."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergetomix.data.chats import parsed
from mergetomix.data.expressions import reached
from mergetomix.data.tables import Row

Lines = Mapping[str, Any]
TRUTHS = ("true", "false")


def is_text(value: Any) -> bool:
    """Returns whether a value is a text."""
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Returns whether a value is a number, or a text that is a whole one."""
    if isinstance(value, bool):
        return False
    return isinstance(value, numbers.Number) or (isinstance(value, str) and value.isdigit())


def is_truth(value: Any) -> bool:
    """Returns whether a value is true or false, or a text that says so."""
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in TRUTHS)


def is_word(value: Any) -> bool:
    """Returns whether a value is a text and no number."""
    return isinstance(value, str) and not value.strip().replace(".", "").isdigit()


def is_key(value: Any) -> bool:
    """Returns whether a value may be the letter or the number of an option."""
    return is_number(value) or (isinstance(value, str) and len(value.strip("() .")) == 1)


def is_texts(value: Any) -> bool:
    """Returns whether a value is a list of texts."""
    return isinstance(value, list | tuple) and bool(value) and all(map(is_text, value))


def is_mapping(value: Any) -> bool:
    """Returns whether a value is a mapping."""
    return isinstance(value, Mapping)


def is_chat(value: Any) -> bool:
    """Returns whether a value is a list of messages."""
    return _has_turns(value, ("role", "content"))


def is_sharegpt(value: Any) -> bool:
    """Returns whether a value is a list of messages with `from` and `value`."""
    return _has_turns(value, ("from", "value"))


def is_transcript(value: Any) -> bool:
    """Returns whether a value is a text in which a human and an assistant speak."""
    return isinstance(value, str) and "\n\nAssistant:" in value


def _has_turns(value: Any, keys: Sequence[str]) -> bool:
    value = parsed(value)
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(each, Mapping) and keys[0] in each for each in value)


Kind = Callable[[Any], bool]


@dataclass(frozen=True)
class Shape:
    """One shape of rows: its places and what stands there, and its recipe lines.

    `lines` are those of a candidate, and of a target with `target` on top. `names` are public
    datasets that have it, with their configuration where there are several.
    `only_target` are lines that a target has and a candidate has not. `is_told` is false where
    columns do not say it: a user must. Columns `without` which it must be say that there is more
    to a row, so that these lines would leave out what matters.
    """

    name: str
    places: Mapping[str, Kind]
    lines: Lines
    target: Lines | None = field(default_factory=lambda: {"score": "loss"})
    names: tuple[str, ...] = ()
    only_target: Lines = field(default_factory=dict)
    is_told: bool = True
    without: frozenset[str] = frozenset()

    def fits(self, rows: Sequence[Row]) -> bool:
        """Returns whether rows have this shape; what is missing in some says nothing."""
        if self.without & {column for row in rows for column in row}:
            return False
        for place, kind in self.places.items():
            values = [found for row in rows if (found := _at(place, row)) not in (None, [], ())]
            if not values or not all(map(kind, values)):
                return False
        return True

    def of(self, is_target: bool) -> dict[str, Any]:
        """Returns the recipe lines of a candidate or a target, in the order of a reader's eye."""
        if not is_target:
            return dict(self.lines)
        return {**self.lines, **self.only_target, **(self.target or {})}


def _at(place: str, row: Row) -> Any:
    try:
        return reached(place, row)
    except (KeyError, ValueError, TypeError, LookupError):
        return None

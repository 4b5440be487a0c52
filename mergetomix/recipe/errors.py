"""What pydantic finds wrong with a recipe, in this package's words, with the key that the user wrote."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mergetomix.errors import RecipeError


def nearest(word: str, known: Sequence[str] | set[str]) -> str:
    """`; did you mean ...?` for the known word that is nearest, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def readable(error: ValidationError, root: type[BaseModel]) -> RecipeError:
    """Every problem in pydantic's list in this package's words; unknown keys come with the nearest known one."""
    problems: dict[str, list[str]] = {}
    for detail in error.errors():
        where, message = _problem(detail["loc"], detail, root)
        # one for every kind that a field may be of
        problems.setdefault(where, []).append(message)
    lines = [(where, ", or ".join(dict.fromkeys(messages))) for where, messages in problems.items()]
    (first, message), *rest = lines
    return RecipeError(first, "\n".join([message, *(f"{where}: {more}" if where else more for where, more in rest)]))


def _problem(loc: tuple[int | str, ...], detail: Any, root: type[BaseModel]) -> tuple[str, str]:
    where = ".".join(str(part) for part in _key_path(loc, root))
    kind, message = detail["type"], str(detail["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = _keys_of(_annotation_at(loc[:-1], root))
        listed = f"; known here: {', '.join(known)}" if known else ""
        return where, "unknown key" + (nearest(str(loc[-1]), known) or listed)
    if kind == "missing":
        return where, "required, but not given"
    if kind == "string_type" and loc[-1:] == ("[key]",):
        return where, f"a name must be text, not {detail['input']!r}: quote it"
    if kind in ("dict_type", "model_type"):
        return where, "must be a mapping"
    if kind == "string_pattern_mismatch":
        return where, "a name starts with a letter or digit and holds letters, digits, '_', '-' and '.' only"
    if loc == () and ": " in message:
        head, _, tail = message.partition(": ")
        return head, tail
    given = detail.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and kind != "value_error" else ""
    return where, message[:1].lower() + message[1:] + shown


def _key_path(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[int | str]:
    """The part of a location that the user wrote: pydantic adds the member of a union, and `[key]`."""
    num_keys = max((end + 1 for end in range(len(loc)) if _has_keys(_annotation_at(loc[:end], root))), default=0)
    places = [part for part in loc[num_keys:] if isinstance(part, int)]
    return [*(part for part in loc[:num_keys] if part != "[key]"), *places]


def _has_keys(annotation: Any) -> bool:
    return bool(_keys_of(annotation)) or get_origin(annotation) is dict


def _annotation_at(loc: Sequence[int | str], root: type[BaseModel]) -> Any:
    """The type of the value at `loc`; None beyond a section's fields."""
    annotation: Any = root
    for part in loc:
        if part in _keys_of(annotation):
            annotation = _without_none(annotation.model_fields[part].annotation)
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            return None
    return annotation


def _without_none(annotation: Any) -> Any:
    """The section of a field that may be null."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return parts[0] if get_origin(annotation) is UnionType and len(parts) == 1 else annotation


def _keys_of(annotation: Any) -> list[str]:
    """The keys of a section; none where the annotation is of something else."""
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []

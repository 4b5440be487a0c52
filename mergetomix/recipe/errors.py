"""What pydantic finds wrong with a recipe, in this package's words, with the key that the user wrote."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mergetomix.errors import RecipeError
from mergetomix.targets.kinds import KINDS, AnyTarget, kinds_with
from mergetomix.targets.target import TargetKind


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
    return RecipeError(
        first,
        "\n".join([message, *(f"{where}: {more}" if where else more for where, more in rest)]),
    )


def _problem(loc: tuple[int | str, ...], detail: Any, root: type[BaseModel]) -> tuple[str, str]:
    """Where the problem is, as the user wrote it, and what it is."""
    where = ".".join(str(part) for part in _key_path(loc, root))
    kind, message = detail["type"], str(detail["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return where, _unknown(str(loc[-1]), _annotation_at(loc[:-1], root))
    if kind == "missing":
        return where, "required, but not given"
    if kind == "union_tag_invalid":
        found = detail["ctx"]
        return f"{where}.score", f"input should be {found['expected_tags']}, not {found['tag']!r}"
    if kind == "string_type" and loc[-1:] == ("[key]",):
        return where, f"a name must be text, not {detail['input']!r}: quote it"
    if kind in ("dict_type", "model_type"):
        return where, "must be a mapping"
    if kind == "string_pattern_mismatch":
        allowed = "starts with a letter or digit and holds letters, digits, '_', '-' and '.' only"
        return where, f"a name {allowed}"
    if loc == () and ": " in message:
        head, _, tail = message.partition(": ")
        return head, tail
    given = detail.get("input")
    is_plain = isinstance(given, str | int | float | bool) and kind != "value_error"
    shown = f", not {given!r}" if is_plain else ""
    return where, message[:1].lower() + message[1:] + shown


def _unknown(key: str, section: Any) -> str:
    """What is wrong with a key that a section does not know."""
    known = _keys_of(section)
    others = (
        kinds_with(key) if isinstance(section, type) and issubclass(section, TargetKind) else []
    )
    if others:
        own = next(score for score, kind in KINDS.items() if kind is section)
        return f"is for score: {' or '.join(others)}, not {own}"
    listed = f"; known here: {', '.join(known)}" if known else ""
    return "unknown key" + (nearest(key, known) or listed)


def _key_path(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[int | str]:
    """The part of a location that the user wrote: pydantic adds members of unions, and `[key]`."""
    annotation: Any = root
    found: list[int | str] = []
    for part in loc:
        is_place = isinstance(part, int)
        if _has_keys(annotation) or is_place:
            found += [part] if part != "[key]" else []
        annotation = _next(annotation, part)
    return found


def _has_keys(annotation: Any) -> bool:
    return bool(_keys_of(annotation)) or get_origin(annotation) is dict


def _annotation_at(loc: Sequence[int | str], root: type[BaseModel]) -> Any:
    """The type of the value at `loc`; None beyond a section's fields."""
    annotation: Any = root
    for part in loc:
        annotation = _next(annotation, part)
    return annotation


def _next(annotation: Any, part: int | str) -> Any:
    """The type one step further on."""
    if annotation is AnyTarget:
        return KINDS.get(str(part))
    if part in _keys_of(annotation):
        return _without_none(annotation.model_fields[part].annotation)
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def _without_none(annotation: Any) -> Any:
    """The section of a field that may be null."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    is_optional = get_origin(annotation) is UnionType and len(parts) == 1
    return parts[0] if is_optional else annotation


def _keys_of(annotation: Any) -> list[str]:
    """The keys of a section; none where the annotation is of something else."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return list(annotation.model_fields) if is_section else []

"""What pydantic finds wrong with a recipe, in this package's words, with the user's own key."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mergetomix.errors import RecipeError
from mergetomix.targets.kinds import KINDS, AnyTarget, kinds_with

NAME_RULE = "starts with a letter or digit and holds letters, digits, '_', '-' and '.' only"


def nearest(word: str, known: Collection[str]) -> str:
    """Returns `; did you mean ...?` for the known word that is nearest, or nothing.

    >>> nearest("learning_rte", ["learning_rate", "epochs"])
    "; did you mean 'learning_rate'?"
    """
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def readable(error: ValidationError, root: type[BaseModel]) -> RecipeError:
    """Returns every problem in pydantic's list as one error; unknown keys come with the nearest."""
    found: dict[str, list[str]] = {}
    for detail in error.errors():
        where, message = _problem(detail, root)
        # one for every type that a field may be of
        found.setdefault(where, []).append(message)
    (first, message), *rest = [
        (where, ", or ".join(dict.fromkeys(messages))) for where, messages in found.items()
    ]
    lines = [f"{where}: {more}" if where else more for where, more in rest]
    return RecipeError(first, "\n".join([message, *lines]))


def _problem(detail: Any, root: type[BaseModel]) -> tuple[str, str]:
    """Returns the key of a problem and what is wrong."""
    kind, loc, given = detail["type"], detail["loc"], detail.get("input")
    message = str(detail["msg"]).removeprefix("Value error, ")
    where, section = _located(loc, root)
    match kind:
        case "extra_forbidden":
            return where, _unknown(str(loc[-1]), section)
        case "missing":
            return where, "required, but not given"
        case "union_tag_invalid":
            scores = " or ".join(detail["ctx"]["expected_tags"].rsplit(", ", 1))
            return f"{where}.score", f"input should be {scores}, not {given['score']!r}"
        case "string_type" if loc[-1] == "[key]":
            return where, f"a name must be text, not {given!r}: quote it"
        case "dict_type" | "model_type" | "model_attributes_type":
            return where, "must be a mapping"
        case "string_pattern_mismatch":
            return where, f"a name {NAME_RULE}"
    if loc == () and ": " in message:
        head, _, tail = message.partition(": ")
        return head, tail
    is_plain = isinstance(given, str | int | float | bool) and kind != "value_error"
    return where, message[:1].lower() + message[1:] + (f", not {given!r}" if is_plain else "")


def _unknown(key: str, section: Any) -> str:
    """Returns what is wrong with a key that a section does not know."""
    score = next((score for score, kind in KINDS.items() if kind is section), None)
    if score is not None and kinds_with(key):
        return f"is for score: {' or '.join(kinds_with(key))}, not {score}"
    known = _keys_of(section)
    return "unknown key" + (nearest(key, known) or f"; known here: {', '.join(known)}")


def _located(loc: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, Any]:
    """Returns the key that the user wrote, and the section that its last part lies in.

    Pydantic's place holds members of unions and `[key]` beside what the user wrote.
    """
    annotation: Any = root
    section, written = annotation, []
    for part in loc:
        section = annotation
        has_keys = bool(_keys_of(section)) or get_origin(section) is dict
        if isinstance(part, int) or (has_keys and part != "[key]"):
            written.append(str(part))
        annotation = _next(section, part)
    return ".".join(written), section


def _next(annotation: Any, part: int | str) -> Any:
    """Returns the type one step further on; None beyond what has keys."""
    if annotation is AnyTarget:
        return KINDS.get(str(part))
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if part not in _keys_of(annotation):
        return None
    found = annotation.model_fields[part].annotation
    # a section that may be null
    parts = [each for each in get_args(found) if each is not type(None)]
    return parts[0] if get_origin(found) is UnionType and len(parts) == 1 else found


def _keys_of(annotation: Any) -> list[str]:
    """Returns the keys of a section; none if the annotation is of something else."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return list(annotation.model_fields) if is_section else []

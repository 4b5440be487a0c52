"""One source as many candidates: a dataset for each value of a column, the small ones together."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mergetomix.data.answers import Answer
from mergetomix.data.errors import Place, missing_column
from mergetomix.data.expressions import Columns, Expression, steps_of
from mergetomix.data.selected import selected
from mergetomix.data.tables import open_table
from mergetomix.errors import DataError, RecipeError
from mergetomix.recipe.errors import readable
from mergetomix.recipe.paths import resolve_source
from mergetomix.sections.source import SOURCE_DEFAULTS, DatasetsFrom

KEY = "datasets_from"
MOST = 256
"""Datasets that one source may be split into; a fine-tune for each is what they cost."""
WORDS = {"row", "true", "false", "none", "not", "and", "or", "in", "is", "if", "else"}
"""What means something else in Jinja than a column."""
PLAIN = re.compile(r"[A-Za-z_]\w*")


def expanded(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a recipe's values with what `datasets_from` stands for among its datasets.

    Each comes out as a dataset of its own with a condition on the column under `where`, so that the
    resolved recipe says which rows it takes.

    Raises:
        RecipeError: the section is wrong, or a name stands twice.
        DataError: the source cannot be read, or the column does not split it.
    """
    values = dict(raw)
    given = values.pop(KEY, None)
    if given is None:
        return values
    family, beside = str(values.get("family")), values.get("datasets") or {}
    if not isinstance(beside, Mapping):
        raise RecipeError("datasets", "must be a mapping")
    datasets = dict(beside)
    for place, section in enumerate(given if isinstance(given, list) else [given]):
        where = f"{KEY}.{place}" if isinstance(given, list) else KEY
        own = _section({**SOURCE_DEFAULTS.get(family, {}), **_mapping(section, where)}, where)
        for name, dataset in _parts(own, folder, where).items():
            if name in datasets:
                hint = "set prefix, such as `prefix: tulu-`"
                raise RecipeError(where, f"the name {name!r} stands twice", hint=hint)
            datasets[name] = dataset
    return {**values, "datasets": datasets}


def _mapping(section: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(section, Mapping):
        raise RecipeError(where, "must be a mapping with a path and by")
    return section


def _section(values: Mapping[str, Any], where: str) -> DatasetsFrom:
    try:
        return DatasetsFrom.model_validate(dict(values))
    except ValidationError as error:
        found = readable(error, DatasetsFrom)
        key = f"{where}.{found.where}" if found.where else where
        raise RecipeError(key, found.message.partition(": ")[2] or found.message) from None


def _parts(section: DatasetsFrom, folder: Path, where: str) -> dict[str, dict[str, Any]]:
    """Returns the datasets of one source, as values of a recipe, by name."""
    source = resolve_source(section, folder)
    table = selected(open_table(source, where), source, where)
    by = Expression.parse(f"{where}.by", section.by, table.columns)
    if by.kind not in ("column", "place"):
        raise missing_column(f"{where}.by", section.by, table.columns)
    kept = table.kept()
    rows = list(zip(kept, table.take(kept), strict=True))
    counts: Counter[Any] = Counter()
    for index, row in rows:
        try:
            counts[_value(by, index, row)] += 1
        except DataError:
            if source.on_bad_row == "stop":
                raise
    large = {value: num for value, num in counts.items() if num >= section.min_rows}
    large = {value: num for value, num in large.items() if value is not None}
    _check(section, counts, large, f"{where}.by")
    column = _column(section.by, table.columns)
    names = {value: section.prefix + _name_of(value) for value in sorted(large, key=str)}
    if section.rest is not None and section.prefix + section.rest in names.values():
        hint = "rest: gives what is left another name"
        raise DataError(f"{where}.rest", f"a value makes the name {section.rest!r}, too", hint=hint)
    if len(set(names.values())) < len(names):
        twice = next(name for name, num in Counter(names.values()).items() if num > 1)
        problem = f"several values make the name {twice!r}: map may rename them"
        raise DataError(f"{where}.by", problem)
    conditions = {name: f"{column} == {_literal(value)}" for value, name in names.items()}
    if section.rest is not None and len(counts) > len(large):
        listed = ", ".join(map(_literal, names))
        conditions[section.prefix + section.rest] = f"{column} not in [{listed}]"
    own = section.model_dump(exclude_unset=True, exclude={"by", "min_rows", "rest", "prefix"})
    answer = Answer.of(source, where, table.columns, rows)
    if answer is not None and not answer.is_guess and answer.counts_from is not None:
        # a part may not show from which number the whole counts
        own["answer_from"] = answer.counts_from
    return {name: {**own, "where": _both(own, each)} for name, each in conditions.items()}


def _column(by: str, columns: Columns) -> str:
    """Returns a column or place as Jinja reads it."""
    name, *steps = steps_of(by, columns) or [by]
    if not steps and PLAIN.fullmatch(by) and by.lower() not in WORDS:
        return by
    return "row" + "".join(f"[{json.dumps(each)}]" for each in (name, *steps))


def _value(by: Expression, index: int, row: Mapping[str, Any]) -> Any:
    """Returns the value of a row, None where it is missing."""
    value = by.value(index, row)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not isinstance(value, str | int | float | bool | None):
        problem = f"the value is of type {type(value).__name__}, but must be text or a number"
        raise Place(by.where, index).error(problem)
    return value


def _check(section: DatasetsFrom, counts: Counter[Any], large: Mapping[Any, int], key: str) -> None:
    """Raises DataError where the values of a column make no candidates."""
    if len(counts) < 2:
        only = next(iter(counts), None)
        raise DataError(key, f"all rows have {only!r} there, which splits nothing")
    if not large:
        most = max(counts.values())
        problem = f"{len(counts):,} values, none with {section.min_rows} rows; the most is {most}"
        raise DataError(key, problem, hint="lower min_rows, or take another column")
    if len(large) > MOST:
        problem = f"{len(large):,} values have {section.min_rows} rows or more, and {MOST} are read"
        raise DataError(key, problem, hint="raise min_rows: each costs a fine-tune")


def _both(own: Mapping[str, Any], condition: str) -> str:
    return f"({own['where']}) and {condition}" if own.get("where") else condition


def _literal(value: Any) -> str:
    """Returns a value as Jinja writes it."""
    return json.dumps(value, ensure_ascii=False)


def _name_of(value: Any) -> str:
    """Returns a name for a value: letters, digits, `_`, `-` and `.`.

    A value without any letter of these is called by its digest.

    >>> _name_of("open qa/easy"), _name_of(3)
    ('open-qa-easy', '3')
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(value)).strip("-._")
    return name or f"x{hashlib.sha256(str(value).encode()).hexdigest()[:8]}"

"""Rows that a recipe takes of a table, and what a user's function makes of each."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergetomix.data.errors import Place
from mergetomix.data.expressions import condition
from mergetomix.data.tables import Row, Table
from mergetomix.errors import DataError
from mergetomix.sections.source import Source
from mergetomix.sections.user_function import load_function

MOST_FRAMES = 3
"""Lines of a user's function that an error shows."""


def selected(table: Table, source: Source, where: str) -> Table:
    """Returns the rows that a source takes, of those that its function makes of a table's.

    Raises:
        DataError: no row meets `where`, or the function raises, returns no row, or returns another
            for the same one.
    """
    if source.map is not None:
        table = _mapped(table, source, where)
    return table if source.where is None else _met(table, source, source.where, f"{where}.where")


def _met(table: Table, source: Source, pattern: str, key: str) -> Table:
    meets, kept = condition(key, pattern, table.columns), table.kept()
    found, refused = [], list(table.refused)
    for index, row in zip(kept, table.take(kept), strict=True):
        try:
            if meets(index, row):
                found.append(index)
        except DataError as error:
            if source.on_bad_row == "stop":
                raise
            refused.append(error)
    if not found:
        raise DataError(key, f"none of {len(kept)} rows meets {pattern!r}")
    return replace(table.with_rows(found), refused=tuple(refused))


def _mapped(table: Table, source: Source, where: str) -> Table:
    function, key = load_function(source.map, where, "map"), f"{where}.map"
    kept, made, refused = table.kept(), list[Row](), list(table.refused)
    for index, row in zip(kept, table.take(kept), strict=True):
        place = Place(key, index)
        try:
            found = _called(function, row, place)
        except DataError as error:
            if source.on_bad_row == "stop":
                raise
            refused.append(error)
            continue
        if not made and repr(_called(function, row, place)) != repr(found):
            hint = "whatever it draws, let it draw by the row's own content"
            raise DataError(key, "gives another result for the same row", hint=hint)
        made += found
    if not made:
        raise DataError(key, f"gives no row for any of {len(kept)} rows")
    columns = tuple(dict.fromkeys(column for row in made for column in row))
    return Table(columns, made, folder=table.folder, notes=table.notes, refused=tuple(refused))


def _called(function: Any, row: Row, place: Place) -> list[Row]:
    """Returns the rows that a user's function makes of one, which it may change as it likes."""
    try:
        found = function(copy.deepcopy(dict(row)))
        is_one = found is None or isinstance(found, str) or not isinstance(found, Iterable)
        listed = [found] if is_one or isinstance(found, Mapping) else list(found)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        problem = f"raised {type(error).__name__}: {error}{_lines_of(error)}"
        raise place.error(problem) from error
    listed = [each for each in listed if each is not None]
    for each in listed:
        if not isinstance(each, Mapping) or not all(isinstance(column, str) for column in each):
            known = "a mapping of columns, a list of such, or None"
            raise place.error(f"must return {known}, not {each!r:.80}")
    return listed


def _lines_of(error: BaseException) -> str:
    """Returns where in the user's own code an error was raised, a line each."""
    own = str(Path(__file__))
    frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename != own]
    return "".join(
        f"\n  {each.filename}, line {each.lineno}, in {each.name}: {each.line}"
        for each in frames[:MOST_FRAMES]
    )

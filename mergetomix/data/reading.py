"""Read the examples of one source, or its rows as they are."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mergetomix.data.answers import Answer
from mergetomix.data.examples import Example, Examples
from mergetomix.data.files import means_path
from mergetomix.data.mapping import by_name, mapping
from mergetomix.data.selected import selected
from mergetomix.data.shots import with_shots
from mergetomix.data.splits import draw
from mergetomix.data.tables import Row, Table, open_table
from mergetomix.errors import DataError
from mergetomix.sections.source import Source
from mergetomix.sections.target import TargetSection

MOST_REASONS = 3
"""Reasons why rows were passed over that a line names."""
POOL = 200
"""Rows that examples before a prompt are drawn from, where another source has them."""
Accept = Callable[[Example], object]


def read(source: Source, where: str, accept: Accept | None = None) -> Examples:
    """Returns the examples of one source; `where` is its place, such as `datasets.math`.

    Args:
        accept: raises DataError for an example that cannot be used; asked where bad rows are
            skipped.

    Raises:
        DataError: the source cannot be read, is empty, or a row cannot be mapped; names the key,
            and the file or row.
    """
    table = selected(open_table(source, where), source, where)
    drawn = draw(table.kept(), source)
    rows = list(zip(drawn, table.take(drawn), strict=True))
    source = by_name(source, where, table.columns)
    answer = Answer.of(source, where, table.columns, rows)
    to_example = mapping(source, where, table.columns, answer)
    keeps_columns = getattr(source, "metric", None) == "function"
    items: list[Example] = []
    refused: list[DataError] = []
    for index, row in rows:
        try:
            item = to_example(index, row)
            if accept is not None and source.on_bad_row == "skip":
                accept(item)
        except DataError as error:
            if source.on_bad_row == "stop":
                raise
            refused.append(error)
            continue
        items.append(replace(item, columns=row) if keeps_columns else item)
    if refused and not items:
        raise refused[0]
    notes = [*_notes(table, source, where), *bad_rows(source, where, table)]
    notes += _bad_rows(source, where, refused, len(items))
    if answer is not None and answer.is_guess:
        says = "no answer is 0, and none the number of options: they are taken to count from 0"
        notes.append(f"{where}.answer: {says}; answer_from: 1 counts from 1")
    notes += _glued(items, where)
    if source.system and items and not any(item.messages for item in items):
        notes.append(f"{where}.system: is for chats, and no row is one")
    if isinstance(source, TargetSection) and source.shots:
        pool = _pool(source, where, items, answer)
        items = with_shots(items, pool, source, where)
    columns = () if source.files else table.columns
    return Examples(where, tuple(items), len(table.rows), columns, tuple(notes))


def _pool(
    source: TargetSection, where: str, own: Sequence[Example], answer: Answer | None
) -> Sequence[Example]:
    """Returns the examples that may be shown before a target's prompts."""
    wanted = source.shots_from
    if wanted is None:
        return own
    update: dict[str, Any] = {"shots": 0, "shots_from": None, "max_examples": POOL}
    if means_path(wanted):
        update |= {"path": wanted, "rows": None, "split": None}
    else:
        update["split"] = wanted
    if answer is not None:
        update["answer_from"] = answer.counts_from  # as the target's own rows count
    return read(source.model_copy(update=update), where).items


# --- what the user should know


def _notes(table: Table, source: Source, where: str) -> list[str]:
    noun = "files" if source.files else "rows"
    passed = {f"empty {noun}": len(table.empty), "binary files": table.num_binary}
    notes = [f"{where}: {note}" for note in table.notes]
    return notes + [f"{where}: passed over {num} {what}" for what, num in passed.items() if num]


def bad_rows(source: Source, where: str, table: Table) -> list[str]:
    """Returns a line on the rows of a table that `map` or `where` could make nothing of.

    Raises DataError if they are too many.
    """
    return _bad_rows(source, where, table.refused, len(table.kept()))


def _bad_rows(source: Source, where: str, refused: Sequence[DataError], num: int) -> list[str]:
    """Returns a line on the rows that were passed over. Raises DataError if they are too many."""
    if not refused:
        return []
    whole, firsts = num + len(refused), dict[str, str]()
    for error in refused:
        firsts.setdefault(_reason(error), " ".join(error.message.split()))
    counts = Counter(_reason(error) for error in refused)
    (first, count), *others = counts.most_common(MOST_REASONS)
    says = f"{len(refused)} bad rows; the first"
    says += f" of {count}: {firsts[first]}" if others else f": {firsts[first]}"
    says += "".join(f"; the first of {count}: {firsts[why]}" for why, count in others)
    if len(counts) > MOST_REASONS:
        says += f"; and {len(counts) - MOST_REASONS} more reasons"
    share = f"{len(refused) / whole:.2%} of {whole}"
    if source.max_bad is not None and len(refused) > source.max_bad * whole:
        problem = f"{share} rows are bad, over {source.max_bad:.2%}: {says}"
        raise DataError(f"{where}.max_bad", problem)
    return [f"{where}: passed over {says} ({share} rows)"]


def _reason(error: DataError) -> str:
    """Returns why a row is bad, without what is the row's own."""
    return re.sub(r"row \d+|'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\d+", "", error.message)


def _glued(items: Sequence[Example], where: str) -> list[str]:
    """Returns a line on the examples whose prompt and completion run into one word."""
    found = [
        each
        for each in items
        if not each.messages and each.prompt[-1:].isalnum() and each.completion[:1].isalnum()
    ]
    if not found:
        return []
    first = found[0]
    seam = f"{first.prompt[-20:]}{first.completion[:20]}"
    says = f"{len(found)} of {len(items)} prompts run into their answer without a space"
    how = 'write it into the prompt or the completion, such as completion: " {...}"'
    return [f"{where}: {says}, such as {seam!r} in row {first.row}; {how}"]


def read_rows(source: Source, where: str) -> list[Row]:
    """Returns the rows that `read` would draw, as they are: a user's function needs no mapping.

    Raises:
        DataError: the source cannot be read or is empty.
    """
    table = selected(open_table(source, where), source, where)
    bad_rows(source, where, table)
    return table.take(draw(table.kept(), source))


def plain_content(row: Row) -> dict[str, str]:
    """Returns what a row is made of, as plain values."""
    return {str(key): _plainly(value) for key, value in row.items()}


def _plainly(value: Any) -> str:
    """Returns a value as text; of an array, whose text leaves most of it out, the digest."""
    if not hasattr(value, "tobytes"):
        return repr(value)
    shape = getattr(value, "shape", getattr(value, "size", ()))
    return f"{type(value).__name__} {shape} {hashlib.sha256(value.tobytes()).hexdigest()}"

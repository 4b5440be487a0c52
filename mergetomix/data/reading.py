"""Read the examples of one source, or its rows as they are."""

from __future__ import annotations

from mergetomix.data.examples import Example, Examples
from mergetomix.data.mapping import mapping
from mergetomix.data.splits import draw
from mergetomix.data.tables import Row, open_table
from mergetomix.errors import DataError
from mergetomix.sections.source import Source


def read(source: Source, where: str) -> Examples:
    """Returns the examples of one source; `where` is its place, such as `datasets.math`.

    Raises:
        DataError: the source cannot be read, is empty, or a row cannot be mapped; names the key,
            and the file or row.
    """
    table = open_table(source, where)
    to_example = mapping(source, where, table.columns)
    drawn = draw(table.kept(), source)
    items: list[Example] = []
    refused: list[DataError] = []
    for index, row in zip(drawn, table.take(drawn), strict=True):
        try:
            items.append(to_example(index, row))
        except DataError as error:
            if source.bad_rows == "stop":
                raise
            refused.append(error)
    if refused and not items:
        raise refused[0]
    noun = "files" if source.files else "rows"
    passed = {f"empty {noun}": len(table.empty), "binary files": table.num_binary}
    notes = [f"{where}: {note}" for note in table.notes]
    notes += [f"{where}: passed over {num} {what}" for what, num in passed.items() if num]
    if refused:
        first = f"the first: {refused[0].message}"
        notes.append(f"{where}: passed over {len(refused)} bad {noun}; {first}")
    columns = () if source.files else table.columns
    return Examples(where, tuple(items), len(table.rows), columns, tuple(notes))


def read_rows(source: Source, where: str) -> list[Row]:
    """Returns the rows that `read` would draw, as they are: a user's function needs no mapping.

    Raises:
        DataError: the source cannot be read or is empty.
    """
    table = open_table(source, where)
    return table.take(draw(table.kept(), source))


def plain_content(row: Row) -> dict[str, str]:
    """Returns what a row is made of, as plain values."""
    return {str(key): repr(value) for key, value in row.items()}

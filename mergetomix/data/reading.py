"""The examples of one source."""

from __future__ import annotations

from mergetomix.data.examples import Examples
from mergetomix.data.mapping import mapping
from mergetomix.data.splits import draw
from mergetomix.data.tables import Row, open_table
from mergetomix.sections.source import Source


def read(source: Source, where: str) -> Examples:
    """The examples of one source, `where` being its place in the recipe, such as `datasets.math`.

    Raises:
        DataError: the source cannot be read, is empty, or a row cannot be mapped; names the key, and the file or row.
    """
    table = open_table(source, where)
    kept = table.kept()
    to_example = mapping(source, where, table.columns)
    drawn = draw(kept, source)
    items = tuple(
        to_example(index, row) for index, row in zip(drawn, table.take(drawn), strict=True)
    )
    return Examples(
        name=where.partition(".")[2] or where,
        where=where,
        items=items,
        num_rows=len(table.rows),
        num_empty_files=len(table.empty),
        columns=() if source.files else table.columns,
        raw=tuple(table.take(kept[:3])),
        num_binary_files=table.num_binary,
    )


def read_rows(source: Source, where: str) -> list[Row]:
    """The rows that `read` would draw, as they are: for a function of the user's, which needs no mapping.

    Raises:
        DataError: the source cannot be read or is empty.
    """
    table = open_table(source, where)
    return table.take(draw(table.kept(), source))


def plain_content(row: Row) -> dict[str, str]:
    """What a row is made of, as plain values."""
    return {str(key): repr(value) for key, value in row.items()}

"""The errors of data: each names a key of the recipe, and the column or row that it is about."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from mergetomix.errors import DataError


def missing_column(where: str, name: str, columns: Sequence[str]) -> DataError:
    """Returns the error of a column that is not there, with the nearest one that is.

    >>> print(missing_column("datasets.math.prompt", "questoin", ["question", "answer"]).message)
    datasets.math.prompt: no column 'questoin', did you mean 'question'; the columns are \
question, answer
    """
    close = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    nearest = f", did you mean {close[0]!r}" if close else ""
    message = f"no column {name!r}{nearest}; the columns are {', '.join(columns)}"
    hint = "name a column, or write a format string such as 'Q: {column}'"
    return DataError(where, message, hint=hint)


def no_data(where: str, message: str, hint: str | None = None) -> DataError:
    """Returns the error of a source whose `path` cannot be read."""
    return DataError(f"{where}.path", message, hint=hint)


@dataclass(frozen=True)
class Place:
    """A key of the recipe at a row of the data."""

    where: str
    row: int

    def error(self, message: str, hint: str | None = None) -> DataError:
        """Returns the error that names the key and the row."""
        return DataError(self.where, f"row {self.row} (counting from 0): {message}", hint=hint)


def one_line(error: BaseException) -> str:
    """Returns what an error says in one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__

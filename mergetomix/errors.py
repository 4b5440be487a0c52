"""Every error that this package raises on purpose.

MergeToMixError
├── UserError            what the user can mend: exit code 2, no traceback
│   ├── RecipeError      the recipe: carries the path of the key
│   ├── DataError        a dataset or a target
│   ├── ModelError       the base, or an expert that does not fit it
│   └── StoreError       the store: newer schema, no space, no right to write
└── Fault                what went wrong on the way: exit code 1, says how to go on
    └── TrainingError    a fine-tune that cannot go on
"""

from __future__ import annotations

from typing import Any


class MergeToMixError(Exception):
    """An error with one line that says what must hold, and perhaps a hint at the way out."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = short(message, 3000)  # it may quote what a user or a file brings
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # the constructors of subclasses take other arguments than the message alone
        return _rebuilt, (type(self), self.message, self.hint, self.__dict__)

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UserError(MergeToMixError):
    """Something that the user can mend."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe that does not say what to do.

    `where` is the path of the key, such as `targets.svamp.metric`.
    """

    def __init__(self, where: str, message: str, *, hint: str | None = None) -> None:
        where = short(where, 300)
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.where = where


class DataError(RecipeError):
    """A dataset or target that cannot be read or mapped; `where` is its place in the recipe."""


class ModelError(RecipeError):
    """A base that does not load, or an expert that does not fit it."""


class StoreError(UserError):
    """A store that this version cannot use, or that cannot be written."""


class Fault(MergeToMixError):
    """A failure on the way: what was computed before it is in the store."""


class TrainingError(Fault):
    """A fine-tune that cannot go on; the message names the mixture and the step."""


def short(text: str, most: int) -> str:
    """Returns a text of at most so many characters; of a longer one the beginning and the end.

    >>> short("abcdefghijkl", 9)
    'abc...jkl'
    """
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def _rebuilt(
    kind: type[MergeToMixError], message: str, hint: str | None, state: dict[str, Any]
) -> MergeToMixError:
    """Returns an error as it was in another process."""
    error = kind.__new__(kind)
    MergeToMixError.__init__(error, message, hint=hint)
    error.__dict__.update(state)
    return error

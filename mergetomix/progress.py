"""How a stage says what it does: to bars on the command line, to nobody, to a list in a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Listener(Protocol):
    """Hears what a run does. All calls come from the thread that runs it."""

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Advance]:
        """Begins a piece of work of `total` units.

        Yields a function to call with the number of units just done.
        """
        ...

    def state(self, text: str) -> None:
        """Says what the work under way has come to; the next such text takes its place."""
        ...

    def note(self, text: str) -> None:
        """Says something worth a line, such as what is reused."""
        ...

    def warn(self, text: str) -> None:
        """Says something that the user should look at."""
        ...


class Silent:
    """A listener that hears nothing."""

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Advance]:
        """Shows nothing."""
        yield lambda _: None

    def state(self, text: str) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""

    def warn(self, text: str) -> None:
        """Shows nothing."""


def duration(seconds: float) -> str:
    """Returns seconds as people say them.

    >>> duration(75), duration(600), duration(7200)
    ('75 s', '10 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"

"""How a stage says what it does: the command line draws bars, a script stays silent, a test keeps a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Listener(Protocol):
    """Hears what a run does. All calls come from the thread that runs it."""

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Advance]:
        """A piece of work of `total` units; call what it gives with the number of units just done."""
        ...

    def state(self, text: str) -> None:
        """What the work under way has come to, to be shown beside its progress; the next one takes its place."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line, such as what is reused."""
        ...

    def warn(self, text: str) -> None:
        """Something that the user should look at."""
        ...


class Silent:
    """A listener that hears nothing."""

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Advance]:
        """Nothing is shown."""
        yield lambda _: None

    def state(self, text: str) -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """Nothing is shown."""

    def warn(self, text: str) -> None:
        """Nothing is shown."""


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"

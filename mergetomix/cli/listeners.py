"""Shows how far a run is: as bars in a terminal, as plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mergetomix.progress import Advance, Listener, duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY_S = 10.0


class Lines:
    """Progress as plain lines: at the start and end of a piece of work, and every ten seconds."""

    def __init__(self) -> None:
        self._state = ""

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Advance]:
        """Begins a piece of work of `total` units."""
        started = last = time.monotonic()
        done = 0
        self._state = ""

        def advance(units: int) -> None:
            nonlocal done, last
            done += units
            now = time.monotonic()
            if now - last >= PLAIN_EVERY_S and done < total:
                last = now
                left = duration((now - started) / done * (total - done))
                self.note(f"{stage}: {text}: {done} of {total}, about {left} left{self._state}")

        self.note(f"{stage}: {text} ({total})")
        yield advance
        took = duration(time.monotonic() - started)
        self.note(f"{stage}: {text}: done in {took}{self._state}")
        self._state = ""

    def state(self, text: str) -> None:
        """Keeps what the work has come to for the next line."""
        self._state = f"; {text}"

    def note(self, text: str) -> None:
        """Prints a line."""
        with suppress(OSError):  # a run outlives the reader of its log
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Prints a line that says so."""
        self.note(f"warning: {text}")


class Bars:
    """Progress as bars with the time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: list[TaskID] = []

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Advance]:
        """Shows a bar that goes when the work is done."""
        shown = text if stage in text else f"{stage}: {text}"
        bar = self._progress.add_task(shown, total=total, state="")
        self._bars.append(bar)
        try:
            yield lambda units: self._progress.advance(bar, units)
        finally:
            # those of several workers end in any order
            self._bars.remove(bar)
            self._progress.remove_task(bar)

    def state(self, text: str) -> None:
        """Shows what the work has come to behind the bar that began last."""
        if self._bars:
            self._progress.update(self._bars[-1], state=text)

    def note(self, text: str) -> None:
        """Prints a line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Prints a yellow line above the bars."""
        shown = f"warning: {text}"
        self._progress.console.print(shown, style="yellow", highlight=False, markup=False)


@contextmanager
def listening() -> Iterator[Listener]:
    """Yields bars if standard error is a terminal, else plain lines."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[state]}", markup=False),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield Bars(shown)

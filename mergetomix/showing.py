"""Shows how far a run is: as bars in a terminal or a notebook, as plain lines in a log.

The command line asks for `listening`, the functions of the package for `heard`. What draws bars is
imported when the first bar is drawn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from mergetomix.progress import Advance, Listener, Silent, duration

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


class NotebookBars:
    """Progress as the bars of tqdm, which a notebook draws; notes and warnings are lines there."""

    def __init__(self) -> None:
        self._bars: list[Any] = []

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Advance]:
        """Shows a bar that goes when the work is done."""
        from tqdm.auto import tqdm

        shown = text if stage in text else f"{stage}: {text}"
        bar = tqdm(total=total, desc=shown, leave=False)
        self._bars.append(bar)
        try:
            yield bar.update
        finally:
            # not by `remove`: to tqdm all bars of a notebook are equal
            self._bars = [each for each in self._bars if each is not bar]
            bar.close()

    def state(self, text: str) -> None:
        """Shows what the work has come to behind the bar that began last."""
        if self._bars:
            self._bars[-1].set_postfix_str(text)

    def note(self, text: str) -> None:
        """Prints a line between the bars."""
        from tqdm.auto import tqdm

        tqdm.write(text)

    def warn(self, text: str) -> None:
        """Prints a line on standard error, which a notebook sets off by its colour."""
        from tqdm.auto import tqdm

        tqdm.write(f"warning: {text}", file=sys.stderr)


def is_terminal() -> bool:
    """Returns whether standard error is there, and is a terminal."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def is_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook.

    IPython is asked if it was imported, as it was in every kernel; its shell in a terminal has no
    kernel.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def heard(listener: Listener | None) -> Iterator[Listener]:
    """Yields a listener, or for None the one that shows progress where somebody looks.

    It is bars in a notebook and in a terminal. Elsewhere nothing is shown, so that scripts, logs
    and tests stay quiet.
    """
    if listener is not None:
        yield listener
    elif is_notebook():
        yield NotebookBars()
    elif is_terminal():
        with _terminal_bars() as shown:
            yield shown
    else:
        yield Silent()


@contextmanager
def listening() -> Iterator[Listener]:
    """Yields bars if standard error is a terminal, else plain lines."""
    if not is_terminal():
        yield Lines()
        return
    with _terminal_bars() as shown:
        yield shown


@contextmanager
def _terminal_bars() -> Iterator[Bars]:
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

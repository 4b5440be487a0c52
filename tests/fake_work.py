"""Work that says itself what becomes of it, for tests of workers without any model.

The statistic of a piece is what it does, and its folder keeps a line for every time that it began.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergetomix.errors import DataError
from mergetomix.executors.work import CarryOut, FinetuneResult, FinetuneWork, StatisticWork, Work
from mergetomix.progress import Listener
from mergetomix.records import Mixture


def piece(number: int, what: str, folder: Path) -> StatisticWork:
    """A piece of work: `quick`, `slow`, `dies`, `dies once`, `fails`, `says` or `tells pid`."""
    return StatisticWork(f"key{number}", what, "a", str(folder))


def training(number: int, folder: Path) -> FinetuneWork:
    """A training, which gives the number of its process as its examples."""
    return FinetuneWork(f"key{number}", Mixture.union(["a"]), None, "experts", str(folder))


def begun(folder: Path, number: int | str) -> list[int]:
    """The processes that began a piece of work, in order."""
    file = folder / f"key{number}"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@contextmanager
def opened(listener: Listener) -> Iterator[CarryOut]:
    """Opens nothing, at once."""

    def carry_out(work: Work) -> FinetuneResult | None:
        if isinstance(work, FinetuneWork):
            note(Path(work.folder), work.key)
            return FinetuneResult("", os.getpid(), 0, 0.0)
        assert isinstance(work, StatisticWork)
        what, folder = work.statistic, Path(work.folder)
        times = note(folder, work.key)
        if what == "slow":
            time.sleep(0.6)
        if what == "forever":
            time.sleep(600)
        if what == "dies" or (what == "dies once" and times == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fails":
            raise DataError("datasets.a", "is odd", hint="mend it")
        if what == "fails oddly":
            raise Odd(lambda: None)
        if what == "says":
            with listener.task("search", "counting", 3) as advance:
                advance(1)
                listener.note("a line")
                listener.warn("a warning")
                advance(2)
        return None

    yield carry_out


@contextmanager
def broken(listener: Listener) -> Iterator[CarryOut]:
    """Cannot be opened."""
    raise DataError("datasets.a.path", "is not there")
    yield lambda work: None


@contextmanager
def deadly(listener: Listener) -> Iterator[CarryOut]:
    """Kills the process that opens it."""
    print("out of luck", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    yield lambda work: None


class Odd(Exception):
    """An error that pickle does not take."""

    def __init__(self, held: object) -> None:
        super().__init__("odd")
        self.held = held


def note(folder: Path, key: str) -> int:
    """Notes that a piece began, and returns how often it has."""
    with (folder / key).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len((folder / key).read_text().split())

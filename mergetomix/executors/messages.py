"""What a process that works for another one tells it: what it does, and what came of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from mergetomix.errors import Fault, MergeToMixError
from mergetomix.executors.work import CarryOut, Done, Failure
from mergetomix.progress import Advance, Listener

Opens: TypeAlias = Callable[[Listener], AbstractContextManager[CarryOut]]
"""Opens whatever the work is on, in the process that calls it."""


@dataclass(frozen=True)
class Ready:
    """The worker has opened what the work is on; `about` says where it computes."""

    about: str


@dataclass(frozen=True)
class CannotOpen:
    """The worker could not open what the work is on, and ends."""

    failure: Failure

    def error(self) -> Exception:
        """Returns what was raised, with where that was."""
        found = self.failure.error
        if not isinstance(found, MergeToMixError):
            found.add_note(f"in {self.failure.worker}:\n{self.failure.traceback}")
        return found


@dataclass(frozen=True)
class Begun:
    """A piece of work of `total` units began, which the following messages call by its number."""

    number: int
    stage: str
    text: str
    total: int


@dataclass(frozen=True)
class Advanced:
    """So many more units of a piece of work are done."""

    number: int
    units: int


@dataclass(frozen=True)
class Over:
    """A piece of work is no longer under way."""

    number: int


@dataclass(frozen=True)
class Spoken:
    """A line for the user."""

    text: str
    is_warning: bool


Progress: TypeAlias = Begun | Advanced | Over | Spoken
Message: TypeAlias = Ready | CannotOpen | Done | Progress


class Teller:
    """A listener that passes everything on as messages."""

    def __init__(self, tell: Callable[[Progress], None]) -> None:
        self._tell, self._num_begun = tell, 0

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Advance]:
        """Begins a piece of work of `total` units."""
        self._num_begun += 1
        number = self._num_begun
        self._tell(Begun(number, stage, text, total))
        try:
            yield lambda units: self._tell(Advanced(number, units))
        finally:
            self._tell(Over(number))

    def state(self, text: str) -> None:
        """Says nothing: what a run has come to is known to the process that leads it."""

    def note(self, text: str) -> None:
        """Passes a line on."""
        self._tell(Spoken(text, is_warning=False))

    def warn(self, text: str) -> None:
        """Passes a warning on."""
        self._tell(Spoken(text, is_warning=True))


def portable(done: Done) -> Done:
    """Returns the end of a piece of work such that pickle takes it."""
    return done if done.failure is None else replace(done, failure=plain(done.failure))


def plain(failure: Failure) -> Failure:
    """Returns a failure such that pickle takes it, which not every error is."""
    try:
        pickle.loads(pickle.dumps(failure))  # noqa: S301  # what was just written
    except Exception:  # noqa: BLE001  # what others' errors hold may fail in any way
        error = RuntimeError(f"{type(failure.error).__name__}: {failure.error}")
        return replace(failure, error=error)
    return failure


def given(opens: Callable[..., Any]) -> bytes:
    """Returns what other processes open or call, as bytes.

    Raises Fault if it holds what cannot be sent.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(opens))
    except Exception as error:  # what users' objects raise may be anything
        message = f"the recipe cannot be given to other processes: {error}"
        hint = "name functions as file.py:function, and data by files"
        raise Fault(message, hint=hint) from error

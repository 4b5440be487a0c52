"""What executors with several workers have in common: who asked for what, and what died of it."""

from __future__ import annotations

import abc
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from mergetomix.errors import Fault
from mergetomix.executors.messages import Advanced, Begun, Over, Progress
from mergetomix.executors.states import Busy, WorkerState, called
from mergetomix.executors.work import Done, Failure, FinetuneWork, Work
from mergetomix.progress import Advance, Listener

MOST_DEATHS = 5
"""Workers that may die of one piece of work; then it has failed."""
MOST_UNREADY, MOST_KILLED_UNREADY = 3, 20
"""Workers in a row that may end before they are ready: by themselves, or as others end them."""


NUM_AHEAD = 1
"""Pieces of work that are taken before a worker is free for them, so that none waits for one."""


@dataclass
class Batch:
    """The results of one run of work, and how much of it is out."""

    done: deque[Done] = field(default_factory=deque)
    num_out: int = 0


class Shown:
    """One worker's progress, as whoever listens sees it."""

    def __init__(self, listener: Listener, state: WorkerState) -> None:
        self._listener, self.state = listener, state
        self._tasks: dict[int, tuple[Advance, ExitStack]] = {}

    def hear(self, message: Progress) -> None:
        """Shows what the worker says."""
        match message:
            case Begun(number, stage, text, total):
                stack = ExitStack()
                advance = stack.enter_context(self._listener.task(stage, text, total))
                self._tasks[number] = advance, stack
                self.state.count(0, total)
            case Advanced(number, units):
                if number in self._tasks:
                    self._tasks[number][0](units)
                    self.state.count(units)
            case Over(number):
                if number in self._tasks:
                    self._tasks.pop(number)[1].close()
            case _:
                (self._listener.warn if message.is_warning else self._listener.note)(message.text)

    def close(self) -> None:
        """Shows nothing more of it: the worker is gone."""
        for _, stack in self._tasks.values():
            stack.close()
        self._tasks.clear()


class Workers(abc.ABC):
    """Hands work to workers that do one piece at a time, and gives it again when one dies.

    Several runs of work may be under way at once, one inside another: each gets its own results.
    """

    advice: str
    """What to lower if workers die of a piece of work."""

    def __init__(self, listener: Listener, busy: Busy) -> None:
        self._listener, self._busy = listener, busy
        self._pending: deque[tuple[Work, Batch]] = deque()
        self._deaths: Counter[Work] = Counter()

    @property
    @abc.abstractmethod
    def num_workers(self) -> int:
        """How many pieces of work may be under way at a time."""

    @abc.abstractmethod
    def _has_room(self, num_ahead: int) -> bool:
        """Whether one more piece of work would find a worker, beside those that wait.

        So many more than there are workers may wait.
        """

    @abc.abstractmethod
    def _hand_out(self) -> None:
        """Gives what waits to workers that are free."""

    @abc.abstractmethod
    def _hear(self) -> None:
        """Waits for a while until a worker says something or dies, and sees to it."""

    @abc.abstractmethod
    def _states(self) -> list[WorkerState]:
        """What the workers do."""

    @abc.abstractmethod
    def _drop(self, batch: Batch) -> None:
        """Forgets that work under way is of a batch."""

    def run(self, work: Iterable[Work]) -> Iterator[Done]:
        """Yields the end of every piece of work, in the order in which they end."""
        left, batch, is_over = iter(work), Batch(), False
        num_ahead = 0
        try:
            while True:
                if batch.done:
                    # what was taken ahead keeps workers busy while whoever asked keeps this
                    self._hand_out()
                    yield batch.done.popleft()
                    continue
                while not is_over and self._has_room(num_ahead):
                    each = next(left, None)  # which may do work of its own
                    if each is None:
                        is_over = True
                    else:
                        # a training holds a lock from when it is taken
                        num_ahead = 0 if isinstance(each, FinetuneWork) else NUM_AHEAD
                        batch.num_out += 1
                        self._pending.append((each, batch))
                        self._hand_out()
                if batch.done:
                    continue
                if is_over and not batch.num_out:
                    return
                self._hand_out()
                self._hear()
                self._tell()
        finally:
            self._pending = deque(each for each in self._pending if each[1] is not batch)
            self._drop(batch)

    def _tell(self) -> None:
        self._busy(self._states())

    def _ended(self, done: Done, batch: Batch | None) -> None:
        """Takes the end of a piece of work to who asked for it, if anybody still does."""
        if batch is not None:
            batch.num_out -= 1
            batch.done.append(done)

    def _give_back(self, work: Work | None, batch: Batch | None) -> None:
        """Takes work back that a worker never began."""
        if work is not None and batch is not None:
            self._pending.append((work, batch))

    def _died(self, what: str, work: Work, batch: Batch | None, log: str = "") -> None:
        """Sees to the work of a worker that died: it is done again, if not too many died of it."""
        if batch is None:
            return
        self._deaths[work] += 1
        if self._deaths[work] < MOST_DEATHS:
            self._listener.warn(f"{what} while {called(work)}: that is done again")
            self._pending.append((work, batch))
            return
        message = f"{what} while {called(work)}, as {MOST_DEATHS - 1} others did before it"
        hint = f"it may have run out of memory: {self.advice}"
        error = Fault(message, hint=f"{hint}\n{log}" if log else hint)
        self._ended(Done(work, failure=Failure(error, log, what)), batch)

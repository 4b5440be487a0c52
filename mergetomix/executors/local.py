"""The executor whose workers are processes on this machine, one for each GPU.

A worker that dies is replaced, and what it did is done again by another. Several runs of work may
be under way at once, one inside another: each gets its own results.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import socketpair
from typing import Any

from mergetomix.errors import Fault
from mergetomix.executors.messages import (
    Advanced,
    Begun,
    CannotOpen,
    Opens,
    Over,
    Ready,
    Said,
)
from mergetomix.executors.states import Busy, WorkerState, called
from mergetomix.executors.work import Done, Failure, Work
from mergetomix.progress import Advance, Listener

MOST_DEATHS = 5
"""Workers that may die of one piece of work, or before they are ready; then it has failed."""
LOOK_EVERY_S = 0.5
"""How often workers are looked at whether they live, while none says anything."""
END_WITHIN_S = 5.0
"""A worker that does not end by itself within this time is killed."""


@dataclass(frozen=True)
class Place:
    """What a worker computes on: a name for it, and the environment that gives it to a process."""

    name: str
    environment: Mapping[str, str]
    threads: int | None


@dataclass
class Batch:
    """The results of one run of work, and how much of it is out."""

    done: deque[Done] = field(default_factory=deque)
    num_out: int = 0


@dataclass
class Worker:
    """A process that works, and what it does."""

    number: int
    place: Place
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    work: Work | None = None
    batch: Batch | None = None
    is_ready: bool = False
    shown: ExitStack = field(default_factory=ExitStack)
    advances: dict[int, tuple[Advance, ExitStack]] = field(default_factory=dict)
    state: WorkerState = field(init=False)

    def __post_init__(self) -> None:
        name = f"worker {self.number}"
        self.state = WorkerState(name, self.place.name, self.process.pid)


class LocalWorkers:
    """Hands work to as many processes as there are places; they start with the first work.

    Args:
        opens: what each opens to carry out work; it must be one that cloudpickle takes.
        places: what they compute on.
        logs: the folder of what workers print.
        busy: hears what the workers do.
    """

    def __init__(
        self, opens: Opens, places: list[Place], logs: Path, listener: Listener, busy: Busy
    ) -> None:
        self._opens, self._places, self._logs = opens, places, logs
        self._listener, self._busy = listener, busy
        self._workers: dict[int, Worker] = {}
        self._again: deque[tuple[Work, Batch]] = deque()
        self._deaths: Counter[Work] = Counter()
        self._num_unready = 0
        self._opening: dict[str, Any] | None = None

    @property
    def num_workers(self) -> int:
        """How many processes there are once all are needed."""
        return len(self._places)

    def run(self, work: Iterable[Work]) -> Iterator[Done]:
        """Yields the end of every piece of work, in the order in which they end."""
        left, batch, is_over = iter(work), Batch(), False
        try:
            while True:
                while not is_over and self._is_free():
                    # which may do work of its own
                    each = next(left, None)
                    if each is None:
                        is_over = True
                    else:
                        self._give(each, batch)
                if batch.done:
                    yield batch.done.popleft()
                elif is_over and not batch.num_out:
                    return
                else:
                    self._hear()
        finally:
            self._forget(batch)

    def close(self) -> None:
        """Ends all workers: those that wait by asking, others at once."""
        for worker in self._workers.values():
            if worker.work is None and worker.is_ready:
                with suppress(OSError):
                    worker.connection.send(None)
            else:
                worker.process.kill()
        end = time.monotonic() + END_WITHIN_S
        for worker in self._workers.values():
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.wait()
            worker.connection.close()
            worker.shown.close()
        self._workers.clear()
        self._tell()

    # --- giving work

    def _is_free(self) -> bool:
        """Whether a worker waits, or there is room for one more, beside what is done again."""
        num_busy = sum(worker.work is not None for worker in self._workers.values())
        return num_busy + len(self._again) < len(self._places)

    def _give(self, work: Work, batch: Batch) -> None:
        """Gives work to a worker that waits, as soon as one does."""
        batch.num_out += 1
        self._again.append((work, batch))
        self._hand_out()

    def _hand_out(self) -> None:
        """Gives what waits to workers that wait, and starts new ones where there is room."""
        while self._again and (worker := self._waiting()) is not None:
            work, batch = self._again.popleft()
            try:
                worker.connection.send(work)
            except OSError:  # it died since it was last looked at
                self._again.appendleft((work, batch))
                self._bury(worker)
                continue
            worker.work, worker.batch = work, batch
            worker.state.begin(called(work))
        self._tell()

    def _waiting(self) -> Worker | None:
        for worker in self._workers.values():
            if worker.work is None:
                return worker
        taken = {worker.number for worker in self._workers.values()}
        free = [number for number in range(len(self._places)) if number not in taken]
        return self._started(free[0]) if free else None

    def _started(self, number: int) -> Worker:
        place = self._places[number]
        mine, theirs = socketpair()
        log = self._logs / f"worker-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "mergetomix.executors.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **place.environment},
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        worker = Worker(number, place, process, Connection(mine.detach()), log)
        self._workers[number] = worker
        with suppress(OSError):  # it is seen to be dead soon
            worker.connection.send({**self._payload(), "threads": place.threads})
        return worker

    def _payload(self) -> dict[str, Any]:
        """What a worker must know first."""
        if self._opening is None:
            import cloudpickle

            try:
                opens = cloudpickle.dumps(self._opens)
            except Exception as error:  # what users' objects raise may be anything
                message = f"the recipe cannot be given to other processes: {error}"
                hint = "name functions as file.py:function, and data by files"
                raise Fault(message, hint=hint) from error
            self._opening = {"opens": opens, "path": list(sys.path)}
        return self._opening

    # --- hearing of it

    def _hear(self) -> None:
        """Waits until a worker says something or dies, for a while at most."""
        self._hand_out()
        by_connection = {worker.connection: worker for worker in self._workers.values()}
        for connection in wait(list(by_connection), LOOK_EVERY_S):
            worker = by_connection[connection]  # type: ignore[index]  # it is one of them
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            self._heard(worker, message)
        for worker in list(self._workers.values()):
            # a worker's own children may hold its end of the connection open
            if worker.process.poll() is not None and not worker.connection.poll():
                self._bury(worker)
        self._tell()

    def _heard(self, worker: Worker, message: Any) -> None:
        match message:
            case Ready():
                worker.is_ready, self._num_unready = True, 0
            case CannotOpen(failure):
                self._bury(worker, is_heard=True)
                raise_in(failure)
            case Done():
                self._end(worker, message)
            case Begun(number, stage, text, total):
                stack = worker.shown.enter_context(ExitStack())
                advance = stack.enter_context(self._listener.task(stage, text, total))
                worker.advances[number] = advance, stack
                worker.state.count(0, total)
            case Advanced(number, units):
                worker.advances[number][0](units)
                worker.state.count(units)
            case Over(number):
                worker.advances.pop(number)[1].close()
            case Said(text, is_warning):
                (self._listener.warn if is_warning else self._listener.note)(text)

    def _end(self, worker: Worker, done: Done) -> None:
        """Takes the end of a piece of work to who asked for it."""
        batch, worker.work, worker.batch = worker.batch, None, None
        worker.state.end()
        if batch is not None:
            batch.num_out -= 1
            batch.done.append(done)
        self._hand_out()

    def _bury(self, worker: Worker, *, is_heard: bool = False) -> None:
        """Takes a dead worker's work back."""
        if self._workers.get(worker.number) is not worker:
            return
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(END_WITHIN_S)
        worker.process.kill()
        code = worker.process.wait()
        worker.connection.close()
        worker.shown.close()
        del self._workers[worker.number]
        if is_heard:
            return
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        what = f"worker {worker.number} on {worker.place.name} {how}"
        if not worker.is_ready:
            self._num_unready += 1
            if self._num_unready >= MOST_DEATHS:
                raise Fault(f"{what} before it was ready", hint=f"see {worker.log}\n{tail(worker)}")
        if worker.work is None or worker.batch is None:
            return
        self._deaths[worker.work] += worker.is_ready
        if self._deaths[worker.work] < MOST_DEATHS:
            self._listener.warn(f"{what} while {called(worker.work)}: that is done again")
            self._again.append((worker.work, worker.batch))
            return
        times = f"as {MOST_DEATHS - 1} others did before it"
        hint = "it may have run out of memory: lower executor.workers, train.batch_size or"
        error = Fault(
            f"{what} while {called(worker.work)}, {times}",
            hint=f"{hint} batch_tokens; its last lines are in {worker.log}",
        )
        failure = Failure(error, tail(worker), f"worker {worker.number} on {worker.place.name}")
        self._end_dead(worker, failure)

    def _end_dead(self, worker: Worker, failure: Failure) -> None:
        assert worker.work is not None
        assert worker.batch is not None
        worker.batch.num_out -= 1
        worker.batch.done.append(Done(worker.work, failure=failure))

    def _forget(self, batch: Batch) -> None:
        """Drops what is left of a run of work that nobody waits for any more."""
        self._again = deque(each for each in self._again if each[1] is not batch)
        for worker in self._workers.values():
            if worker.batch is batch:
                worker.batch = None

    def _tell(self) -> None:
        self._busy([worker.state for worker in self._workers.values()])


def raise_in(failure: Failure) -> None:
    """Raises the error of a worker that could not open what the work is on."""
    failure.error.add_note(f"in {failure.worker}:\n{failure.traceback}")
    raise failure.error


def tail(worker: Worker, num_bytes: int = 2000) -> str:
    """Returns the end of what a worker printed."""
    try:
        return worker.log.read_bytes()[-num_bytes:].decode(errors="replace")
    except OSError:
        return ""

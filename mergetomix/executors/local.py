"""The executor whose workers are processes on this machine, one for each GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import socketpair
from typing import Any

from mergetomix.errors import Fault
from mergetomix.executors.messages import CannotOpen, Opens, Ready, given
from mergetomix.executors.states import Busy, WorkerState, called
from mergetomix.executors.work import Done, FinetuneWork, Work
from mergetomix.executors.workers import MOST_KILLED_UNREADY, MOST_UNREADY, Batch, Shown, Workers
from mergetomix.progress import Listener

DEVICES = "CUDA_VISIBLE_DEVICES"
LOOK_EVERY_S = 0.5
"""How often workers are looked at whether they live, while none says anything."""
END_WITHIN_S = 5.0
"""A worker that does not end by itself within this time is killed."""


@dataclass(frozen=True)
class Slot:
    """What a worker computes on: a name for it, and the environment that gives it to a process."""

    name: str
    environment: Mapping[str, str]
    threads: int | None


@dataclass
class Worker:
    """A process that works, and what it does.

    It may hold other places beside its own, for a training of several processes.
    """

    number: int
    place: Slot
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    shown: Shown
    work: Work | None = None
    batch: Batch | None = None
    held: tuple[int, ...] = ()
    is_ready: bool = False

    def __str__(self) -> str:
        return f"{self.shown.state.name} on {self.place.name}"

    def tail(self, num_bytes: int = 2000) -> str:
        """Returns the end of what the worker printed."""
        try:
            return self.log.read_bytes()[-num_bytes:].decode(errors="replace")
        except OSError:
            return ""


class LocalWorkers(Workers):
    """Hands work to as many processes as there are places; they start with the first work.

    Args:
        opens: what each opens to carry out work; it must be one that cloudpickle takes.
        places: what they compute on.
        logs: the folder of what workers print.
        busy: hears what the workers do.
        per_training: how many places a training takes.
    """

    advice = "lower executor.workers, train.batch_size or batch_tokens"

    def __init__(
        self,
        opens: Opens,
        places: list[Slot],
        logs: Path,
        listener: Listener,
        busy: Busy,
        per_training: int = 1,
    ) -> None:
        super().__init__(listener, busy)
        self._per_training = per_training
        self._opens, self._places, self._logs = opens, places, logs
        self._workers: dict[int, Worker] = {}
        self._opening: dict[str, Any] | None = None
        self._num_unready = 0

    @property
    def num_workers(self) -> int:
        """How many processes there are once all are needed."""
        return len(self._places)

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
            self._end(worker)
        self._workers.clear()
        self._tell()

    def _end(self, worker: Worker) -> int:
        """Ends a process if it lives, and returns its code."""
        worker.process.kill()
        code = worker.process.wait()
        worker.connection.close()
        worker.shown.close()
        return code

    def _states(self) -> list[WorkerState]:
        return [worker.shown.state for worker in self._workers.values()]

    def _drop(self, batch: Batch) -> None:
        for worker in self._workers.values():
            if worker.batch is batch:
                worker.batch = None

    # --- giving work

    def _has_room(self, num_ahead: int) -> bool:
        busy = [worker for worker in self._workers.values() if worker.work is not None]
        num_taken = len(busy) + sum(len(worker.held) for worker in busy)
        return num_taken + len(self._pending) < len(self._places) + num_ahead

    def _hand_out(self) -> None:
        while self._pending:
            work, batch = self._pending[0]
            num = self._per_training if isinstance(work, FinetuneWork) else 1
            free = self._free_places()
            if len(free) < num:
                break
            worker = self._workers.get(free[0]) or self._started(free[0])
            order = work
            if isinstance(work, FinetuneWork) and num > 1:
                worker.held = self._emptied(free[1:num])
                order = replace(work, devices=self._devices(free[:num]))
            self._pending.popleft()
            try:
                worker.connection.send(order)
            except OSError:  # it died since it was last looked at
                self._pending.appendleft((work, batch))
                self._bury(worker)
                continue
            worker.work, worker.batch = work, batch
            worker.shown.state.begin(called(work))
        self._tell()

    def _free_places(self) -> list[int]:
        """Returns the places where nothing is done, those with a worker that waits first."""
        busy = [worker for worker in self._workers.values() if worker.work is not None]
        taken = {number for worker in busy for number in (worker.number, *worker.held)}
        free = [number for number in range(len(self._places)) if number not in taken]
        return sorted(free, key=lambda number: number not in self._workers)

    def _emptied(self, numbers: list[int]) -> tuple[int, ...]:
        """Ends the workers that wait at some places, which need their memory."""
        for number in numbers:
            if number in self._workers:
                self._end(self._workers.pop(number))
        return tuple(numbers)

    def _devices(self, numbers: list[int]) -> tuple[str, ...]:
        places = [self._places[number].environment for number in numbers]
        return tuple(each[DEVICES] for each in places if DEVICES in each)

    def _started(self, number: int) -> Worker:
        if self._opening is None:
            self._opening = {"opens": given(self._opens), "path": list(sys.path)}
        place, log = self._places[number], self._logs / f"worker-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        mine, theirs = socketpair()
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
        shown = Shown(self._listener, WorkerState(f"worker {number}", place.name, process.pid))
        worker = Worker(number, place, process, Connection(mine.detach()), log, shown)
        self._workers[number] = worker
        with suppress(OSError):  # it is seen to be dead soon
            worker.connection.send({**self._opening, "threads": place.threads})
        return worker

    # --- hearing of it

    def _hear(self) -> None:
        by_connection = {worker.connection: worker for worker in self._workers.values()}
        for connection in wait(list(by_connection), LOOK_EVERY_S):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                self._heard(worker, connection.recv())
            except (EOFError, OSError):
                self._bury(worker)
        for worker in list(self._workers.values()):
            # a worker's own children may hold its end of the connection open
            if worker.process.poll() is not None and not worker.connection.poll():
                self._bury(worker)

    def _heard(self, worker: Worker, message: Any) -> None:
        if isinstance(message, Ready):
            worker.is_ready, self._num_unready = True, 0
        elif isinstance(message, CannotOpen):
            del self._workers[worker.number]
            self._end(worker)
            raise message.error()
        elif isinstance(message, Done):
            assert worker.work is not None
            done = replace(message, work=worker.work)
            batch, worker.work, worker.batch, worker.held = worker.batch, None, None, ()
            worker.shown.state.end()
            self._ended(done, batch)
            self._hand_out()
        else:
            worker.shown.hear(message)

    def _bury(self, worker: Worker) -> None:
        """Takes the work of a worker that died back."""
        if self._workers.get(worker.number) is not worker:
            return
        del self._workers[worker.number]
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(END_WITHIN_S)
        code = self._end(worker)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        if not worker.is_ready:
            self._give_back(worker.work, worker.batch)
            self._num_unready += 1
            is_killed = -code in (signal.SIGKILL, signal.SIGTERM)
            if self._num_unready >= (MOST_KILLED_UNREADY if is_killed else MOST_UNREADY):
                hint = f"see {worker.log}\n{worker.tail()}"
                raise Fault(f"{worker} {how} before it was ready", hint=hint)
        elif worker.work is not None:
            self._died(f"{worker} {how}", worker.work, worker.batch, worker.tail())

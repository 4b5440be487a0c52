"""What runs in the processes of a Ray cluster; it needs no name of Ray's."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mergetomix.errors import RecipeError
from mergetomix.executors.messages import (
    CannotOpen,
    Message,
    Opens,
    Progress,
    Ready,
    Teller,
    plain,
    portable,
)
from mergetomix.executors.work import CarryOut, Done, Failure, Work, attempt, whereabouts

PACKAGES = (
    *("mergetomix", "torch", "transformers", "trl", "peft", "datasets", "accelerate"),
    *("safetensors", "numpy"),
)
"""The packages that numbers depend on: every worker must have the versions of who asks."""
TELL_EVERY_S = 0.5


@dataclass(frozen=True)
class Assignment:
    """What a worker of a cluster is told first.

    `opens` is what to open, as bytes of cloudpickle; `versions` are those of who asks; `seen` is a
    folder that the worker must see, None if it need not; `threads` is None on a GPU.
    """

    opens: bytes
    versions: Mapping[str, str]
    seen: str | None
    threads: int | None


def versions() -> dict[str, str]:
    """Returns the versions of PACKAGES here, without what a build adds to them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found


@dataclass(frozen=True)
class Lost:
    """A worker that is gone before its work was done, and why."""

    why: str


def failed_to_open(error: Exception) -> CannotOpen:
    """Returns an error that is being handled, as what a worker answers that cannot work."""
    return CannotOpen(plain(Failure(error, traceback.format_exc(), whereabouts())))


class Board:
    """An actor on the node of who asks: workers put up messages, and who asks takes them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, list[Message]]] = []

    def put(self, worker: str, messages: list[Message]) -> None:
        """Puts up what a worker says."""
        self._messages.append((worker, messages))

    def take(self) -> list[tuple[str, list[Message]]]:
        """Returns what was put up since this was last asked."""
        found, self._messages = self._messages, []
        return found


class Speaker:
    """Puts a worker's messages on the board, those of half a second together.

    `num_put` counts how often it did.
    """

    def __init__(self, put: Callable[[list[Message]], Any]) -> None:
        self.put, self._waiting = put, list[Message]()
        self._lock, self._last_s = threading.Lock(), 0.0
        self.num_put = 0

    def tell(self, message: Progress) -> None:
        """Says something, now or with what comes next."""
        with self._lock:
            self._waiting.append(message)
            if time.monotonic() - self._last_s < TELL_EVERY_S:
                return
        self.flush()

    def flush(self) -> None:
        """Says what waits to be said."""
        with self._lock:
            found, self._waiting = self._waiting, []
            self._last_s = time.monotonic()
        if found:
            self.put(found)
            self.num_put += 1


class Opened:
    """What a process of the cluster has opened, for one worker's work."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._carry_out: CarryOut | None = None
        self._speaker: Speaker | None = None

    def open(
        self, assignment: Assignment, put: Callable[[list[Message]], Any]
    ) -> Ready | CannotOpen:
        """Opens what the work is on, and says where that is, or why it cannot be."""
        try:
            check_versions(assignment.versions)
            check_sees(assignment.seen)
            if assignment.threads is not None:
                import torch

                torch.set_num_threads(assignment.threads)
            opens: Opens = pickle.loads(assignment.opens)  # noqa: S301  # from who leads the run
            self._speaker = Speaker(put)
            self._carry_out = self._stack.enter_context(opens(Teller(self._speaker.tell)))
        except Exception as error:  # noqa: BLE001  # who leads the run hears of it
            return failed_to_open(error)
        return Ready(node())

    def say_where(self, put: Callable[[list[Message]], Any]) -> None:
        """Puts up where this is, and has what follows put up in the same way."""
        assert self._speaker is not None
        self._speaker.put = put
        put([Ready(node())])

    def carry_out(self, work: Work) -> tuple[Done, int]:
        """Carries out one piece of work; says too how often messages were put up for it."""
        assert self._carry_out is not None
        assert self._speaker is not None
        before = self._speaker.num_put
        done = portable(attempt(self._carry_out, work))
        self._speaker.flush()
        return done, self._speaker.num_put - before


_of_process: dict[tuple[bytes, str | None], Opened] = {}


def train(
    assignment: Assignment, put: Callable[[list[Message]], Any], work: Work
) -> tuple[Done, int] | CannotOpen:
    """Carries out a training in a process that may have done one before, and is still open."""
    key = assignment.opens, assignment.seen
    if key not in _of_process:
        opened = Opened()
        found = opened.open(assignment, put)
        if isinstance(found, CannotOpen):
            return found
        _of_process[key] = opened
    _of_process[key].say_where(put)
    return _of_process[key].carry_out(work)


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raises RecipeError if a package here has another version than who leads the run has."""
    here = versions()
    other = [
        f"{name} {here.get(name)} instead of {each}"
        for name, each in wanted.items()
        if here.get(name) != each
    ]
    if other:
        message = f"the node {node()} has {', '.join(other)}"
        hint = "install the same versions on every node, or with executor.runtime_env"
        raise RecipeError("executor.address", message, hint=hint)


def check_sees(folder: str | None) -> None:
    """Raises RecipeError if a folder of the store is not there on this node."""
    if folder is not None and not os.path.isdir(folder):  # noqa: PTH112  # a plain question
        message = f"the node {node()} does not see the run's store: there is no {folder}"
        hint = "keep the store on a file system that all nodes share"
        raise RecipeError("store", message, hint=hint)


def node() -> str:
    """Returns what this node, and the GPU that this process sees, are called."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return socket.gethostname() + (f", GPU {gpus}" if gpus else "")

"""What workers do just now, for a display and for `mergetomix status`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mergetomix.executors.work import FinetuneWork, GradientWork, ScoringWork, Work


@dataclass
class WorkerState:
    """What one worker does, and what it did.

    `place` is what it computes on, such as a GPU of a node. `done` of `total` units of `doing` are
    done, such as optimizer steps; zero of zero if they are not counted. `num_done` pieces of work
    took `busy_s`.
    """

    name: str
    place: str
    pid: int
    doing: str = ""
    done: int = 0
    total: int = 0
    num_done: int = 0
    busy_s: float = 0.0
    since: float = 0.0

    def begin(self, doing: str) -> None:
        """Notes that a piece of work began."""
        self.doing, self.done, self.total, self.since = doing, 0, 0, time.monotonic()

    def count(self, units: int, total: int | None = None) -> None:
        """Notes that so many more units are done; of a new total from zero."""
        if total is not None:
            self.done, self.total = 0, total
        self.done += units

    def row(self) -> dict[str, Any]:
        """Returns what the store notes of it, by the keys of store.WORKER_KEYS."""
        for_s = time.monotonic() - self.since if self.doing else 0.0
        known = {key: getattr(self, key) for key in ("name", "place", "doing", "done", "total")}
        return {**known, "for_s": for_s, "num_done": self.num_done, "busy_s": self.busy_s}

    def end(self) -> None:
        """Notes that a piece of work came to its end."""
        self.busy_s += time.monotonic() - self.since
        self.num_done += 1
        self.doing, self.done, self.total = "", 0, 0


Busy: TypeAlias = Callable[[Sequence[WorkerState]], None]
"""Hears what all workers do, as often as that changes."""


def called(work: Work) -> str:
    """Returns what a piece of work is called while it is done.

    >>> from mergetomix.records import Mixture
    >>> called(FinetuneWork("key", Mixture.union(["code", "math"]), 1, "verify", "folder"))
    'training on code + math'
    """
    if isinstance(work, FinetuneWork):
        return f"training on {work.mixture}"
    if isinstance(work, ScoringWork):
        return f"scoring {_model(work)}"
    if isinstance(work, GradientWork):
        return f"differentiating at {_model(work)}"
    return f"measuring the {work.statistic} of {work.dataset}"


def _model(work: ScoringWork | GradientWork) -> str:
    model = work.model
    return model.kind if model.mixture is None else f"the {model.kind} of {model.mixture}"

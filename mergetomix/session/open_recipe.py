"""A recipe that is open: its inputs, its store, and who listens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from mergetomix.executors.states import WorkerState
from mergetomix.executors.work import Executor
from mergetomix.progress import Listener
from mergetomix.recipe.recipe import Recipe
from mergetomix.session.inputs import Inputs
from mergetomix.store.store import Store
from mergetomix.trackers.trackers import Tracked, Trackers


@dataclass
class OpenRecipe:
    """What everything that works on one recipe shares.

    `executor` carries out the work; `run` is the number of this run in the store, None in a worker,
    which is no run of its own. `num_neighbours` processes share the memory that models are in, this
    one included, and `shared_scratch` is a folder that they share. `tracked` is the tool's own run
    in the recipe's `trackers`.
    """

    recipe: Recipe
    inputs: Inputs
    store: Store
    listener: Listener
    run: int | None = None
    started: float = field(default_factory=time.monotonic)
    warnings: list[str] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)
    executor: Executor = field(init=False)
    trackers: Trackers = field(init=False)
    tracked: Tracked = field(default_factory=Tracked)
    num_neighbours: int = 1
    shared_scratch: Path | None = None
    _scratch: Path | None = None
    _met: dict[str, dict[str, bool]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.trackers = Trackers(self.recipe.report_to, self.recipe.run_dir, self.warn)

    def warn(self, text: str) -> None:
        """Tells the user now, and again in the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.listener.warn(text)

    def beat(self, stage: str, done: int, total: int) -> None:
        """Tells `mergetomix status` how far the run is."""
        if self.run is not None:
            self.store.heartbeat(self.run, stage, done, total)

    def hear_workers(self, states: Sequence[WorkerState]) -> None:
        """Tells `mergetomix status` what the workers do."""
        if self.run is not None:
            self.store.note_workers(self.run, [state.row() for state in states])
            training = [state for state in states if state.total]
            if training:
                first, more = training[0], len(training) - 1
                text = f"{first.doing} and {more} more" if more else first.doing
                self.beat(text, first.done, first.total)

    def scratch(self) -> Path:
        """Returns a folder that goes when the recipe is closed, shared with its workers."""
        if self.shared_scratch is not None:
            return self.shared_scratch
        if self._scratch is None:
            # a worker, which is no run, writes nothing to the store
            if self.run is None:
                self._scratch = Path(self.closing.enter_context(TemporaryDirectory()))
            else:
                self._scratch = self.closing.enter_context(self.store.scratch())
        return self._scratch

    @property
    def reused(self) -> dict[str, int]:
        """How many things of each kind the store held before this run came to them, each once."""
        held = {what: sum(known.values()) for what, known in self._met.items()}
        return {what: num for what, num in held.items() if num}

    def count(self, what: str, key: str, held: bool) -> None:
        """Remembers whether the store held a thing when the run first came to it."""
        self._met.setdefault(what, {}).setdefault(key, held)

    def tell_reused(self, what: str) -> None:
        """Says, once, how much of a stage was in the store."""
        num, num_met = self.reused.get(what, 0), len(self._met.get(what, {}))
        text = f"{what}: {num} of {num_met} were in the store"
        if self.reused.get(what) and text not in self._told:
            self._told.add(text)
            self.listener.note(text)

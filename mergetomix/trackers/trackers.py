"""Tells the trackers of a recipe what happens. None of them can stop a run.

Every fine-tune is a run of its own and the tool another, all in one group. A tracker that is not
installed, or fails at anything, is left out from then on, and the user is told once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergetomix.trackers.kinds import KINDS, RunPlace, TrackedRun, without_passwords

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
MOST_CHARACTERS = 300
"""Of an error that are shown."""


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run when it begins: its name and its settings.

    One that `is_silent` is not told at all: another process tells of the same.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    is_silent: bool = False


class Trackers:
    """The trackers of one recipe, in one process.

    Args:
        names: as the recipe gives them.
        run_dir: the run's folder; its name is the group's.
        warn: hears of a tracker that is left out.
    """

    def __init__(self, names: Sequence[str], run_dir: str, warn: Callable[[str], None]) -> None:
        self._names, self._folder, self._warn = list(names), Path(run_dir), warn

    @property
    def names(self) -> list[str]:
        """The trackers that are left."""
        return list(self._names)

    @contextmanager
    def run(self, about: About) -> Iterator[Tracked]:
        """Begins a run in every tracker, and ends it: as failed where an exception leaves."""
        tracked = Tracked(self._leave_out)
        if not about.is_silent:
            tracked.runs = dict(self._begun(about))
        try:
            yield tracked
        except BaseException:
            tracked.end(failed=True)
            raise
        tracked.end(failed=False)

    def _begun(self, about: About) -> Iterator[tuple[str, TrackedRun]]:
        place = RunPlace(about.name, self._folder.name, self._folder)
        for name in list(self._names):
            try:
                yield name, KINDS[name](place, dict(_flat(about.values)))
            except Exception as error:  # noqa: BLE001  # whatever a tracker raises, the run goes on
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        """Asks a tracker for nothing more, and says so once."""
        if name not in self._names:
            return
        self._names.remove(name)
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[0]}" if lines else repr(error)
        why = without_passwords(said)[:MOST_CHARACTERS]
        lacks = isinstance(error, ModuleNotFoundError) and error.name == name
        rest = f"it is not installed (pip install {name})" if lacks else why
        self._warn(f"report_to: {name} is left out, and the run goes on without it: {rest}")


class Tracked:
    """A run, as every tracker that is left knows it; without trackers it does nothing."""

    def __init__(self, leave_out: Callable[[str, Exception], None] = lambda *_: None) -> None:
        self.runs: dict[str, TrackedRun] = {}
        self._leave_out = leave_out
        self._steps: dict[str, int] = {}

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Notes some numbers. Names have their group before a slash, such as `train/loss`.

        A number that is not finite is left out.

        Args:
            step: of these numbers; None is one more than the last of their group.
        """
        if not self.runs:
            return
        group = next(iter(values)).partition("/")[0]
        at = self._steps.get(group, 0) + 1 if step is None else step
        self._steps[group] = at
        known = {name: float(each) for name, each in values.items() if math.isfinite(each)}
        if known:
            self._each(lambda run: run.log(known, at))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Notes a table: mappings with the same keys."""
        self._each(lambda run: run.table(name, rows))

    def files(self, paths: Sequence[Path]) -> None:
        """Keeps copies of files."""
        self._each(lambda run: run.files(paths))

    def where(self) -> list[str]:
        """Returns how to look at the run, a line for each tracker."""
        return [f"{name}: {run.where}" for name, run in self.runs.items()]

    def end(self, failed: bool) -> None:
        """Ends the run."""
        self._each(lambda run: run.end(failed))
        self.runs.clear()

    def _each(self, do: Callable[[TrackedRun], None]) -> None:
        for name, run in list(self.runs.items()):
            try:
                do(run)
            except Exception as error:  # noqa: BLE001  # whatever a tracker raises, the run goes on
                del self.runs[name]
                self._leave_out(name, error)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields settings one by one, those of inner mappings with dots; lists as text."""
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif value is not None:
            yield name, value if isinstance(value, int | float | str) else str(value)

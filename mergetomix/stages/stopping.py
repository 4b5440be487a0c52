"""What decides that a search stops: what it may cost, and what it has cost so far.

A budget is in forward passes over the targets, in examples scored, or in minutes. The last two
become forward passes: of so many examples, or of the seconds that the base took. What minutes
became is kept in the store, so that a search that is taken up again makes the same plan.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mergetomix.errors import RecipeError
from mergetomix.progress import duration
from mergetomix.records import Trial
from mergetomix.search.strategy import Ask, Strategy
from mergetomix.session.session import Session
from mergetomix.store.address import digest

PASSES = "passes.json"


@dataclass(frozen=True)
class Limit:
    """The end of a search: forward passes to plan with, and seconds after which none is planned.

    None is no end.
    """

    num_passes: int | None = None
    seconds: float | None = None

    def half(self, up: bool = False) -> Limit:
        """Returns half of it, passes rounded down or up.

        >>> Limit(7).half(), Limit(7).half(up=True)
        (Limit(num_passes=3, seconds=None), Limit(num_passes=4, seconds=None))
        """
        passes = None if self.num_passes is None else (self.num_passes + int(up)) // 2
        return Limit(passes, None if self.seconds is None else self.seconds / 2)


def limit_of(session: Session) -> Limit:
    """Returns the recipe's `search.budget`.

    Minutes become passes once the base's scores are in the store: they say what a pass takes.

    Raises:
        RecipeError: it does not pay for one evaluation of the targets.
    """
    wanted = session.recipe.search.budget
    if wanted is None or isinstance(wanted, int):
        return Limit(wanted)
    number, unit = wanted.split()
    if unit == "minutes":
        seconds = 60 * float(number)
        return Limit(_passes_in(session, seconds), seconds)
    each = sum(scorer.num_examples for scorer in session.inputs.targets("select").values())
    message = f"{wanted}, but the targets have {each} to score for every mixture"
    return Limit(_whole(float(number) / each, message))


def _whole(passes: float, message: str) -> int:
    if passes < 1:
        raise RecipeError("search.budget", message)
    return math.floor(passes)


def _passes_in(session: Session, seconds: float) -> int | None:
    """Forward passes that fit in a time, as they did when it was first asked for.

    None if the base was not scored yet.
    """
    addresses = [scorer.address for scorer in session.inputs.targets("select").values()]
    base, store = session.addresses.base, session.store
    key = digest("passes", base, sorted(addresses), seconds)
    file = store.file(key, PASSES)
    if file is not None:
        return int(json.loads(file.read_text()))
    _, each = store.seconds([base], addresses, "select")
    if not each:
        return None
    message = f"{duration(seconds)}, but scoring the targets once takes {duration(each)}"
    passes = _whole(seconds / each, message)
    with store.artifact(key) as folder:
        (folder / PASSES).write_text(json.dumps(passes))
    return passes


def next_asked(strategy: Strategy, meter: Meter, limit: Limit) -> tuple[Ask, ...]:
    """Returns what a search evaluates next: nothing once it stops.

    It stops when its time is over, but never before its first trial, or when its strategy asks for
    nothing more. A strategy ends with its steps, when the forward passes that are left do not pay
    for the next one (`Strategy.ask`), or, by gradients, when there is no hope of a better mixture
    left (`search.budgets.HOPE`).
    """
    if meter.num_passes and meter.is_out_of_time(limit):
        return ()
    return strategy.ask()


@dataclass
class Meter:
    """What a search has cost: forward passes, and seconds since it began."""

    num_passes: int = 0
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.started

    def is_out_of_time(self, limit: Limit) -> bool:
        """Returns whether the time is spent."""
        return limit.seconds is not None and self.seconds >= limit.seconds

    def line(self, strategy: Strategy, trials: Sequence[Trial]) -> str:
        """Returns the best so far, the price so far, and the chance that more would help."""
        best = max(trials, key=lambda trial: trial.objective)
        price = f"{self.num_passes} forward passes, {duration(self.seconds)}"
        text = f"best {best.objective:+.4f} ({best.mixture}) for {price}"
        chance = strategy.chance()
        if chance is None:
            return text
        return f"{text}; {chance:.0%} chance that an untried mixture is better"

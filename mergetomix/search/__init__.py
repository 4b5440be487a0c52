"""Search strategies behind one seam: `ask` for the next mixture, `tell` what it was worth.

A strategy never evaluates anything and keeps its whole state in what it was told, so that a resumed search goes on as the
uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mergetomix.mixture import Subsets
from mergetomix.records import Mixture

EXHAUSTIVE_DATASETS = 12


class Strategy(Protocol):
    """Chooses which mixture to try next. Objectives are better when higher."""

    name: str

    def ask(self) -> Mixture | None:
        """The next mixture to try, or None when the search is over. The same one until it is told."""
        ...

    def tell(self, mixture: Mixture, objective: float) -> None:
        """What the mixture last asked for was worth."""
        ...

    def expected(self) -> int:
        """About how many trials there will be in all; at least those told."""
        ...

    def state(self) -> Sequence[tuple[Mixture, float]]:
        """Everything told, in order."""
        ...


def build(name: str, space: Subsets) -> Strategy:
    """The strategy of a name; `auto` is exhaustive up to 12 free datasets and greedy above.

    Raises ValueError for an unknown name.
    """
    from mergetomix.search.exhaustive import Exhaustive
    from mergetomix.search.greedy import Greedy

    if name == "auto":
        name = "exhaustive" if len(space.free) <= EXHAUSTIVE_DATASETS else "greedy"
    for strategy in (Exhaustive, Greedy):
        if strategy.name == name:
            return strategy(space)
    raise ValueError(f"no strategy is called {name!r}")


def restore(strategy: Strategy, state: Sequence[tuple[Mixture, float]]) -> Strategy:
    """A fresh strategy brought to where `state` was saved. Raises ValueError where it would have asked otherwise."""
    for mixture, objective in state:
        if strategy.ask() != mixture:
            raise ValueError(f"the state belongs to another search: {mixture} was not asked for")
        strategy.tell(mixture, objective)
    return strategy

"""Greedy forward selection with backward steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mergetomix.search.strategy import Ask, Setting, Steps, Strategy

Neighbours = Callable[[frozenset[str]], list[frozenset[str]]]


class Greedy(Strategy):
    """Adds the dataset that helps most, then drops those that have come to hurt, until none helps.

    Starts from the best of the smallest mixtures allowed, found by exchanging one dataset at a
    time: the best single dataset if one may stand alone. No set is tried twice. An objective that
    is not a number is worse than any other. The source is sequential floating forward selection
    (Pudil et al. 1994).
    """

    name = "greedy"

    def __init__(self, setting: Setting) -> None:
        self._worth: dict[frozenset[str], float] = {}
        super().__init__(setting)

    def _foreseen(self) -> int:
        """Counts trials if the first exchange finds the start and all datasets are then added."""
        space, (least, most) = self._subsets(), self._subsets().bounds
        allowed, exchanged = len(space.allowed), least - len(space.fixed)
        added = sum(allowed - size for size in range(least, most))
        return min(1 + exchanged * (allowed - least) + added, space.size)

    def _steps(self) -> Steps[None]:
        space = self._subsets()
        yield from self._try([space.smallest()])
        current = yield from self._climb(space.smallest(), space.exchanged)
        while (best := (yield from self._better(space.larger(current), current))) is not None:
            current = yield from self._climb(best, space.smaller)

    def _climb(self, current: frozenset[str], neighbours: Neighbours) -> Steps[frozenset[str]]:
        """Goes to the best neighbour until none is better, and gives where it ends."""
        while (best := (yield from self._better(neighbours(current), current))) is not None:
            current = best
        return current

    def _better(
        self, candidates: Sequence[frozenset[str]], current: frozenset[str]
    ) -> Steps[frozenset[str] | None]:
        """Tries the candidates; gives the best, of equals the first by name, if it is better."""
        yield from self._try(candidates)
        ranked = sorted(candidates, key=lambda each: (-self._worth[each], sorted(each)))
        is_better = bool(ranked) and self._worth[ranked[0]] > self._worth[current]
        return ranked[0] if is_better else None

    def _try(self, candidates: Sequence[frozenset[str]]) -> Steps[None]:
        new = [each for each in dict.fromkeys(candidates) if each not in self._worth]
        yield [Ask(self._subsets().mixture(each)) for each in new]
        for each, told in zip(new, self._told[len(self._told) - len(new) :], strict=True):
            is_number = not math.isnan(told.objective)
            self._worth[each] = told.objective if is_number else -math.inf

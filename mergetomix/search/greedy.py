"""Greedy forward selection with backward steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from mergetomix.search.stepwise import Steps, Stepwise, subsets
from mergetomix.search.strategy import Ask, Setting

Neighbours = Callable[[frozenset[str]], list[frozenset[str]]]


class Greedy(Stepwise):
    """Adds the dataset that helps most, then drops those that have come to hurt, until neither helps.

    Starts from the best of the smallest mixtures allowed, found by exchanging one dataset at a time: the best single
    dataset where one may stand alone. Sequential floating forward selection (Pudil et al. 1994) is the source; no set is
    tried twice. An objective that is not a number is worse than any other.
    """

    name = "greedy"

    def __init__(self, setting: Setting) -> None:
        self._space = subsets(setting, self.name)
        self._worth: dict[frozenset[str], float] = {}
        super().__init__(setting)

    def _foreseen(self) -> int:
        """So many trials if the first exchange finds the start and every dataset is then added."""
        least, most = self._space.bounds
        allowed, exchanged = len(self._space.allowed), least - len(self._space.fixed)
        forward = (
            1 + exchanged * (allowed - least) + sum(allowed - size for size in range(least, most))
        )
        return min(forward, self._space.size)

    def _steps(self) -> Steps[None]:
        current = yield from self._climb(self._space.smallest(), self._space.exchanged)
        while True:
            forward = self._space.larger(current)
            yield from self._try(forward)
            best = self._better(forward, current)
            if best is None:
                return
            current = yield from self._climb(best, self._space.smaller)

    def _climb(self, current: frozenset[str], neighbours: Neighbours) -> Steps[frozenset[str]]:
        """Goes to the best neighbour until none is better; gives where it ends."""
        yield from self._try([current])
        while True:
            candidates = neighbours(current)
            yield from self._try(candidates)
            best = self._better(candidates, current)
            if best is None:
                return current
            current = best

    def _try(self, candidates: Iterable[frozenset[str]]) -> Steps[None]:
        new = [datasets for datasets in dict.fromkeys(candidates) if datasets not in self._worth]
        answers = yield [Ask(self._space.mixture(datasets)) for datasets in new]
        for datasets, told in zip(new, answers, strict=True):
            is_number = not math.isnan(told.objective)
            self._worth[datasets] = told.objective if is_number else -math.inf

    def _better(
        self, candidates: Iterable[frozenset[str]], current: frozenset[str]
    ) -> frozenset[str] | None:
        """The best of the candidates, where it is better than the current one; of equals the first by name."""
        best = min(
            candidates,
            key=lambda datasets: (-self._worth[datasets], sorted(datasets)),
            default=current,
        )
        return best if self._worth[best] > self._worth[current] else None

"""Search that tries every mixture of the space."""

from __future__ import annotations

import itertools

from mergetomix.search.strategy import Ask, Steps, Strategy

MOST_AT_ONCE = 2**16
"""Mixtures that are asked for together, so that a large space need not lie in memory."""


class Exhaustive(Strategy):
    """Asks for every mixture at once, in Gray order, so that neighbours differ by one expert."""

    name = "exhaustive"

    def _steps(self) -> Steps[None]:
        mixtures = iter(self._subsets())
        while step := [Ask(mixture) for mixture in itertools.islice(mixtures, MOST_AT_ONCE)]:
            yield step

    def chance(self) -> float:
        """Returns the share of mixtures that are left, as any of all may be the best."""
        return 1 - len(self._told) / self._subsets().size

    def _foreseen(self) -> int:
        return self._subsets().size

"""Every mixture of the space."""

from __future__ import annotations

import itertools

from mergetomix.search.stepwise import Steps, Stepwise, subsets
from mergetomix.search.strategy import Ask, Setting

MOST_AT_ONCE = 2**16
"""Mixtures that are asked for together, so that a large space need not lie in memory."""


class Exhaustive(Stepwise):
    """Asks for every mixture at once, in Gray order, so that neighbours differ by one expert."""

    name = "exhaustive"

    def __init__(self, setting: Setting) -> None:
        self._space = subsets(setting, self.name)
        super().__init__(setting)

    def _steps(self) -> Steps[None]:
        mixtures = iter(self._space)
        while step := [Ask(mixture) for mixture in itertools.islice(mixtures, MOST_AT_ONCE)]:
            yield step

    def chance(self) -> float:
        """Of all mixtures any may be the best: the share of those that are left."""
        return 1 - len(self._told) / self._space.size

    def _foreseen(self) -> int:
        return self._space.size

"""Every mixture of the space."""

from __future__ import annotations

from mergetomix.search.stepwise import Steps, Walk, subsets
from mergetomix.search.strategy import Ask, Setting


class Exhaustive(Walk):
    """Asks for every mixture once, in Gray order, so that neighbours differ by one expert."""

    name = "exhaustive"

    def __init__(self, setting: Setting) -> None:
        self._space = subsets(setting, self.name)
        super().__init__(setting)

    def _steps(self) -> Steps[None]:
        for mixture in self._space:
            yield Ask(mixture)

    def chance(self) -> float:
        """Of all mixtures any may be the best: the share of those that are left."""
        return 1 - len(self._told) / self._space.size

    def _foreseen(self) -> int:
        return self._space.size

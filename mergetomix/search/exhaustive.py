"""Every mixture of the space."""

from __future__ import annotations

from mergetomix.search import Ask
from mergetomix.search.walk import Steps, Walk


class Exhaustive(Walk):
    """Asks for every mixture once, in Gray order, so that neighbours differ by one expert."""

    name = "exhaustive"

    def _steps(self) -> Steps[None]:
        for mixture in self.setting.space:
            yield Ask(mixture)

    def _foreseen(self) -> int:
        return len(self.setting.space)

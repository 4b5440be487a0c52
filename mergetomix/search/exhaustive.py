"""Every mixture of the space."""

from __future__ import annotations

from mergetomix.mixture import Subsets
from mergetomix.records import Mixture


class Exhaustive:
    """Asks for every mixture once, in Gray order, so that neighbours differ by one expert."""

    name = "exhaustive"

    def __init__(self, space: Subsets) -> None:
        self._size = len(space)
        self._rest = iter(space)
        self._next = next(self._rest, None)
        self._told: list[tuple[Mixture, float]] = []

    def ask(self) -> Mixture | None:
        """The next mixture in Gray order."""
        return self._next

    def tell(self, mixture: Mixture, objective: float) -> None:
        """Goes on to the next mixture."""
        if mixture != self._next:
            raise ValueError(f"{mixture} was not asked for")
        self._told.append((mixture, objective))
        self._next = next(self._rest, None)

    def expected(self) -> int:
        """The size of the space."""
        return self._size

    def state(self) -> list[tuple[Mixture, float]]:
        """Everything told, in order."""
        return list(self._told)

"""A strategy written as a generator: it yields what to try and is sent what that was worth."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Generator
from typing import TypeVar

from mergetomix.mixtures.spaces import Subsets
from mergetomix.search.strategy import VALUE_COST, Ask, Setting, SettingError, Told

T = TypeVar("T")
Steps = Generator[Ask, Told, T]
"""Steps of a search that end in a T."""


def subsets(setting: Setting, name: str) -> Subsets:
    """The space of a strategy that tries subsets. Raises ValueError where it is another."""
    if not isinstance(setting.space, Subsets):
        raise ValueError(f"{name} search tries subsets, not weights; gradient, regression and optuna search do both")
    return setting.space


def needed(package: str, key: str, what: str) -> None:
    """Raises SettingError where a package that something takes is not installed."""
    try:
        importlib.import_module(package)
    except ImportError:
        raise SettingError(key, f'{what} takes the package {package}: pip install "mergetomix[search]"') from None


class Walk(abc.ABC):
    """Keeps what was told, holds to the budget, and takes no answer that was not asked for.

    A search over is one whose steps have ended or whose next step would cost more than is left of the budget.
    """

    name: str

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._told: list[Told] = []
        self._spent = 0
        self._walk = self._steps()
        self._next = self._affordable(next(self._walk, None))

    @abc.abstractmethod
    def _steps(self) -> Steps[None]:
        """The search itself; it may look at what was told so far, and at nothing else that changes."""

    @abc.abstractmethod
    def _foreseen(self) -> int:
        """About how many trials there will be in all, without a budget."""

    def ask(self) -> Ask | None:
        """The next step."""
        return self._next

    def tell(self, told: Told) -> None:
        """Records what it was worth and goes on."""
        if self._next is None or told.mixture != self._next.mixture:
            raise ValueError(f"{told.mixture} was not asked for")
        if self._next.gradient and told.gradients is None:
            raise ValueError(f"the gradient of {told.mixture} was asked for")
        self._told.append(told)
        self._spent += self._next.cost
        try:
            self._next = self._affordable(self._walk.send(told))
        except StopIteration:
            self._next = None

    def expected(self) -> int:
        """What is foreseen, as far as the budget reaches; once over, the number told."""
        if self._next is None:
            return len(self._told)
        budget, num = self.setting.budget, max(self._foreseen(), len(self._told) + 1)
        return num if budget is None else min(num, len(self._told) + (budget - self._spent) // VALUE_COST)

    def chance(self) -> float | None:
        """No opinion."""
        return None

    def state(self) -> list[Told]:
        """Everything told, in order."""
        return list(self._told)

    def _affordable(self, asked: Ask | None) -> Ask | None:
        budget = self.setting.budget
        return asked if asked is None or budget is None or self._spent + asked.cost <= budget else None

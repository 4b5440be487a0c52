"""What strategies share: steps of mixtures that do not wait for one another, within a budget."""

from __future__ import annotations

import abc
import importlib
import itertools
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from mergetomix.mixtures.spaces import Subsets
from mergetomix.search.strategy import VALUE_COST, Ask, Setting, SettingError, Told

T = TypeVar("T")
Steps = Generator[Sequence[Ask], Sequence[Told], T]
"""Steps of a search that end in a T."""


def subsets(setting: Setting, name: str) -> Subsets:
    """The space of a strategy that tries subsets. Raises ValueError where it is another."""
    if not isinstance(setting.space, Subsets):
        raise ValueError(
            f"{name} search tries subsets, not weights; gradient, regression and optuna search do both"
        )
    return setting.space


def needed(package: str, key: str, what: str) -> None:
    """Raises SettingError where a package that something takes is not installed."""
    try:
        importlib.import_module(package)
    except ImportError:
        raise SettingError(
            key, f'{what} takes the package {package}: pip install "mergetomix[search]"'
        ) from None


class Stepwise(abc.ABC):
    """A strategy written as a generator: it yields what to try and is sent what that was worth.

    Keeps what was told, holds to the budget, and takes no answer that was not asked for. The search
    is over where the steps have ended, or the next mixture would cost more than is left of the
    budget.
    """

    name: str

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._told: list[Told] = []
        self._spent = 0
        self._answers: list[Told] = []
        self._steps_left = self._steps()
        self._step: tuple[Ask, ...] = ()
        self._num_told_of_step = 0
        self._is_last = False
        self._go_on(lambda: next(self._steps_left))

    @abc.abstractmethod
    def _steps(self) -> Steps[None]:
        """The search itself; it may look at what was told so far, and at nothing else that changes."""

    @abc.abstractmethod
    def _foreseen(self) -> int:
        """About how many trials there will be in all, without a budget."""

    def ask(self) -> tuple[Ask, ...]:
        """Returns what of the step at hand was not told yet; empty when the search is over."""
        return self._step[self._num_told_of_step :]

    def tell(self, told: Told) -> None:
        """Records what the first mixture that is asked for was worth."""
        asked = self._step[self._num_told_of_step] if self._num_left else None
        if asked is None or told.mixture != asked.mixture:
            raise ValueError(f"{told.mixture} was not asked for")
        if asked.gradient and told.gradients is None:
            raise ValueError(f"the gradient of {told.mixture} was asked for")
        self._told.append(told)
        self._answers.append(told)
        self._spent += asked.cost
        self._num_told_of_step += 1
        if not self._num_left and not self._is_last:
            self._go_on(lambda: self._steps_left.send(tuple(self._answers)))

    def expected(self) -> int:
        """Returns what is foreseen, as far as the budget reaches; once over, the number told."""
        if not self._num_left:
            return len(self._told)
        budget, num = self.setting.budget, max(self._foreseen(), len(self._told) + self._num_left)
        if budget is None:
            return num
        return min(num, len(self._told) + (budget - self._spent) // VALUE_COST)

    def chance(self) -> float | None:
        """Returns None: no opinion."""
        return None

    def state(self) -> list[Told]:
        """Returns everything told, in order."""
        return list(self._told)

    @property
    def _num_left(self) -> int:
        return len(self._step) - self._num_told_of_step

    def _go_on(self, step: Callable[[], Sequence[Ask]]) -> None:
        """Takes the next step that asks for something."""
        self._step, self._num_told_of_step = (), 0
        wanted: Sequence[Ask] = ()
        try:
            while not wanted:
                wanted = step()
                self._answers = []
                step = self._no_answers
        except StopIteration:
            return
        self._step = self._affordable(wanted)
        self._is_last = len(self._step) < len(wanted)

    def _no_answers(self) -> Sequence[Ask]:
        return self._steps_left.send(())

    def _affordable(self, wanted: Sequence[Ask]) -> tuple[Ask, ...]:
        """As many from the first on as the rest of the budget pays for."""
        budget = self.setting.budget
        if budget is None:
            return tuple(wanted)
        costs = itertools.accumulate((asked.cost for asked in wanted), initial=self._spent)
        num = sum(cost <= budget for cost in list(costs)[1:])
        return tuple(wanted[:num])


def one(asked: Ask) -> Steps[Told]:
    """A step that asks for one mixture and returns what it was worth."""
    (told,) = yield (asked,)
    return told

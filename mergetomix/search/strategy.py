"""The seam behind which strategies search: `ask` what to try next, `tell` what it was worth."""

from __future__ import annotations

import abc
import importlib
import itertools
import math
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from mergetomix.mixtures.spaces import Space, Subsets
from mergetomix.objectives.objective import Objective
from mergetomix.records import Mixture

VALUE_COST, GRADIENT_COST = 1, 3
"""Forward passes of a value, and of one with its gradient: the backward pass costs about two."""


@dataclass(frozen=True)
class Ask:
    """What to try next, with its derivative in the experts' coefficients if `gradient` is true."""

    mixture: Mixture
    gradient: bool = False

    @property
    def cost(self) -> int:
        """Forward passes that the answer takes."""
        return GRADIENT_COST if self.gradient else VALUE_COST


@dataclass(frozen=True)
class Told:
    """What a mixture was worth; everything is better when higher.

    `values` are gains over the base by target, `objective` is what they make together.
    `gradients`, by target and dataset, are d value / d c_i, with c_i the coefficient of the
    dataset's expert in the merge, for every dataset that the space allows, whether or not it is in
    the mixture. `smooth`, if given, are by target what `gradients` are the derivatives of: for a
    target whose own value has none, the gain of a companion loss.
    """

    mixture: Mixture
    objective: float
    values: Mapping[str, float]
    gradients: Mapping[str, Mapping[str, float]] | None = None
    smooth: Mapping[str, float] | None = None


Regressor = Literal["auto", "lightgbm", "log_linear", "gp"]
Sampler = Literal["auto", "tpe", "gp", "cmaes", "nsga2", "nsga3"]


@dataclass(frozen=True)
class Options:
    """What single strategies heed.

    `regressor` is for `regression`. `sampler` is for `optuna`, and so is `storage`, the URL of a
    database in which the trials are kept for others to look at.
    """

    regressor: Regressor = "auto"
    sampler: Sampler = "auto"
    storage: str | None = None


class SettingError(ValueError):
    """A strategy cannot do what its setting asks.

    `key` is what is to be changed in the recipe's section `search`.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Setting:
    """What all strategies are built from.

    `objective` is what of several targets is best; if it is `pareto`, mixtures are looked for that
    no other beats on all targets. The experts' coefficients in the merge of weights w are
    c_i = k^(1 - exponent) w_i, with k the effective number of datasets. `budget` is in forward
    passes over the targets (`Ask.cost`), None for as many as the strategy thinks right.
    `differentiable` says whether every target has a gradient, its own or a companion loss's.
    """

    space: Space
    objective: Objective
    exponent: float = 1.0
    seed: int = 0
    budget: int | None = None
    differentiable: bool = False
    options: Options = Options()

    @property
    def front(self) -> bool:
        """Whether a whole front is looked for."""
        return self.objective.aim == "pareto"


T = TypeVar("T")
Steps = Generator[Sequence[Ask], None, T]
"""Steps of a search that end in a T."""


class Strategy(abc.ABC):
    """Chooses which mixtures to try next, and evaluates none.

    It is written as a generator that yields what to try, all that does not wait for another's
    answer, and goes on once that was told. It is a function of its setting and of what it was
    told: told the same again, it goes on as it would have. The search is over if the steps have
    ended, or the next mixture would cost more than is left of the budget.
    """

    name: str

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._told: list[Told] = []
        self._spent = 0
        self._waiting: deque[Ask] = deque()
        self._run = self._steps()
        self._is_last = False
        self._go_on()

    @abc.abstractmethod
    def _steps(self) -> Steps[None]:
        """Yields the search's steps; they may look at what was told so far, and at nothing else."""

    @abc.abstractmethod
    def _foreseen(self) -> int:
        """Returns about how many trials there will be in all, without a budget."""

    def ask(self) -> tuple[Ask, ...]:
        """Returns what of the step at hand was not told yet; empty when the search is over."""
        return tuple(self._waiting)

    def tell(self, told: Told) -> None:
        """Takes what the first mixture that is asked for was worth.

        Raises ValueError if it is another mixture, or lacks the gradient.
        """
        if not self._waiting or told.mixture != self._waiting[0].mixture:
            raise ValueError(f"{told.mixture} was not asked for")
        if self._waiting[0].gradient and told.gradients is None:
            raise ValueError(f"the gradient of {told.mixture} was asked for")
        self._spent += self._waiting.popleft().cost
        self._told.append(told)
        self._go_on()

    def expected(self) -> int:
        """Returns about how many trials there will be in all; once over, the number told."""
        if not self._waiting:
            return len(self._told)
        num = max(self._foreseen(), len(self._told) + len(self._waiting))
        if self.setting.budget is None:
            return num
        return min(num, len(self._told) + (self.setting.budget - self._spent) // VALUE_COST)

    def chance(self) -> float | None:
        """Returns the probability that an untried mixture is better than the best that was tried.

        None if the strategy has no opinion.
        """
        return None

    def state(self) -> list[Told]:
        """Returns everything told, in order."""
        return list(self._told)

    def _go_on(self) -> None:
        """Takes steps until one asks for something, or the search is over."""
        left = math.inf if self.setting.budget is None else self.setting.budget - self._spent
        while not self._waiting and not self._is_last:
            wanted = next(self._run, None)
            costs = itertools.accumulate(asked.cost for asked in wanted or ())
            pairs = zip(wanted or (), costs, strict=True)
            self._waiting.extend(asked for asked, cost in pairs if cost <= left)
            self._is_last = wanted is None or len(self._waiting) < len(wanted)

    def _subsets(self) -> Subsets:
        """Returns the space of a strategy that tries subsets. Raises ValueError for another."""
        if not isinstance(self.setting.space, Subsets):
            able = "gradient, regression and optuna search do both"
            raise ValueError(f"{self.name} search tries subsets, not weights; {able}")
        return self.setting.space

    def _tried(self) -> list[Mixture]:
        return [told.mixture for told in self._told]

    def _rng(self) -> np.random.Generator:
        """Returns draws that depend on the seed and on how far the search is."""
        return np.random.default_rng([self.setting.seed, len(self._told)])


def check_installed(package: str, key: str, what: str) -> None:
    """Raises SettingError if a package that something takes is not installed."""
    try:
        importlib.import_module(package)
    except ImportError:
        message = f'{what} takes the package {package}: pip install "mergetomix[search]"'
        raise SettingError(key, message) from None

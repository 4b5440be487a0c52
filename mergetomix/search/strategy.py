"""Search strategies behind one seam: `ask` what to try next, `tell` what it was worth.

A strategy never evaluates anything and is a function of its setting and of what it was told, so that a resumed search goes on
as the uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mergetomix import merge
from mergetomix.mixtures.spaces import Space
from mergetomix.records import Mixture

VALUE_COST, GRADIENT_COST = 1, 3
"""Forward passes of a value, and of a value with its gradient: the backward pass costs about two."""


@dataclass(frozen=True)
class Ask:
    """What to try next; `gradient` says whether the derivative in the experts' coefficients is wanted too."""

    mixture: Mixture
    gradient: bool = False

    @property
    def cost(self) -> int:
        """Forward passes that the answer takes."""
        return GRADIENT_COST if self.gradient else VALUE_COST


@dataclass(frozen=True)
class Told:
    """What a mixture was worth; everything is better when higher.

    `values` are gains over the base by target, `objective` their combination. `gradients`, by target and dataset, are
    d value / d c_i with c_i the coefficient of the dataset's expert in the merge, for every dataset that the space allows,
    whether or not it is in the mixture. `smooth`, where given, are by target what `gradients` are the derivatives of, for
    targets whose own value has none: gains of a companion loss.
    """

    mixture: Mixture
    objective: float
    values: Mapping[str, float]
    gradients: Mapping[str, Mapping[str, float]] | None = None
    smooth: Mapping[str, float] | None = None

    @property
    def cost(self) -> int:
        """Forward passes that it took."""
        return VALUE_COST if self.gradients is None else GRADIENT_COST


def mean_value(values: Mapping[str, float]) -> float:
    """The mean over the targets."""
    return math.fsum(values.values()) / len(values)


def averaged(mixture: Mixture) -> Mapping[str, float]:
    """c_i = w_i: the coefficients of a merge whose scale is 1 / k."""
    return merge.coefficients(mixture, 1.0)


Regressor = Literal["auto", "lightgbm", "log_linear", "gp"]
Sampler = Literal["auto", "tpe", "gp", "cmaes", "nsga2", "nsga3"]


@dataclass(frozen=True)
class Options:
    """What single strategies heed: `regressor` is for `regression`; `sampler`, and `storage`, the URL of a database in which
    the trials are kept for others to look at, for `optuna`."""

    regressor: Regressor = "auto"
    sampler: Sampler = "auto"
    storage: str | None = None


class SettingError(ValueError):
    """A strategy cannot do what its setting asks; `key` is what of the recipe's section `search` is to be changed."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Setting:
    """What all strategies are built from.

    `budget` is in forward passes over the targets (`Ask.cost`), None for as many as the strategy thinks right; `combine` makes
    the objective of the targets' values; `coefficients` are those of the experts in a mixture's merge. `differentiable` says
    whether every target has a gradient, its own or that of a companion loss. `front` asks for mixtures that no other beats on
    all targets, as well as for the best objective.
    """

    space: Space
    seed: int = 0
    budget: int | None = None
    combine: Callable[[Mapping[str, float]], float] = mean_value
    coefficients: Callable[[Mixture], Mapping[str, float]] = averaged
    differentiable: bool = False
    front: bool = False
    options: Options = Options()


class Strategy(Protocol):
    """Chooses which mixture to try next."""

    name: str

    def ask(self) -> Ask | None:
        """What to try next, or None when the search is over. The same until it is told."""
        ...

    def tell(self, told: Told) -> None:
        """What the mixture last asked for was worth. Raises ValueError where it is another, or lacks the gradient."""
        ...

    def expected(self) -> int:
        """About how many trials there will be in all; at least those told."""
        ...

    def chance(self) -> float | None:
        """The probability that a mixture not tried is better than the best that was; None where the strategy has no opinion."""
        ...

    def state(self) -> Sequence[Told]:
        """Everything told, in order; with its setting it is all that a strategy depends on."""
        ...





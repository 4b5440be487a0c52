"""Search strategies behind one seam: `ask` what to try next, `tell` what it was worth.

A strategy never evaluates anything and is a function of its setting and of what it was told, so that a resumed search goes on
as the uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mergetomix.mixtures.spaces import Space
from mergetomix.objectives.objective import Objective
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

    `objective` is what of several targets is best; where it is `pareto`, mixtures are looked for
    that no other beats on all targets. The experts' coefficients in the merge of weights w are
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


class Strategy(Protocol):
    """Chooses which mixtures to try next.

    A strategy evaluates nothing. It is a function of its setting and of what it was told: told the
    same again, it goes on as it would have.
    """

    name: str

    def ask(self) -> tuple[Ask, ...]:
        """Returns what to try next: all that does not wait for another's answer.

        Empty when the search is over. What was told since is left out of it.
        """
        ...

    def tell(self, told: Told) -> None:
        """Takes what the first mixture that is asked for was worth.

        Raises ValueError where it is another mixture, or lacks the gradient.
        """
        ...

    def expected(self) -> int:
        """Returns about how many trials there will be in all; at least those told."""
        ...

    def chance(self) -> float | None:
        """Returns the probability that a mixture not tried is better than the best that was.

        None where the strategy has no opinion.
        """
        ...

    def state(self) -> Sequence[Told]:
        """Returns everything told, in order."""
        ...

"""Mixtures as values of Optuna's variables, and back: all values are mixtures of the space.

Legend of shapes: U units of a space of subsets, S sums of their sizes from 0 on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.records import Mixture

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Array = NDArray[np.float64]

IN, OUT = 0.75, 0.25
"""A relaxed variable of a unit that is in, and of one that is not."""
TIE = 0.1
"""Units that are as near to going as to staying are told apart by up to so much, drawn."""
PRESENT = 0.5
"""A dataset is in the mixture if its variable is below: half of all mixtures have it."""
LEAST_VARIABLE = 1e-4


class UnitVariables:
    """One variable for each unit of a space of subsets.

    It says whether the unit is in, or, relaxed, is a number that is above 1/2 if so. Values that
    make no mixture stand for the one that differs in the fewest units; relaxed, in those nearest to
    1/2. So no trial is spent on what cannot be tried, which with Optuna's constraints a sampler
    first has to learn, and every sampler can be used.
    """

    def __init__(self, space: Subsets, relaxed: bool, seed: int) -> None:
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        self._space, self._relaxed, self._seed = space, relaxed, seed
        self._units = {" + ".join(sorted(unit)): unit for unit in space.units}
        kind = FloatDistribution(0.0, 1.0) if relaxed else CategoricalDistribution((False, True))
        self.distributions: dict[str, BaseDistribution] = dict.fromkeys(self._units, kind)

    def mixture(self, params: Mapping[str, Any]) -> Mixture:
        """Returns the mixture of some values."""
        lean_U = np.array([float(params[name]) for name in self._units]) - 0.5
        chosen = self._union(lean_U > 0)
        if chosen not in self._space:
            chosen = self._union(self._nearest(lean_U))
        return self._space.mixture(chosen)

    def params(self, mixture: Mixture) -> dict[str, Any]:
        """Returns values whose mixture is this one."""
        values, datasets = (
            (OUT, IN) if self._relaxed else (False, True),
            frozenset(mixture.datasets),
        )
        return {name: values[unit <= datasets] for name, unit in self._units.items()}

    def _union(self, bits_U: NDArray[np.bool_]) -> frozenset[str]:
        chosen = (unit for unit, bit in zip(self._units.values(), bits_U, strict=True) if bit)
        return self._space.fixed.union(*chosen)

    def _nearest(self, lean_U: Array) -> NDArray[np.bool_]:
        """Returns the mixture of the least changes: dynamic programming over sums of sizes."""
        price_U = np.abs(lean_U)
        if not self._relaxed:
            bits = (lean_U > 0).astype(int).tolist()
            price_U = 1 + TIE * np.random.default_rng([self._seed, *bits]).random(len(lean_U))
        sizes = [len(unit) for unit in self._units.values()]
        num_fixed = len(self._space.fixed)
        num = self._space.bounds[1] - num_fixed
        cost_S, takes = np.full(num + 1, math.inf), []
        cost_S[0] = 0.0
        for size, lean, price in zip(sizes, lean_U.tolist(), price_U.tolist(), strict=True):
            moved_S = np.concatenate([np.full(min(size, num + 1), math.inf), cost_S[:-size]])
            with_S, without_S = (moved_S, cost_S + price) if lean > 0 else (moved_S + price, cost_S)
            takes.append(with_S < without_S)
            cost_S = np.minimum(with_S, without_S)
        allowed = (size - num_fixed for size in self._space.num_by_size)
        left = min(allowed, key=lambda size: float(cost_S[size]))
        bits_U = np.zeros(len(sizes), dtype=bool)
        for index in reversed(range(len(sizes))):
            bits_U[index] = takes[index][left]
            left -= sizes[index] * int(bits_U[index])
        return bits_U


class ShareVariables:
    """One variable u in (0, 1] for each dataset: out if u > 1/2, else a share of log(1/2 / u).

    If u is uniform, every set of datasets is as likely as any other, and their weights are
    Dirichlet, all parameters one: -log of a uniform number is exponential, and what is left of an
    exponential over a bound is exponential again. Weights that break a constraint stand for
    `Simplex.nearest` to them.
    """

    def __init__(self, space: Simplex) -> None:
        from optuna.distributions import FloatDistribution

        self._space, self._names = space, space.allowed
        kind = FloatDistribution(LEAST_VARIABLE, 1.0)
        self.distributions: dict[str, BaseDistribution] = dict.fromkeys(self._names, kind)

    def mixture(self, params: Mapping[str, Any]) -> Mixture:
        """Returns the mixture of some values."""
        parts = {name: max(0.0, math.log(PRESENT / params[name])) for name in self._names}
        total = math.fsum(parts.values())
        if total == 0:
            return self._space.nearest({min(self._names, key=lambda name: params[name]): 1.0})
        return self._space.nearest({name: part / total for name, part in parts.items()})

    def params(self, mixture: Mixture) -> dict[str, Any]:
        """Returns values whose mixture is near to this one; small weights are apart from theirs.

        An exponential number is one on average, so k datasets' shares sum to k.
        """
        weights, out = mixture.as_dict(), (1 + PRESENT) / 2
        parts = {name: len(mixture) * weights.get(name, 0.0) for name in self._names}
        return {
            name: max(PRESENT * math.exp(-part), LEAST_VARIABLE) if part > 0 else out
            for name, part in parts.items()
        }


def variables_of(space: Space, relaxed: bool, seed: int) -> UnitVariables | ShareVariables:
    """Returns a space's variables; `relaxed` asks for numbers if they would be yes or no."""
    if isinstance(space, Subsets):
        return UnitVariables(space, relaxed, seed)
    return ShareVariables(space)

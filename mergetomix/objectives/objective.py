"""What a mixture is chosen by: one number made of its gains on all targets.

    gain               sum_t w_t g_t / sum_t w_t
    standard_errors    sum_t w_t (g_t / u_t) / sum_t w_t    u_t: one standard error of the target
    worst              min_t g_t
    pareto             min_t p_t + REST * mean_t p_t        p_t = 1 - v_t (ideal_t - g_t) / range_t

g_t is the gain over the base, w_t the target's weight, v_t the same weight if their mean is one.
Higher is better everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mergetomix.objectives.pareto import is_front
from mergetomix.records import Scores, gain

Array = NDArray[np.float64]
Aim = Literal["gain", "standard_errors", "worst", "pareto"]
REST = 1e-3
"""How much the mean counts in `pareto`, so that of mixtures whose worst parts are equal the best is
of the front (the augmented Chebyshev distance of Steuer and Choo 1983)."""


def gains(scores: Mapping[str, Scores], base: Mapping[str, Scores]) -> dict[str, float]:
    """Returns the gain over the base by target."""
    return {name: gain(each, base[name]) for name, each in scores.items()}


@dataclass(frozen=True)
class Objective:
    """One number of the gains on several targets, as the module says.

    `units` are the targets' standard errors. `ideal` and `ranges` are those of a front, which is
    known once a search is over; until then `pareto` is the weighted mean of the gains.
    """

    weights: Mapping[str, float]
    aim: Aim = "gain"
    units: Mapping[str, float] = field(default_factory=dict)
    ideal: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_linear(self) -> bool:
        """Whether it is a weighted sum of the gains."""
        return self.aim != "worst" and not self.ideal

    def of(self, scores: Mapping[str, Scores], base: Mapping[str, Scores]) -> float:
        """Returns the objective of a model from its scores and the base's."""
        return self.combine(gains(scores, base))

    def combine(self, values: Mapping[str, float]) -> float:
        """Returns the objective of gains by target.

        >>> Objective({"code": 1, "maths": 3}).combine({"code": 0.4, "maths": 0.0})
        0.1
        >>> Objective({"code": 1, "maths": 3}, "worst").combine({"code": 0.4, "maths": 0.0})
        0.0
        """
        parts = [float(self._part(name, values[name])) for name in self.weights]
        return float(self._whole(min(parts), math.fsum(parts)))

    def over(self, values: Iterable[tuple[str, Array]]) -> Array:
        """Returns the objective of arrays, value by value; targets may come one at a time."""
        lowest: Array | float = math.inf
        total: Array | float = 0.0
        for name, each in values:
            part = self._part(name, each)
            lowest, total = np.minimum(lowest, part), total + part
        return np.asarray(self._whole(lowest, total))

    def slope(self, name: str) -> float:
        """Returns the derivative in the gain of one target; the objective must be linear."""
        return self.weights[name] / sum(self.weights.values()) / self.units.get(name, 1.0)

    def settled(self, values: Sequence[Mapping[str, float]]) -> Objective:
        """Returns the objective whose best is the knee of the front of some mixtures' gains.

        The ideal is the best gain of each target, a range the ideal less the smallest gain of the
        front; if that is zero it is the range of all mixtures, or else one.
        """
        rows = np.array([[each[name] for name in self.weights] for each in values])
        front = rows[is_front(rows)]
        widths = zip(np.ptp(front, axis=0).tolist(), np.ptp(rows, axis=0).tolist(), strict=True)
        ranges = [of_front or of_all or 1.0 for of_front, of_all in widths]
        ideal = dict(zip(self.weights, front.max(axis=0).tolist(), strict=True))
        return replace(self, ideal=ideal, ranges=dict(zip(self.weights, ranges, strict=True)))

    def _part(self, name: str, value: float | Array) -> float | Array:
        if self.ideal:
            share = self.weights[name] * len(self.weights) / sum(self.weights.values())
            return 1 - share * (self.ideal[name] - value) / self.ranges[name]
        if self.aim == "worst":
            return value
        return self.weights[name] * (value / self.units.get(name, 1.0))

    def _whole(self, lowest: float | Array, total: float | Array) -> float | Array:
        if self.is_linear:
            return total / sum(self.weights.values())
        return lowest if self.aim == "worst" else lowest + REST * total / len(self.weights)


@dataclass(frozen=True)
class OverTargets:
    """A search's objective over arrays of the values of T targets, in order, and K candidates."""

    objective: Objective
    targets: tuple[str, ...]

    def __call__(self, values_TK: Array) -> Array:
        """Returns the objective of each candidate, shape (K,)."""
        return self.objective.over(zip(self.targets, values_TK, strict=True))

    def slopes(self, values_TK: Array) -> Array:
        """Returns d objective / d gain, shape (T, K); of equal smallest gains the first has it."""
        if self.objective.is_linear:
            slopes_T = np.array([self.objective.slope(name) for name in self.targets])
            return np.repeat(slopes_T[:, None], values_TK.shape[1], axis=1)
        worst_K = values_TK.argmin(axis=0)
        return np.asarray(np.arange(len(values_TK))[:, None] == worst_K, dtype=np.float64)

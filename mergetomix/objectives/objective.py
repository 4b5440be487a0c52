"""What a mixture is chosen by: one number made of its gains on all targets.

    gain               sum_t w_t g_t / sum_t w_t
    standard_errors    sum_t w_t (g_t / u_t) / sum_t w_t                u_t: one standard error of the target
    worst              min_t g_t
    pareto             min_t p_t + REST * mean_t p_t                    p_t = 1 - v_t (ideal_t - g_t) / range_t

g_t is the gain over the base, w_t the target's weight, v_t the same weight where their mean is one. Everything is better when
higher.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mergetomix.objectives.pareto import is_front
from mergetomix.records import Scores, gain

Array = NDArray[np.float64]
Aim = Literal["gain", "standard_errors", "worst", "pareto"]
REST = 1e-3
"""How much the mean counts beside the worst part of `pareto`: enough for the best of all to be of the front, where the worst
parts of two mixtures are equal (the augmented Chebyshev distance of Steuer and Choo 1983)."""


def gains(scores: Mapping[str, Scores], base: Mapping[str, Scores]) -> dict[str, float]:
    """The gain over the base by target."""
    return {name: gain(each, base[name]) for name, each in scores.items()}


@dataclass(frozen=True)
class Objective:
    """One number of the gains on several targets, see the module.

    `units` are the standard errors of `standard_errors`, one a target. `ideal` and `ranges` are those of a front, which is
    known once a search is over; until then `pareto` is the weighted mean of the gains, by which a search that knows of no front
    goes.
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
        """A model's."""
        return self.combine(gains(scores, base))

    def combine(self, values: Mapping[str, float]) -> float:
        """Of the gains by target."""
        parts = [float(self._part(name, values[name])) for name in self.weights]
        return float(self._whole(min(parts), math.fsum(parts)))

    def over(self, values: Iterable[tuple[str, Array]]) -> Array:
        """Of arrays of gains, value by value; the targets come one at a time, so that not all need lie in memory."""
        lowest: Array | float = math.inf
        total: Array | float = 0.0
        for name, each in values:
            part = self._part(name, each)
            lowest, total = np.minimum(lowest, part), total + part
        return np.asarray(self._whole(lowest, total))

    def slope(self, name: str) -> float:
        """Derivative in the gain of one target, where it is linear."""
        return self.weights[name] / sum(self.weights.values()) / self.units.get(name, 1.0)

    def settled(self, values: Sequence[Mapping[str, float]]) -> Objective:
        """With the ideal and the ranges of the front of some mixtures, whose best is then the front's knee.

        The ideal has the best gain of each target, the nadir the least within the front; a range is ideal less nadir. Where the
        front does not differ on a target it is that of all mixtures, and one where these do not differ either.
        """
        rows = np.array([[each[name] for name in self.weights] for each in values])
        front = rows[is_front(rows)]
        widths = zip(np.ptp(front, axis=0).tolist(), np.ptp(rows, axis=0).tolist(), strict=True)
        ranges = [front or every or 1.0 for front, every in widths]
        ideal = dict(zip(self.weights, front.max(axis=0).tolist(), strict=True))
        return replace(self, ideal=ideal, ranges=dict(zip(self.weights, ranges, strict=True)))

    def _part(self, name: str, value: float | Array) -> float | Array:
        if self.ideal:
            share = self.weights[name] * len(self.weights) / sum(self.weights.values())
            return 1 - share * (self.ideal[name] - value) / self.ranges[name]
        return (
            value
            if self.aim == "worst"
            else self.weights[name] * (value / self.units.get(name, 1.0))
        )

    def _whole(self, lowest: float | Array, total: float | Array) -> float | Array:
        if self.is_linear:
            return total / sum(self.weights.values())
        return lowest if self.aim == "worst" else lowest + REST * total / len(self.weights)


class Scalar(Protocol):
    """One number of the values on several targets, for many candidates at once."""

    def __call__(self, values_TK: Array) -> Array:
        """Returns the number of each candidate, shape (K,), from values of shape (T, K)."""
        ...

    def slopes(self, values_TK: Array) -> Array:
        """Returns d number / d value by target and candidate, shape (T, K)."""
        ...


@dataclass(frozen=True)
class OverTargets:
    """An objective over arrays whose first axis is the targets, in the order of `targets`.

    Legend of shapes: T targets, K candidates.
    """

    objective: Objective
    targets: tuple[str, ...]

    def __call__(self, values_TK: Array) -> Array:
        """Returns the objective of each candidate, shape (K,)."""
        return self.objective.over(zip(self.targets, values_TK, strict=True))

    def slopes(self, values_TK: Array) -> Array:
        """Returns d objective / d gain by target and candidate, shape (T, K).

        Of the smallest gain it is one for the target that has it, the first of equals.
        """
        if self.objective.is_linear:
            slopes_T = np.array([self.objective.slope(name) for name in self.targets])
            return np.repeat(slopes_T[:, None], values_TK.shape[1], axis=1)
        worst_K = values_TK.argmin(axis=0)
        return np.asarray(np.arange(len(values_TK))[:, None] == worst_K, dtype=np.float64)

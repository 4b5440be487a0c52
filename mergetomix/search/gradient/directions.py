"""Objectives that lead a search to the parts of a front, and what a mixture adds to it.

Legend of shapes: K candidates, M trials, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergetomix.objectives.pareto import hypervolume, is_front
from mergetomix.search.candidates import Array
from mergetomix.search.strategy import Told

REST = 0.05
"""How much the sum counts beside the largest weighted distance (ParEGO, Knowles 2006, III.A)."""
BELOW = 0.1
"""How far the reference lies below the front, in its units, so that its ends add something too."""


class Direction:
    """Minus the augmented Chebyshev distance to the best of each target, weighted.

    Its highest point is of the front, and every point of a front, a hollow one too, is the highest
    for some weights. It is over arrays, as `OverTargets` is.
    """

    def __init__(self, weights_T: Array, ideal_T: Array, range_T: Array) -> None:
        self._weights_T1 = (weights_T / range_T)[:, None]
        self._ideal_T1 = ideal_T[:, None]

    def __call__(self, values_TK: Array) -> Array:
        """Returns the objectives, shape (K,)."""
        parts_TK = (values_TK - self._ideal_T1) * self._weights_T1
        return np.asarray(self._counting(parts_TK).min(axis=0) + REST * parts_TK.sum(axis=0))

    def slopes(self, values_TK: Array) -> Array:
        """Returns d objective / d value by target and candidate, shape (T, K)."""
        parts_TK = (values_TK - self._ideal_T1) * self._weights_T1
        is_worst_TK = np.arange(len(values_TK))[:, None] == self._counting(parts_TK).argmin(axis=0)
        return np.asarray((is_worst_TK + REST) * self._weights_T1)

    def _counting(self, parts_TK: Array) -> Array:
        """Leaves out targets without weight, which are never the worst."""
        return np.where(self._weights_T1 > 0, parts_TK, np.inf)


class Outlook:
    """The front of what was told, and how far it may reach.

    `expected_TK` are values that the model expects of mixtures not yet tried, such as the best of
    each target. Ideal, nadir and ranges are those of the front of both: ends that were not tried
    yet would lie below the nadir of what was.
    """

    def __init__(self, told: Sequence[Told], expected_TK: Array | None = None) -> None:
        values_MT = values_of(told).T
        self._front_KT = values_MT[is_front(values_MT)]
        every_MT = values_MT if expected_TK is None else np.vstack([values_MT, expected_TK.T])
        front_MT = every_MT[is_front(every_MT)]
        of_front_T, of_all_T = np.ptp(front_MT, axis=0), np.ptp(every_MT, axis=0)
        width_T = np.where(of_front_T > 0, of_front_T, of_all_T)
        self._range_T = np.where(width_T > 0, width_T, 1.0)
        self._ideal_T = front_MT.max(axis=0)
        self._reference_T = front_MT.min(axis=0) - BELOW * self._range_T

    def alone(self) -> list[Direction]:
        """Returns the directions to the best of each target, whatever the others."""
        return [self._direction(weights_T) for weights_T in np.eye(len(self._ideal_T))]

    def among(self, num: int, rng: np.random.Generator) -> list[Direction]:
        """Returns directions between them: all targets alike, then weights drawn uniformly."""
        num_T = len(self._ideal_T)
        drawn_DT = rng.dirichlet(np.ones(num_T), num)
        return [self._direction(weights_T) for weights_T in (np.full(num_T, 1 / num_T), *drawn_DT)]

    def added(self, values_TK: Array) -> Array:
        """Returns how much volume each candidate would add to what the front reaches, shape (K,).

        In the front's units it is the candidate's box without what the front, cut at the
        candidate, holds of it.
        """
        front_KT, points_KT = self._above(self._front_KT), self._above(values_TK.T)
        nothing_T = np.zeros(len(self._ideal_T))
        held = [hypervolume(np.minimum(front_KT, point), nothing_T) for point in points_KT]
        return np.asarray(np.maximum(points_KT.prod(axis=1) - held, 0.0))

    def _above(self, points_KT: Array) -> Array:
        return np.asarray(np.maximum((points_KT - self._reference_T) / self._range_T, 0.0))

    def _direction(self, weights_T: Array) -> Direction:
        return Direction(weights_T, self._ideal_T, self._range_T)


def values_of(told: Sequence[Told]) -> Array:
    """Returns what gradients are the derivatives of, targets in the order of names; shape (T, M).

    These are the values, or what stands for those without a derivative.
    """
    values = [each.smooth or each.values for each in told]
    return np.array([[each[name] for name in sorted(each)] for each in values]).T

"""Where a search for a whole front looks: objectives that lead to its different parts, and what a mixture would add to it.

Legend of shapes: K candidates, M trials, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mergetomix.objectives.pareto import hypervolume, is_front
from mergetomix.search.strategy import Told

Array = NDArray[np.float64]
REST = 0.05
"""How much the weighted sum counts beside the largest weighted distance (ParEGO, Knowles 2006, section III.A)."""
BELOW = 0.1
"""How far the reference point of what is added lies below the front, in its units: its ends then add something too."""


class Direction:
    """Minus the augmented Chebyshev distance to the best of each target, weighted: its highest point is of the front, and every
    point of a front, a hollow one too, is the highest for some weights. Over arrays, as `OverTargets` is."""

    def __init__(self, weights_T: Array, ideal_T: Array, range_T: Array) -> None:
        self._weights_T1 = (weights_T / range_T)[:, None]
        self._ideal_T1 = ideal_T[:, None]

    def __call__(self, values_TK: Array) -> Array:
        """The objectives, shape (K,)."""
        parts_TK = self._parts(values_TK)
        return np.asarray(self._counting(parts_TK).min(axis=0) + REST * parts_TK.sum(axis=0))

    def slopes(self, values_TK: Array) -> Array:
        """d objective / d value by target and candidate, shape (T, K)."""
        worst_K = self._counting(self._parts(values_TK)).argmin(axis=0)
        return np.asarray(
            ((np.arange(len(values_TK))[:, None] == worst_K) + REST) * self._weights_T1
        )

    def _parts(self, values_TK: Array) -> Array:
        return np.asarray((values_TK - self._ideal_T1) * self._weights_T1)

    def _counting(self, parts_TK: Array) -> Array:
        """A target without weight is never the worst."""
        return np.where(self._weights_T1 > 0, parts_TK, np.inf)


class Outlook:
    """The front of what was told, and how far it may reach: `expected_TK` are values that the model expects of mixtures not yet
    tried, such as the best of each target.

    Ideal, nadir and ranges are those of the front of both: ends that were not tried yet would lie below the nadir of what was.
    """

    def __init__(self, told: Sequence[Told], expected_TK: Array | None = None) -> None:
        self._targets = sorted(told[0].values)
        values_MT = np.array([self.row(each) for each in told])
        self._front_KT = values_MT[is_front(values_MT)]
        every_MT = values_MT if expected_TK is None else np.vstack([values_MT, expected_TK.T])
        front_MT = every_MT[is_front(every_MT)]
        widths = np.where(
            np.ptp(front_MT, axis=0) > 0, np.ptp(front_MT, axis=0), np.ptp(every_MT, axis=0)
        )
        self._range_T = np.where(widths > 0, widths, 1.0)
        self._ideal_T = front_MT.max(axis=0)
        self._reference_T = front_MT.min(axis=0) - BELOW * self._range_T

    @property
    def num_targets(self) -> int:
        """How many targets there are."""
        return len(self._targets)

    def row(self, told: Told) -> list[float]:
        """Its values, or what stands for those without a derivative."""
        values = told.smooth or told.values
        return [values[name] for name in self._targets]

    def alone(self) -> list[Direction]:
        """To the best of each target, whatever the others."""
        return [self._direction(weights_T) for weights_T in np.eye(self.num_targets)]

    def among(self, num: int, rng: np.random.Generator) -> list[Direction]:
        """Between them: all targets alike, then weights drawn uniformly."""
        drawn_DT = rng.dirichlet(np.ones(self.num_targets), num)
        return [
            self._direction(weights_T)
            for weights_T in (np.full(self.num_targets, 1 / self.num_targets), *drawn_DT)
        ]

    def added(self, values_TK: Array) -> Array:
        """How much volume each candidate would add to what the front reaches, in its units, shape (K,): its box without what
        the front, cut at the candidate, holds of it."""
        front_KT, points_KT = self._above(self._front_KT), self._above(values_TK.T)
        nothing_T = np.zeros(self.num_targets)
        held = [hypervolume(np.minimum(front_KT, point), nothing_T) for point in points_KT]
        return np.asarray(np.maximum(points_KT.prod(axis=1) - held, 0.0))

    def _above(self, points_KT: Array) -> Array:
        return np.asarray(np.maximum((points_KT - self._reference_T) / self._range_T, 0.0))

    def _direction(self, weights_T: Array) -> Direction:
        return Direction(weights_T, self._ideal_T, self._range_T)

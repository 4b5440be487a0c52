"""Local search over the subsets of a space too large for tables: add, drop, exchange.

Legend of shapes: U units, T targets, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergetomix.search.gradient.tables import Array, Bits, Curve, Frame, Line

Pieces = tuple[Line, Curve]


@dataclass(frozen=True)
class Neighbours:
    """Subsets that differ from one by a unit more, a unit less, or one unit for another; `leave_K` and `enter_K` are those
    units, -1 for none."""

    leave_K: NDArray[np.intp]
    enter_K: NDArray[np.intp]

    @classmethod
    def of(cls, bits_U: Bits) -> Neighbours:
        """All of a subset's."""
        inside, outside = np.flatnonzero(bits_U), np.flatnonzero(~bits_U)
        none = np.array([-1])
        pairs = [
            np.meshgrid(inside, outside),
            np.meshgrid(inside, none),
            np.meshgrid(none, outside),
        ]
        return cls(*(np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1)))

    def change(self, steps_U: Array) -> Array:
        """How a sum over the units of a subset changes."""
        padded = np.append(steps_U, 0.0)
        return np.asarray(padded[self.enter_K] - padded[self.leave_K])

    def cross(self, crosses_UU: Array) -> Array:
        """The crosses of the unit that leaves with the one that enters; zero where there are not both."""
        padded = np.pad(crosses_UU, ((0, 1), (0, 1)))
        return np.asarray(padded[self.leave_K, self.enter_K])

    def bits(self, bits_U: Bits, index: int) -> Bits:
        """One of them."""
        out = bits_U.copy()
        out[self.leave_K[index : index + 1][self.leave_K[index : index + 1] >= 0]] = False
        out[self.enter_K[index : index + 1][self.enter_K[index : index + 1] >= 0]] = True
        return out


class Climber:
    """Goes uphill on the objective of some quadratics, one for each target."""

    def __init__(
        self, frame: Frame, pieces: Sequence[Pieces], combined: Callable[[Array], Array]
    ) -> None:
        self._frame, self._pieces, self._combined = frame, pieces, combined

    def objectives(self, bits_KU: Bits) -> Array:
        """Of some subsets, shape (K,)."""
        frame = self._frame
        t_K = frame.factor(frame.sum.at(bits_KU), frame.squares.at(bits_KU))
        return self._combined(
            np.stack(
                [(curve.at(bits_KU) * t_K + line.at(bits_KU)) * t_K for line, curve in self._pieces]
            )
        )

    def around(self, bits_U: Bits) -> tuple[Neighbours, Array]:
        """A subset's neighbours and their objectives, -inf for those that the space does not allow."""
        frame, near = self._frame, Neighbours.of(bits_U)
        row = bits_U[None]
        sum_K, squares_K, num_K = (
            each.at(row) + near.change(each.steps_U)
            for each in (frame.sum, frame.squares, frame.num)
        )
        allowed_K = (num_K > 0.5) & frame.is_allowed(num_K)
        with np.errstate(invalid="ignore", divide="ignore"):
            t_K = np.where(allowed_K, frame.factor(sum_K, squares_K), 0.0)
        values = [self._changed(near, bits_U, line, curve, t_K) for line, curve in self._pieces]
        return near, np.where(allowed_K, self._combined(np.stack(values)), -np.inf)

    def climb(self, bits_U: Bits) -> tuple[Bits, Neighbours, Array]:
        """Goes to the best neighbour until none is better; gives where it ends and what is around."""
        height = float(self.objectives(bits_U[None])[0])
        while True:
            near, objective_K = self.around(bits_U)
            best = int(objective_K.argmax()) if len(objective_K) else -1
            if best < 0 or not objective_K[best] > height + 1e-12 * abs(height):
                return bits_U, near, objective_K
            bits_U, height = near.bits(bits_U, best), float(objective_K[best])

    @staticmethod
    def _changed(near: Neighbours, bits_U: Bits, line: Line, curve: Curve, t_K: Array) -> Array:
        row = bits_U[None]
        field_U = curve.line.steps_U + curve.crosses_UU @ bits_U
        quadratic_K = curve.at(row) + near.change(field_U) - near.cross(curve.crosses_UU)
        return np.asarray((quadratic_K * t_K + line.at(row) + near.change(line.steps_U)) * t_K)

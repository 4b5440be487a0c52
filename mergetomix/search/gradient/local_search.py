"""Local search over the subsets of a space too large for tables: add, drop, exchange.

Legend of shapes: U units, T targets, K subsets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mergetomix.search.candidates import Array
from mergetomix.search.gradient.subset_quadratics import BitPolynomial, Bits, SubsetFrame


class Climber:
    """Goes uphill on the objective that `combined` makes of targets' values, shape (T, K).

    Each of `targets` is a quadratic, as `SubsetFrame.polynomials` gives it.
    """

    def __init__(
        self,
        frame: SubsetFrame,
        targets: Sequence[tuple[BitPolynomial, ...]],
        combined: Callable[[Array], Array],
    ) -> None:
        self._frame, self._targets, self._combined = frame, targets, combined

    def climb(self, bits_U: Bits) -> tuple[Bits, Array]:
        """Goes to the best neighbour until none is better; returns what is around the end."""
        height = float(self.objectives(bits_U[None])[0])
        while True:
            around_KU, objective_K = self.around(bits_U)
            best = int(objective_K.argmax())
            if not objective_K[best] > height + 1e-12 * abs(height):
                return around_KU, objective_K
            bits_U, height = around_KU[best], float(objective_K[best])

    def around(self, bits_U: Bits) -> tuple[Bits, Array]:
        """Returns a subset and those with a unit more, less or another, and their objectives."""
        inside, outside, none = np.flatnonzero(bits_U), np.flatnonzero(~bits_U), np.array([-1])
        sides = ((none, none), (none, outside), (inside, none), (inside, outside))
        pairs = [np.meshgrid(leave, enter) for leave, enter in sides]
        leave_K, enter_K = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
        around_KU = np.tile(np.append(bits_U, False), (len(leave_K), 1))  # none is the last column
        around_KU[np.arange(len(leave_K)), leave_K] = False
        around_KU[np.arange(len(leave_K)), enter_K] = True
        return around_KU[:, :-1], self._combine(lambda each: each.after(bits_U, leave_K, enter_K))

    def objectives(self, bits_KU: Bits) -> Array:
        """Returns the objectives of some subsets, -inf for those not allowed, shape (K,)."""
        return self._combine(lambda each: each.at(bits_KU))

    def _combine(self, value_of: Callable[[BitPolynomial], Array]) -> Array:
        has_K, t_K = self._frame.factors([value_of(each) for each in self._frame.sums])
        values = [(value_of(q) * t_K + value_of(p)) * t_K for p, q in self._targets]
        return np.where(has_K, self._combined(np.stack(values)), -np.inf)

"""Quadratics in the experts' coefficients over the subsets of a space: all at once, or some.

Legend of shapes: N datasets, U units (datasets and groups that may be in or out), K subsets, 2^U
choices of units. A subset's coefficients are c_i = t s_i for its members, s_i being one or the
dataset's size and t = k^(1 - exponent) / sum_i s_i. So b . c + c . H c / 2 = t P + t^2 Q with P
linear and Q quadratic in the bits that say which units are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mergetomix.mixtures.spaces import Subsets
from mergetomix.search.candidates import Array

Bits = NDArray[np.bool_]


def sums_of_choices(start: float, steps_U: Array) -> Array:
    """Returns start + steps . bits for every choice, bit j being worth 2^j; shape (2^U,).

    >>> sums_of_choices(1.0, np.array([10.0, 100.0])).tolist()
    [1.0, 11.0, 101.0, 111.0]
    """
    found = np.array([start])
    for step in steps_U:
        found = np.concatenate([found, found + step])
    return found


@dataclass(frozen=True)
class BitPolynomial:
    """start + steps . bits + the sum of crosses over pairs of units that are both in.

    `crosses_UU` is symmetric with a diagonal of zeros.
    """

    start: float
    steps_U: Array
    crosses_UU: Array

    def of_choices(self) -> Array:
        """Returns its value for every choice, bit j being worth 2^j; shape (2^U,)."""
        found = np.array([self.start])
        for j, step in enumerate(self.steps_U):
            found = np.concatenate([found, found + sums_of_choices(step, self.crosses_UU[j, :j])])
        return found

    def at(self, bits_KU: Bits) -> Array:
        """Returns its value for some subsets, shape (K,)."""
        pairs_K = ((bits_KU @ self.crosses_UU) * bits_KU).sum(axis=1) / 2
        return np.asarray(self.start + bits_KU @ self.steps_U + pairs_K)

    def after(self, bits_U: Bits, leave_K: NDArray[np.intp], enter_K: NDArray[np.intp]) -> Array:
        """Returns its value once one unit has left and one has entered, -1 for none; shape (K,)."""
        step_U = np.append(self.steps_U + self.crosses_UU @ bits_U, 0.0)
        both_K = np.pad(self.crosses_UU, ((0, 1), (0, 1)))[leave_K, enter_K]
        return np.asarray(self.at(bits_U[None]) + step_U[enter_K] - step_U[leave_K] - both_K)


class SubsetFrame:
    """A space's subsets as rows of bits, and what does not change from quadratic to quadratic."""

    def __init__(self, space: Subsets, exponent: float) -> None:
        self.space, self._exponent = space, exponent
        names, sizes = space.allowed, space.sizes or dict.fromkeys(space.allowed, 1.0)
        size_N = np.array([float(sizes[name]) for name in names])
        self._size_N = size_N / size_N.mean()
        in_UN = [[name in unit for name in names] for unit in space.units]
        self._in_UN = np.array(in_UN, dtype=float).reshape(len(space.units), len(names))
        self._fixed_N = np.array([name in space.fixed for name in names], dtype=float)
        self._is_size = np.isin(np.arange(len(names) + 1), list(space.num_by_size))
        self.sums = [self._sum(self._size_N**power) for power in (0, 1, 2)]

    def polynomials(self, slope_N: Array, curvature_NN: Array) -> tuple[BitPolynomial, ...]:
        """Returns P and Q of the quadratic with this slope and curvature."""
        scaled_NN = self._size_N[:, None] * curvature_NN * self._size_N
        pairs_UU = self._in_UN @ scaled_NN @ self._in_UN.T
        steps_U = self._in_UN @ (scaled_NN @ self._fixed_N) + np.diag(pairs_UU) / 2
        start = float(self._fixed_N @ scaled_NN @ self._fixed_N) / 2
        quadratic = BitPolynomial(start, steps_U, pairs_UU - np.diag(np.diag(pairs_UU)))
        return self._sum(slope_N * self._size_N), quadratic

    def table(self, slope_N: Array, curvature_NN: Array) -> Array:
        """Returns b . c + c . H c / 2 for every choice of units, zero for those not allowed."""
        line, curve = self.polynomials(slope_N, curvature_NN)
        _, t = self.choices
        return np.asarray((curve.of_choices() * t + line.of_choices()) * t)

    @cached_property
    def choices(self) -> tuple[Bits, Array]:
        """Returns `factors` of every choice of units, shapes (2^U,)."""
        return self.factors([each.of_choices() for each in self.sums])

    def factors(self, sums: Sequence[Array]) -> tuple[Bits, Array]:
        """Returns whether the space has the subsets with these `sums`, and their t or zero.

        t = k^(1 - exponent) / sum with k = sum^2 / squares
        """
        num_K, sum_K, squares_K = sums
        whole_K = np.rint(num_K).astype(int)
        has_K = (whole_K > 0) & self._is_size[whole_K]
        with np.errstate(invalid="ignore", divide="ignore"):
            t_K = (sum_K**2 / squares_K) ** (1 - self._exponent) / sum_K
        return np.asarray(has_K), np.where(has_K, t_K, 0.0)

    def bits(self, subsets: Sequence[frozenset[str]]) -> Bits:
        """Returns subsets as bits, shape (K, U)."""
        found = [[bool(unit & datasets) for unit in self.space.units] for datasets in subsets]
        return np.array(found, dtype=bool).reshape(len(subsets), len(self.space.units))

    def unions(self, bits_KU: Bits) -> list[frozenset[str]]:
        """Returns bits as subsets."""
        units, fixed = np.array(self.space.units, dtype=object), self.space.fixed
        return [fixed.union(*units[row]) for row in bits_KU]

    def _sum(self, x_N: Array) -> BitPolynomial:
        """Returns the sum of some numbers over a subset's datasets."""
        none_UU = np.zeros((len(self._in_UN), len(self._in_UN)))
        return BitPolynomial(float(self._fixed_N @ x_N), self._in_UN @ x_N, none_UU)

"""Quadratics in the coefficients over the subsets of a space: all of them at once, or from one to its neighbours.

Legend of shapes: N datasets, U units (datasets and groups that may be in or out), T targets, K subsets, 2^U their choices.
A subset's coefficients are c_i = t s_i for its members, s_i being one or the dataset's size, t = k^(1 - exponent) / sum_i s_i.
So b . c + c . H c / 2 = t P + t^2 Q with P linear and Q quadratic in the bits that say which units are in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergetomix.mixtures.spaces import Subsets

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]


def effective(weights_KN: Array) -> Array:
    """The effective number of datasets, 1 / sum_i w_i^2, shape (K,)."""
    return np.asarray(1 / (weights_KN**2).sum(axis=1))


@dataclass(frozen=True)
class Line:
    """start + steps . bits."""

    start: float
    steps_U: Array

    def table(self) -> Array:
        """Its value for every choice of units, the bit of unit j being worth 2^j; shape (2^U,)."""
        out = np.empty(1 << len(self.steps_U))
        out[0] = self.start
        for j, step in enumerate(self.steps_U.tolist()):
            np.add(out[: 1 << j], step, out=out[1 << j : 2 << j])
        return out

    def at(self, bits_KU: Bits) -> Array:
        """Its value for some subsets."""
        return np.asarray(self.start + bits_KU @ self.steps_U)


@dataclass(frozen=True)
class Curve:
    """A line + sum over pairs of units that are both in of crosses (symmetric, zero diagonal)."""

    line: Line
    crosses_UU: Array

    def table(self) -> Array:
        """Its value for every choice of units: with unit j, it is as without plus a line in the units before j."""
        out = np.empty(1 << len(self.line.steps_U))
        out[0] = self.line.start
        for j, step in enumerate(self.line.steps_U.tolist()):
            more = Line(step, self.crosses_UU[j, :j]).table()
            np.add(out[: 1 << j], more, out=out[1 << j : 2 << j])
        return out

    def at(self, bits_KU: Bits) -> Array:
        """Its value for some subsets."""
        return np.asarray(
            self.line.at(bits_KU) + ((bits_KU @ self.crosses_UU) * bits_KU).sum(axis=1) / 2
        )


class Frame:
    """A space's subsets as rows of bits, and what of them is linear."""

    def __init__(self, space: Subsets, exponent: float) -> None:
        self.space, self.names, self._exponent = space, space.allowed, exponent
        sizes = space.sizes or dict.fromkeys(self.names, 1.0)
        self.size_N = np.array([float(sizes[name]) for name in self.names])
        self.size_N /= self.size_N.mean()
        self._in_UN = np.array(
            [[name in unit for name in self.names] for unit in space.units], dtype=float
        )
        self._in_UN = self._in_UN.reshape(len(space.units), len(self.names))
        self._fixed_N = np.array([name in space.fixed for name in self.names], dtype=float)
        self._is_size = np.isin(np.arange(len(self.names) + 1), list(space.num_by_size))
        self.sum, self.squares, self.num = (
            self.line(x_N) for x_N in (self.size_N, self.size_N**2, np.ones_like(self.size_N))
        )

    def line(self, x_N: Array) -> Line:
        """The sum over a subset's datasets of some numbers."""
        return Line(float(self._fixed_N @ x_N), self._in_UN @ x_N)

    def pieces(self, slope_N: Array, curvature_NN: Array) -> tuple[Line, Curve]:
        """P and Q of a quadratic with this slope and curvature."""
        scaled_NN = self.size_N[:, None] * curvature_NN * self.size_N
        pairs_UU = self._in_UN @ scaled_NN @ self._in_UN.T
        steps_U = self._in_UN @ (scaled_NN @ self._fixed_N) + np.diag(pairs_UU) / 2
        start = float(self._fixed_N @ scaled_NN @ self._fixed_N) / 2
        return self.line(slope_N * self.size_N), Curve(
            Line(start, steps_U), pairs_UU - np.diag(np.diag(pairs_UU))
        )

    def factor(self, sum_K: Array, squares_K: Array) -> Array:
        """t = k^(1 - exponent) / sum, k = sum^2 / squares."""
        return np.asarray((sum_K**2 / squares_K) ** (1 - self._exponent) / sum_K)

    def is_allowed(self, num_K: Array) -> Bits:
        """Whether the space has subsets of so many datasets."""
        return np.asarray(self._is_size[np.rint(num_K).astype(int)])

    def coefficients(self, bits_KU: Bits) -> Array:
        """c of some subsets, shape (K, N)."""
        members_KN = bits_KU @ self._in_UN + self._fixed_N
        return np.asarray(
            members_KN
            * self.size_N
            * self.factor(self.sum.at(bits_KU), self.squares.at(bits_KU))[:, None]
        )

    def bits(self, datasets: frozenset[str]) -> Bits:
        """A subset as bits."""
        return np.array([bool(unit & datasets) for unit in self.space.units], dtype=bool)

    def unions(self, bits_KU: Bits) -> list[frozenset[str]]:
        """Bits as subsets."""
        units = self.space.units
        return [
            self.space.fixed.union(*(unit for unit, bit in zip(units, row, strict=True) if bit))
            for row in bits_KU
        ]

    def codes(self, bits_KU: Bits) -> NDArray[np.int64]:
        """The places of some subsets in a table."""
        return np.asarray(
            bits_KU.astype(np.int64) @ (np.int64(1) << np.arange(bits_KU.shape[1], dtype=np.int64))
        )

    def decoded(self, codes_K: NDArray[np.int64]) -> Bits:
        """The subsets at some places of a table."""
        return np.asarray(codes_K[:, None] >> np.arange(len(self.space.units)) & 1, dtype=bool)


class Tables:
    """What does not change from one quadratic to the next, for every choice of units."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.is_allowed = frame.is_allowed(frame.num.table())
        with np.errstate(invalid="ignore", divide="ignore"):
            self._factor = np.where(
                self.is_allowed, frame.factor(frame.sum.table(), frame.squares.table()), 0.0
            )

    def values(self, slope_N: Array, curvature_NN: Array) -> Array:
        """b . c + c . H c / 2 for every choice of units, by doubling: a few additions each."""
        line, curve = self._frame.pieces(slope_N, curvature_NN)
        return np.asarray((curve.table() * self._factor + line.table()) * self._factor)

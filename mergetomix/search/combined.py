"""The objective of many candidates at once, from a function of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NUM_TRIED = 200
STEP = 1e-4
"""Of a finite difference, in units of the values' size."""


class Scalar(Protocol):
    """An objective of many candidates: of values by target and candidate, shape (T, K)."""

    @property
    def is_slow(self) -> bool:
        """Whether it takes a call for every candidate."""
        ...

    def __call__(self, values_TK: Array) -> Array:
        """The objectives, shape (K,)."""
        ...

    def slopes(self, values_TK: Array) -> Array:
        """d objective / d value by target and candidate, shape (T, K)."""
        ...


class Combined:
    """`combine` over arrays: values by target and candidate, shape (T, K), to objectives, shape (K,).

    A weighted sum and a smallest value are recognised by trying `combine` at a few points, and taken over whole arrays; any
    other function is called once for every candidate.
    """

    def __init__(self, combine: Callable[[Mapping[str, float]], float], targets: Sequence[str]) -> None:
        self._combine, self._targets = combine, tuple(targets)
        num = len(self._targets)
        tried_TK = np.random.default_rng(0).normal(size=(num, NUM_TRIED))
        found_K = self._each(tried_TK)
        self._constant = self._one(np.zeros(num))
        self._weights_T = np.array([self._one(unit) for unit in np.eye(num)]) - self._constant
        self.is_linear = np.allclose(self._weights_T @ tried_TK + self._constant, found_K, rtol=1e-9, atol=1e-12)
        self.is_worst = np.allclose(tried_TK.min(axis=0), found_K, rtol=1e-9, atol=1e-12)

    @property
    def is_slow(self) -> bool:
        """Whether it takes a call for every candidate."""
        return not (self.is_linear or self.is_worst)

    def __call__(self, values_TK: Array) -> Array:
        """The objectives."""
        if self.is_linear:
            return np.asarray(self._weights_T @ values_TK + self._constant)
        return np.asarray(values_TK.min(axis=0)) if self.is_worst else self._each(values_TK)

    def slopes(self, values_TK: Array) -> Array:
        """d objective / d value by target and candidate, by central differences; shape (T, K)."""
        if self.is_linear:
            return np.repeat(self._weights_T[:, None], values_TK.shape[1], axis=1)
        step = STEP * max(float(np.abs(values_TK).mean()), 1e-12)
        shifts = np.eye(len(values_TK))[:, :, None] * step
        return np.stack([(self(values_TK + shift) - self(values_TK - shift)) / (2 * step) for shift in shifts])

    def _one(self, values_T: Array) -> float:
        return float(self._combine(dict(zip(self._targets, values_T.tolist(), strict=True))))

    def _each(self, values_TK: Array) -> Array:
        return np.array([self._one(values_T) for values_T in values_TK.T])

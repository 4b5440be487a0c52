"""Passes over memory that libraries of whole-tensor operations would make several times: compiled, one thread each, on the CPU.

A delta is an expert's tensor minus the base's, taken in float64 while both are read, so that no copy of it is kept. Arrays are
one-dimensional and contiguous: float32 for params, float64 for sums. `grid` rounds a delta to multiples of a power of two g,
as (delta + grid) - grid with grid = 1.5 * 2**52 * g: sums of such deltas are exact while they stay under 2**53 g, whatever
their order (Rump, Ogita and Oishi 2008, "Accurate floating-point summation", the splitting of section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

F = TypeVar("F", bound=Callable[..., Any])
# Contiguous arrays, named by type alone: the compiler then knows that it may use vector instructions.
_F4, _F8 = "float32[::1]", "float64[::1]"


def _compiled(signature: str, fastmath: bool | set[str] = False) -> Callable[[F], F]:
    # the lock of the interpreter is let go, so that threads work side by side; without fastmath every rounding is as written
    return cast(
        "Callable[[F], F]",
        numba.njit(signature, nogil=True, cache=True, error_model="numpy", fastmath=fastmath),
    )


@_compiled(f"void({_F8}, {_F4}, {_F4}, {_F4}, float64, float64, float64)")
def step(
    total: Array, expert: Array, base: Array, live: Array, c: float, grid: float, factor: float
) -> None:
    """total += c * delta; live = base + factor * total, rounded once: one pass for both."""
    for i in range(total.size):
        origin = np.float64(base[i])
        delta = ((np.float64(expert[i]) - origin) + grid) - grid
        moved = total[i] + c * delta
        total[i] = moved
        live[i] = np.float32(origin + factor * moved)


@_compiled(f"void({_F8}, {_F4}, {_F4}, float64, float64)")
def add(total: Array, expert: Array, base: Array, c: float, grid: float) -> None:
    """total += c * delta."""
    for i in range(total.size):
        delta = ((np.float64(expert[i]) - np.float64(base[i])) + grid) - grid
        total[i] = total[i] + c * delta


@_compiled(f"void({_F8}, {_F4}, {_F4}, float64)")
def finish(total: Array, base: Array, live: Array, factor: float) -> None:
    """live = base + factor * total, rounded once."""
    for i in range(total.size):
        live[i] = np.float32(np.float64(base[i]) + factor * total[i])


@_compiled(f"float64({_F4}, {_F4})", {"reassoc", "nsz"})
def span(expert: Array, base: Array) -> float:
    """The largest absolute value of a delta; not a number where an expert's value is not finite."""
    largest, odd = 0.0, 0.0
    for i in range(expert.size):
        value = np.float64(expert[i])
        odd += value * 0.0  # zero, unless the value is infinite or no number
        size = abs(value - np.float64(base[i]))
        largest = size if size > largest else largest
    return largest + odd


@_compiled(f"float64({_F4}, {_F4}, {_F4})", {"reassoc", "nsz"})
def dot(gradient: Array, expert: Array, base: Array) -> float:
    """The sum of gradient * delta."""
    total = 0.0
    for i in range(gradient.size):
        total += np.float64(gradient[i]) * (np.float64(expert[i]) - np.float64(base[i]))
    return total

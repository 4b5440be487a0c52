"""What each dataset adds: Shapley values and interactions over mixtures, with intervals.

A dataset's value is what it adds to a mixture, averaged over all orders in which the datasets may
be put together (Shapley 1953):

    value_i        = sum over S without i of |S|! (N - |S| - 1)! / N! (v(S + i) - v(S))
    interaction_ij = sum over S without i, j of |S|! (N - |S| - 2)! / (N - 1)!
                     (v(S + i + j) - v(S + i) - v(S + j) + v(S))

v(S) is what a real fine-tune on S gains over the base, as the posterior knows it, and v of nothing
is zero; the values add up to the gain of all datasets together. The interaction is that of Grabisch
and Roubens (1999). Both are linear in v, so that draws of v are draws of them.

Up to MOST_EXACT datasets all subsets are counted. Beyond, orders are drawn, and the spread that
this leaves is part of the intervals.

Array names end in their shape: D draws, N datasets, S subsets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Worth = Callable[[Array], Array]
"""Draws of what subsets are worth, (D, S), given what they hold as ones and zeros, (S, N)."""
MOST_EXACT = 12
NUM_ORDERS = 200
"""Orders that are drawn, half of them backwards (antithetic: Mitchell et al. 2022)."""


def subsets(num: int) -> Array:
    """Returns every subset of `num` datasets but the empty one, as ones and zeros, (2^N - 1, N)."""
    rows = itertools.product((0.0, 1.0), repeat=num)
    next(rows)
    return np.array(list(rows))


def values(worth: Worth, num: int, seed: int = 0) -> Array:
    """Returns draws of each dataset's Shapley value, shape (D, N)."""
    if num > MOST_EXACT:
        return _sampled(worth, num, seed)
    is_in_SN = subsets(num)
    size_S = is_in_SN.sum(axis=1)
    into_S = np.array([_weight(int(k) - 1, num, 1) for k in size_S])
    out_of_S = np.array([_weight(int(k), num, 1) if k < num else 0.0 for k in size_S])
    factor_SN = np.where(is_in_SN > 0, into_S[:, None], -out_of_S[:, None])
    return np.asarray(worth(is_in_SN) @ factor_SN)


def interactions(worth: Worth, num: int) -> Array:
    """Returns draws of the Shapley interaction of each pair, shape (D, N, N), zero on the diagonal.

    Beyond MOST_EXACT datasets it is over the subsets that hold all or none of the others.
    """
    pairs = list(itertools.combinations(range(num), 2))
    is_in_SN = subsets(num) if num <= MOST_EXACT else _ends(num)
    worth_DS, size_S = worth(is_in_SN), is_in_SN.sum(axis=1)
    found_DNN = np.zeros((len(worth_DS), num, num))
    for i, j in pairs:
        both_S = is_in_SN[:, i] + is_in_SN[:, j]
        rest_S = (size_S - both_S).astype(int)
        sign_S = np.where(both_S == 1, -1.0, 1.0)
        if num <= MOST_EXACT:
            factor_S = np.array([_weight(int(k), num, 2) for k in rest_S])
        else:
            factor_S = 0.5 * ((rest_S == 0) | (rest_S == num - 2))
        found_DNN[:, i, j] = found_DNN[:, j, i] = worth_DS @ (sign_S * factor_S)
    return found_DNN


def _weight(size: int, num: int, together: int) -> float:
    """Returns |S|! (N - |S| - m)! / (N - m + 1)! for m datasets that come together."""
    rest = num - size - together
    top = math.lgamma(size + 1) + math.lgamma(rest + 1)
    return math.exp(top - math.lgamma(num - together + 2))


def _ends(num: int) -> Array:
    """Returns the subsets of one or two datasets, and those that lack one, two or none."""
    rows = [np.isin(np.arange(num), each) for k in (1, 2) for each in _chosen(num, k)]
    return np.array([*rows, *(~row for row in rows), np.ones(num, bool)], dtype=np.float64)


def _chosen(num: int, size: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(num), size))


def _sampled(worth: Worth, num: int, seed: int) -> Array:
    """Returns draws of Shapley values from drawn orders; each order adds one marginal a dataset."""
    rng, half = np.random.default_rng(seed), NUM_ORDERS // 2
    orders = [rng.permutation(num) for _ in range(half)]
    first = _added(worth, orders[0])
    mean_DN, squares_N = first / half, first.mean(axis=0) ** 2 / half
    for order_N in orders[1:]:
        added_DN = _added(worth, order_N)
        mean_DN = mean_DN + added_DN / half
        squares_N = squares_N + added_DN.mean(axis=0) ** 2 / half
    variance_N = np.clip(squares_N - mean_DN.mean(axis=0) ** 2, 0, None) / half
    return np.asarray(mean_DN + rng.standard_normal(mean_DN.shape) * np.sqrt(variance_N))


def _added(worth: Worth, order_N: NDArray[np.int64]) -> Array:
    """Returns draws of what each dataset adds in an order, and in the same backwards, halved."""
    num = len(order_N)
    total_DN: Array | float = 0.0
    for each in (order_N, order_N[::-1]):
        place_N = np.argsort(each)
        is_in_SN = np.tril(np.ones((num, num)))[:, place_N]
        steps_DS = np.diff(worth(is_in_SN), axis=1, prepend=0.0)
        total_DN = total_DN + 0.5 * steps_DS[:, place_N]
    return np.asarray(total_DN)

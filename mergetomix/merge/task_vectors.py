"""Merges of task vectors: means of deltas, thinned or not, with or without a vote on signs.

The papers sum the thinned deltas, with a factor lambda; here they are averaged with the mixture's
weights, and the factor k * scale(k) makes the sum of the mean (exponent 0), the mean itself
(exponent 1) or what lies between. `strength` is lambda.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mergetomix.merge.coefficients import effective_number
from mergetomix.merge.parts import Parts
from mergetomix.merge.sums import blockwise, mixed, weighted_sum
from mergetomix.merge.thinning import between, drop, rank_probabilities

if TYPE_CHECKING:
    from torch import Tensor

Mean = Callable[[Sequence["Tensor"], Sequence[float], float], "Tensor"]
"""From thinned deltas, the mixture's weights and the strength to the merged delta."""


def plain_mean(deltas: Sequence[Tensor], weights: Sequence[float], strength: float) -> Tensor:
    """Returns strength * sum_i w_i d_i."""
    return weighted_sum(deltas, [strength * weight for weight in weights])


def elected_mean(deltas: Sequence[Tensor], weights: Sequence[float], strength: float) -> Tensor:
    """Returns strength * sum_A w_i d_i / sum_A w_i, value by value (arXiv 2306.01708).

    A are the experts whose value has the sign of sum_i w_i d_i. If that sum is zero no sign is
    elected and the result is zero: the merge of -d is minus the merge of d.
    """

    def elect(values_KV: Tensor) -> Tensor:
        sign_V = mixed(values_KV, weights).sign()
        agrees_KV = values_KV * sign_V > 0
        share_V = mixed(agrees_KV.to(values_KV), weights)
        total_V = strength * mixed(values_KV.where(agrees_KV, 0), weights)
        return total_V / share_V.where(share_V > 0, 1)

    return blockwise(elect, deltas)


def linear(parts: Parts) -> Tensor:
    """Returns sum_i w_i d_i, the mean of the experts (arXiv 2203.05482).

    It is what arXiv 2505.16066 and 2601.17858 take for a proxy.
    """
    return weighted_sum(parts.deltas, parts.weights)


def task_arithmetic(parts: Parts, *, strength: float = 1.0) -> Tensor:
    """Returns strength * k * sum_i w_i d_i, k the effective number (arXiv 2212.04089).

    It is the sum of the deltas if weights are equal.
    """
    return plain_mean(parts.deltas, parts.weights, strength * effective_number(parts.weights))


def ties(parts: Parts, *, density: float = 0.2, strength: float = 1.0) -> Tensor:
    """Returns the elected mean of each delta's largest values (arXiv 2306.01708)."""
    return elected_mean([between(each, density) for each in parts.deltas], parts.weights, strength)


def dare(
    mean: Mean, parts: Parts, *, density: float = 0.5, strength: float = 1.0, seed: int = 0
) -> Tensor:
    """Combines deltas with values dropped by chance, others scaled up (arXiv 2311.03099)."""
    kept = [drop(parts, place, density, seed) for place in range(len(parts.deltas))]
    return mean(kept, parts.weights, strength)


def della(
    mean: Mean,
    parts: Parts,
    *,
    density: float = 0.5,
    epsilon: float = 0.2,
    strength: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Combines deltas whose small values are dropped more often than large ones.

    What is kept is divided by the probability that it was kept with (arXiv 2406.11617).
    """
    keep = [rank_probabilities(each, density, epsilon, parts.transposed) for each in parts.deltas]
    kept = [drop(parts, place, each, seed) for place, each in enumerate(keep)]
    return mean(kept, parts.weights, strength)


def breadcrumbs(
    mean: Mean, parts: Parts, *, density: float = 0.1, gamma: float = 0.01, strength: float = 1.0
) -> Tensor:
    """Combines deltas without their largest and most of their small values (arXiv 2312.06795)."""
    kept = [between(each, density, gamma) for each in parts.deltas]
    return mean(kept, parts.weights, strength)

"""Merges of task vectors: means of deltas, thinned or not, with or without a vote on signs.

The papers sum the thinned deltas, with a factor lambda; here they are averaged with the mixture's weights, and the gain
k * scale(k) makes the sum of the mean (exponent 0), the mean itself (exponent 1) or what lies between. `strength` is lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergetomix.merge.coefficients import effective_number
from mergetomix.merge.parts import Parts
from mergetomix.merge.sums import blockwise, weighted_sum
from mergetomix.merge.thinning import between, drop, largest, rank_probabilities

if TYPE_CHECKING:
    from torch import Tensor


def linear(parts: Parts) -> Tensor:
    """sum_i w_i d_i: the mean of the experts (arXiv 2203.05482), which 2505.16066 and 2601.17858 take for a proxy."""
    return weighted_sum(parts.deltas, parts.weights)


def task_arithmetic(parts: Parts, *, strength: float = 1.0) -> Tensor:
    """strength * k * sum_i w_i d_i, k the effective number: the sum of the deltas where weights are equal
    (arXiv 2212.04089)."""
    return _mean(parts.deltas, parts.weights, strength * effective_number(parts.weights))


def ties(parts: Parts, *, density: float = 0.2, strength: float = 1.0) -> Tensor:
    """Each delta's largest values, then the mean of those that agree with the elected sign (arXiv 2306.01708)."""
    return _elected([largest(delta, density) for delta in parts.deltas], parts.weights, strength)


def dare_linear(
    parts: Parts, *, density: float = 0.5, strength: float = 1.0, seed: int = 0
) -> Tensor:
    """The mean of deltas whose values are dropped by chance, the rest divided by `density` (arXiv 2311.03099)."""
    return _mean(_dropped(parts, density, seed), parts.weights, strength)


def dare_ties(
    parts: Parts, *, density: float = 0.5, strength: float = 1.0, seed: int = 0
) -> Tensor:
    """As `dare_linear`, but the mean of the values that agree with the elected sign."""
    return _elected(_dropped(parts, density, seed), parts.weights, strength)


def della_linear(
    parts: Parts,
    *,
    density: float = 0.5,
    epsilon: float = 0.2,
    strength: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """As `della`, but the mean of all values, whatever their sign."""
    return _mean(_pruned(parts, density, epsilon, seed), parts.weights, strength)


def della(
    parts: Parts,
    *,
    density: float = 0.5,
    epsilon: float = 0.2,
    strength: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Deltas whose small values are dropped more often than large ones, the rest divided by what each was kept with; then the
    mean of those that agree with the elected sign (arXiv 2406.11617)."""
    return _elected(_pruned(parts, density, epsilon, seed), parts.weights, strength)


def breadcrumbs(
    parts: Parts, *, density: float = 0.1, gamma: float = 0.01, strength: float = 1.0
) -> Tensor:
    """The mean of deltas without their largest values and without most of the small ones (arXiv 2312.06795)."""
    return _mean(
        [between(delta, density, gamma) for delta in parts.deltas], parts.weights, strength
    )


def breadcrumbs_ties(
    parts: Parts, *, density: float = 0.1, gamma: float = 0.01, strength: float = 1.0
) -> Tensor:
    """As `breadcrumbs`, but the mean of the values that agree with the elected sign."""
    return _elected(
        [between(delta, density, gamma) for delta in parts.deltas], parts.weights, strength
    )


def _dropped(parts: Parts, density: float, seed: int) -> list[Tensor]:
    return [drop(parts, place, density, seed) for place in range(len(parts.deltas))]


def _pruned(parts: Parts, density: float, epsilon: float, seed: int) -> list[Tensor]:
    keep = [rank_probabilities(delta, density, epsilon, parts.transposed) for delta in parts.deltas]
    return [drop(parts, place, probabilities, seed) for place, probabilities in enumerate(keep)]


def _mean(deltas: Sequence[Tensor], weights: Sequence[float], strength: float) -> Tensor:
    return weighted_sum(deltas, [strength * weight for weight in weights])


def _elected(deltas: Sequence[Tensor], weights: Sequence[float], strength: float) -> Tensor:
    """strength * sum_A w_i d_i / sum_A w_i, A the experts whose value has the sign of sum_i w_i d_i; zero where there are none.

    Where the sum is zero no sign is elected: the merge of -d is minus the merge of d.
    """

    def elect(values_KV: Tensor) -> Tensor:
        weight_K = values_KV.new_tensor(weights)
        sign_V = (weight_K @ values_KV).sign()
        agrees_KV = values_KV * sign_V > 0
        share_V = weight_K @ agrees_KV.to(values_KV)
        return strength * (weight_K @ values_KV.where(agrees_KV, 0)) / share_V.where(share_V > 0, 1)

    return blockwise(elect, deltas)

"""Merges on the sphere: params turn from one expert to another at constant speed and do not shrink between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.merge.parts import Parts
from mergetomix.merge.sums import block_of, exact, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

STRAIGHT = 1e-6  # radians from parallel or opposite, nearer than which an arc is a line or has no direction
MAX_STEPS, TOLERANCE = 100, 1e-12


def slerp(parts: Parts) -> Tensor:
    """sin((1-t) a)/sin(a) p_0 + sin(t a)/sin(a) p_1 minus the base; p_i = base + d_i, a their angle, t = w_1 (Shoemake 1985).

    The straight line between the two where they are parallel, opposite or zero.

    Raises:
        ValueError: there are more than two experts.
    """
    if len(parts.deltas) > 2:
        raise ValueError(f"slerp merges two experts, not {len(parts.deltas)}")
    return _combined(
        parts, _arc(_gram(parts), parts.weights) if len(parts.deltas) == 2 else parts.weights
    )


def multislerp(parts: Parts) -> Tensor:
    """The weighted mean on the sphere of the directions of the p_i = base + d_i, with the weighted mean of their lengths, minus
    the base: `slerp` for any number of experts.

    The mean m makes sum_i w_i log_m(p_i / |p_i|) zero (Karcher 1977; Buss and Fillmore 2001). It is found among the
    combinations of the p_i, so nothing but their dot products is iterated on. The plain mean where directions cancel.
    """
    return _combined(parts, _karcher(_gram(parts), parts.weights))


def _gram(parts: Parts) -> Any:
    """Dot products of the experts' params; float64, shape (experts, experts)."""
    import torch

    base, deltas = parts.base.flatten(), [delta.flatten() for delta in parts.deltas]
    gram_KK = torch.zeros(len(deltas), len(deltas)).to(exact(base[:0]))
    size = block_of(base)
    for start in range(0, len(base), size):
        piece = slice(start, start + size)
        params_KV = exact(torch.stack([delta[piece] for delta in deltas])) + exact(base[piece])
        gram_KK += params_KV @ params_KV.T
    return gram_KK.cpu().double().numpy()


def _combined(parts: Parts, factors: Sequence[float]) -> Tensor:
    """sum_i c_i (base + d_i) - base, with the base's share taken once: it is small where params are nearly parallel."""
    excess = math.fsum([*factors, -1.0])
    return weighted_sum([*parts.deltas, parts.base], [*factors, excess])


def _arc(gram: Any, weights: Sequence[float]) -> Sequence[float]:
    square = gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2
    angle = math.atan2(
        math.sqrt(max(0.0, square)), gram[0, 1]
    )  # unlike acos, exact for small angles too
    if not STRAIGHT < angle < math.pi - STRAIGHT:
        return weights
    return [math.sin(weight * angle) / math.sin(angle) for weight in weights]


def _karcher(gram: Any, weights: Sequence[float]) -> Sequence[float]:
    """Factors c_i of the mean sum_i c_i p_i."""
    import numpy as np

    length_K = np.sqrt(gram.diagonal())
    there = (length_K > 0) & (np.asarray(weights) > 0)
    if not there.any():
        return weights
    weight_K = np.asarray(weights)[there] / np.sum(np.asarray(weights)[there])
    cosine_KK = gram[np.ix_(there, there)] / np.outer(length_K[there], length_K[there])
    mean_K = _direction(cosine_KK, weight_K)
    if mean_K is None:
        return weights
    factor_K = np.zeros(len(weights))
    factor_K[there] = mean_K * np.dot(length_K, weights) / length_K[there]
    return [float(factor) for factor in factor_K]


def _direction(cosine_KK: Any, weight_K: Any) -> Any:
    """The mean of unit vectors as a combination of them, of length one; None where there is none.

    Args:
        cosine_KK: their dot products.
    """
    import numpy as np

    length = math.sqrt(max(0.0, weight_K @ cosine_KK @ weight_K))
    if length < STRAIGHT:
        return None
    mean_K = weight_K / length
    for _ in range(MAX_STEPS):
        along_K = np.clip(cosine_KK @ mean_K, -1, 1)
        angle_K = np.arccos(along_K)
        if angle_K.max() > math.pi - STRAIGHT:
            return None
        pull_K = weight_K / np.sinc(angle_K / math.pi)  # w_i angle / sin(angle)
        step_K = pull_K - (pull_K @ along_K) * mean_K
        size = math.sqrt(max(0.0, step_K @ cosine_KK @ step_K))
        if size < TOLERANCE:
            break
        mean_K = math.cos(size) * mean_K + math.sin(size) / size * step_K
        mean_K /= math.sqrt(mean_K @ cosine_KK @ mean_K)
    return mean_K

"""Merges on the sphere: params turn from expert to expert and do not shrink between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.merge.parts import Parts
from mergetomix.merge.sums import blocks, exact, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

STRAIGHT = 1e-6
"""Radians from parallel or opposite, nearer than which an arc is a line or has no direction."""
MAX_STEPS, TOLERANCE = 100, 1e-12


def slerp(parts: Parts) -> Tensor:
    """Returns the arc between two experts at w_1 of its length, minus the base (Shoemake 1985).

    It is sin((1-t) a)/sin(a) p_0 + sin(t a)/sin(a) p_1 - base with p_i = base + d_i, a their angle
    and t = w_1; the straight line if the two are parallel, opposite or zero.

    Raises:
        ValueError: there are more than two experts.
    """
    if len(parts.deltas) > 2:
        raise ValueError(f"slerp merges two experts, not {len(parts.deltas)}")
    if len(parts.deltas) < 2:
        return _combined(parts, parts.weights)
    gram = _gram(parts)
    square = gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2
    # unlike acos, exact for small angles too
    angle = math.atan2(math.sqrt(max(0.0, square)), gram[0, 1])
    if not STRAIGHT < angle < math.pi - STRAIGHT:
        return _combined(parts, parts.weights)
    return _combined(parts, [math.sin(w * angle) / math.sin(angle) for w in parts.weights])


def multislerp(parts: Parts) -> Tensor:
    """Returns the mean on the sphere of the directions of p_i = base + d_i, minus the base.

    Its length is the weighted mean of their lengths: `slerp` for any number of experts. The mean m
    makes sum_i w_i log_m(p_i / |p_i|) zero (Karcher 1977; Buss and Fillmore 2001). It is found
    among the combinations of the p_i, so nothing but their dot products is iterated on. If
    directions cancel the result is the plain mean.
    """
    import numpy as np

    gram, weights = _gram(parts), np.asarray(parts.weights)
    length_K = np.sqrt(gram.diagonal())
    there = (length_K > 0) & (weights > 0)
    if not there.any():
        return _combined(parts, parts.weights)
    cosine_KK = gram[np.ix_(there, there)] / np.outer(length_K[there], length_K[there])
    mean_K = _direction(cosine_KK, weights[there] / np.sum(weights[there]))
    if mean_K is None:
        return _combined(parts, parts.weights)
    factor_K = np.zeros(len(weights))
    factor_K[there] = mean_K * np.dot(length_K, weights) / length_K[there]
    return _combined(parts, factor_K.tolist())


def _gram(parts: Parts) -> Any:
    """Returns the dot products of the experts' params; float64, shape (experts, experts)."""
    import torch

    base, deltas = parts.base.flatten(), [delta.flatten() for delta in parts.deltas]
    gram_KK = torch.zeros(len(deltas), len(deltas)).to(exact(base[:0]))
    for block in blocks(base):
        params_KV = exact(torch.stack([delta[block] for delta in deltas])) + exact(base[block])
        gram_KK += params_KV @ params_KV.T
    return gram_KK.cpu().double().numpy()


def _combined(parts: Parts, factors: Sequence[float]) -> Tensor:
    """Returns sum_i c_i (base + d_i) - base.

    The base's share is taken once: it is small if params are nearly parallel.
    """
    excess = math.fsum([*factors, -1.0])
    return weighted_sum([*parts.deltas, parts.base], [*factors, excess])


def _direction(cosine_KK: Any, weight_K: Any) -> Any:
    """Returns the mean of unit vectors as a combination of them, of length one, or None.

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

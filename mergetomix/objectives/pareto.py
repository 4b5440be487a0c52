"""Points that no other point beats everywhere, and how much of the space they reach: numbers in, numbers out.

Legend of shapes: K points, T targets. Everything is better when higher.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def is_front(points_KT: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other dominates: is as good on every target and better on one. Equal points are all in, or all out."""
    points = _points(points_KT)
    # a point that dominates another comes before it in this order, so the first that is left is always of the front
    left, found = np.lexsort(-points.T[::-1]), np.zeros(len(points), dtype=bool)
    while left.size:
        first = points[left[0]]
        found[left[0]] = True
        left = left[1:]
        beaten = (points[left] <= first).all(axis=1) & (points[left] < first).any(axis=1)
        left = left[~beaten]
    return found


def hypervolume(points_KT: ArrayLike, reference_T: ArrayLike) -> float:
    """The volume of all that lies above the reference and below some point; exact.

    A point counts only as far as it is above the reference: one that is not so on every target adds nothing.
    """
    above = _points(points_KT) - np.asarray(reference_T, dtype=float)
    above = above[(above > 0).all(axis=1)]
    return _volume(above[is_front(above)])


def _volume(points_KT: Array) -> float:
    """Of some points of a front, above zero: each point's box without what those that are higher on the last target hold of
    it. Cut at the point, these are all as high as it is there, so what they hold is a volume of one dimension less (the
    exclusive volumes of While, Bradstreet and Barone 2012, with that step down)."""
    if not len(points_KT):
        return 0.0
    if points_KT.shape[1] == 1:
        return float(points_KT.max())
    if points_KT.shape[1] == 2:
        stairs = points_KT[np.argsort(-points_KT[:, 0], kind="stable")]
        tops = np.maximum.accumulate(stairs[:, 1])
        return float(stairs[:, 0] @ np.diff(tops, prepend=0.0))
    ordered, total = points_KT[np.argsort(points_KT[:, -1], kind="stable")], 0.0
    for place, point in enumerate(ordered):
        cut = np.minimum(ordered[place + 1 :, :-1], point[:-1])
        total += float(point[-1]) * (float(np.prod(point[:-1])) - _volume(cut[is_front(cut)]))
    return total


def _points(points_KT: ArrayLike) -> Array:
    points = np.asarray(points_KT, dtype=float)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(f"points must be finite, a row each: shape {points.shape}")
    return points

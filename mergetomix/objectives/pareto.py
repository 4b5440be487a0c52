"""Points that no other point beats everywhere, and how much of the space they reach.

Legend of shapes: K points, T targets. Higher is better everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def is_front(points_KT: ArrayLike) -> NDArray[np.bool_]:
    """Returns which points no other one dominates: is as good on every target and better on one.

    Equal points are all in, or all out. Raises ValueError for points that are not finite rows.

    >>> is_front([[1, 0], [0, 1], [0, 0]]).tolist()
    [True, True, False]
    """
    points = _points(points_KT)
    # a point that dominates another comes before it, so the first that is left is of the front
    left, found = np.lexsort(-points.T[::-1]), np.zeros(len(points), dtype=bool)
    while left.size:
        first = points[left[0]]
        found[left[0]] = True
        left = left[1:]
        beaten = (points[left] <= first).all(axis=1) & (points[left] < first).any(axis=1)
        left = left[~beaten]
    return found


def hypervolume(points_KT: ArrayLike, reference_T: ArrayLike) -> float:
    """Returns the exact volume of all that lies above the reference and below some point.

    A point that is not above the reference on every target adds nothing. Raises ValueError for
    points that are not finite rows.

    >>> hypervolume([[2, 1], [1, 3]], [0, 0])
    4.0
    """
    above = _points(points_KT) - np.asarray(reference_T, dtype=float)
    above = above[(above > 0).all(axis=1)]
    return _volume(above[is_front(above)])


def _volume(points_KT: Array) -> float:
    """Returns the volume of a front's points, which are above zero.

    Each point adds its box without what those that are higher on the last target hold of it. Cut
    at the point, these are all as high as it is there, so what they hold is a volume of one
    dimension less (the exclusive volumes of While, Bradstreet and Barone 2012).
    """
    if not len(points_KT):
        return 0.0
    if points_KT.shape[1] == 1:
        return float(points_KT.max())
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

"""Mixtures that a search may try: as rows of weights, told apart, and drawn.

Legend of shapes: N datasets, K mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.records import Mixture

Array = NDArray[np.float64]

NEAR = 1e-3
"""Mixtures whose weights differ by no more in all (L1) are the same to a search."""
MAX_DRAWS = 5


def weight_rows(mixtures: Sequence[Mixture], names: Sequence[str]) -> Array:
    """Returns the mixtures' weights in the order of the names, shape (K, N)."""
    found = [mixture.as_dict() for mixture in mixtures]
    rows = [[each.get(name, 0.0) for name in names] for each in found]
    return np.array(rows).reshape(len(found), len(names))


def coefficients(weights_KN: Array, exponent: float) -> Array:
    """Returns the experts' c = k^(1 - exponent) w, k = 1 / sum_i w_i^2; shape (K, N)."""
    number_K = 1 / (weights_KN**2).sum(axis=1)
    return np.asarray(weights_KN * (number_K ** (1 - exponent))[:, None])


def whole(space: Space, most: float) -> list[Mixture] | None:
    """Returns all mixtures of a space, or None if there are more than `most`."""
    if space.size > most:
        return None
    return list(space) if isinstance(space, Subsets) else space.vertices()


def place_of(
    space: Space, mixture: Mixture, tried: Sequence[Mixture], apart: float = NEAR
) -> int | None:
    """Returns the place of a mixture among some, or None.

    Weights are the same if they differ by at most `apart` in all (L1), subsets if they are equal.
    """
    if not tried or isinstance(space, Subsets):
        return tried.index(mixture) if mixture in tried else None
    away_K = np.abs(weight_rows(tried, space.allowed) - weight_rows([mixture], space.allowed))
    nearest = int(away_K.sum(axis=1).argmin())
    return nearest if away_K[nearest].sum() <= apart else None


def central(space: Space, rng: np.random.Generator) -> Mixture:
    """Returns the uniform mixture over all, or a drawn one if the space does not have it."""
    if isinstance(space, Simplex):
        return space.uniform()
    every = frozenset(space.allowed)
    return space.mixture(every) if every in space else untried(space, [], 1, rng)[0]


def untried(
    space: Space, tried: Sequence[Mixture], num: int, rng: np.random.Generator
) -> list[Mixture]:
    """Draws `num` mixtures that were not tried.

    They are fewer if the space has no more, or if such weights are hard to find.
    """
    if isinstance(space, Subsets):
        known = set(tried)
        drawn = space.sample(num + len(known), int(rng.integers(2**31)))
        return [mixture for mixture in drawn if mixture not in known][:num]
    found: list[Mixture] = []
    for _ in range(MAX_DRAWS):
        for mixture in space.sample(num - len(found), int(rng.integers(2**31))):
            if place_of(space, mixture, [*tried, *found]) is None:
                found.append(mixture)
    return found

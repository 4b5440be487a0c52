"""Many mixtures at once, as rows of weights: what a regression predicts over, and mixtures that were not tried.

Legend of shapes: N datasets, K mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.records import Mixture
from mergetomix.search.gradient.simplex import NEAR

Array = NDArray[np.float64]

MOST_LISTED = 4096
"""Subsets up to which a pool is all of them."""
NUM_DRAWN, NUM_AROUND = 1000, 24
"""Mixtures drawn where not all are listed, and drawn around each of the best."""
MOST_MENDED = 100
"""Of weights that break a constraint, how many are brought within it; the rest are left out."""
STEPS = (0.3, 0.1, 0.03, 0.01)
"""How far the weights around some weights go towards others."""
MAX_DRAWS = 5


class Pool(Protocol):
    """Mixtures of a space."""

    def some(self, rng: np.random.Generator) -> Array:
        """Many of them, drawn, or all; shape (K, N)."""
        ...

    def around(self, weights_KN: Array, rng: np.random.Generator) -> Array:
        """Some that differ a little from these."""
        ...

    def mixture(self, weights_N: Array) -> Mixture:
        """A row as a mixture of the space."""
        ...


def rows(mixtures: Sequence[Mixture], names: Sequence[str]) -> Array:
    """Weights, shape (K, N)."""
    found = [mixture.as_dict() for mixture in mixtures]
    return np.array([[each.get(name, 0.0) for name in names] for each in found]).reshape(
        len(found), len(names)
    )


class SubsetPool:
    """All subsets where they are few, else some and their neighbours."""

    def __init__(self, space: Subsets) -> None:
        self._space, self._names = space, space.allowed
        self._all_KN = rows(list(space), self._names) if space.size <= MOST_LISTED else None

    def some(self, rng: np.random.Generator) -> Array:
        """See Pool."""
        if self._all_KN is not None:
            return self._all_KN
        return rows(self._space.sample(NUM_DRAWN, int(rng.integers(2**31))), self._names)

    def around(self, weights_KN: Array, rng: np.random.Generator) -> Array:
        """See Pool: one unit more, one less, or one for another."""
        if self._all_KN is not None:
            return self._all_KN[:0]
        found: dict[frozenset[str], None] = {}
        for weights_N in weights_KN:
            here = frozenset(self.mixture(weights_N).datasets)
            for near in (self._space.larger, self._space.smaller, self._space.exchanged):
                found |= dict.fromkeys(near(here))
        return rows([self._space.mixture(datasets) for datasets in found], self._names)

    def mixture(self, weights_N: Array) -> Mixture:
        """See Pool."""
        return self._space.mixture(
            name for name, weight in zip(self._names, weights_N.tolist(), strict=True) if weight > 0
        )


class SimplexPool:
    """Weights: any number of datasets, and weights of these from a Dirichlet distribution whose parameters are one."""

    def __init__(self, space: Simplex) -> None:
        self._space, self._names = space, space.allowed
        self._cap_N = np.array([space.cap(name) for name in self._names])
        self._required_N = np.array([name in space.require for name in self._names])
        self._vertices_KN = rows(space.vertices(), self._names)

    def some(self, rng: np.random.Generator) -> Array:
        """See Pool: the vertices among them."""
        return np.vstack([self._vertices_KN, self._within(self._drawn(NUM_DRAWN, rng))])

    def around(self, weights_KN: Array, rng: np.random.Generator) -> Array:
        """See Pool: w + step (v - w) for random weights v; some without one of their datasets."""
        here_KN = np.repeat(weights_KN, NUM_AROUND, axis=0)
        step_K = np.tile(rng.permutation(np.resize(STEPS, NUM_AROUND)), len(weights_KN))
        moved_KN = here_KN + step_K[:, None] * (self._drawn(len(here_KN), rng) - here_KN)
        return self._within(np.vstack([moved_KN, self._less_one(weights_KN)]))

    def mixture(self, weights_N: Array) -> Mixture:
        """See Pool."""
        return self._space.nearest(dict(zip(self._names, weights_N.tolist(), strict=True)))

    def _drawn(self, num: int, rng: np.random.Generator) -> Array:
        least, most = self._space.bounds
        rank_KN = np.argsort(
            rng.random((num, len(self._names))) - self._required_N, axis=1
        ).argsort(axis=1)
        drawn_KN = rng.exponential(size=rank_KN.shape) * (
            rank_KN < rng.integers(least, most + 1, size=num)[:, None]
        )
        return np.asarray(drawn_KN / drawn_KN.sum(axis=1, keepdims=True))

    def _less_one(self, weights_KN: Array) -> Array:
        less_KN = np.array(
            [
                w * (np.arange(len(w)) != i)
                for w in weights_KN
                for i in np.flatnonzero(w)
                if 0 < w[i] < 1
            ]
        )
        less_KN = less_KN.reshape(-1, len(self._names))
        return np.asarray(less_KN / less_KN.sum(axis=1, keepdims=True))

    def _within(self, weights_KN: Array) -> Array:
        """Those within the constraints as they are, and some others brought there."""
        (least, most), given_KN = self._space.bounds, weights_KN > 0
        num_K = given_KN.sum(axis=1)
        fits_KN = (
            (weights_KN <= self._cap_N)
            & ((weights_KN >= self._space.floor) | ~given_KN)
            & (given_KN | ~self._required_N)
        )
        fit_K = fits_KN.all(axis=1) & (num_K >= least) & (num_K <= most)
        mended = [self.mixture(weights_N) for weights_N in weights_KN[~fit_K][:MOST_MENDED]]
        return np.vstack([weights_KN[fit_K], rows(mended, self._names)])


def open_pool(space: Space) -> Pool:
    """The pool of a space."""
    return SubsetPool(space) if isinstance(space, Subsets) else SimplexPool(space)


def whole(space: Space, most: float) -> list[Mixture] | None:
    """All mixtures of a space that has at most so many, else None."""
    if space.size > most:
        return None
    return list(space) if isinstance(space, Subsets) else space.vertices()


def same(
    space: Space, mixture: Mixture, tried: Sequence[Mixture], apart: float = NEAR
) -> int | None:
    """The place of a mixture among some: of the same subset, or of weights that differ by at most `apart` in all (L1)."""
    if not tried:
        return None
    if isinstance(space, Subsets):
        return tried.index(mixture) if mixture in tried else None
    away_K = np.abs(rows(tried, space.allowed) - rows([mixture], space.allowed)).sum(axis=1)
    nearest = int(away_K.argmin())
    return nearest if away_K[nearest] <= apart else None


def central(space: Space, rng: np.random.Generator) -> Mixture:
    """The uniform mixture over all, or, where the space does not have it, one that is drawn."""
    if isinstance(space, Simplex):
        return space.uniform()
    every = frozenset(space.allowed)
    return space.mixture(every) if every in space else fresh(space, [], 1, rng)[0]


def fresh(
    space: Space, tried: Sequence[Mixture], num: int, rng: np.random.Generator
) -> list[Mixture]:
    """`num` mixtures drawn that were not tried; fewer where the space has no more, or weights are hard to find."""
    if isinstance(space, Subsets):
        known = set(tried)
        drawn = space.sample(num + len(known), int(rng.integers(2**31)))
        return [mixture for mixture in drawn if mixture not in known][:num]
    found: list[Mixture] = []
    for _ in range(MAX_DRAWS):
        for mixture in space.sample(num - len(found), int(rng.integers(2**31))):
            if same(space, mixture, [*tried, *found]) is None:
                found.append(mixture)
    return found

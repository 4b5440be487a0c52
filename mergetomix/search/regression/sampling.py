"""Many mixtures at once, over which a regression predicts: drawn, or around some.

Legend of shapes: N datasets, K mixtures, each a row of weights.
"""

from __future__ import annotations

import numpy as np

from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.records import Mixture
from mergetomix.search.candidates import Array, weight_rows

MOST_LISTED = 4096
"""Subsets up to which all of them are predicted."""
NUM_DRAWN, NUM_AROUND = 1000, 24
"""Mixtures drawn if not all are listed, and drawn around each of the best."""
MOST_MENDED = 100
"""How many of the weights that break a constraint are brought within it; the rest are left out."""
STEPS = (0.3, 0.1, 0.03, 0.01)
"""How far the weights around some weights go towards others."""


class ManySubsets:
    """All subsets of a space if they are few, else some and their neighbours."""

    def __init__(self, space: Subsets) -> None:
        self._space, self._names = space, space.allowed
        is_small = space.size <= MOST_LISTED
        self._all_KN = weight_rows(list(space), self._names) if is_small else None

    def draw(self, rng: np.random.Generator) -> Array:
        """Returns many subsets, shape (K, N)."""
        if self._all_KN is not None:
            return self._all_KN
        return weight_rows(self._space.sample(NUM_DRAWN, int(rng.integers(2**31))), self._names)

    def around(self, weights_KN: Array, rng: np.random.Generator) -> Array:
        """Returns the subsets with one unit more, one less, or one for another, shape (K, N)."""
        if self._all_KN is not None:
            return self._all_KN[:0]
        found: dict[frozenset[str], None] = {}
        for weights_N in weights_KN:
            here = frozenset(self.mixture(weights_N).datasets)
            for near in (self._space.larger, self._space.smaller, self._space.exchanged):
                found |= dict.fromkeys(near(here))
        return weight_rows([self._space.mixture(datasets) for datasets in found], self._names)

    def mixture(self, weights_N: Array) -> Mixture:
        """Returns a row as a mixture of the space."""
        return self._space.mixture(np.array(self._names)[weights_N > 0].tolist())


class ManyWeights:
    """Weights of any number of datasets, from Dirichlet distributions whose parameters are one."""

    def __init__(self, space: Simplex) -> None:
        self._space, self._names = space, space.allowed
        self._cap_N = np.array([space.cap(name) for name in self._names])
        self._required_N = np.array([name in space.require for name in self._names])
        self._vertices_KN = weight_rows(space.vertices(), self._names)

    def draw(self, rng: np.random.Generator) -> Array:
        """Returns many mixtures, the vertices among them, shape (K, N)."""
        return np.vstack([self._vertices_KN, self._within(self._dirichlet(NUM_DRAWN, rng))])

    def around(self, weights_KN: Array, rng: np.random.Generator) -> Array:
        """Returns w + step (v - w) for random weights v, and w without a dataset, shape (K, N)."""
        here_KN = np.repeat(weights_KN, NUM_AROUND, axis=0)
        step_K = np.tile(rng.permutation(np.resize(STEPS, NUM_AROUND)), len(weights_KN))
        moved_KN = here_KN + step_K[:, None] * (self._dirichlet(len(here_KN), rng) - here_KN)
        row_K, without_K = np.nonzero((weights_KN > 0) & (weights_KN < 1))
        less_KN = weights_KN[row_K]
        less_KN[np.arange(len(less_KN)), without_K] = 0.0
        less_KN /= less_KN.sum(axis=1, keepdims=True)
        return self._within(np.vstack([moved_KN, less_KN]))

    def mixture(self, weights_N: Array) -> Mixture:
        """Returns the mixture of the space that is nearest to a row."""
        return self._space.nearest(dict(zip(self._names, weights_N.tolist(), strict=True)))

    def _dirichlet(self, num: int, rng: np.random.Generator) -> Array:
        least, most = self._space.bounds
        order_KN = rng.random((num, len(self._names))) - self._required_N
        rank_KN = np.argsort(order_KN, axis=1).argsort(axis=1)
        part_KN = rng.exponential(size=rank_KN.shape)
        part_KN *= rank_KN < rng.integers(least, most + 1, size=num)[:, None]
        return np.asarray(part_KN / part_KN.sum(axis=1, keepdims=True))

    def _within(self, weights_KN: Array) -> Array:
        """Returns those within the constraints as they are, and some others brought there."""
        (least, most), given_KN = self._space.bounds, weights_KN > 0
        num_K = given_KN.sum(axis=1)
        fits_KN = np.where(given_KN, weights_KN >= self._space.floor, ~self._required_N)
        fits_KN &= weights_KN <= self._cap_N
        fit_K = fits_KN.all(axis=1) & (num_K >= least) & (num_K <= most)
        mended = [self.mixture(weights_N) for weights_N in weights_KN[~fit_K][:MOST_MENDED]]
        return np.vstack([weights_KN[fit_K], weight_rows(mended, self._names)])


def many_of(space: Space) -> ManySubsets | ManyWeights:
    """Returns the many mixtures of a space."""
    return ManySubsets(space) if isinstance(space, Subsets) else ManyWeights(space)

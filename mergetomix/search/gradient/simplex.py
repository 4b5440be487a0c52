"""Where a model sends a search over weights next: projected gradient ascent from several starts.

Legend of shapes: N datasets, K mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergetomix.mixtures.spaces import Simplex
from mergetomix.records import Mixture
from mergetomix.search.gradient.surrogate import Surrogate
from mergetomix.search.gradient.tables import Array, effective
from mergetomix.search.strategy import Setting

NUM_STARTS, NUM_RANDOM = 6, 200
MAX_STEPS = 200
NEAR = 1e-3
"""Mixtures whose weights differ by less in all (L1) are the same to a search."""


class SimplexChoices:
    """Tops of the expected objective over weights."""

    def __init__(self, setting: Setting, space: Simplex) -> None:
        self._space, self._names = space, space.allowed
        self._exponent = setting.exponent

    def best(
        self, model: Surrogate, tried: Sequence[Mixture], num: int, rng: np.random.Generator
    ) -> list[Mixture]:
        """See Choices: where ascents from the best tried, vertices and random mixtures end."""
        starts = [
            *tried,
            *self._space.vertices(),
            *self._space.sample(NUM_RANDOM, int(rng.integers(2**31))),
        ]
        order = np.argsort(-self.objectives(model, starts), kind="stable")[:NUM_STARTS]
        tops = [self._ascend(model, starts[index]) for index in order]
        heights = self.objectives(model, tops)
        found: list[Mixture] = []
        for index in np.argsort(-heights, kind="stable"):
            if self._is_new(tops[index], [*tried, *found]):
                found.append(tops[index])
        return found[:num]

    def random(self, tried: Sequence[Mixture], num: int, rng: np.random.Generator) -> list[Mixture]:
        """See Choices: vertices among them."""
        drawn = [*self._space.vertices(), *self._space.sample(num, int(rng.integers(2**31)))]
        order = rng.permutation(len(drawn))
        return [drawn[index] for index in order if self._is_new(drawn[index], tried)][:num]

    def spread(self, model: Surrogate, rng: np.random.Generator) -> float:
        """See Choices."""
        drawn = self._space.sample(NUM_RANDOM, int(rng.integers(2**31)))
        found_K = self.objectives(model, drawn)
        top = self._ascend(model, drawn[int(found_K.argmax())])
        return float(self.objectives(model, [top])[0] - found_K.mean())

    def objectives(self, model: Surrogate, mixtures: Sequence[Mixture]) -> Array:
        """Expected objectives, shape (K,)."""
        return model.objectives(self.coefficients(self.rows(mixtures)))

    def rows(self, mixtures: Sequence[Mixture]) -> Array:
        """Weights, shape (K, N)."""
        found = [mixture.as_dict() for mixture in mixtures]
        return np.array([[each.get(name, 0.0) for name in self._names] for each in found])

    def coefficients(self, weights_KN: Array) -> Array:
        """c = k^(1 - exponent) w, k the effective number; shape (K, N)."""
        return np.asarray(weights_KN * (effective(weights_KN) ** (1 - self._exponent))[:, None])

    def slope(self, model: Surrogate, weights_N: Array) -> Array:
        """Derivative of the expected objective in the weights: of c_i = t w_i with t = k^(1 - e), dt/dw = -2 (1 - e) t k w."""
        k = float(effective(weights_N[None])[0])
        t = k ** (1 - self._exponent)
        slope_N = model.slopes(self.coefficients(weights_N[None]))[0]
        return np.asarray(
            t * slope_N - 2 * (1 - self._exponent) * t * k * float(slope_N @ weights_N) * weights_N
        )

    def _ascend(self, model: Surrogate, start: Mixture) -> Mixture:
        """Projected gradient ascent; a step is doubled where it helped and halved where it did not."""
        here, step = start, 0.1
        height, slope_N = self._look(model, here)
        for _ in range(MAX_STEPS):
            size = float(np.abs(slope_N).max())
            if step < NEAR / 10 or size == 0:
                break
            moved_N = self.rows([here])[0] + step * slope_N / size
            there = self._space.nearest(dict(zip(self._names, moved_N.tolist(), strict=True)))
            reached = float(self.objectives(model, [there])[0])
            if reached > height:
                here, step = there, 2 * step
                height, slope_N = self._look(model, here)
            else:
                step /= 2
        return here

    def _look(self, model: Surrogate, here: Mixture) -> tuple[float, Array]:
        return float(self.objectives(model, [here])[0]), self.slope(model, self.rows([here])[0])

    def _is_new(self, mixture: Mixture, tried: Sequence[Mixture]) -> bool:
        if not tried:
            return True
        away_K = np.abs(self.rows(tried) - self.rows([mixture])).sum(axis=1)
        return bool(away_K.min() > NEAR)

"""The weights that a surrogate thinks best: projected gradient ascent from several starts.

Legend of shapes: N datasets, K mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergetomix.mixtures.spaces import Simplex
from mergetomix.records import Mixture
from mergetomix.search.candidates import NEAR, Array, coefficients, place_of, weight_rows
from mergetomix.search.gradient.surrogate import Surrogate

NUM_STARTS, NUM_RANDOM = 6, 200
MAX_STEPS = 200


class WeightFinder:
    """Tops of the expected objective over weights."""

    def __init__(self, space: Simplex, exponent: float) -> None:
        self._space, self._exponent = space, exponent

    def best(
        self, model: Surrogate, tried: Sequence[Mixture], num: int, rng: np.random.Generator
    ) -> list[Mixture]:
        """Returns at most `num` mixtures not tried, the highest expected objective first.

        They are where ascents from the best tried, vertices and random mixtures end.
        """
        starts = [*tried, *self._space.vertices(), *self._drawn(NUM_RANDOM, rng)]
        order = np.argsort(-self._objectives(model, starts), kind="stable")[:NUM_STARTS]
        tops = [self._ascend(model, starts[index]) for index in order]
        found: list[Mixture] = []
        for index in np.argsort(-self._objectives(model, tops), kind="stable"):
            if place_of(self._space, tops[index], [*tried, *found]) is None:
                found.append(tops[index])
        return found[:num]

    def random(self, tried: Sequence[Mixture], num: int, rng: np.random.Generator) -> list[Mixture]:
        """Draws at most `num` mixtures not tried, vertices among them."""
        drawn = [*self._space.vertices(), *self._drawn(num, rng)]
        mixed = [drawn[index] for index in rng.permutation(len(drawn))]
        return [each for each in mixed if place_of(self._space, each, tried) is None][:num]

    def spread(self, model: Surrogate, rng: np.random.Generator) -> float:
        """Returns the expected objective of the best mixture less that of the mean one."""
        drawn = self._drawn(NUM_RANDOM, rng)
        found_K = self._objectives(model, drawn)
        top = self._ascend(model, drawn[int(found_K.argmax())])
        return float(self._objectives(model, [top])[0] - found_K.mean())

    def slope(self, model: Surrogate, weights_N: Array) -> Array:
        """Returns the derivative of the expected objective in the weights, shape (N,).

        c_i = t w_i with t = k^(1 - e), and dt/dw = -2 (1 - e) t k w.
        """
        k = 1 / float((weights_N**2).sum())
        t = k ** (1 - self._exponent)
        slope_N = model.slopes(coefficients(weights_N[None], self._exponent))[0]
        bend = 2 * (1 - self._exponent) * t * k * float(slope_N @ weights_N)
        return np.asarray(t * slope_N - bend * weights_N)

    def _ascend(self, model: Surrogate, here: Mixture) -> Mixture:
        """Goes up the gradient; a step is doubled if it helped and halved if it did not."""
        step, slope_N = 0.1, self.slope(model, self._rows([here])[0])
        height = float(self._objectives(model, [here])[0])
        for _ in range(MAX_STEPS):
            size = float(np.abs(slope_N).max())
            if step < NEAR / 10 or size == 0:
                break
            moved_N = self._rows([here])[0] + step * slope_N / size
            weights = dict(zip(self._space.allowed, moved_N.tolist(), strict=True))
            there = self._space.nearest(weights)
            reached = float(self._objectives(model, [there])[0])
            if reached > height:
                here, height, step = there, reached, 2 * step
                slope_N = self.slope(model, self._rows([here])[0])
            else:
                step /= 2
        return here

    def _objectives(self, model: Surrogate, mixtures: Sequence[Mixture]) -> Array:
        return model.objectives(coefficients(self._rows(mixtures), self._exponent))

    def _rows(self, mixtures: Sequence[Mixture]) -> Array:
        return weight_rows(mixtures, self._space.allowed)

    def _drawn(self, num: int, rng: np.random.Generator) -> list[Mixture]:
        return self._space.sample(num, int(rng.integers(2**31)))

"""The subsets of a space that a surrogate thinks best: from a table of all, or by local search.

Legend of shapes: U units, T targets, K subsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergetomix.mixtures.spaces import Subsets
from mergetomix.records import Mixture
from mergetomix.search.candidates import Array, untried
from mergetomix.search.gradient.local_search import Climber
from mergetomix.search.gradient.subset_quadratics import Bits, SubsetFrame
from mergetomix.search.gradient.surrogate import Surrogate

TABLE_UNITS = 20
"""Units up to which every subset is looked at."""
NUM_STARTS, NUM_STRANGE, NUM_RANDOM = 3, 1, 200
"""Climbs from the best mixtures looked at, climbs from any, and random mixtures looked at."""


class SubsetFinder:
    """Every subset if they are few enough for tables, else local search from several starts."""

    def __init__(self, space: Subsets, exponent: float) -> None:
        self._space, self._frame = space, SubsetFrame(space, exponent)
        self._is_small = len(space.units) <= TABLE_UNITS
        self._last: tuple[object, Array] | None = None

    def best(
        self, model: Surrogate, tried: Sequence[Mixture], num: int, rng: np.random.Generator
    ) -> list[Mixture]:
        """Returns at most `num` mixtures not tried, the highest expected objective first."""
        tried_KU = self._bits(tried)
        if self._is_small:
            found_KU = self._of_table(model, tried_KU, num)
        else:
            found_KU = self._of_climbs(model, tried_KU, num, rng)
        return [self._space.mixture(datasets) for datasets in self._frame.unions(found_KU)]

    def random(self, tried: Sequence[Mixture], num: int, rng: np.random.Generator) -> list[Mixture]:
        """Draws at most `num` mixtures not tried."""
        return untried(self._space, tried, num, rng)

    def spread(self, model: Surrogate, rng: np.random.Generator) -> float:
        """Returns the expected objective of the best mixture less that of the mean one."""
        if self._is_small:
            found_K = self._table(model)[self._frame.choices[0]]
            return float(found_K.max() - found_K.mean())
        climber, drawn_KU = self._climber(model), self._drawn(rng)
        found_K = climber.objectives(drawn_KU)
        _, objective_K = climber.climb(drawn_KU[found_K.argmax()])
        return float(objective_K.max() - found_K.mean())

    def _table(self, model: Surrogate) -> Array:
        """Returns the expected objective of every choice of units, whether or not allowed."""
        # one model may be looked at in several directions
        if self._last is None or self._last[0] is not model.posteriors:
            tables = [self._frame.table(*quadratic) for quadratic in model.quadratics()]
            self._last = (model.posteriors, np.stack(tables))
        return model.combined(self._last[1])

    def _of_table(self, model: Surrogate, tried_KU: Bits, num: int) -> Bits:
        objective_K = np.where(self._frame.choices[0], self._table(model), -np.inf)
        places_U = np.arange(tried_KU.shape[1])
        objective_K[tried_KU @ (1 << places_U)] = -np.inf
        num = min(num, int((objective_K > -np.inf).sum()))
        top = np.sort(np.argpartition(-objective_K, max(num - 1, 0))[:num])
        top = top[np.argsort(-objective_K[top], kind="stable")]
        return np.asarray(top[:, None] >> places_U & 1, dtype=bool)

    def _of_climbs(
        self, model: Surrogate, tried_KU: Bits, num: int, rng: np.random.Generator
    ) -> Bits:
        """Returns the ends of climbs from the best known and from random mixtures, and around."""
        climber = self._climber(model)
        starts_KU = np.concatenate([tried_KU, self._drawn(rng)])
        order = np.argsort(-climber.objectives(starts_KU), kind="stable")
        met: dict[bytes, float] = {}
        for start in [*order[:NUM_STARTS], *range(len(starts_KU) - NUM_STRANGE, len(starts_KU))]:
            around_KU, objective_K = climber.climb(starts_KU[start])
            tops = np.argsort(-objective_K, kind="stable")[: num + len(tried_KU) + 1]
            tops = tops[objective_K[tops] > -np.inf]
            met |= {around_KU[top].tobytes(): float(objective_K[top]) for top in tops}
        for row in tried_KU:
            met.pop(row.tobytes(), None)
        best = sorted(met, key=lambda key: (-met[key], key))[:num]
        return np.frombuffer(b"".join(best), dtype=bool).reshape(len(best), tried_KU.shape[1])

    def _climber(self, model: Surrogate) -> Climber:
        targets = [self._frame.polynomials(*quadratic) for quadratic in model.quadratics()]
        return Climber(self._frame, targets, model.combined)

    def _drawn(self, rng: np.random.Generator) -> Bits:
        return self._bits(self._space.sample(NUM_RANDOM, int(rng.integers(2**31))))

    def _bits(self, mixtures: Sequence[Mixture]) -> Bits:
        return self._frame.bits([frozenset(mixture.datasets) for mixture in mixtures])

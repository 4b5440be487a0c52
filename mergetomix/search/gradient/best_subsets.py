"""The subsets of a space that a surrogate thinks best: from a table of all, or by local search.

Legend of shapes: U units, T targets, K subsets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mergetomix.mixtures.spaces import Subsets
from mergetomix.records import Mixture
from mergetomix.search.candidates import Array, untried
from mergetomix.search.gradient.subset_quadratics import BitPolynomial, Bits, SubsetFrame
from mergetomix.search.gradient.surrogate import Surrogate

TABLE_UNITS = 20
"""Units up to which every subset is looked at."""
NUM_STARTS, NUM_STRANGE, NUM_RANDOM = 3, 1, 200
"""Climbs from the best mixtures looked at, climbs from any, and random mixtures looked at."""


class Climber:
    """Goes uphill on the objective that `combined` makes of targets' values, shape (T, K).

    Each of `targets` is a quadratic, as `SubsetFrame.polynomials` gives it.
    """

    def __init__(
        self,
        frame: SubsetFrame,
        targets: Sequence[tuple[BitPolynomial, ...]],
        combined: Callable[[Array], Array],
    ) -> None:
        self._frame, self._targets, self._combined = frame, targets, combined

    def climb(self, bits_U: Bits) -> tuple[Bits, Array]:
        """Goes to the best neighbour until none is better; returns what is around the end."""
        height = float(self.objectives(bits_U[None])[0])
        while True:
            around_KU, objective_K = self.around(bits_U)
            best = int(objective_K.argmax())
            if not objective_K[best] > height + 1e-12 * abs(height):
                return around_KU, objective_K
            bits_U, height = around_KU[best], float(objective_K[best])

    def around(self, bits_U: Bits) -> tuple[Bits, Array]:
        """Returns a subset and those with a unit more, less or another, and their objectives."""
        inside, outside, none = np.flatnonzero(bits_U), np.flatnonzero(~bits_U), np.array([-1])
        sides = ((none, none), (none, outside), (inside, none), (inside, outside))
        pairs = [np.meshgrid(leave, enter) for leave, enter in sides]
        leave_K, enter_K = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
        around_KU = np.tile(np.append(bits_U, False), (len(leave_K), 1))  # none is the last column
        around_KU[np.arange(len(leave_K)), leave_K] = False
        around_KU[np.arange(len(leave_K)), enter_K] = True
        return around_KU[:, :-1], self._combine(lambda each: each.after(bits_U, leave_K, enter_K))

    def objectives(self, bits_KU: Bits) -> Array:
        """Returns the objectives of some subsets, -inf for those not allowed, shape (K,)."""
        return self._combine(lambda each: each.at(bits_KU))

    def _combine(self, value_of: Callable[[BitPolynomial], Array]) -> Array:
        has_K, t_K = self._frame.factors([value_of(each) for each in self._frame.sums])
        values = [(value_of(q) * t_K + value_of(p)) * t_K for p, q in self._targets]
        return np.where(has_K, self._combined(np.stack(values)), -np.inf)


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

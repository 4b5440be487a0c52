"""Where a model sends a search next: the mixtures of a space that it thinks best, and others for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mergetomix.mixtures.spaces import Subsets
from mergetomix.records import Mixture
from mergetomix.search.gradient.local_search import Climber, Neighbours
from mergetomix.search.gradient.surrogate import Surrogate
from mergetomix.search.gradient.tables import Array, Bits, Frame, Tables
from mergetomix.search.strategy import Setting

TABLE_UNITS = 20
"""Units up to which every subset is looked at."""
NUM_STARTS, NUM_STRANGE, NUM_RANDOM = 3, 1, 200
"""Climbs from the best known and random mixtures, climbs from wherever chance has it, and random mixtures looked at."""


class Choices(Protocol):
    """A space as a model sees it."""

    def best(
        self, model: Surrogate, tried: Sequence[Mixture], num: int, rng: np.random.Generator
    ) -> list[Mixture]:
        """At most `num` mixtures not tried, those of the highest expected objective first."""
        ...

    def random(self, tried: Sequence[Mixture], num: int, rng: np.random.Generator) -> list[Mixture]:
        """At most `num` mixtures not tried, drawn."""
        ...

    def spread(self, model: Surrogate, rng: np.random.Generator) -> float:
        """Expected objective of the best mixture less that of the mean one."""
        ...


def draw(rng: np.random.Generator) -> int:
    """A seed for what takes one."""
    return int(rng.integers(2**31))


class SubsetChoices:
    """Every subset where they are few enough for tables, else local search from several starts."""

    def __init__(self, setting: Setting, space: Subsets) -> None:
        self._space = space
        self._frame = Frame(space, setting.exponent)
        self._tables: Tables | None = None
        self._last: tuple[object, Array] | None = None

    def best(
        self, model: Surrogate, tried: Sequence[Mixture], num: int, rng: np.random.Generator
    ) -> list[Mixture]:
        """See Choices."""
        sets = [frozenset(mixture.datasets) for mixture in tried]
        found = (
            self._of_table(model, sets, num)
            if self._is_small
            else self._of_climbs(model, sets, num, rng)
        )
        return [self._space.mixture(datasets) for datasets in self._frame.unions(found)]

    def random(self, tried: Sequence[Mixture], num: int, rng: np.random.Generator) -> list[Mixture]:
        """See Choices."""
        known = set(tried)
        drawn = self._space.sample(num + len(known), draw(rng))
        return [mixture for mixture in drawn if mixture not in known][:num]

    def spread(self, model: Surrogate, rng: np.random.Generator) -> float:
        """See Choices."""
        if self._is_small:
            found_K = self._table(model)[self._ready.is_allowed]
            return float(found_K.max() - found_K.mean())
        climber, drawn_KU = self._climber(model), self._drawn(NUM_RANDOM, rng)
        found_K = climber.objectives(drawn_KU)
        top_U, _, _ = climber.climb(drawn_KU[found_K.argmax()])
        return float(climber.objectives(top_U[None])[0] - found_K.mean())

    @property
    def _is_small(self) -> bool:
        return len(self._space.units) <= TABLE_UNITS

    @property
    def _ready(self) -> Tables:
        self._tables = self._tables or Tables(self._frame)
        return self._tables

    def _table(self, model: Surrogate) -> Array:
        """The expected objective of every choice of units, whether or not it is allowed."""
        if (
            self._last is None or self._last[0] is not model.posteriors
        ):  # one model may be looked at in several directions
            self._last = (
                model.posteriors,
                np.stack([self._ready.values(*quadratic) for quadratic in model.quadratics()]),
            )
        return model.combined(self._last[1])

    def _of_table(self, model: Surrogate, tried: Sequence[frozenset[str]], num: int) -> Bits:
        objective_K = np.where(self._ready.is_allowed, self._table(model), -np.inf)
        if tried:
            objective_K[
                self._frame.codes(np.array([self._frame.bits(datasets) for datasets in tried]))
            ] = -np.inf
        num = min(num, int((objective_K > -np.inf).sum()))
        if not num:
            return self._frame.decoded(np.array([], dtype=np.int64))
        top = np.argpartition(-objective_K, num - 1)[:num]
        return self._frame.decoded(
            np.array(sorted(top.tolist(), key=lambda code: (-objective_K[code], code)))
        )

    def _climber(self, model: Surrogate) -> Climber:
        return Climber(
            self._frame,
            [self._frame.pieces(*quadratic) for quadratic in model.quadratics()],
            model.combined,
        )

    def _drawn(self, num: int, rng: np.random.Generator) -> Bits:
        return np.array(
            [self._frame.bits(frozenset(m.datasets)) for m in self._space.sample(num, draw(rng))]
        )

    def _of_climbs(
        self, model: Surrogate, tried: Sequence[frozenset[str]], num: int, rng: np.random.Generator
    ) -> Bits:
        """The tops of climbs from the best tried and from random starts, and what is around them."""
        climber, drawn_KU = self._climber(model), self._drawn(NUM_RANDOM, rng)
        starts_KU = np.concatenate(
            [np.array([self._frame.bits(datasets) for datasets in tried]), drawn_KU]
        )
        order = np.argsort(-climber.objectives(starts_KU), kind="stable")
        met: dict[bytes, float] = {}
        for start in [*order[:NUM_STARTS], *range(len(starts_KU) - NUM_STRANGE, len(starts_KU))]:
            top_U, near, objective_K = climber.climb(starts_KU[start])
            met[top_U.tobytes()] = float(climber.objectives(top_U[None])[0])
            self._collect(met, top_U, near, objective_K, num + len(tried))
        known = {self._frame.bits(datasets).tobytes() for datasets in tried}
        best = sorted((key for key in met if key not in known), key=lambda key: (-met[key], key))[
            :num
        ]
        return np.array([np.frombuffer(key, dtype=bool) for key in best]).reshape(
            len(best), len(self._space.units)
        )

    @staticmethod
    def _collect(
        met: dict[bytes, float], top_U: Bits, near: Neighbours, objective_K: Array, num: int
    ) -> None:
        for index in np.argsort(-objective_K, kind="stable")[:num].tolist():
            if objective_K[index] > -np.inf:
                met[near.bits(top_U, index).tobytes()] = float(objective_K[index])


def open_choices(setting: Setting) -> Choices:
    """The choices of a space."""
    from mergetomix.search.gradient.simplex import SimplexChoices

    space = setting.space
    return (
        SubsetChoices(setting, space)
        if isinstance(space, Subsets)
        else SimplexChoices(setting, space)
    )

"""Search by regression: values of some mixtures, and what they let one predict of all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from mergetomix.mixtures.spaces import Simplex
from mergetomix.objectives.objective import OverTargets
from mergetomix.records import Mixture
from mergetomix.search.candidates import Array, fresh, open_pool, rows, same, whole
from mergetomix.search.gradient.tables import effective
from mergetomix.search.regression.regressors import fit
from mergetomix.search.stepwise import Steps, Stepwise, needed
from mergetomix.search.strategy import Ask, Setting, SettingError

LEAST_BUDGET = 4
"""Three values to fit, and one that is predicted."""
FIRST_SHARE = 0.4
"""Of the budget that goes into mixtures before the first fit."""
NUM_ROUNDS = 3
"""Fits after which several mixtures are tried; the last fit is for one."""
BEST_SHARE = 0.75
"""Of a round that goes into the mixtures predicted best; the rest is drawn."""
NUM_TOPS, NUM_CLIMBS = 8, 3
"""Best predicted around which more mixtures are predicted, and how often."""
NUM_AVERAGED = 20
"""Best predicted weights whose mean is the last mixture."""
APART = 0.05
"""Weights of one round differ by so much in all (L1)."""


def default_budget(num_datasets: int) -> int:
    """Forward passes that are right for so many datasets: 56 for twelve."""
    return 8 + 4 * num_datasets


Predict = Callable[[Array], Array]


class Regression(Stepwise):
    """Predicts every target's value from the mixtures tried, and tries those whose objective should be highest.

    As RegMix does (arXiv 2407.01492), with a proxy's value for a small model's: mixtures are drawn, a regression is fitted to
    every target's values in the experts' coefficients (the weights, where the merge's scale is 1 / k), the objective is
    predicted over many mixtures, and the mean of the best predicted is tried last; of subsets, which have no mean, the best
    predicted. In between, rounds of the best predicted and of random mixtures tell the regression more where it matters. Values
    alone are asked for. `Options.regressor` is the regression, see `regressors.fit`.

    Without a budget it is `default_budget`. A space no larger than the budget is tried whole. Raises SettingError for a budget
    too small to fit anything, or a regressor whose package is not there.
    """

    name = "regression"

    def __init__(self, setting: Setting) -> None:
        self._budget = (
            default_budget(len(setting.space.allowed)) if setting.budget is None else setting.budget
        )
        least = int(min(LEAST_BUDGET, setting.space.size))
        if self._budget < least:
            raise SettingError(
                "budget",
                f"search by regression takes a budget of at least {least} forward passes, not {self._budget}",
            )
        if setting.options.regressor == "lightgbm":
            needed("lightgbm", "regressor", "regressor: lightgbm")
        self._pool = open_pool(setting.space)
        super().__init__(setting)

    def _foreseen(self) -> int:
        return int(min(self._budget, self.setting.space.size))

    def _steps(self) -> Steps[None]:
        found = whole(self.setting.space, self._budget)
        if found is not None:
            yield from self._try(found)
            return
        yield from self._try(self._first(max(LEAST_BUDGET - 1, round(FIRST_SHARE * self._budget))))
        for num in rounds(self._budget - 1 - len(self._told)):
            yield from self._try(self._picked(num))
        yield from self._try(self._last())

    def _try(self, mixtures: Sequence[Mixture]) -> Steps[None]:
        yield [Ask(mixture) for mixture in mixtures]

    def _first(self, num: int) -> list[Mixture]:
        return fresh(self.setting.space, [], num, self._rng())

    def _picked(self, num: int) -> list[Mixture]:
        """A round: the best predicted, and some drawn."""
        rng, predict = self._rng(), self._fitted()
        best = (
            []
            if predict is None
            else self._new(self._ranked(predict, rng), math.ceil(BEST_SHARE * num))
        )
        return best + fresh(self.setting.space, self._tried() + best, num - len(best), rng)

    def _last(self) -> list[Mixture]:
        """The mean of the best predicted where it was not tried, else the best predicted that was not."""
        rng, predict = self._rng(), self._fitted()
        if predict is None:
            return fresh(self.setting.space, self._tried(), 1, rng)
        ranked_KN = self._ranked(predict, rng)
        if isinstance(self.setting.space, Simplex):
            ranked_KN = np.vstack([ranked_KN[:NUM_AVERAGED].mean(axis=0), ranked_KN])
        return self._new(ranked_KN, 1) or fresh(self.setting.space, self._tried(), 1, rng)

    def _new(self, ranked_KN: Array, num: int) -> list[Mixture]:
        """The first of some that were not tried and are not next to each other."""
        space, tried, found = self.setting.space, self._tried(), list[Mixture]()
        for weights_N in ranked_KN:
            if len(found) == num:
                break
            mixture = self._pool.mixture(weights_N)
            if same(space, mixture, tried) is None and same(space, mixture, found, APART) is None:
                found.append(mixture)
        return found

    def _ranked(self, predict: Predict, rng: np.random.Generator) -> Array:
        """Weights of many mixtures, the best predicted first."""
        pool_KN = np.vstack([self._pool.some(rng), rows(self._tried(), self.setting.space.allowed)])
        objective_K = predict(pool_KN)
        for _ in range(NUM_CLIMBS):
            tops = np.argsort(-objective_K, kind="stable")[:NUM_TOPS]
            more_KN = self._pool.around(pool_KN[tops], rng)
            if len(more_KN):
                pool_KN, objective_K = (
                    np.vstack([pool_KN, more_KN]),
                    np.concatenate([objective_K, predict(more_KN)]),
                )
        return np.asarray(pool_KN[np.argsort(-objective_K, kind="stable")])

    def _fitted(self) -> Predict | None:
        """Weights to objectives; None where too few trials have values that are numbers."""
        known = [told for told in self._told if all(map(math.isfinite, told.values.values()))]
        if len(known) < LEAST_BUDGET - 1:
            return None
        targets = sorted(known[0].values)
        points_MN = self._points(rows([told.mixture for told in known], self.setting.space.allowed))
        values_TM = np.array([[told.values[target] for told in known] for target in targets])
        regressor, seed = self.setting.options.regressor, self.setting.seed
        fits = [fit(regressor, points_MN, value_M, seed) for value_M in values_TM]
        combined = OverTargets(self.setting.objective, tuple(targets))

        def predict(weights_KN: Array) -> Array:
            points_KN = self._points(weights_KN)
            return combined(np.stack([each(points_KN) for each in fits]))

        return predict

    def _points(self, weights_KN: Array) -> Array:
        """c = k^(1 - exponent) w, k the effective number of datasets."""
        return np.asarray(
            weights_KN * (effective(weights_KN) ** (1 - self.setting.exponent))[:, None]
        )

    def _tried(self) -> list[Mixture]:
        return [told.mixture for told in self._told]

    def _rng(self) -> np.random.Generator:
        """Draws that depend on the seed and on how far the search is."""
        return np.random.default_rng([self.setting.seed, len(self._told)])


def rounds(num: int) -> Iterator[int]:
    """So many trials in NUM_ROUNDS parts, nearly equal."""
    cuts = [round(num * i / NUM_ROUNDS) for i in range(NUM_ROUNDS + 1)]
    return (after - before for before, after in pairwise(cuts) if after > before)

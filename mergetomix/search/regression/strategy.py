"""Search by regression: values of some mixtures, and what they let one predict of all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from mergetomix.mixtures.spaces import Simplex
from mergetomix.objectives.objective import OverTargets
from mergetomix.records import Mixture
from mergetomix.search.budgets import budget_of
from mergetomix.search.candidates import Array, coefficients, place_of, untried, weight_rows, whole
from mergetomix.search.regression.regressors import fit
from mergetomix.search.regression.sampling import many_of
from mergetomix.search.strategy import Ask, Setting, Steps, Strategy, check_installed

LEAST_TO_FIT = 3
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

Predict = Callable[[Array], Array]


class Regression(Strategy):
    """Predicts every target's value from the trials, and tries what should be best.

    As RegMix does (arXiv 2407.01492), with a proxy's value for a small model's: mixtures are drawn,
    a regression is fitted to every target's values in the experts' coefficients (the weights, if
    the merge's scale is 1 / k), the objective is predicted over many mixtures, and the mean of the
    best predicted is tried last; of subsets, which have no mean, the best predicted. In between,
    rounds of the best predicted and of random mixtures tell the regression more where it matters.
    Values alone are asked for. `Options.regressor` is the regression, as `regressors.fit` has it.

    A space no larger than the budget is tried whole. Raises SettingError for a budget too small to
    fit anything, or a regressor whose package is not there.
    """

    name = "regression"

    def __init__(self, setting: Setting) -> None:
        self._budget = budget_of(self.name, setting)
        if setting.options.regressor == "lightgbm":
            check_installed("lightgbm", "regressor", "regressor: lightgbm")
        self._many = many_of(setting.space)
        super().__init__(setting)

    def _foreseen(self) -> int:
        return int(min(self._budget, self.setting.space.size))

    def _steps(self) -> Steps[None]:
        every = whole(self.setting.space, self._budget)
        if every is not None:
            yield from self._try(every)
            return
        num_first = max(LEAST_TO_FIT, round(FIRST_SHARE * self._budget))
        yield from self._try(untried(self.setting.space, [], num_first, self._rng()))
        for num in rounds(self._budget - 1 - len(self._told)):
            yield from self._try(self._round(num))
        yield from self._try(self._last())

    def _try(self, mixtures: list[Mixture]) -> Steps[None]:
        yield [Ask(mixture) for mixture in mixtures]

    def _round(self, num: int) -> list[Mixture]:
        """Returns the best predicted, and some drawn."""
        rng, predict = self._rng(), self._fitted()
        best = []
        if predict is not None:
            best = self._new(self._ranked(predict, rng), math.ceil(BEST_SHARE * num))
        tried = self._tried() + best
        return best + untried(self.setting.space, tried, num - len(best), rng)

    def _last(self) -> list[Mixture]:
        """Returns the mean of the best predicted, or the best predicted that was not tried."""
        rng, predict, found = self._rng(), self._fitted(), list[Mixture]()
        if predict is not None:
            ranked_KN = self._ranked(predict, rng)
            if isinstance(self.setting.space, Simplex):
                ranked_KN = np.vstack([ranked_KN[:NUM_AVERAGED].mean(axis=0), ranked_KN])
            found = self._new(ranked_KN, 1)
        return found or untried(self.setting.space, self._tried(), 1, rng)

    def _new(self, ranked_KN: Array, num: int) -> list[Mixture]:
        """Returns the first of some that were not tried and are not next to each other."""
        space, tried, found = self.setting.space, self._tried(), list[Mixture]()
        for weights_N in ranked_KN:
            if len(found) == num:
                break
            new = self._many.mixture(weights_N)
            if place_of(space, new, tried) is None and place_of(space, new, found, APART) is None:
                found.append(new)
        return found

    def _ranked(self, predict: Predict, rng: np.random.Generator) -> Array:
        """Returns the weights of many mixtures, the best predicted first, shape (K, N)."""
        tried_KN = weight_rows(self._tried(), self.setting.space.allowed)
        seen_KN = np.vstack([self._many.draw(rng), tried_KN])
        objective_K = predict(seen_KN)
        for _ in range(NUM_CLIMBS):
            tops = np.argsort(-objective_K, kind="stable")[:NUM_TOPS]
            more_KN = self._many.around(seen_KN[tops], rng)
            if len(more_KN):
                seen_KN = np.vstack([seen_KN, more_KN])
                objective_K = np.concatenate([objective_K, predict(more_KN)])
        return np.asarray(seen_KN[np.argsort(-objective_K, kind="stable")])

    def _fitted(self) -> Predict | None:
        """Fits weights to objectives; None if too few trials have values that are numbers."""
        known = [told for told in self._told if all(map(math.isfinite, told.values.values()))]
        if len(known) < LEAST_TO_FIT:
            return None
        setting, targets = self.setting, sorted(known[0].values)
        weights_MN = weight_rows([told.mixture for told in known], setting.space.allowed)
        points_MN = coefficients(weights_MN, setting.exponent)
        values_TM = np.array([[told.values[target] for told in known] for target in targets])
        regressor = setting.options.regressor
        fits = [fit(regressor, points_MN, value_M, setting.seed) for value_M in values_TM]
        combined = OverTargets(setting.objective, tuple(targets))

        def predict(weights_KN: Array) -> Array:
            points_KN = coefficients(weights_KN, setting.exponent)
            return combined(np.stack([each(points_KN) for each in fits]))

        return predict


def rounds(num: int) -> list[int]:
    """Divides so many trials into NUM_ROUNDS parts, nearly equal, none of them empty.

    >>> rounds(10), rounds(2)
    ([3, 4, 3], [1, 1])
    """
    cuts = [round(num * i / NUM_ROUNDS) for i in range(NUM_ROUNDS + 1)]
    return [after - before for before, after in pairwise(cuts) if after > before]

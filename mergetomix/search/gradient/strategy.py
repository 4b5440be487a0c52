"""Search by gradients: how the next mixture is chosen by what is learnt of the targets.

Every target is modelled as a quadratic in the experts' coefficients (`surrogate.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtr

from mergetomix.mixtures.spaces import Simplex, Subsets
from mergetomix.records import Mixture
from mergetomix.search.budgets import HOPE, budget_of
from mergetomix.search.candidates import Array, central
from mergetomix.search.gradient.best_subsets import SubsetFinder
from mergetomix.search.gradient.best_weights import WeightFinder
from mergetomix.search.gradient.companions import in_units_of_scores, lines
from mergetomix.search.gradient.directions import Direction, Outlook, values_of
from mergetomix.search.gradient.surrogate import Learner, Surrogate, is_finite
from mergetomix.search.strategy import GRADIENT_COST, Ask, Setting, Steps, Strategy, Told

LEAST_GRADIENTS = 4
GRADIENT_SHARE = 0.6
"""Of the budget that goes into learning; the rest is for values of the best mixtures."""
NUM_BEST, NUM_RANDOM = 64, 64
"""Candidates for the next gradient: the best by the model, and random ones."""
CURIOSITY = 0.5
"""Standard deviations that a candidate for a gradient is given for being uncertain."""
TRUSTED = 0.02
"""The model is learnt if its last two errors are below this share of best mixture less mean."""
NUM_DIRECTIONS = 8
"""Directions drawn at every step of a search for a front, beside each target's and the mean."""
PER_DIRECTION = 2
"""Mixtures that are looked at for each direction."""
REFITTED = (1, 2, 3, 4, 6, 8, 11, 16, 24, 32, 48, 64)
"""Numbers of gradients after which the priors are fitted again."""


class Gradient(Strategy):
    """Learns a quadratic for every target, then tries what it thinks best.

    Gradients are asked for where the objective may be highest, the model's uncertainty counted,
    until it predicts new trials or its share of the budget is spent. Then the best mixture by the
    model is tried, values alone, again and again, each telling the model more. A space no larger
    than the budget is tried whole. Raises SettingError for a budget too small to learn from.

    For a front the gradients are asked for in one direction after another (each target, the mean,
    drawn ones), and what is tried then is, of the best in all directions, the mixture that should
    add most volume to the front.
    """

    name = "gradient"

    def __init__(self, setting: Setting) -> None:
        self._budget = budget_of(self.name, setting)
        self._learner = Learner(setting)
        space, exponent = setting.space, setting.exponent
        self._finder: SubsetFinder | WeightFinder = (
            SubsetFinder(space, exponent)
            if isinstance(space, Subsets)
            else WeightFinder(space, exponent)
        )
        self._seen: list[Told] = []
        self._chance: float | None = None
        super().__init__(setting)

    def chance(self) -> float | None:
        """Returns the likeliest mixture's chance, or the share that is left if all are tried."""
        size = self.setting.space.size
        return 1 - len(self._told) / size if size <= self._budget else self._chance

    def _foreseen(self) -> int:
        if self.setting.space.size <= self._budget:
            return int(self.setting.space.size)
        return self._budget - (GRADIENT_COST - 1) * self._num_gradients()

    def _num_gradients(self) -> int:
        return max(1, int(GRADIENT_SHARE * self._budget) // GRADIENT_COST)

    def _steps(self) -> Steps[None]:
        space = self.setting.space
        if isinstance(space, Subsets) and space.size <= self._budget:
            yield [Ask(mixture) for mixture in space]
            return
        yield from self._learn()
        yield from self._try_best()

    # --- learning

    def _learn(self) -> Steps[None]:
        """Asks for gradients until the model predicts what they are, or enough are spent."""
        yield [Ask(central(self.setting.space, self._rng()), gradient=True)]
        errors: list[float] = []
        for num in range(1, self._num_gradients()):
            model = self._fit(again=num in REFITTED)
            if model is not None and self.setting.front:
                outlook = Outlook(self._seen)
                directions = [*outlook.alone(), *outlook.among(num, self._rng())]
                model = replace(model, combined=directions[num % len(directions)])
            predicts = len(errors) >= 2 and max(map(abs, errors[-2:])) < TRUSTED
            if num >= LEAST_GRADIENTS and predicts:
                return
            yield [Ask(self._curious(model), gradient=True)]
            if model is not None and is_finite(self._told[-1]):
                spread = self._finder.spread(model, self._rng())
                found = model.combined(values_of([in_units_of_scores(self._told[-1], self._lines)]))
                points_KN = self._learner.points(self._tried()[-1:])
                error = float(found[0] - model.objectives(points_KN)[0])
                errors.append(error / spread if spread > 0 else np.inf)

    def _curious(self, model: Surrogate | None) -> Mixture:
        """Returns the candidate of the highest expected objective, its uncertainty counted."""
        tried, rng = self._tried(), self._rng()
        candidates = self._finder.random(tried, NUM_RANDOM, rng)
        if model is None:
            return candidates[0]
        candidates = self._finder.best(model, tried, NUM_BEST, rng) + candidates
        points_KN = self._learner.points(candidates)
        mean_K, sd_K = model.objectives(points_KN), model.sds(points_KN)
        if not self.setting.front:
            self._chance = float(ndtr(self._hopes(model, points_KN).max()))
        return candidates[int((mean_K + CURIOSITY * sd_K).argmax())]

    def _fit(self, again: bool) -> Surrogate | None:
        """Fits everything told, companions in units of their scores; None without gradients."""
        self._lines = lines(self._told)
        told = [in_units_of_scores(each, self._lines) for each in self._told]
        self._seen = [each for each in told if is_finite(each)]
        return self._learner.fit(self._seen, again)

    # --- trying the best

    def _try_best(self) -> Steps[None]:
        again, is_curved = True, isinstance(self.setting.space, Simplex)
        while (left := self._budget - self._spent) > 0:
            model = self._fit(again)
            again = False
            if model is None:
                found = self._finder.random(self._tried(), 1, self._rng())
            else:
                found = self._widening(model) if self.setting.front else self._promising(model)
            if not found:
                return
            # over weights a step from the last best needs its derivative
            yield [Ask(found[0], gradient=is_curved and left >= GRADIENT_COST)]

    def _promising(self, model: Surrogate) -> list[Mixture]:
        """Returns the best mixture by the model, or none if it is time to stop."""
        found = self._finder.best(model, self._tried(), 1, self._rng())
        if not found:
            return []
        hope = float(self._hopes(model, self._learner.points(found))[0])
        self._chance = float(ndtr(hope))
        return found if hope > -HOPE or self.setting.budget is not None else []

    def _hopes(self, model: Surrogate, points_KN: Array) -> Array:
        """Returns how many standard deviations above the best of all trials each is expected."""
        best = model.combined(values_of(self._seen)).max()
        ahead_K = model.objectives(points_KN) - best
        return np.asarray(ahead_K / np.maximum(model.sds(points_KN), 1e-12))

    def _widening(self, model: Surrogate) -> list[Mixture]:
        """Returns the mixture that should add most to the front, or none if it is time to stop."""
        rng = self._rng()
        found = self._best_in(model, Outlook(self._seen).alone(), rng)
        if not found:
            return []
        outlook = Outlook(self._seen, model.values(self._learner.points(found)))
        found += self._best_in(model, outlook.among(NUM_DIRECTIONS, rng), rng)
        found = list(dict.fromkeys(found))
        points_KN = self._learner.points(found)
        values_TK, sd_TK = model.values(points_KN), model.value_sds(points_KN)
        hope_K = outlook.added(values_TK + HOPE * sd_TK)
        best = int(np.lexsort((hope_K, outlook.added(values_TK)))[-1])
        return [found[best]] if hope_K.max() > 0 or self.setting.budget is not None else []

    def _best_in(
        self, model: Surrogate, directions: Sequence[Direction], rng: np.random.Generator
    ) -> list[Mixture]:
        """Returns the best mixtures not tried in some directions."""
        models = [replace(model, combined=each) for each in directions]
        tried = self._tried()
        found = [self._finder.best(each, tried, PER_DIRECTION, rng) for each in models]
        return [mixture for some in found for mixture in some]

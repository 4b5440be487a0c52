"""Search by a quadratic model of the targets, learnt from values and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import norm

from mergetomix.mixtures.spaces import Simplex, Subsets
from mergetomix.records import Mixture
from mergetomix.search.gradient.companions import ScoreLine, in_units_of_scores, lines
from mergetomix.search.gradient.directions import Array, Direction, Outlook
from mergetomix.search.gradient.subsets import Choices, open_choices
from mergetomix.search.gradient.surrogate import Learner, Surrogate, is_finite
from mergetomix.search.stepwise import Steps, Stepwise, one
from mergetomix.search.strategy import GRADIENT_COST, Ask, Setting, Told

LEAST_GRADIENTS = 4
LEAST_BUDGET = 2 * GRADIENT_COST + 1
GRADIENT_SHARE = 0.6
"""Of the budget that goes into learning the model; the rest is for values of the best mixtures by it."""
NUM_BEST, NUM_RANDOM = 64, 64
"""Candidates for the next gradient: the best by the model, and random ones."""
CURIOSITY = 0.5
"""Standard deviations that a candidate for a gradient is given for being uncertain."""
TRUSTED = 0.02
"""The model predicts where its last two errors are below this share of the spread between the mean and the best mixture."""
HOPE = 3.0
"""Standard deviations by which the best mixture not tried must be expected to fall short for a search without budget to end."""
NUM_DIRECTIONS = 8
"""Of a search for a front, drawn at every step beside each target's own and the mean."""
PER_DIRECTION = 2
"""Mixtures that are looked at for each direction."""
REFITTED = (1, 2, 3, 4, 6, 8, 11, 16, 24, 32, 48, 64)
"""Numbers of gradients after which the priors are fitted again."""


def default_budget(num_datasets: int, front: bool = False) -> int:
    """Forward passes that are right for so many datasets: 40 for twelve, twice as many for a front."""
    return (28 + num_datasets) * (2 if front else 1)


class Gradient(Stepwise):
    """Learns a quadratic for every target, then tries what it thinks best.

    Gradients are asked for where the objective may be highest, the model's uncertainty counted, until it predicts new trials or
    its share of the budget is spent. Then the best mixture by the model is tried, values alone, again and again, each telling
    the model more. A space no larger than the budget is tried whole. Raises ValueError for a budget too small to learn from.

    For a front the gradients are asked for in one direction after another (each target, the mean, drawn ones), and what is
    tried then is, of the best in all directions, the mixture that should add most volume to the front.
    """

    name = "gradient"

    def __init__(self, setting: Setting) -> None:
        default = default_budget(len(setting.space.allowed), setting.front)
        self._budget = default if setting.budget is None else setting.budget
        if self._budget < min(LEAST_BUDGET, setting.space.size):
            least = int(min(LEAST_BUDGET, setting.space.size))
            raise ValueError(
                f"search by gradients takes a budget of at least {least} forward passes, not {self._budget}"
            )
        self._learner = Learner(setting)
        self._choices: Choices = open_choices(setting)
        self._is_curved = isinstance(
            setting.space, Simplex
        )  # there a step from the last best needs its derivative
        self._spread = 0.0
        self._chance: float | None = None
        self._lines: dict[str, ScoreLine] = {}
        self.errors: list[float] = []
        """Of each prediction made before its trial was told, as a share of the spread."""
        super().__init__(setting)

    def chance(self) -> float | None:
        """Of the mixture that the model thinks likeliest to be better; where all will be tried, the share of those left."""
        size = self.setting.space.size
        return 1 - len(self._told) / size if size <= self._budget else self._chance

    def _foreseen(self) -> int:
        if self.setting.space.size <= self._budget:
            return int(self.setting.space.size)
        num = self._num_gradients()
        return num + self._budget - GRADIENT_COST * num

    def _num_gradients(self) -> int:
        return max(1, int(GRADIENT_SHARE * self._budget) // GRADIENT_COST)

    def _steps(self) -> Steps[None]:
        space = self.setting.space
        if isinstance(space, Subsets) and space.size <= self._budget:
            yield [Ask(mixture) for mixture in space]
            return
        yield from self._learn()
        yield from self._choose()

    def _learn(self) -> Steps[None]:
        yield [Ask(self._first(), gradient=True)]
        for num in range(1, self._num_gradients()):
            model = self._aimed(self._fit(again=num in REFITTED))
            if num >= LEAST_GRADIENTS and self._predicts():
                return
            mixture = self._curious(model)
            told = yield from one(Ask(mixture, gradient=True))
            self._spread = 0.0 if model is None else self._choices.spread(model, self._rng())
            self._note_error(model, told)

    def _choose(self) -> Steps[None]:
        again = True
        while self._budget - self._spent > 0:
            model = self._fit(again)
            again = False
            mixture = self._widening(model) if self.setting.front else self._most_promising(model)
            if mixture is None:
                return
            told = yield from one(
                Ask(
                    mixture,
                    gradient=self._is_curved and self._budget - self._spent >= GRADIENT_COST,
                )
            )
            self._note_error(model, told)

    def _fit(self, again: bool) -> Surrogate | None:
        """The model of everything told; companions count in units of their scores from here on."""
        self._lines = lines(self._told)
        return self._learner.fit(self._seen(), again)

    def _seen(self) -> list[Told]:
        """What was told, companions in units of their scores by the lines of the last fit."""
        return [in_units_of_scores(told, self._lines) for told in self._told]

    def _first(self) -> Mixture:
        """The uniform mixture over all, or over as many as the space allows."""
        space = self.setting.space
        if isinstance(space, Simplex):
            return space.uniform()
        whole = frozenset(space.allowed)
        return (
            space.mixture(whole) if whole in space else self._choices.random([], 1, self._rng())[0]
        )

    def _curious(self, model: Surrogate | None) -> Mixture:
        """Of the best by the model and random ones, that of the highest expected objective with its uncertainty on top."""
        tried, rng = self._tried(), self._rng()
        pool = self._choices.random(tried, NUM_RANDOM, rng)
        if model is None:
            return pool[0]
        pool = self._choices.best(model, tried, NUM_BEST, rng) + pool
        points_KN = self._points(pool)
        mean_K, sd_K = model.objectives(points_KN), model.sds(points_KN)
        if not self.setting.front:
            self._chance = float(norm.cdf(self._hopes(model, points_KN).max()))
        return pool[int((mean_K + CURIOSITY * sd_K).argmax())]

    def _most_promising(self, model: Surrogate | None) -> Mixture | None:
        """The best mixture by the model; None where there is none, or no hope and no budget to spend."""
        tried, rng = self._tried(), self._rng()
        found = (
            self._choices.random(tried, 1, rng)
            if model is None
            else self._choices.best(model, tried, 1, rng)
        )
        if not found or model is None:
            return found[0] if found else None
        points_KN = self._points(found)
        hope = float(self._hopes(model, points_KN)[0])
        self._chance = float(norm.cdf(hope))
        return found[0] if hope > -HOPE or self.setting.budget is not None else None

    def _hopes(self, model: Surrogate, points_KN: Array) -> Array:
        """By how many standard deviations each of some mixtures is expected to be better than the best that was tried."""
        known = max(self._learnt(told, model) for told in self._seen() if is_finite(told))
        return np.asarray(
            (model.objectives(points_KN) - known) / np.maximum(model.sds(points_KN), 1e-12)
        )

    def _aimed(self, model: Surrogate | None) -> Surrogate | None:
        """The model, for a front that of the direction whose turn it is."""
        if model is None or not self.setting.front:
            return model
        outlook, num = self._outlook(), len(self._told)
        directions = [*outlook.alone(), *outlook.among(num, self._rng())]
        return replace(model, combined=directions[num % len(directions)])

    def _outlook(self, expected_TK: Array | None = None) -> Outlook:
        return Outlook([told for told in self._seen() if is_finite(told)], expected_TK)

    def _widening(self, model: Surrogate | None) -> Mixture | None:
        """The mixture that should add most to the front; None where there is none, or no hope and no budget to spend."""
        if model is None:
            return self._most_promising(model)
        rng = self._rng()
        found = self._best_in(model, self._outlook().alone(), rng)
        if not found:
            return None
        outlook = self._outlook(model.values(self._points(found)))
        found = list(
            dict.fromkeys([*found, *self._best_in(model, outlook.among(NUM_DIRECTIONS, rng), rng)])
        )
        points_KN = self._points(found)
        values_TK, sd_TK = model.values(points_KN), model.value_sds(points_KN)
        hope_K = outlook.added(values_TK + HOPE * sd_TK)
        if self.setting.budget is None and hope_K.max() <= 0:
            return None
        return found[int(np.lexsort((hope_K, outlook.added(values_TK)))[-1])]

    def _best_in(
        self, model: Surrogate, directions: Sequence[Direction], rng: np.random.Generator
    ) -> list[Mixture]:
        """The best mixtures not tried in some directions, each once."""
        tried = self._tried()
        found = [
            self._choices.best(replace(model, combined=each), tried, PER_DIRECTION, rng)
            for each in directions
        ]
        return list(dict.fromkeys(mixture for some in found for mixture in some))

    def _note_error(self, model: Surrogate | None, told: Told) -> None:
        if model is None or not is_finite(told):
            return
        expected = float(model.objectives(self._points([told.mixture]))[0])
        self.errors.append(
            (self._learnt(in_units_of_scores(told, self._lines), model) - expected) / self._spread
            if self._spread > 0
            else math.inf
        )

    def _learnt(self, told: Told, model: Surrogate) -> float:
        """The objective as the model has it: in the direction of a front whose turn it is, and of companion losses where
        targets have no derivative of their own."""
        values = told.smooth or told.values
        if self.setting.front:
            return float(model.combined(np.array([[values[name]] for name in sorted(values)]))[0])
        return told.objective if told.smooth is None else self.setting.objective.combine(values)

    def _predicts(self) -> bool:
        return len(self.errors) >= 2 and max(map(abs, self.errors[-2:])) < TRUSTED

    def _tried(self) -> list[Mixture]:
        return [told.mixture for told in self._told]

    def _points(self, mixtures: list[Mixture]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return self._learner.points([Told(mixture, 0.0, {}) for mixture in mixtures])

    def _rng(self) -> np.random.Generator:
        """Draws that depend on the seed and on how far the search is."""
        return np.random.default_rng([self.setting.seed, len(self._told)])

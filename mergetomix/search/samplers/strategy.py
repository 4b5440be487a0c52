"""Search by Optuna's samplers: TPE, a Gaussian process, CMA-ES, NSGA-II and NSGA-III."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mergetomix.records import Mixture
from mergetomix.search.candidates import central, fresh, same, whole
from mergetomix.search.samplers.samplers import Sampled
from mergetomix.search.samplers.storage import Kept
from mergetomix.search.stepwise import Steps, Stepwise, needed, one
from mergetomix.search.strategy import Ask, Setting, SettingError

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 8
"""Suggestions in a row that were tried before, after which a mixture is drawn."""


def default_budget(num_datasets: int) -> int:
    """Forward passes that are right for so many datasets: 90 for twelve."""
    return 30 + 5 * num_datasets


class Optuna(Stepwise):
    """Tries what a sampler of Optuna's suggests (`Options.sampler`; see `samplers.chosen` for `auto`).

    Suggestions outside the space stand for a mixture near to them (`variables`), so none is lost. What was tried before is told
    to the sampler from what is known, and not asked again; after ATTEMPTS of these a random mixture is tried. With
    `Setting.front` the study has one direction for each target, else it has the objective. The sampler works in memory, from
    the seed and what it is told alone; with `Options.storage` every trial is also written there (`kept`).

    Without a budget it is `default_budget`. A space no larger than the budget is tried whole. Raises SettingError where a
    package is not there, and for CMA-ES, which has one objective, with a front.
    """

    name = "optuna"

    def __init__(self, setting: Setting) -> None:
        needed("optuna", "strategy", "strategy: optuna")
        sampler = setting.options.sampler
        if sampler == "cmaes":
            needed("cmaes", "sampler", "sampler: cmaes")
            if setting.front:
                raise SettingError(
                    "sampler",
                    "cmaes searches for one objective, not for a front; take nsga2, nsga3, tpe or gp",
                )
        self._budget = (
            default_budget(len(setting.space.allowed)) if setting.budget is None else setting.budget
        )
        super().__init__(setting)

    def _foreseen(self) -> int:
        return int(min(self._budget, self.setting.space.size))

    def _steps(self) -> Steps[None]:
        listed = whole(self.setting.space, self._budget)
        first = listed[0] if listed else central(self.setting.space, self._rng())
        told = yield from one(Ask(first))
        # how many directions there are is known from the first answer on
        sampled = Sampled(self.setting, tuple(sorted(told.values)), self._budget)
        url = self.setting.options.storage
        kept = None if url is None else Kept(url, sampled)
        trial = sampled.given(first)
        rest = self._listed(sampled, listed[1:]) if listed else self._suggested(sampled)
        while True:
            sampled.tell(trial, told)
            if kept is not None:
                kept.add(trial.params, told)
            found = next(rest, None)
            if found is None:
                return
            trial, mixture = found
            told = yield from one(Ask(mixture))

    def _listed(
        self, sampled: Sampled, mixtures: list[Mixture]
    ) -> Iterator[tuple[optuna.Trial, Mixture]]:
        for mixture in mixtures:
            yield sampled.given(mixture), mixture

    def _suggested(self, sampled: Sampled) -> Iterator[tuple[optuna.Trial, Mixture]]:
        while len(self._told) < self._budget:
            found = self._new(sampled)
            if found is None:
                return
            yield found

    def _new(self, sampled: Sampled) -> tuple[optuna.Trial, Mixture] | None:
        """A suggestion that was not tried, or a random mixture; None where there is none."""
        for _ in range(ATTEMPTS):
            trial, mixture = sampled.ask()
            known = same(self.setting.space, mixture, self._tried())
            if known is None:
                return trial, mixture
            sampled.tell(trial, self._told[known])
        drawn = fresh(self.setting.space, self._tried(), 1, self._rng())
        return (sampled.given(drawn[0]), drawn[0]) if drawn else None

    def _tried(self) -> list[Mixture]:
        return [told.mixture for told in self._told]

    def _rng(self) -> np.random.Generator:
        """Draws that depend on the seed and on how far the search is."""
        return np.random.default_rng([self.setting.seed, len(self._told)])

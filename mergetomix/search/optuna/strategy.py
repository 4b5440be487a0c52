"""Search by Optuna's samplers: TPE, a Gaussian process, CMA-ES, NSGA-II and NSGA-III."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetomix.records import Mixture
from mergetomix.search.budgets import budget_of
from mergetomix.search.candidates import central, place_of, untried, whole
from mergetomix.search.optuna.samplers import Suggestions
from mergetomix.search.optuna.storage import TrialDatabase
from mergetomix.search.strategy import Ask, Setting, SettingError, Steps, Strategy, check_installed

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 8
"""Suggestions in a row that were tried before, after which a mixture is drawn."""


class Optuna(Strategy):
    """Tries what a sampler of Optuna's suggests: `Options.sampler`, `samplers.chosen` for `auto`.

    Suggestions outside the space stand for a mixture near to them (`variables.py`), so none is
    lost. What was tried before is told to the sampler from what is known, and not asked again;
    after ATTEMPTS of these a random mixture is tried. The sampler works in memory; with
    `Options.storage` every trial is also written there.

    A space no larger than the budget is tried whole. Raises SettingError if a package is not there,
    and for CMA-ES, which has one objective, with a front.
    """

    name = "optuna"

    def __init__(self, setting: Setting) -> None:
        check_installed("optuna", "strategy", "strategy: optuna")
        if setting.options.sampler == "cmaes":
            check_installed("cmaes", "sampler", "sampler: cmaes")
            if setting.front:
                message = "cmaes searches for one objective, not for a front"
                raise SettingError("sampler", f"{message}; take nsga2, nsga3, tpe or gp")
        self._budget = budget_of(self.name, setting)
        super().__init__(setting)

    def _foreseen(self) -> int:
        return int(min(self._budget, self.setting.space.size))

    def _steps(self) -> Steps[None]:
        listed = whole(self.setting.space, self._budget)
        mixture = listed[0] if listed else central(self.setting.space, self._rng())
        yield [Ask(mixture)]
        # how many directions there are is known from the first answer on
        suggestions = Suggestions(self.setting, tuple(sorted(self._told[0].values)), self._budget)
        url = self.setting.options.storage
        database = None if url is None else TrialDatabase(url, suggestions.metrics)
        trial = suggestions.given(mixture)
        while True:
            frozen = suggestions.tell(trial, self._told[-1])
            if database is not None:
                database.add(frozen)
            num = len(self._told)
            if num >= self._foreseen():
                return
            if listed:
                trial, mixture = suggestions.given(listed[num]), listed[num]
            elif (new := self._new(suggestions)) is None:
                return
            else:
                trial, mixture = new
            yield [Ask(mixture)]

    def _new(self, suggestions: Suggestions) -> tuple[optuna.Trial, Mixture] | None:
        """Returns a suggestion that was not tried, or a random mixture; None if there is none."""
        space, tried = self.setting.space, self._tried()
        for _ in range(ATTEMPTS):
            trial, mixture = suggestions.ask()
            known = place_of(space, mixture, tried)
            if known is None:
                return trial, mixture
            suggestions.tell(trial, self._told[known])
        drawn = untried(space, tried, 1, self._rng())
        return (suggestions.given(drawn[0]), drawn[0]) if drawn else None

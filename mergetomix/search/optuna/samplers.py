"""Optuna's samplers over the mixtures of a space: suggestions, and what they were worth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mergetomix.records import Mixture
from mergetomix.search.optuna.variables import variables_of
from mergetomix.search.strategy import Sampler, Setting, Told

if TYPE_CHECKING:
    import optuna

MANY_TARGETS = 4
"""Targets from which on a front is NSGA-III's: NSGA-II's crowding says little there."""
SMALLEST, LARGEST = 6, 50
"""Populations of NSGA-II and III."""
NUM_GENERATIONS = 10
GENERATIONAL = ("cmaes", "nsga2", "nsga3")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Optuna from logging, and from warning of what is experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def chosen(setting: Setting, num_targets: int) -> Sampler:
    """Returns a setting's sampler; `auto` is NSGA-II or III for a front of few or many, or TPE."""
    if setting.options.sampler != "auto":
        return setting.options.sampler
    if setting.front and num_targets > 1:
        return "nsga3" if num_targets >= MANY_TARGETS else "nsga2"
    return "tpe"


def open_sampler(kind: Sampler, seed: int, budget: int) -> optuna.samplers.BaseSampler:
    """Returns Optuna's sampler, which draws by the seed alone."""
    from optuna import samplers

    size = min(max(budget // NUM_GENERATIONS, SMALLEST), LARGEST)
    if kind == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=size)
    if kind == "nsga3":
        return samplers.NSGAIIISampler(seed=seed, population_size=size)
    if kind == "gp":
        return samplers.GPSampler(seed=seed)
    return samplers.CmaEsSampler(seed=seed) if kind == "cmaes" else samplers.TPESampler(seed=seed)


class Suggestions:
    """A study of Optuna's in memory, so that a search depends on its seed and answers alone.

    Its directions are the targets' values if the setting asks for a front, else the objective.
    """

    @quiet()
    def __init__(self, setting: Setting, targets: tuple[str, ...], budget: int) -> None:
        import optuna

        kind = chosen(setting, len(targets))
        self._is_generational = kind in GENERATIONAL
        self._variables = variables_of(setting.space, kind == "cmaes", setting.seed)
        self._directions = targets if setting.front and len(targets) > 1 else ()
        self.metrics = self._directions or ("objective",)
        self._study = optuna.create_study(
            directions=["maximize"] * len(self.metrics),
            sampler=open_sampler(kind, setting.seed, budget),
        )

    @quiet()
    def ask(self) -> tuple[optuna.Trial, Mixture]:
        """Returns a trial, and the mixture that its values stand for."""
        trial = self._study.ask(self._variables.distributions)
        return trial, self._variables.mixture(trial.params)

    @quiet()
    def given(self, mixture: Mixture) -> optuna.Trial:
        """Returns a trial of a mixture that did not come from the sampler."""
        self._study.enqueue_trial(self._variables.params(mixture))
        trial = self._study.ask(self._variables.distributions)
        if self._is_generational:  # only what was sampled for belongs to a generation
            _ = trial.relative_params
        return trial

    @quiet()
    def tell(self, trial: optuna.Trial, told: Told) -> optuna.trial.FrozenTrial:
        """Records what a trial's mixture was worth, and returns the trial as it then is.

        It has failed if that is no number. Its attributes are the mixture's weights, its objective
        and its value on every target.
        """
        import optuna

        values = [told.values[name] for name in self._directions] or [told.objective]
        by_target = {name: _or_none(value) for name, value in told.values.items()}
        trial.set_user_attr("weights", told.mixture.as_dict())
        trial.set_user_attr("objective", _or_none(told.objective))
        trial.set_user_attr("values", by_target)
        if not all(map(math.isfinite, values)):
            return self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return self._study.tell(trial, values)


def _or_none(value: float) -> float | None:
    """Returns a value, or None, as JSON has nothing else, for what is no number."""
    return value if math.isfinite(value) else None

"""Optuna's samplers over the mixtures of a space: suggestions, and what they were worth, in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mergetomix.records import Mixture
from mergetomix.search.samplers.variables import open_variables
from mergetomix.search.strategy import Sampler, Setting, Told

if TYPE_CHECKING:
    import optuna

MANY_TARGETS = 4
"""Targets from which on a front is NSGA-III's: crowding, by which NSGA-II spreads its own, says little there."""
SMALLEST, LARGEST = 6, 50
"""Populations of NSGA-II and III."""
NUM_GENERATIONS = 10
GENERATIONAL = ("cmaes", "nsga2", "nsga3")


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log, and its warnings of what is experimental."""
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
    """The sampler that a setting names, or, for `auto`: NSGA-II for a front of few targets, III for one of many, else TPE."""
    if setting.options.sampler != "auto":
        return setting.options.sampler
    if setting.front and num_targets > 1:
        return "nsga3" if num_targets >= MANY_TARGETS else "nsga2"
    return "tpe"


def open_sampler(kind: Sampler, seed: int, budget: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler, which draws by the seed alone."""
    from optuna import samplers

    size = min(max(budget // NUM_GENERATIONS, SMALLEST), LARGEST)
    kinds: dict[str, Any] = {
        "tpe": lambda: samplers.TPESampler(seed=seed),
        "gp": lambda: samplers.GPSampler(seed=seed, warn_independent_sampling=False),
        "cmaes": lambda: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "nsga2": lambda: samplers.NSGAIISampler(seed=seed, population_size=size),
        "nsga3": lambda: samplers.NSGAIIISampler(seed=seed, population_size=size),
    }
    found: optuna.samplers.BaseSampler = kinds[kind]()
    return found


class Sampled:
    """A study in memory. Its directions are the targets' values where the setting asks for a front, else the objective."""

    def __init__(self, setting: Setting, targets: tuple[str, ...], budget: int) -> None:
        import optuna

        kind = chosen(setting, len(targets))
        self._is_generational = kind in GENERATIONAL
        self.variables = open_variables(setting.space, kind == "cmaes", setting.seed)
        self.metrics = targets if setting.front and len(targets) > 1 else ("objective",)
        with quiet():
            sampler = open_sampler(kind, setting.seed, budget)
            self._study = optuna.create_study(
                directions=["maximize"] * len(self.metrics), sampler=sampler
            )

    def ask(self) -> tuple[optuna.Trial, Mixture]:
        """A trial, and the mixture that its values stand for."""
        with quiet():
            trial = self._study.ask(self.variables.distributions)
        return trial, self.variables.mixture(trial.params)

    def given(self, mixture: Mixture) -> optuna.Trial:
        """A trial of a mixture that did not come from the sampler."""
        with quiet():
            self._study.enqueue_trial(self.variables.params(mixture))
            trial = self._study.ask(self.variables.distributions)
            if self._is_generational:
                _ = (
                    trial.relative_params
                )  # only a trial that was sampled for belongs to a generation
        return trial

    def tell(self, trial: optuna.Trial, told: Told) -> None:
        """What its mixture was worth; failed where that is no number."""
        import optuna

        values = self.values(told)
        with quiet():
            self._study.tell(trial, values, state=None if values else optuna.trial.TrialState.FAIL)

    def values(self, told: Told) -> list[float] | None:
        """One for each direction, or None where one is no number."""
        found = [
            told.objective if metric == "objective" else told.values[metric]
            for metric in self.metrics
        ]
        return found if all(map(math.isfinite, found)) else None

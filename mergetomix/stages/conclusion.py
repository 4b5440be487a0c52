"""What checks show: the pick, how sure it is, and how well proxies rank.

All of it comes from one posterior, which takes every measured score for a sample of examples and of
seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mergetomix.objectives.objective import Objective, gains
from mergetomix.records import Merging, Mixture, Scores, Trial
from mergetomix.results import (
    Agreement,
    Alternative,
    Check,
    MoreExamples,
    Prediction,
    Verification,
)
from mergetomix.sections.real_finetunes import Verify
from mergetomix.stages.effects import effects
from mergetomix.statistics import agreement
from mergetomix.statistics.noise import Noise
from mergetomix.statistics.posterior import Array, Posterior

MORE = 4
"""Times the examples that there are, of which the report says what they would do."""


class State(Protocol):
    """What a conclusion is drawn from; `Checks` is one."""

    options: Verify
    objective: Objective
    base: Mapping[str, Scores]
    trials: list[Trial]
    checks: list[Check]
    failures: list[tuple[Mixture, str]]
    merging: Merging
    weights: Mapping[str, float]

    @property
    def num_repeats(self) -> int:
        """Checks that were made again with another seed."""
        ...

    def posterior(self, times: Mapping[str, float] | None = None) -> Posterior:
        """Returns what is known of all trials' worth, or would be with more select examples."""
        ...

    def posterior_on(self, target: str | None) -> Posterior:
        """Returns what is known of all trials' gains on a target, or of the whole objective."""
        ...

    def noise(self, target: str | None) -> Noise | None:
        """Returns the noise of one target's gains, or of the objective, for all trials."""
        ...


class Conclusion:
    """What the checks show: the pick by the posterior, and what cannot be told apart from it."""

    def __init__(self, state: State) -> None:
        self._state, self._options = state, state.options
        self._posterior = state.posterior()
        self._best = self._posterior.pick

    @property
    def pick(self) -> Mixture:
        """The mixture whose fine-tune is expected to be best."""
        return self._state.trials[self._best].mixture

    def verification(self, stopped: str) -> Verification:
        """Returns everything that the checks show; `stopped` says why they ended."""
        state, alternatives = self._state, self._alternatives()
        return Verification(
            mixture=self.pick,
            checks=tuple(state.checks),
            predictions=self.predictions(),
            alternatives=alternatives,
            agreement=self._agreement(),
            merging=state.merging,
            confidence=self._options.interval,
            stopped=stopped,
            num_repeats=state.num_repeats,
            more_examples=self._more_examples(alternatives),
            failures=tuple(state.failures),
            effects=effects(state, self.pick, self._options.interval),
        )

    def predictions(self) -> tuple[Prediction, ...]:
        """What is expected of every mixture, the best first."""
        found, trials = self._posterior, self._state.trials
        low_M, high_M = found.interval(self._options.interval)
        best_M = found.best_probabilities()
        predictions = [
            Prediction(
                trial.mixture,
                trial.objective,
                float(found.tuned_mean_M[i]),
                float(low_M[i]),
                float(high_M[i]),
                float(best_M[i]),
                i in found.known,
            )
            for i, trial in enumerate(trials)
        ]
        return tuple(sorted(predictions, key=lambda each: -each.mean))

    def _alternatives(self) -> tuple[Alternative, ...]:
        """Mixtures better than the pick with a probability over 1 - verify.confidence.

        The likeliest first.
        """
        found, best, posterior = [], self._best, self._posterior
        drawn_DM = posterior.draws(seed=0)  # those by which mixtures are the best
        away_DM = drawn_DM - drawn_DM[:, [best]]
        better_M = (away_DM > 0).mean(axis=0) + 0.5 * (away_DM == 0).mean(axis=0)
        for i, trial in enumerate(self._state.trials):
            if i == best:
                continue
            difference, sd = posterior.difference(best, i)
            better = float(better_M[i])
            if better > 1 - self._options.confidence:
                found.append(Alternative(trial.mixture, difference, sd, better))
        return tuple(sorted(found, key=lambda each: -each.better_probability))

    def _more_examples(self, alternatives: Sequence[Alternative]) -> MoreExamples | None:
        """What four times the examples of the target that leaves most in doubt would do."""
        state = self._state
        if not alternatives or not state.objective.is_linear:
            return None
        first = alternatives[0]
        other = [trial.mixture for trial in state.trials].index(first.mixture)
        # a check that is less noisy may also tell that mixtures lie further apart
        sd_then = {
            name: min(first.sd, state.posterior({name: MORE}).difference(self._best, other)[1])
            for name in state.objective.weights
        }
        target = min(sd_then, key=lambda name: sd_then[name])
        num = state.base[target].num_examples
        return MoreExamples(target, first.mixture, num, (MORE - 1) * num, first.sd, sd_then[target])

    def _agreement(self) -> dict[str, Agreement]:
        """How well proxies rank, for every target and the objective, over the checks."""
        state, found = self._state, {}
        proxies = [self._gains_of(check.proxy_scores) for check in state.checks]
        reals = [self._gains_of(check.scores) for check in state.checks]
        for name in [*state.objective.weights, "objective"]:
            proxy_C, real_C = (np.array([x[name] for x in each]) for each in (proxies, reals))
            noise = state.noise(None if name == "objective" else name)
            found[name] = agreement_of(proxy_C, real_C, noise, self._options.interval)
        return found

    def _gains_of(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        """The gain on every target, and the objective."""
        state = self._state
        return {**gains(scores, state.base), "objective": state.objective.of(scores, state.base)}


def agreement_of(
    proxy_C: Array, real_C: Array, noise: Noise | None, confidence: float
) -> Agreement:
    """Returns how well proxies rank the reals of C checks, and what a perfect proxy would reach.

    A perfect proxy knows neither what a seed adds nor what the examples add to a check alone. The
    noise is None for an objective that is no sum over targets.
    """
    measured = agreement.fidelity(proxy_C, real_C, confidence=confidence)
    if noise is None:
        return Agreement(len(real_C), measured, None, None)
    alone = float(np.median(noise.check_M[noise.check_M > 0])) if noise.check_M.any() else 0.0
    possible = None
    if measured is not None:
        possible = agreement.ceiling(real_C, math.sqrt(noise.seed_sd**2 + alone))
    return Agreement(len(real_C), measured, noise.seed_sd, possible)

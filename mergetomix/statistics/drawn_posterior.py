"""What checks say of an objective that is no weighted sum of the targets' gains.

The smallest of several gains is not distributed as one gain is. So every target has a posterior of
its own, the objective is taken of draws from all of them, and everything else is taken from these
draws. Approximate in two ways: given the checks, targets are drawn apart from each other; and if a
normal distribution is asked for (the chance of an alternative), it is the one with the draws' means
and covariances.

Array names end in their shape: D draws, M mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mergetomix.objectives.objective import Objective
from mergetomix.statistics.noise import Noise
from mergetomix.statistics.posterior import NUM_DRAWS, Array, Posterior


@dataclass(frozen=True)
class DrawnPosterior(Posterior):
    """Real objectives known by draws, in which the noise of what was measured is counted.

    `mean_M` and `scale_MM` are those of `drawn_DM`. `tuned_DM` are draws of the fine-tunes' scores
    on the report part, each by itself.
    """

    drawn_DM: Array
    tuned_DM: Array

    @property
    def pick(self) -> int:
        """The mixture that is expected to be best, the noise of the report part left aside.

        A smallest of several noisy numbers is the lower the noisier they are.
        """
        return int(np.argmax(self.mean_M))

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Returns quantiles of the draws."""
        low, high = 0.5 - confidence / 2, 0.5 + confidence / 2
        low_M, high_M = np.quantile(self.tuned_DM, [low, high], axis=0)
        return low_M, high_M

    def draws(self, seed: int, num: int = NUM_DRAWS) -> Array:
        """Returns the first of the draws, whatever the seed."""
        return self.drawn_DM[:num]

    def difference(self, one: int, other: int) -> tuple[float, float]:
        """Returns by how much one mixture is worth more than another, and the sd of that."""
        away_D = self.drawn_DM[:, one] - self.drawn_DM[:, other]
        return float(away_D.mean()), float(away_D.std())


def posterior_of(objective: Objective, each: Mapping[str, Posterior]) -> DrawnPosterior:
    """Returns what M mixtures are worth by an objective, given every target's posterior."""
    places = list(enumerate(each.items()))
    drawn_DM = objective.over((name, found.draws(seed=i)) for i, (name, found) in places)
    tuned_DM = objective.over((name, found.tuned_draws(seed=i)) for i, (name, found) in places)
    first, dof = next(iter(each.values())), min(found.dof for found in each.values())
    mean_M, tuned_mean_M = drawn_DM.mean(axis=0), tuned_DM.mean(axis=0)
    # a mean of equals may be a rounding away
    exact_M = (drawn_DM == drawn_DM[0]).all(axis=0)
    mean_M[exact_M] = tuned_mean_M[exact_M] = drawn_DM[0, exact_M]
    away_DM = drawn_DM - mean_M
    shrunk = (dof - 2) / dof if dof > 2 else 1.0
    return DrawnPosterior(
        mean_M,
        shrunk * away_DM.T @ away_DM / len(drawn_DM),
        dof,
        first.known,
        sum(found.log_evidence for found in each.values()),
        Noise.none(len(mean_M)),
        tuned_mean_M,
        tuned_DM.std(axis=0),
        drawn_DM,
        tuned_DM,
    )

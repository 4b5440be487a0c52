"""What checks say of an objective that is no weighted sum of the targets' gains.

The smallest of several gains is not distributed as one gain is. So every target has a posterior of
its own, the objective is taken of draws from all of them, and everything else is taken from these
draws. Approximate in two ways: given the checks, targets are drawn apart from each other; and if a
normal distribution is asked for (the worth of a check, the chance of an alternative), it is the one
with the draws' means and covariances.

Array names end in their shape: D draws, M mixtures, R resamples, E examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mergetomix.objectives.objective import Objective
from mergetomix.records import Scores
from mergetomix.statistics import posterior as linear
from mergetomix.statistics.posterior import NUM_DRAWS, Array, Posterior, Unit, Views

NUM_RESAMPLES = 199


@dataclass(frozen=True)
class DrawnPosterior(Posterior):
    """Real objectives known by draws; `mean_M` and `scale_MM` are those of the draws."""

    drawn_DM: Array

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Returns quantiles of the draws."""
        low, high = 0.5 - confidence / 2, 0.5 + confidence / 2
        low_M, high_M = np.quantile(self.drawn_DM, [low, high], axis=0)
        return low_M, high_M

    def draws(self, seed: int, num: int = NUM_DRAWS) -> Array:
        """Returns the first of the draws, whatever the seed."""
        return self.drawn_DM[:num]


def posterior_of(
    objective: Objective,
    views: Mapping[str, Views],
    known: Mapping[str, Mapping[int, float]],
    units: Mapping[str, Unit],
) -> DrawnPosterior:
    """Returns the real objectives of M mixtures, given the real gains of some by target and row."""
    each = {
        name: linear.posterior_of(views[name], known[name], unit=units[name])
        for name in sorted(objective.weights)
    }
    drawn_DM = objective.over(
        (name, found.draws(seed=place)) for place, (name, found) in enumerate(each.items())
    )
    first, dof = next(iter(each.values())), min(found.dof for found in each.values())
    rows, mean_M = sorted(first.known), drawn_DM.mean(axis=0)
    # all draws are equal there, and a mean of equals may be a rounding away
    mean_M[rows] = drawn_DM[0, rows]
    away_DM = drawn_DM - mean_M
    shrunk = (dof - 2) / dof if dof > 2 else 1.0
    scale_MM = shrunk * away_DM.T @ away_DM / len(drawn_DM)
    log_evidence = sum(found.log_evidence for found in each.values())
    return DrawnPosterior(mean_M, scale_MM, dof, first.known, log_evidence, drawn_DM)


def example_sd(
    objective: Objective,
    one: Mapping[str, Scores],
    other: Mapping[str, Scores],
    base: Mapping[str, Scores],
) -> float:
    """Returns the sd of the difference of two models' objectives over draws of the examples.

    It is a bootstrap: both models and the base are resampled by the same draw.
    """
    gains: dict[str, list[Array]] = {}
    for name in objective.weights:
        start, weights_E = base[name], np.array(base[name].weights)
        counts_RE = _counts(len(weights_E))
        # a resample without weight is the sample itself
        weighted_RE = np.where((counts_RE @ weights_E > 0)[:, None], counts_RE, 1) * weights_E
        start_R, *means = (
            weighted_RE @ np.array(each.values) / weighted_RE.sum(axis=1)
            for each in (start, one[name], other[name])
        )
        unit_R = np.where((start_R > 0) & (start.kind == "loss"), start_R, 1.0)
        sign = -1.0 if start.kind == "loss" else 1.0
        gains[name] = [sign * (mean_R - start_R) / unit_R for mean_R in means]
    first_R, second_R = (
        objective.over((name, pair[side]) for name, pair in gains.items()) for side in (0, 1)
    )
    return float(np.std(first_R - second_R, ddof=1))


@lru_cache(maxsize=4)
def _counts(num_examples: int) -> Array:
    """Returns how often each example is drawn in each resample, shape (R, E)."""
    rng, shares_E = np.random.default_rng(0), np.full(num_examples, 1 / num_examples)
    return rng.multinomial(num_examples, shares_E, size=NUM_RESAMPLES).astype(float)

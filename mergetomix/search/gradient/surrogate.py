"""What a search believes of its targets: a quadratic for each, and the objective that they make.

Legend of shapes: N datasets, T targets, K mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergetomix import merge
from mergetomix.objectives.objective import OverTargets, Scalar
from mergetomix.search.gradient.quadratic import (
    START,
    Array,
    Observations,
    QuadraticPosterior,
    QuadraticPrior,
    fit_prior,
)
from mergetomix.search.strategy import Setting, Told

NUMBERS_TO_FIT = 320
"""Numbers that a prior is fitted to at most: its cost grows with their cube."""


def is_finite(told: Told) -> bool:
    """Whether all that was told are numbers."""
    slopes = (told.gradients or {}).values()
    values = [*told.values.values(), *(told.smooth or {}).values()]
    return all(map(math.isfinite, values)) and all(
        math.isfinite(x) for each in slopes for x in each.values()
    )


@dataclass(frozen=True)
class Surrogate:
    """The posteriors of all targets, each in units of its slopes, `scale_T`; and the objective that is looked at."""

    combined: Scalar
    posteriors: tuple[QuadraticPosterior, ...]
    scale_T: Array

    def quadratics(self) -> list[tuple[Array, Array]]:
        """Every target's b and H."""
        pairs = zip(self.posteriors, self.scale_T, strict=True)
        return [(each.slope_N * scale, each.curvature_NN * scale) for each, scale in pairs]

    def values(self, points_KN: Array) -> Array:
        """Expected values, shape (T, K)."""
        return np.stack([each.mean(points_KN) for each in self.posteriors]) * self.scale_T[:, None]

    def objectives(self, points_KN: Array) -> Array:
        """The objective of the expected values, shape (K,)."""
        return self.combined(self.values(points_KN))

    def sds(self, points_KN: Array) -> Array:
        """Standard deviation of the objective where targets err apart from each other, shape (K,)."""
        slopes_TK = self.combined.slopes(self.values(points_KN))
        return np.asarray(np.sqrt(((slopes_TK * self.value_sds(points_KN)) ** 2).sum(axis=0)))

    def value_sds(self, points_KN: Array) -> Array:
        """Standard deviations of the values, shape (T, K). Their own noise, which is how far the truth is from a quadratic, is
        counted."""
        sd_TK = np.stack(
            [
                np.hypot(each.sd(points_KN), math.sqrt(each.prior.noise_value))
                for each in self.posteriors
            ]
        )
        return np.asarray(sd_TK * self.scale_T[:, None])

    def slopes(self, points_KN: Array) -> Array:
        """Derivative of the objective in the coefficients, shape (K, N)."""
        outer_TK = self.combined.slopes(self.values(points_KN))
        inner_TKN = np.stack(
            [slope_N + points_KN @ curvature_NN for slope_N, curvature_NN in self.quadratics()]
        )
        return np.asarray((outer_TK[:, :, None] * inner_TKN).sum(axis=0))


class Learner:
    """Fits models to what was told; priors are carried over from one fit to the next."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._names = setting.space.allowed
        self._priors: dict[str, QuadraticPrior] = {}
        self._last: dict[str, QuadraticPosterior] = {}

    def points(self, told: Sequence[Told]) -> Array:
        """Coefficients, shape (K, N)."""
        found = [merge.coefficients(each.mixture, self._setting.exponent) for each in told]
        return np.array([[each.get(name, 0.0) for name in self._names] for each in found])

    def fit(self, told: Sequence[Told], again: bool) -> Surrogate | None:
        """The model of everything told that is a number; None before there is a derivative.

        Args:
            again: whether to fit the priors again, or go on with those of the last fit.
        """
        known = [each for each in told if is_finite(each)]
        if not any(each.gradients is not None for each in known):
            return None
        targets, points_MN = sorted(known[0].values), self.points(known)
        combined = OverTargets(self._setting.objective, tuple(targets))
        found = [self._posterior(target, known, points_MN, again) for target in targets]
        return Surrogate(
            combined,
            tuple(posterior for posterior, _ in found),
            np.array([scale for _, scale in found]),
        )

    def _posterior(
        self, target: str, known: Sequence[Told], points_MN: Array, again: bool
    ) -> tuple[QuadraticPosterior, float]:
        values_M = np.array([(each.smooth or each.values)[target] for each in known])
        slopes_MN = np.array([self._row(each.gradients, target) for each in known])
        scale = float(np.sqrt(np.nanmean(slopes_MN**2))) or 1.0
        seen = Observations(points_MN, values_M / scale, slopes_MN / scale)
        if again or target not in self._priors:
            self._priors[target] = fit_prior(thinned(seen), self._priors.get(target, START))
        posterior = QuadraticPosterior(seen, self._priors[target], self._last.get(target))
        self._last[target] = posterior
        return posterior, scale

    def _row(self, gradients: Mapping[str, Mapping[str, float]] | None, target: str) -> list[float]:
        if gradients is None:
            return [math.nan] * len(self._names)
        return [gradients[target][name] for name in self._names]


def thinned(seen: Observations) -> Observations:
    """As many of the points as make NUMBERS_TO_FIT numbers, with derivatives first, the latest of each."""
    num_N = seen.points_MN.shape[1]
    with_slopes = seen.sloped[-max(2, NUMBERS_TO_FIT // (num_N + 1)) :]
    others = np.setdiff1d(np.arange(len(seen.values_M)), seen.sloped)
    room = max(0, NUMBERS_TO_FIT - len(with_slopes) * (num_N + 1))
    rows = np.sort(np.concatenate([with_slopes, others[len(others) - min(room, len(others)) :]]))
    return Observations(seen.points_MN[rows], seen.values_M[rows], seen.slopes_MN[rows])

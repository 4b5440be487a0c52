"""What a search by gradients believes of its targets: a quadratic for each, and their objective.

Legend of shapes: N datasets, T targets, K mixtures, M mixtures told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergetomix.objectives.objective import OverTargets
from mergetomix.records import Mixture
from mergetomix.search.candidates import Array, coefficients, weight_rows
from mergetomix.search.gradient.directions import Direction
from mergetomix.search.gradient.prior import START, fit_prior, thinned
from mergetomix.search.gradient.quadratic import Observations, QuadraticPosterior, QuadraticPrior
from mergetomix.search.strategy import Setting, Told


def is_finite(told: Told) -> bool:
    """Whether all that was told are numbers."""
    slopes = [slope for each in (told.gradients or {}).values() for slope in each.values()]
    values = [*told.values.values(), *(told.smooth or {}).values()]
    return all(map(math.isfinite, values + slopes))


@dataclass(frozen=True)
class Surrogate:
    """The posteriors of all targets, each in units of its slopes, and the objective looked at."""

    combined: OverTargets | Direction
    posteriors: tuple[QuadraticPosterior, ...]
    scale_T: Array

    def quadratics(self) -> list[tuple[Array, Array]]:
        """Returns the expected b and H of every target."""
        pairs = zip(self.posteriors, self.scale_T, strict=True)
        return [(each.slope_N * scale, each.curvature_NN * scale) for each, scale in pairs]

    def values(self, points_KN: Array) -> Array:
        """Returns the expected values, shape (T, K)."""
        return np.stack([each.mean(points_KN) for each in self.posteriors]) * self.scale_T[:, None]

    def objectives(self, points_KN: Array) -> Array:
        """Returns the objective of the expected values, shape (K,)."""
        return self.combined(self.values(points_KN))

    def sds(self, points_KN: Array) -> Array:
        """Returns the objective's standard deviation if targets err independently, shape (K,)."""
        slopes_TK = self.combined.slopes(self.values(points_KN))
        return np.asarray(np.sqrt(((slopes_TK * self.value_sds(points_KN)) ** 2).sum(axis=0)))

    def value_sds(self, points_KN: Array) -> Array:
        """Returns the values' standard deviations, with the noise of their priors, shape (T, K)."""
        noise_T1 = np.array([[math.sqrt(each.prior.noise_value)] for each in self.posteriors])
        sd_TK = np.hypot(np.stack([each.sd(points_KN) for each in self.posteriors]), noise_T1)
        return np.asarray(sd_TK * self.scale_T[:, None])

    def slopes(self, points_KN: Array) -> Array:
        """Returns the derivative of the objective in the coefficients, shape (K, N)."""
        outer_TK = self.combined.slopes(self.values(points_KN))
        inner_TKN = np.stack([b_N + points_KN @ h_NN for b_N, h_NN in self.quadratics()])
        return np.asarray((outer_TK[:, :, None] * inner_TKN).sum(axis=0))


class Learner:
    """Fits surrogates to what was told; priors are carried over from one fit to the next."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._priors: dict[str, QuadraticPrior] = {}
        self._last: dict[str, QuadraticPosterior] = {}

    def points(self, mixtures: Sequence[Mixture]) -> Array:
        """Returns the experts' coefficients in the merges of some mixtures, shape (K, N)."""
        weights_KN = weight_rows(mixtures, self._setting.space.allowed)
        return coefficients(weights_KN, self._setting.exponent)

    def fit(self, told: Sequence[Told], again: bool) -> Surrogate | None:
        """Fits what was told, all of it numbers, and if asked the priors `again`.

        Returns None before there is a derivative.
        """
        if not any(each.gradients for each in told):
            return None
        targets, names = sorted(told[0].values), self._setting.space.allowed
        points_MN = self.points([each.mixture for each in told])
        unknown = dict.fromkeys(names, math.nan)
        posteriors, scales = [], []
        for target in targets:
            values_M = np.array([(each.smooth or each.values)[target] for each in told])
            slopes = [each.gradients[target] if each.gradients else unknown for each in told]
            slopes_MN = np.array([[slope[name] for name in names] for slope in slopes])
            scale = float(np.sqrt(np.nanmean(slopes_MN**2))) or 1.0
            seen = Observations(points_MN, values_M / scale, slopes_MN / scale)
            if again or target not in self._priors:
                start = self._priors.get(target, START)
                self._priors[target] = fit_prior(thinned(seen), start)
            before = self._last.get(target)
            self._last[target] = QuadraticPosterior(seen, self._priors[target], before)
            posteriors.append(self._last[target])
            scales.append(scale)
        combined = OverTargets(self._setting.objective, tuple(targets))
        return Surrogate(combined, tuple(posteriors), np.array(scales))

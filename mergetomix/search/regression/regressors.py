"""Regressions of a target's value over mixtures, from the values of a few trials.

Legend of shapes: M trials, N datasets, K mixtures, P numbers that are squared and summed. Points
are the experts' coefficients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergetomix.search.strategy import Regressor
from mergetomix.statistics.regression import boosted

Array = NDArray[np.float64]

RIDGE = 1e-2
"""Of a law: small beside the squared deviations of some trials' values, which are one each."""
BEND = 3.0
"""Of a law at its start: how many times larger k is than what the line changes."""
MAX_LAW_STEPS, MAX_PROCESS_STEPS = 200, 12
MAX_POWER = 50.0
"""The largest power of an exponential on the way to a law."""


@dataclass(frozen=True)
class Fit:
    """Values at points of shape (K, N), and what is missed of each trial if it is left out."""

    predict: Callable[[Array], Array]
    missed_M: Array


def fit(kind: Regressor, points_MN: Array, value_M: Array, seed: int) -> Callable[[Array], Array]:
    """Returns the predictions of a regressor.

    `auto` is `gp` or `log_linear`, whichever has the less cross-validated error here. LightGBM is
    not among those that `auto` tries: it takes over ten times as long and a package that may not be
    there, and with 15 to 100 trials a Gaussian process predicted better in 18 of 22 cases
    (docs/decisions.md).
    """
    if kind == "lightgbm":
        return lambda points_KN: boosted(points_MN, value_M, points_KN, seed)
    if kind == "auto":
        fits = [process(points_MN, value_M), log_linear(points_MN, value_M)]
        return min(fits, key=lambda found: float(np.mean(found.missed_M**2))).predict
    return (process if kind == "gp" else log_linear)(points_MN, value_M).predict


def process(points_MN: Array, value_M: Array) -> Fit:
    """Fits a Gaussian process: k(x, y) = r Matern_5/2(|x - y| / l) + n [x = y] (scikit-learn).

    r, l and n are the likeliest; l is from 0.1 to 10, as weights are a few tenths apart. Left out,
    trial i is missed by [K^-1 y]_i / [K^-1]_ii (Rasmussen and Williams 2006, eq. 5.12).
    """
    from scipy.linalg import cho_solve
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = ConstantKernel(1.0, (1e-4, 1e4)) * Matern(0.5, (0.1, 10.0), nu=2.5)
    found = GaussianProcessRegressor(
        smooth + WhiteKernel(1e-2, (1e-8, 1.0)), optimizer=_few_steps, normalize_y=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a part that is not needed goes to its bound
        found.fit(points_MN, value_M)
    inverse_M = np.diag(cho_solve((found.L_, True), np.eye(len(value_M))))
    return Fit(found.predict, float(value_M.std()) * found.alpha_ / inverse_M)


def _few_steps(objective: Any, start: Array, bounds: Array) -> tuple[Array, float]:
    """Takes L-BFGS-B as scikit-learn does, but not to the last digit."""
    from scipy.optimize import minimize

    options = {"maxiter": MAX_PROCESS_STEPS}
    found = minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options=options)
    return found.x, float(found.fun)


def log_linear(points_MN: Array, value_M: Array) -> Fit:
    """Fits value = c + k exp(t . x), the law of data mixing laws (arXiv 2403.16952), k of any sign.

    The fit has the least sum_i [(value_i - predicted_i)^2 + 1e-2 (t . (x_i - mean x))^2]
    + 1e-2 |t|^2, values in units of their standard deviation (scipy's Levenberg-Marquardt). It
    starts from the line that fits best, bent a little up and a little down; the better of the two
    is taken. Without the second term few trials are fitted by laws that explode beside them. Left
    out, trial i is missed by r_i / (1 - h_ii) with residuals r and h the projection on the law's
    derivatives: exact for a line, near for a law.
    """
    from scipy.optimize import least_squares
    from sklearn.linear_model import Ridge

    mean, size = float(value_M.mean()), float(value_M.std())
    if size == 0:
        return Fit(lambda points_KN: np.full(len(points_KN), mean), np.zeros(len(value_M)))
    centred_MN = points_MN - points_MN.mean(axis=0)
    penalty_PN = np.sqrt(RIDGE) * np.vstack([centred_MN, np.eye(points_MN.shape[1])])
    unit_M = (value_M - mean) / size

    def residuals(law: Array) -> Array:
        return np.concatenate([_law(law, points_MN) - unit_M, penalty_PN @ law[2:]])

    def slopes(law: Array) -> Array:
        power_M = _power(law, points_MN)
        of_powers = law[1] * power_M[:, None] * points_MN
        of_values = np.column_stack([np.ones_like(power_M), power_M, of_powers])
        return np.vstack([of_values, np.pad(penalty_PN, ((0, 0), (2, 0)))])

    # a + b . x is near to a - k + k exp(b . x / k) for k large
    line = Ridge(alpha=RIDGE).fit(points_MN, unit_M)
    tried = []
    for k in np.array([BEND, -BEND]) * max(1.0, float(np.ptp(line.coef_))):
        start = np.array([line.intercept_ - k, k, *(line.coef_ / k)])
        tried.append(least_squares(residuals, start, slopes, method="lm", max_nfev=MAX_LAW_STEPS))
    best = min(tried, key=lambda found: float(found.cost))
    base, _ = np.linalg.qr(slopes(best.x))
    own_M = (base[: len(value_M)] ** 2).sum(axis=1)
    missed_M = size * residuals(best.x)[: len(value_M)] / np.maximum(1 - own_M, 1e-6)
    return Fit(lambda points_KN: mean + size * _law(best.x, points_KN), missed_M)


def _power(law: Array, points_KN: Array) -> Array:
    return np.asarray(np.exp(np.clip(points_KN @ law[2:], -MAX_POWER, MAX_POWER)))


def _law(law: Array, points_KN: Array) -> Array:
    """Returns c + k exp(t . x) for a law (c, k, t)."""
    return np.asarray(law[0] + law[1] * _power(law, points_KN))

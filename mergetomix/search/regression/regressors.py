"""What a target is worth over mixtures, from a few trials' values: the regressions that a search may choose among.

Legend of shapes: M trials, N datasets, K mixtures, P numbers that are squared and summed. Points are the experts' coefficients.
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
"""Of an exponential on the way to a law."""


@dataclass(frozen=True)
class Fit:
    """A regression: values at points of shape (K, N), and how far each trial's value is from what the others say of it."""

    predict: Callable[[Array], Array]
    missed_M: Array

    @property
    def error(self) -> float:
        """The mean square of what it misses: leave-one-out cross-validation."""
        return float(np.mean(self.missed_M**2))


def fit(kind: Regressor, points_MN: Array, value_M: Array, seed: int) -> Callable[[Array], Array]:
    """The predictions of a regressor; `auto` is `gp` or `log_linear`, whichever has the less cross-validated error here.

    LightGBM is not among those that `auto` tries: it takes over ten times as long and a package that may not be there, and with
    15 to 100 trials a Gaussian process predicted better in 18 of 22 cases (docs/decisions.md).
    """
    if kind == "lightgbm":
        return lambda points_KN: boosted(points_MN, value_M, points_KN, seed)
    kinds = [process, log_linear] if kind == "auto" else [process if kind == "gp" else log_linear]
    return min((one(points_MN, value_M) for one in kinds), key=lambda found: found.error).predict


def process(points_MN: Array, value_M: Array) -> Fit:
    """A Gaussian process: k(x, y) = r Matern_5/2(|x - y| / l) + n [x = y], with r, l and n likeliest (scikit-learn).

    l is from 0.1 to 10, as weights are a few tenths apart. Left out, trial i is missed by [K^-1 y]_i / [K^-1]_ii (Rasmussen and
    Williams 2006, eq. 5.12).
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
    """L-BFGS-B as scikit-learn has it, but not to the last digit."""
    from scipy.optimize import minimize

    found = minimize(
        objective,
        start,
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"maxiter": MAX_PROCESS_STEPS},
    )
    return found.x, float(found.fun)


def log_linear(points_MN: Array, value_M: Array) -> Fit:
    """value = c + k exp(t . x), the law of data mixing laws (arXiv 2403.16952), k of either sign.

    At the least sum_i [(value_i - predicted_i)^2 + 1e-2 (t . (x_i - mean x))^2] + 1e-2 |t|^2, values in units of their standard
    deviation (scipy's Levenberg-Marquardt), from the line that fits best, bent a little up and a little down; the better of the
    two. Without the second term few trials are fitted by laws that explode beside them. Left out, trial i is missed by
    r_i / (1 - h_ii) with residuals r and h the projection on the law's derivatives: exact for a line, near for a law.
    """
    from scipy.optimize import least_squares

    mean, size = float(value_M.mean()), float(value_M.std())
    if size == 0:
        return Fit(lambda points_KN: np.full(len(points_KN), mean), np.zeros(len(value_M)))
    squares = _Squares(points_MN, (value_M - mean) / size)
    tried = [
        least_squares(squares.residuals, s, squares.slopes, method="lm", max_nfev=MAX_LAW_STEPS)
        for s in squares.starts()
    ]
    best = min(tried, key=lambda found: float(found.cost))
    base, _ = np.linalg.qr(squares.slopes(best.x))
    own_M = (base[: len(value_M)] ** 2).sum(axis=1)
    missed_M = size * squares.residuals(best.x)[: len(value_M)] / np.maximum(1 - own_M, 1e-6)
    return Fit(lambda points_KN: mean + size * _law(best.x, points_KN), missed_M)


def _power(law: Array, points_KN: Array) -> Array:
    return np.asarray(np.exp(np.clip(points_KN @ law[2:], -MAX_POWER, MAX_POWER)))


def _law(law: Array, points_KN: Array) -> Array:
    """c + k exp(t . x) for (c, k, t)."""
    return np.asarray(law[0] + law[1] * _power(law, points_KN))


class _Squares:
    """What a law misses and is penalised by, and the derivatives of both in (c, k, t)."""

    def __init__(self, points_MN: Array, value_M: Array) -> None:
        self._points_MN, self._value_M = points_MN, value_M
        self._penalty_PN = np.sqrt(RIDGE) * np.vstack(
            [points_MN - points_MN.mean(axis=0), np.eye(points_MN.shape[1])]
        )

    def residuals(self, law: Array) -> Array:
        """Of every trial, then the penalties."""
        return np.concatenate(
            [_law(law, self._points_MN) - self._value_M, self._penalty_PN @ law[2:]]
        )

    def slopes(self, law: Array) -> Array:
        """Derivatives of the residuals."""
        power_M = _power(law, self._points_MN)
        upper = np.column_stack(
            [np.ones_like(power_M), power_M, law[1] * power_M[:, None] * self._points_MN]
        )
        return np.vstack([upper, np.pad(self._penalty_PN, ((0, 0), (2, 0)))])

    def starts(self) -> list[Array]:
        """a + b . x is near to a - k + k exp(b . x / k) for a large k."""
        from sklearn.linear_model import Ridge

        line = Ridge(alpha=RIDGE).fit(self._points_MN, self._value_M)
        sizes = (sign * BEND * max(1.0, float(np.ptp(line.coef_))) for sign in (1, -1))
        return [np.array([line.intercept_ - k, k, *(line.coef_ / k)]) for k in sizes]

"""What mixtures that nobody tried are worth, from those that were: Bayesian linear regression.

    v(w) = b h(w) + sum_i b_i w_i + sum over i < j of b_ij w_i w_j + e
    h(w) = (1 - |w|^2)^(1/2)

All coefficients are normal around zero, each of the three kinds with a scale of its own; the scales
are the likeliest of a grid (Rasmussen and Williams, Gaussian Processes, section 2.1 and 5.4).

Array names end in their shape: D draws, F features, M mixtures, N datasets.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]
SCALES = (0.3, 1.0, 3.0)
"""Of the coefficients of w_i, in standard deviations of what is known; pairs and h have factors."""
PAIRS = (0.0, 1.0, 3.0)
OWN = (0.02, 0.1, 0.3)
"""Of e, in the same unit: what no feature explains."""


class Untried:
    """Draws of the worth of any mixture, given draws of the worth of some.

    Args:
        weights_MN: the mixtures that are known, weights that sum to one.
        known_DM: draws of what they are worth.
    """

    def __init__(self, weights_MN: Array, known_DM: Array, seed: int = 0) -> None:
        self.unit = float(known_DM.mean(axis=0).std()) or 1.0
        mean_M = known_DM.mean(axis=0) / self.unit
        noise_M = known_DM.var(axis=0) / self.unit**2
        plain_MF = features(weights_MN)
        grid = itertools.product(SCALES, PAIRS, OWN)
        self._scale_F, own = max(
            ((_scales(plain_MF.shape[1], weights_MN.shape[1], a, b), c) for a, b, c in grid),
            key=lambda each: _evidence(plain_MF * each[0], mean_M, noise_M + each[1] ** 2),
        )
        # Matheron's rule: a draw of the prior, moved by what it says wrongly of the known
        rng, num = np.random.default_rng(seed), len(known_DM)
        known_MF = plain_MF * self._scale_F
        prior_FD = rng.standard_normal((known_MF.shape[1], num))
        own_MD = own * rng.standard_normal((len(mean_M), num))
        shape_MM = known_MF @ known_MF.T + own**2 * np.eye(len(mean_M))
        away_MD = known_DM.T / self.unit - known_MF @ prior_FD - own_MD
        root = linalg.cho_factor(shape_MM + 1e-9 * np.trace(shape_MM) * np.eye(len(mean_M)))
        self._coefficients_FD = prior_FD + known_MF.T @ linalg.cho_solve(root, away_MD)

    def __call__(self, weights_MN: Array) -> Array:
        """Returns draws of the worth of mixtures, shape (D, M)."""
        found_MD = (features(weights_MN) * self._scale_F) @ self._coefficients_FD
        return np.asarray(self.unit * found_MD.T)


def features(weights_MN: Array) -> Array:
    """Returns h, the weights and the products of two of them, shape (M, F)."""
    first, second = np.triu_indices(weights_MN.shape[1], k=1)
    mixed_M = np.sqrt(np.clip(1 - (weights_MN**2).sum(axis=1), 0, None))
    return np.hstack([mixed_M[:, None], weights_MN, weights_MN[:, first] * weights_MN[:, second]])


def _scales(num_features: int, num_datasets: int, main: float, pairs: float) -> Array:
    found_F = np.full(num_features, pairs * main)
    found_F[0], found_F[1 : 1 + num_datasets] = main, main
    return found_F


def _evidence(known_MF: Array, mean_M: Array, noise_M: Array) -> float:
    shape_MM = known_MF @ known_MF.T + np.diag(noise_M + 1e-9)
    root_MM = linalg.cholesky(shape_MM, lower=True)
    white_M = linalg.solve_triangular(root_MM, mean_M, lower=True)
    return float(-np.log(np.diag(root_MM)).sum() - white_M @ white_M / 2)

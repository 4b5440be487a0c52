"""How a target should vary before it was looked at: the prior, fitted to what was observed.

Legend of shapes: S numbers observed, T terms of the covariance.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from mergetomix.search.candidates import Array
from mergetomix.search.gradient.quadratic import TERMS, Observations, QuadraticPrior, covariance

MOST_NUMBERS = 320
"""Numbers that a prior is fitted to at most: its cost grows with their cube."""
MAX_STEPS = 40
LOWEST, HIGHEST = 1e-8, 1e4
"""Bounds of the variances."""
START = QuadraticPrior((1.0, 1.0, 0.5, 0.3, 0.3), 1e-4, 1e-3)
SPREAD = np.array([2.0] * 5 + [2.5, 2.5])
"""The prior of data in units of slopes, and how far from it (in logarithms) others are."""


def evidence(logs: Array, terms_TSS: Array, seen: Observations) -> tuple[float, Array]:
    """Returns -log p(observed, prior) up to a constant, and its derivative in `logs`.

    log p(y) = -y' K^-1 y / 2 - log det K / 2 for K = sum_t s_t K_t + noise (Rasmussen and Williams
    2006, eq. 5.8 and 5.9), with a normal prior on the logarithms around START.
    """
    prior, y_S = QuadraticPrior.of(logs), seen.numbers_S
    noise_S = prior.noises(seen)
    matrix = np.tensordot(np.array(prior.scales), terms_TSS, 1)
    matrix[np.diag_indices(len(y_S))] += noise_S
    factor = cho_factor(matrix, lower=True, check_finite=False)
    alpha_S = cho_solve(factor, y_S, check_finite=False)
    excess = cho_solve(factor, np.eye(len(y_S)), check_finite=False) - np.outer(alpha_S, alpha_S)
    noisy_S, num = np.diag(excess) * noise_S, len(y_S) - len(seen.values_M)
    pairs = zip(prior.scales, terms_TSS, strict=True)
    slopes = [scale * float(np.vdot(term, excess)) for scale, term in pairs]
    gradient = np.array([*slopes, float(noisy_S[num:].sum()), float(noisy_S[:num].sum())]) / 2
    away = (logs - START.logs) / SPREAD
    value = y_S @ alpha_S / 2 + np.log(np.diag(factor[0])).sum() + away @ away / 2
    return float(value), gradient + away / SPREAD


def fit_prior(seen: Observations, start: QuadraticPrior = START) -> QuadraticPrior:
    """Returns the prior under which what was observed, in units of its slopes, is likeliest."""
    terms_TSS = np.stack([covariance(alone, seen) for alone in np.eye(len(TERMS))])
    found = minimize(
        evidence,
        start.logs,
        (terms_TSS, seen),
        method="L-BFGS-B",
        jac=True,
        bounds=[(np.log(LOWEST), np.log(HIGHEST))] * (len(TERMS) + 2),
        options={"maxiter": MAX_STEPS},
    )
    return QuadraticPrior.of(found.x)


def thinned(seen: Observations) -> Observations:
    """Returns as many points as make MOST_NUMBERS, with derivatives first, the latest of each."""
    num_N = seen.points_MN.shape[1]
    sloped = seen.sloped[-max(2, MOST_NUMBERS // (num_N + 1)) :]
    others = np.setdiff1d(np.arange(len(seen.values_M)), seen.sloped)
    room = max(0, MOST_NUMBERS - len(sloped) * (num_N + 1))
    return seen.picked(np.sort(np.concatenate([sloped, others[max(0, len(others) - room) :]])))

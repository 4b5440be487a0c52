"""Which mixture to fine-tune for real next: the one whose result is expected to help most."""

from __future__ import annotations

import math

import numpy as np

from mergetomix.statistics.posterior import JITTER, Array, Posterior


def knowledge_gradient(posterior: Posterior) -> Array:
    """Returns how much better the choice is expected to be after each mixture's check: (M,).

    The knowledge gradient (Frazier, Powell and Dayanik 2009, eq. 14): E[max_i mean_i after the
    check] - max_i mean_i now, over one standard normal by Gauss-Hermite quadrature; zero for
    what was measured. What the noise of a check hides is worth nothing.
    """
    nodes_Q, weights_Q = np.polynomial.hermite_e.hermegauss(31)
    sd_M, best = posterior.sd_M, float(posterior.mean_M.max())
    value_M = np.zeros(len(sd_M))
    unsure = np.flatnonzero(sd_M > JITTER * max(1.0, float(sd_M.max()))).tolist()
    for i in (row for row in unsure if row not in posterior.known):
        shift_M = posterior.shift(i)
        best_Q = np.max(posterior.mean_M[:, None] + shift_M[:, None] * nodes_Q, axis=0)
        value_M[i] = max(0.0, float(best_Q @ weights_Q) / math.sqrt(2 * math.pi) - best)
    return value_M


def next_check(
    posterior: Posterior, first_by: Array | None, confidence: float
) -> tuple[int | None, str]:
    """Returns the mixture to check next, or None and why there is none.

    If no check was paid for yet `first_by` are the proxies, shape (M,), and it is the best of them;
    then it is the one whose check is worth most, until the pick is the best mixture with a
    probability of `confidence`.
    """
    left = [i for i in range(len(posterior.mean_M)) if i not in posterior.known]
    if not left:
        return None, "every mixture was measured"
    if first_by is not None:
        return max(left, key=lambda i: float(first_by[i])), ""
    safe = float(posterior.best_probabilities()[int(np.argmax(posterior.mean_M))])
    if safe >= confidence:
        return None, f"the pick is the best mixture with a probability of {safe:.2f}"
    value_M = knowledge_gradient(posterior)
    return max(left, key=lambda i: (float(value_M[i]), float(posterior.mean_M[i]))), ""

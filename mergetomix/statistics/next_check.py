"""Which mixture to fine-tune for real next: the one that is likeliest to be the best."""

from __future__ import annotations

from mergetomix.statistics.posterior import Array, Posterior


def next_check(
    posterior: Posterior, first_by: Array | None, confidence: float
) -> tuple[int | None, str]:
    """Returns the mixture to check next, or None and why there is none.

    If no check was paid for yet `first_by` are the proxies, shape (M,), and it is the best of them;
    then, of those not measured, it is the one that has the highest probability of being worth most
    (of equals the one that is expected to be better), until the pick has a probability of
    `confidence`.
    """
    left = [i for i in range(len(posterior.mean_M)) if i not in posterior.known]
    if not left:
        return None, "every mixture was measured"
    if first_by is not None:
        return max(left, key=lambda i: float(first_by[i])), ""
    chance_M = posterior.best_probabilities()
    safe = float(chance_M[posterior.pick])
    if safe >= confidence:
        return None, f"the pick is the best mixture with a probability of {safe:.2f}"
    return max(left, key=lambda i: (float(chance_M[i]), float(posterior.mean_M[i]))), ""

"""Numbers from a mixture's weights alone: how many datasets it has in effect, and the factors on deltas."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergetomix.records import Mixture


def scale(num_datasets: float, exponent: float) -> float:
    """scale(k) = k ** -exponent: the factor on the sum of k deltas."""
    return math.pow(num_datasets, -exponent)


def effective_number(weights: Sequence[float]) -> float:
    """k = 1 / sum_i w_i^2 (Kish's effective number) of weights on the simplex.

    It is the number of datasets where weights are equal, and one where a single dataset has nearly all the weight.
    """
    return round(
        1 / math.fsum(weight**2 for weight in weights), 9
    )  # equal weights give a whole number


def gain(weights: Sequence[float], exponent: float) -> float:
    """k * scale(k) = k ** (1 - exponent), k the effective number: the factor on a merged delta that is a mean.

    One where a single dataset has all the weight, so that its mixture is its expert whatever the exponent.
    """
    num = effective_number(weights)
    return num * scale(num, exponent)


def coefficients(mixture: Mixture, exponent: float) -> dict[str, float]:
    """The factor on each expert's delta, c_i = k * scale(k) * w_i, without those that are zero. See `gain`."""
    active = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
    factor = gain(list(active.values()), exponent)
    return {name: factor * weight for name, weight in active.items()}

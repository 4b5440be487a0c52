"""What follows from a mixture's weights alone: its effective number of datasets, and factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergetomix.records import Mixture


def scale(num_datasets: float, exponent: float) -> float:
    """Returns scale(k) = k ** -exponent, the factor on the sum of k deltas.

    >>> scale(4, 0.5)
    0.5
    """
    return math.pow(num_datasets, -exponent)


def effective_number(weights: Sequence[float]) -> float:
    """Returns k = 1 / sum_i w_i^2 (Kish's effective number) of weights on the simplex.

    It is the number of datasets if weights are equal, and one if a single dataset has all weight.

    >>> effective_number([1 / 3, 1 / 3, 1 / 3]), effective_number([0.5, 0.3, 0.2])
    (3.0, 2.631578947)
    """
    squares = math.fsum(weight**2 for weight in weights)
    return round(1 / squares, 9)  # equal weights give a whole number


def delta_factor(weights: Sequence[float], exponent: float) -> float:
    """Returns k * scale(k) = k ** (1 - exponent), the factor on a merged delta that is a mean.

    k is the effective number. The factor is one if a single dataset has all the weight, so that
    its mixture is its expert whatever the exponent.
    """
    num = effective_number(weights)
    return num * scale(num, exponent)


def coefficients(mixture: Mixture, exponent: float) -> dict[str, float]:
    """Returns the factor on each expert's delta, c_i = k * scale(k) * w_i, without those of zero.

    >>> coefficients(Mixture(("code", "maths"), (0.5, 0.5)), exponent=1)
    {'code': 0.5, 'maths': 0.5}
    >>> coefficients(Mixture(("code", "maths"), (1.0, 0.0)), exponent=0)
    {'code': 1.0}
    """
    active = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
    factor = delta_factor(list(active.values()), exponent)
    return {name: factor * weight for name, weight in active.items()}

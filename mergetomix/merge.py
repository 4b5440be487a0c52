"""Merging as pure functions over tensors: sums in float32, one rounding at the end.

proxy(w) = theta_0 + k * scale(k) * sum_i w_i delta_i, with w on the simplex and scale(k) = k ** -exponent; k = 1 / sum_i w_i^2
is the effective number of datasets. With equal weights this is theta_0 + scale(k) * sum_i delta_i (arXiv 2505.16066, where
scale(k) = 1 / k); with exponent 1 it is theta_0 + sum_i w_i delta_i for any weights (arXiv 2601.17858).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mergetomix.records import Mixture

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def scale(num_datasets: float, exponent: float) -> float:
    """scale(k) = k ** -exponent: the factor on the sum of k deltas."""
    return math.pow(num_datasets, -exponent)


def coefficients(mixture: Mixture, exponent: float) -> dict[str, float]:
    """The factor on each expert's delta, c_i = k * scale(k) * w_i, without those that are zero.

    k is 1 / sum_i w_i^2 (Kish's effective number): the number of datasets where weights are equal, and one where a single
    dataset has nearly all the weight, so that its mixture is nearly its expert whatever the exponent.
    """
    active = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
    num = round(1 / math.fsum(weight**2 for weight in active.values()), 9)  # equal weights give a whole number
    factor = num * scale(num, exponent)
    return {name: factor * weight for name, weight in active.items()}


def linear(base: Tensor, deltas: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """base + sum_i c_i delta_i, summed in float32 in the order given; the result is float32.

    Args:
        base: a parameter, any shape and floating type.
        deltas: tensors of the same shape.
        factors: one number for each delta.
    """
    total = base.float().clone()
    for delta, factor in zip(deltas, factors, strict=True):
        total.add_(delta.to(total), alpha=factor)
    return total


def lora_product(pairs: Sequence[tuple[Tensor, Tensor]], factors: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    """sum_i c_i B_i A_i as one matrix product of rank sum of ranks, in float32 (or `dtype`): shape (out, in).

    Averaging the A and the B apart would give cross terms B_i A_j, which belong to no expert.

    Args:
        pairs: (B_i, A_i) with shapes (out, rank_i) and (rank_i, in).
        factors: c_i, each adapter's own scaling included.
    """
    import torch

    kind = dtype or torch.float32
    tall = torch.cat([b.to(kind) * factor for (b, _), factor in zip(pairs, factors, strict=True)], dim=1)
    wide = torch.cat([a.to(kind) for _, a in pairs], dim=0)
    return tall @ wide


METHODS: dict[str, Callable[[Tensor, Sequence[Tensor], Sequence[float]], Tensor]] = {"linear": linear}

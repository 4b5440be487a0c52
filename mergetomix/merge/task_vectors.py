"""Merges of task vectors: sums of deltas, each thinned or not, with or without a vote on signs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetomix.merge.factors import effective_number
from mergetomix.merge.parts import Parts
from mergetomix.merge.sums import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


def linear(parts: Parts) -> Tensor:
    """sum_i w_i d_i: the mean of the experts (arXiv 2203.05482), which 2505.16066 and 2601.17858 take for a proxy."""
    return weighted_sum(parts.deltas, parts.weights).float()


def task_arithmetic(parts: Parts, *, strength: float = 1.0) -> Tensor:
    """strength * k * sum_i w_i d_i, k the effective number: the sum of the deltas where weights are equal
    (arXiv 2212.04089)."""
    return weighted_sum(parts.deltas, parts.weights).mul_(strength * effective_number(parts.weights)).float()

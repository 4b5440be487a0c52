"""Merges that weigh experts by what their own training data says of each value.

`mergetomix.experts.fisher_and_gram` measures it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetomix.merge.parts import Parts
from mergetomix.merge.sums import blockwise, exact, mixed, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)
"""Shares of the largest diagonal entry, the first of which that allows an inverse is added."""


def fisher(parts: Parts) -> Tensor:
    """Returns sum_i w_i F_i d_i / sum_i w_i F_i, value by value (arXiv 2111.09832).

    F_i is the diagonal of the expert's Fisher information. Where it is zero for all experts, or
    not known, the result is the weighted mean.
    """
    num, weights = len(parts.deltas), parts.weights
    if not parts.statistics:
        return weighted_sum(parts.deltas, weights)

    def weigh(values_KV: Tensor) -> Tensor:
        delta_KV, known_KV = values_KV[:num], values_KV[num:]
        share_V, mean_V = mixed(known_KV, weights), mixed(delta_KV, weights)
        return (mixed(known_KV * delta_KV, weights) / share_V).where(share_V > 0, mean_V)

    known = [each.to(parts.deltas[0].device) for each in parts.statistics]
    return blockwise(weigh, [*parts.deltas, *known])


def regmean(parts: Parts, *, offdiagonal: float = 0.9) -> Tensor:
    """Returns (sum_i w_i G_i)^-1 sum_i w_i G_i d_i, the deltas as (in, out) (arXiv 2212.09849).

    G_i is the Gram matrix of the layer's inputs, its entries off the diagonal times `offdiagonal`.
    With `offdiagonal` 1 the result minimises sum_i w_i |X_i (d - d_i)|^2 / n_i. It is solved for
    what is to be added to the weighted mean, with a ridge: where no data says anything the mean
    stays, and experts that are the same merge to themselves. Without statistics it is the mean.

    Raises:
        ValueError: a statistic is no Gram matrix.
    """
    import torch

    mean = weighted_sum(parts.deltas, parts.weights)
    if not parts.statistics:
        return mean
    by_input = exact(mean if parts.transposed else mean.T)
    data, pull = torch.zeros(len(by_input), len(by_input)).to(by_input), torch.zeros_like(by_input)
    for delta, weight, known in zip(parts.deltas, parts.weights, parts.statistics, strict=True):
        whole = exact(known.to(mean.device))
        gram = (whole * offdiagonal).diagonal_scatter(whole.diagonal()).mul_(weight)
        data += gram
        pull += gram @ (exact(delta if parts.transposed else delta.T) - by_input)
    found = by_input + _solve(data, pull)
    return (found if parts.transposed else found.T).float().contiguous()


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """Returns X of (gram + ridge) X = right; gram may be singular. X is zero if gram is zero."""
    import torch

    size = gram.diagonal().max()
    if size == 0:
        return torch.zeros_like(right)
    for ridge in RIDGES:
        matrix = gram.clone()
        matrix.diagonal().add_(ridge * size)
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return torch.cholesky_solve(right, lower)
    raise ValueError(
        "the weighted sum of Gram matrices must be finite and positive semidefinite, and it is not"
    )

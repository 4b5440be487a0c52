"""Merges that weigh experts by what their own training data says of each value: `mergetomix.statistics` gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetomix.merge.parts import Parts
from mergetomix.merge.sums import blockwise, exact, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

RIDGES = (
    1e-8,
    1e-6,
    1e-4,
    1e-2,
)  # of the largest diagonal entry: the first with which the matrix can be inverted is taken


def fisher(parts: Parts) -> Tensor:
    """sum_i w_i F_i d_i / sum_i w_i F_i, value by value, F_i the diagonal of the expert's Fisher information
    (arXiv 2111.09832); the weighted mean where that is zero for all experts, or not known."""

    num = len(parts.deltas)

    def weigh(values_KV: Tensor) -> Tensor:
        weight_K = values_KV.new_tensor(parts.weights)
        delta_KV, pull_KV = values_KV[:num], weight_K[:, None] * values_KV[num:]
        share_V = pull_KV.sum(dim=0)
        return ((pull_KV * delta_KV).sum(dim=0) / share_V).where(share_V > 0, weight_K @ delta_KV)

    if not parts.statistics:
        return weighted_sum(parts.deltas, parts.weights)
    return blockwise(
        weigh, [*parts.deltas, *(known.to(parts.deltas[0].device) for known in parts.statistics)]
    )


def regmean(parts: Parts, *, offdiagonal: float = 0.9) -> Tensor:
    """(sum_i w_i G_i)^-1 sum_i w_i G_i d_i, d_i as (in, out), G_i the Gram matrix of the layer's inputs with its entries off
    the diagonal times `offdiagonal` (arXiv 2212.09849); the weighted mean where there is none.

    With `offdiagonal` 1 it minimises sum_i w_i |X_i (d - d_i)|^2 / n_i. Solved for what is to be added to the weighted
    mean, with a ridge: where no data says anything the mean stays, and experts that are the same merge to themselves.

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
        gram = _damped(exact(known.to(mean.device)), offdiagonal).mul_(weight)
        data += gram
        pull += gram @ (exact(delta if parts.transposed else delta.T) - by_input)
    found = by_input + _solve(data, pull)
    return (found if parts.transposed else found.T).float().contiguous()


def _damped(gram: Tensor, offdiagonal: float) -> Tensor:
    damped = gram * offdiagonal
    damped.diagonal().copy_(gram.diagonal())
    return damped


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """X of (gram + ridge) X = right, for a matrix that may be singular. Zero where the matrix is."""
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

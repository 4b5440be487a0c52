"""Weighted sums of tensors, taken wide, block by block, and rounded to float32 once.

Every sum over experts goes from left to right, one rounded product after the other, so that its
bits are the same on every processor and with any number of threads. A matrix product would take
the order, and the fused multiplications, that the processor at hand is fastest with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """Returns a tensor in float64, or in float32 on Apple's GPUs, which have no wider type."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def blocks(flat: Tensor) -> Iterator[slice]:
    """Yields slices that cover a tensor of one dimension, each as long as is best widened at once.

    On a CPU that is what its cache holds, which is ten times as fast as whole tensors.
    """
    size = 2**17 if flat.device.type == "cpu" else 2**24
    for start in range(0, len(flat), size):
        yield slice(start, start + size)


def blockwise(function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Returns a function of the values at the same place of several tensors, rounded to float32.

    Args:
        function: from (tensors, values), as `exact` has them, to (values,).
        tensors: of one shape, which the result has too.
    """
    import torch

    flat = [tensor.flatten() for tensor in tensors]
    out = torch.empty(flat[0].shape, device=flat[0].device)
    for block in blocks(out):
        out[block] = function(torch.stack([exact(tensor[block]) for tensor in flat]))
    return out.view(tensors[0].shape)


def mixed(values_KV: Tensor, factors: Sequence[float]) -> Tensor:
    """Returns sum_i c_i v_i over the rows, from left to right; shape (values,)."""
    total_V = values_KV[0] * factors[0]
    for value_V, factor in zip(values_KV[1:], factors[1:], strict=True):
        total_V += value_V * factor
    return total_V


def weighted_sum(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """Returns sum_i c_i t_i, summed wide and rounded to float32 once."""
    return blockwise(lambda values_KV: mixed(values_KV, factors), tensors)

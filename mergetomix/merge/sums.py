"""Weighted sums of deltas, full and in factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """A tensor in float64, or in float32 on Apple's GPUs, which have no wider type."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def block_of(tensor: Tensor) -> int:
    """How many values to widen at once: on a CPU what its cache holds, which is ten times as fast as whole tensors."""
    return 2**17 if tensor.device.type == "cpu" else 2**24


def blockwise(function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """A function of values at the same place of several tensors, taken wide and rounded to float32 once.

    Args:
        function: from (tensors, values), as `exact` has them, to (values,).
        tensors: of one shape, which the result has too.
    """
    import torch

    flat = [tensor.flatten() for tensor in tensors]
    out = torch.empty(flat[0].shape, device=flat[0].device)
    size = block_of(out)
    for start in range(0, len(out), size):
        piece = slice(start, start + size)
        out[piece] = function(torch.stack([exact(tensor[piece]) for tensor in flat]))
    return out.view(tensors[0].shape)


def weighted_sum(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """sum_i c_i t_i, summed wide and rounded to float32 once."""

    return blockwise(lambda values_KV: values_KV.new_tensor(factors) @ values_KV, tensors)

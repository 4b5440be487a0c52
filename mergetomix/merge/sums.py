"""Weighted sums of deltas, full and in factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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

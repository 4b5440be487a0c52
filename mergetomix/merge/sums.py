"""Weighted sums of deltas, full and in factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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


def exact(tensor: Tensor) -> Tensor:
    """A tensor in float64, or in float32 on Apple's GPUs, which have no wider type."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def weighted_sum(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """sum_i c_i t_i as `exact` has it, in the order given: the caller rounds once."""
    import torch

    total = torch.zeros_like(exact(tensors[0]))
    for tensor, factor in zip(tensors, factors, strict=True):
        total.add_(exact(tensor), alpha=factor)
    return total

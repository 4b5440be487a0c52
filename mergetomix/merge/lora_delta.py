"""Deltas that stand as factors, as LoRA's do: their weighted sum is one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pair: TypeAlias = "tuple[Tensor, Tensor]"
"""(B, A) with the shapes (out, rank) and (rank, in)."""


def stacked(pairs: Sequence[Pair], factors: Sequence[float], dtype: torch.dtype) -> Pair:
    """Returns (B, A) with B A = sum_i c_i B_i A_i; its rank is the sum of theirs.

    B is [c_1 B_1 ... c_k B_k], and the A_i stand one below the other. Averaging the A and the B
    apart would give cross terms B_i A_j, which belong to no expert.

    Args:
        factors: c_i, each adapter's own scaling included.
        dtype: in which the result stands and the factors are multiplied.
    """
    import torch

    scaled = [b.to(dtype) * factor for (b, _), factor in zip(pairs, factors, strict=True)]
    return torch.cat(scaled, dim=1), torch.cat([a.to(dtype) for _, a in pairs])


def lora_product(
    pairs: Sequence[Pair], factors: Sequence[float], dtype: torch.dtype | None = None
) -> Tensor:
    """Returns sum_i c_i B_i A_i as one matrix product, in float32 or `dtype`; shape (out, in)."""
    import torch

    b, a = stacked(pairs, factors, dtype or torch.float32)
    return b @ a

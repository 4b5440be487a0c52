"""Deltas that stand as factors, as LoRA's do: their weighted sum is one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pair: TypeAlias = "tuple[Tensor, Tensor]"
"""(B, A) with the shapes (out, rank) and (rank, in); of a stack of matrices, (num, out, rank) and
(num, rank, in)."""


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
    return torch.cat(scaled, dim=-1), torch.cat([a.to(dtype) for _, a in pairs], dim=-2)


def stack_of_peft(pair: Pair, num: int) -> Pair:
    """Returns factors of a stack of `num` matrices from those that PEFT keeps of it.

    PEFT keeps B (out, rank x num), the matrices innermost, and A (num x rank, in), the matrices
    outermost; both must divide so.
    """
    b, a = pair
    return b.unflatten(1, (-1, num)).permute(2, 0, 1), a.unflatten(0, (num, -1))


def stack_for_peft(pair: Pair) -> Pair:
    """Returns the factors of a stack of matrices as PEFT keeps them."""
    b, a = pair
    return b.permute(1, 2, 0).flatten(1), a.flatten(0, 1)


def lora_product(
    pairs: Sequence[Pair], factors: Sequence[float], dtype: torch.dtype | None = None
) -> Tensor:
    """Returns sum_i c_i B_i A_i as one matrix product, in float32 or `dtype`.

    Its shape is (out, in), or (num, out, in).
    """
    import torch

    b, a = stacked(pairs, factors, dtype or torch.float32)
    return b @ a

"""The delta of LoRA experts, multiplied out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def lora_product(
    pairs: Sequence[tuple[Tensor, Tensor]],
    factors: Sequence[float],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """sum_i c_i B_i A_i as one matrix product of rank sum of ranks, in float32 (or `dtype`): shape (out, in).

    Averaging the A and the B apart would give cross terms B_i A_j, which belong to no expert.

    Args:
        pairs: (B_i, A_i) with shapes (out, rank_i) and (rank_i, in).
        factors: c_i, each adapter's own scaling included.
    """
    import torch

    kind = dtype or torch.float32
    tall = torch.cat(
        [b.to(kind) * factor for (b, _), factor in zip(pairs, factors, strict=True)], dim=1
    )
    wide = torch.cat([a.to(kind) for _, a in pairs], dim=0)
    return tall @ wide

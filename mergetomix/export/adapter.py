"""A mixture of LoRA experts as one adapter: exact, or the nearest one of a given rank.

The delta of a mixture, D = sum_i c_i s_i B_i A_i, is a product of rank sum of ranks as it stands.
Everything here is a pure function of the factors, works in float64, and never makes the matrix
that they are the factors of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergetomix.merge.lora_delta import Pair, stacked

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Adapter:
    """One adapter whose delta is B A, with scaling 1.

    Args:
        factors: (B, A) by param, all of one rank: B (out, rank), A (rank, in), and a dimension
            before these for a stack of matrices.
        errors: ||D - B A||_F / ||D||_F by param, of the factors as they stand, rounding included.
        error: the same over all params together.
        rank: of the factors.
        full_rank: the largest sum of the experts' ranks.
        wanted: the rank asked for, None if none was.
    """

    factors: Mapping[str, Pair]
    errors: Mapping[str, float]
    error: float
    rank: int
    full_rank: int
    wanted: int | None = None

    @property
    def is_exact(self) -> bool:
        """Whether nothing but rounding is lost."""
        return self.rank == self.full_rank

    @property
    def worst(self) -> str:
        """The param with the largest error."""
        return max(self.errors, key=lambda name: (self.errors[name], name))

    def sentences(self) -> list[str]:
        """Returns what a person should know of it: its rank, and what it loses."""
        kind = "exact up to rounding" if self.is_exact else "the nearest of this rank"
        found = [f"rank {self.rank}, {kind}; the experts' ranks sum to {self.full_rank}"]
        if self.wanted is not None and self.wanted > self.full_rank:
            found.append(f"rank {self.wanted} was asked for, which is over that sum")
        error = f"relative error ||D - B A|| / ||D|| (Frobenius): {self.error:.3g} over all params"
        return [*found, f"{error}, at most {self.errors[self.worst]:.3g} ({self.worst})"]


def combine(
    terms: Mapping[str, Sequence[tuple[Pair, float]]], rank: int | None, dtype: torch.dtype
) -> Adapter:
    """Returns one adapter for a weighted sum of adapters.

    A param that fewer experts change, or with lower ranks, is padded with zeros, so that all have
    one rank.

    Args:
        terms: for every param its experts' ((B_i, A_i), c_i s_i), with the shapes (out, rank_i) and
            (rank_i, in).
        rank: at most so much, by `compressed`; None is exact.
        dtype: of the result's factors.
    """
    import torch

    wide = {
        name: stacked([pair for pair, _ in own], [c for _, c in own], torch.float64)
        for name, own in terms.items()
    }
    full_rank = max(b.shape[-1] for b, _ in wide.values())
    rank_kept = full_rank if rank is None else min(rank, full_rank)
    factors, gaps, norms = {}, {}, {}
    for name, pair in wide.items():
        b, a = balanced(pair if pair[0].shape[-1] <= rank_kept else compressed(pair, rank_kept))
        more = rank_kept - b.shape[-1]
        pad = torch.nn.functional.pad
        factors[name] = pad(b.to(dtype), (0, more)), pad(a.to(dtype), (0, 0, 0, more))
        gaps[name], norms[name] = distance(pair, factors[name]), norm(pair)
    errors = {name: _ratio(gaps[name], norms[name]) for name in wide}
    error = _ratio(math.hypot(*gaps.values()), math.hypot(*norms.values()))
    return Adapter(factors, errors, error, rank_kept, full_rank, rank)


def compressed(pair: Pair, rank: int) -> Pair:
    """Returns the factors of a rank whose product is nearest to B A in the Frobenius norm.

    With B = Q R and A^T = P S (QR), the singular values of B A are those of the small R S^T, and
    the best approximation of a matrix keeps its largest ones (Eckart and Young 1936). Their roots
    go to both sides. In float64.
    """
    import torch

    b, a = pair
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().mT)
    u, values, vh = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    roots = values[..., :rank].sqrt()
    return (
        left @ (u[..., :rank] * roots[..., None, :]),
        (roots[..., None] * vh[..., :rank, :]) @ right.mT,
    )


def balanced(pair: Pair) -> Pair:
    """Returns the same product with columns of B and rows of A of like norms, within a factor of 2.

    Small numbers on one side would be lost in float16. The scale is a power of two, so that it
    rounds nothing.
    """
    b, a = pair
    ratio = a.norm(dim=-1) / b.norm(dim=-2)
    usable = ratio.isfinite() & (ratio > 0)
    halves = (ratio.where(usable, 1.0).log2() / 2).round()
    return b * halves.exp2()[..., None, :], a * (-halves).exp2()[..., None]


def norm(pair: Pair) -> float:
    """Returns ||B A||_F in float64: with B = Q R and A^T = P S (QR), that of R S^T."""
    import torch

    upper, lower = (torch.linalg.qr(m.double(), mode="r")[1] for m in (pair[0], pair[1].mT))
    return float((upper @ lower.mT).norm())


def distance(pair: Pair, other: Pair) -> float:
    """Returns ||B A - B' A'||_F in float64, exact to some 1e-15 of ||B A||_F.

    It is the norm of the product of [B, -B'] and [A; A'].
    """
    import torch

    return norm(stacked([pair, other], [1.0, -1.0], torch.float64))


def _ratio(gap: float, whole: float) -> float:
    return gap / whole if whole > 0 else 0.0  # nothing is lost of nothing

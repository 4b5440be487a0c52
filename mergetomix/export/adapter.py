"""A mixture of LoRA experts as one adapter: exact, or the nearest one of a given rank. Pure functions over factors.

The delta of a mixture, D = sum_i c_i s_i B_i A_i, is a product of rank sum of ranks as it stands. Everything here works on the
factors, in float64, and never makes the matrix that they are the factors of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pair: TypeAlias = "tuple[Tensor, Tensor]"
Term: TypeAlias = "tuple[Pair, float]"


@dataclass(frozen=True)
class Adapter:
    """One adapter whose delta is B A, with scaling 1.

    `factors` are (B, A) by param, all of one rank: B (out, rank), A (rank, in). `errors` are ||D - B A||_F / ||D||_F by param
    and `error` the same over all params together, both of the factors as they stand, rounding included. `full_rank` is the
    largest sum of the experts' ranks, `wanted` the rank asked for.
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
        """What a person should know of it: its rank, and what it loses."""
        kind = "exact up to rounding" if self.is_exact else "the nearest of this rank"
        found = [f"rank {self.rank}, {kind}; the experts' ranks sum to {self.full_rank}"]
        if self.wanted is not None and self.wanted > self.full_rank:
            found.append(f"rank {self.wanted} was asked for, which is over that sum")
        error = f"relative error ||D - B A|| / ||D|| (Frobenius): {self.error:.3g} over all params"
        return [*found, f"{error}, at most {self.errors[self.worst]:.3g} ({self.worst})"]


def combine(terms: Mapping[str, Sequence[Term]], rank: int | None, dtype: torch.dtype) -> Adapter:
    """One adapter for a weighted sum of adapters.

    A param that fewer experts change, or with lower ranks, is padded with zeros, so that all have one rank.

    Args:
        terms: for every param its experts' ((B_i, A_i), c_i s_i), with shapes (out, rank_i) and (rank_i, in).
        rank: at most so much, by `compressed`; None is exact.
        dtype: of the result's factors.
    """
    wide = {
        name: joined([pair for pair, _ in own], [factor for _, factor in own])
        for name, own in terms.items()
    }
    full_rank = max(tall.shape[1] for tall, _ in wide.values())
    rank_kept = full_rank if rank is None else min(rank, full_rank)
    factors, gaps, norms = {}, {}, {}
    for name, pair in wide.items():
        kept = pair if pair[0].shape[1] <= rank_kept else compressed(pair, rank_kept)
        tall, flat = balanced(kept)
        factors[name] = padded((tall.to(dtype), flat.to(dtype)), rank_kept)
        gaps[name], norms[name] = distance(pair, factors[name]), norm(pair)
    errors = {name: _ratio(gaps[name], norms[name]) for name in wide}
    error = _ratio(math.hypot(*gaps.values()), math.hypot(*norms.values()))
    return Adapter(factors, errors, error, rank_kept, full_rank, rank)


def joined(pairs: Sequence[Pair], factors: Sequence[float]) -> Pair:
    """(B, A) with B A = sum_i c_i B_i A_i, in float64: B = [c_1 B_1 ... c_k B_k], and the A_i one below the other.

    Args:
        pairs: (B_i, A_i) with shapes (out, rank_i) and (rank_i, in); the result's rank is the sum of theirs.
        factors: c_i, each adapter's own scaling included.
    """
    import torch

    tall = torch.cat(
        [b.double() * factor for (b, _), factor in zip(pairs, factors, strict=True)], dim=1
    )
    return tall, torch.cat([a.double() for _, a in pairs], dim=0)


def compressed(pair: Pair, rank: int) -> Pair:
    """The factors of rank `rank` whose product is nearest to B A in the Frobenius norm, in float64.

    With B = Q R and A^T = P S (QR), the singular values of B A are those of the small R S^T, and the best approximation of a
    matrix keeps its largest ones (Eckart and Young 1936). Their roots go to both sides.
    """
    import torch

    tall, flat = pair
    left, upper = torch.linalg.qr(tall.double())
    right, lower = torch.linalg.qr(flat.double().T)
    u, values, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    roots = values[:rank].sqrt()
    return left @ (u[:, :rank] * roots), (roots[:, None] * vh[:rank]) @ right.T


def balanced(pair: Pair) -> Pair:
    """The same product with columns of B and rows of A of like norms, within a factor of two.

    Small numbers on one side would be lost in float16. The scale is a power of two, so that it rounds nothing.
    """
    import torch

    tall, flat = pair
    ratio = flat.norm(dim=1) / tall.norm(dim=0)
    usable = torch.isfinite(ratio) & (ratio > 0)
    halves = (torch.where(usable, ratio, torch.ones_like(ratio)).log2() / 2).round()
    return tall * torch.exp2(halves), flat * torch.exp2(-halves)[:, None]


def padded(pair: Pair, rank: int) -> Pair:
    """The same product with zeros up to `rank`."""
    import torch

    tall, flat = pair
    more = rank - tall.shape[1]
    return torch.cat([tall, tall.new_zeros(tall.shape[0], more)], 1), torch.cat(
        [flat, flat.new_zeros(more, flat.shape[1])], 0
    )


def norm(pair: Pair) -> float:
    """||B A||_F in float64: with B = Q R and A^T = P S (QR), that of R S^T."""
    import torch

    tall, flat = pair
    core = (
        torch.linalg.qr(tall.double(), mode="r")[1]
        @ torch.linalg.qr(flat.double().T, mode="r")[1].T
    )
    return float(core.norm())


def distance(pair: Pair, other: Pair) -> float:
    """||B A - B' A'||_F in float64: the norm of the product of [B, -B'] and [A; A']. Exact to some 1e-15 of ||B A||_F."""
    import torch

    tall = torch.cat([pair[0].double(), -other[0].double()], dim=1)
    return norm((tall, torch.cat([pair[1].double(), other[1].double()], dim=0)))


def _ratio(gap: float, whole: float) -> float:
    """Nothing is lost of nothing."""
    return gap / whole if whole > 0 else 0.0

"""Gradients in the weights of all experts beside a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import models
import paired
import torch

from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import compare, params

K, RANK, NUM_RUNS = 8, 16, 9
TOKENS = {"1M": (8, 256), "124M": (4, 256)}
EQUAL = {f"e{i}": 1 / K for i in range(K)}


def backward(model: Any, ids: torch.Tensor) -> None:
    """What training pays: a forward and a backward pass with gradients of all params."""
    model.requires_grad_(True).zero_grad()
    models.loss(model, ids).backward()


def of_bank(bank: Bank, ids: torch.Tensor) -> None:
    def losses() -> Iterator[torch.Tensor]:
        yield models.loss(bank.model, ids)

    bank.gradient(losses())


def full(size: str) -> Bank:
    model = models.build(size).eval()
    live = params(model)
    deltas = {}
    for i in range(K):
        expert = models.build(size)
        models.perturb(expert, i + 1)
        deltas[f"e{i}"] = compare(live, params(expert), "expert")
    return Bank(model, deltas, 64.0 * GIB)


def gradients(size: str) -> None:
    ids, plain = models.tokens(size, TOKENS[size]), models.build(size).eval()
    merged = models.build(size).eval()
    banks = {
        "full experts": full(size),
        "adapters": Bank(merged, models.adapters(merged, K, RANK), 64.0 * GIB),
    }
    passes: dict[str, Callable[[Any, torch.Tensor], None]] = {
        "forward": models.forward,
        "forward and backward": backward,
    }
    for name, bank in banks.items():
        bank.set(EQUAL)
        for against, other in passes.items():
            values = paired.ratios(
                lambda bank=bank: of_bank(bank, ids),  # type: ignore[misc]  # bound now
                lambda other=other: other(plain, ids),  # type: ignore[misc]
                NUM_RUNS,
            )
            what = f"gradient in {K} weights / {against} pass"
            about = {"model": size, "experts": name, "num_tokens": ids.numel()}
            paired.show(what=what, **about, **paired.spread(values))


def main() -> None:
    for size in models.SIZES:
        gradients(size)


if __name__ == "__main__":
    main()

"""Gradients in the weights beside a forward and a backward pass, and adapters merged beside adapters that stay apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import models
import paired
import torch
from mergetomix.experts.beside import Beside
from torch.nn.functional import cross_entropy

from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import compare, params

K, RANK, NUM_RUNS = 8, 16, 9
TOKENS = {"1M": (8, 256), "124M": (4, 256)}
EQUAL = {f"e{i}": 1 / K for i in range(K)}


def tokens(size: str, shape: tuple[int, int]) -> torch.Tensor:
    vocab = 2048 if size == "1M" else models.VOCAB
    return torch.randint(1, vocab, shape, generator=torch.Generator().manual_seed(0))


def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def forward(model: Any, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        loss(model, ids)


def backward(model: Any, ids: torch.Tensor) -> None:
    """What training pays: a forward and a backward pass with gradients of all params."""
    model.requires_grad_(True).zero_grad()
    loss(model, ids).backward()


def of_bank(bank: Bank, ids: torch.Tensor) -> None:
    def losses() -> Iterator[torch.Tensor]:
        yield loss(bank.model, ids)

    bank.gradient(losses())


def of_beside(beside: Beside, ids: torch.Tensor) -> None:
    beside.model.requires_grad_(False)
    point = torch.full((K,), 1 / K, requires_grad=True)
    with beside.mixed(point) as model:
        loss(model, ids).backward()


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
    ids = tokens(size, TOKENS[size])
    plain, bank = models.build(size).eval(), full(size)
    bank.set(EQUAL)
    folded = models.build(size).eval()
    lora = Bank(folded, models.adapters(folded, K, RANK), 64.0 * GIB)
    lora.set(EQUAL)
    apart = models.build(size).eval()
    beside = Beside(apart, models.adapters(apart, K, RANK))
    ways: dict[str, Callable[[], None]] = {
        "full experts": lambda: of_bank(bank, ids),
        "adapters, merged": lambda: of_bank(lora, ids),
        "adapters, beside the base": lambda: of_beside(beside, ids),
    }
    for name, way in ways.items():
        for against, other in (("forward", forward), ("forward and backward", backward)):
            values = paired.ratios(way, lambda other=other: other(plain, ids), NUM_RUNS)  # type: ignore[misc]  # bound now
            what = f"gradient in {K} weights / {against} pass"
            paired.show(
                what=what, model=size, way=name, num_tokens=ids.numel(), **paired.spread(values)
            )


def switching(size: str) -> None:
    """A new mixture and its loss: folded into the weights, over beside the base."""
    folded, apart = models.build(size).eval(), models.build(size).eval()
    bank = Bank(folded, models.adapters(folded, K, RANK), 64.0 * GIB)
    beside = Beside(apart, models.adapters(apart, K, RANK))
    point = torch.full((K,), 1 / K)

    def merged(ids: torch.Tensor) -> None:
        bank.set(EQUAL)
        forward(folded, ids)

    def side(ids: torch.Tensor) -> None:
        with beside.mixed(point) as model:
            forward(model, ids)

    for num in (16, 64, 256, 1024):
        ids = tokens(size, (1, num) if num <= 256 else (num // 256, 256))
        values = paired.ratios(lambda: merged(ids), lambda: side(ids), NUM_RUNS)  # noqa: B023 (called at once)
        paired.show(
            what="next mixture merged / beside, with its loss",
            model=size,
            k=K,
            rank=RANK,
            num_tokens=num,
            **paired.spread(values),
        )


def main() -> None:
    for size in models.SIZES:
        gradients(size)
        switching(size)


if __name__ == "__main__":
    main()

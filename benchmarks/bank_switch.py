"""From one mixture's proxy to the next: seconds beside plain addition over as many bytes, memory,
and rounding.

The share is that of a move in a move and the evaluation behind it, the loss of 20,000 tokens (timed
on some of them). The speed is told beside plain addition over as many bytes: the expert, the base
and the sum read once, the sum and the live weights written once (sums are float64).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import models
import paired
import torch

from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import FullDelta, compare, params

NUM_EXPERTS, K, NUM_RUNS = 9, 8, 15
NUM_TOKENS = 20_000
BYTES_PER_PARAM = 4 + 4 + 8 + 8 + 4


def bank_of(base: Path, experts: list[Path], memory_gib: float) -> Bank:
    """A bank of the folders' models, read as the package does but for the checks of tokenizers."""
    from safetensors import safe_open

    model = type(models.build(base.parent.name)).from_pretrained(base).eval()

    def pages(folder: Path) -> dict[str, torch.Tensor]:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)

    live = params(model)
    deltas = {
        folder.name: compare(live, pages(folder), str(folder), is_mapped=True) for folder in experts
    }
    return Bank(model, deltas, memory_gib * GIB, pages(base))


def moves(bank: Bank) -> Any:
    """Goes on to the next of some subsets of K or K + 1 experts, neighbours differing by one."""
    names = sorted(bank.deltas)
    sets = [
        names,
        *(part for i in range(len(names)) for part in ([n for n in names if n != names[i]], names)),
    ]
    walk = itertools.cycle(sets[:-1])
    return lambda: (lambda chosen: bank.set(dict.fromkeys(chosen, 1 / len(chosen))))(next(walk))


def speed(size: str, folder: Path) -> None:
    base, experts = models.write(folder, size, NUM_EXPERTS)
    num = models.num_params(models.build(size))
    one, other = torch.randn(num), torch.randn(num)
    ids = models.tokens(size, (4, 256))
    for kept, memory_gib in (("in memory", 64.0), ("mapped", num * 8 / GIB)):
        bank = bank_of(base, experts, memory_gib)
        move = moves(bank)
        for _ in range(2 * NUM_EXPERTS):  # every page is met once before
            move()
        about = {"model": size, "k": K, "experts": kept}
        values = paired.ratios(move, lambda: one.add_(other), NUM_RUNS)
        scaled = paired.spread([value * 12 / BYTES_PER_PARAM for value in values])
        paired.show(what="next subset / add_ over as many bytes", **about, **scaled)
        values = paired.ratios(move, lambda bank=bank: models.forward(bank.model, ids), NUM_RUNS)  # type: ignore[misc]  # bound now
        scaled = [value * ids.numel() / NUM_TOKENS for value in values]
        shares = paired.spread([value / (1 + value) for value in scaled])
        paired.show(what=f"share of a search of {NUM_TOKENS:,} tokens", **about, **shares)


def memory(base: Path, experts: list[Path]) -> None:
    """In a process of its own: what it holds beyond file pages, in sizes of the model."""
    model_mib = models.num_params(models.build(base.parent.name)) * 4 / 2**20
    bare = paired.anonymous_mib()
    bank = bank_of(base, experts, model_mib * 2**20 * 2 / GIB)
    move, most = moves(bank), 0.0
    for _ in range(2 * NUM_EXPERTS):
        move()
        most = max(most, paired.anonymous_mib())
    largest = max(p.numel() for p in params(bank.model).values()) * 4 / 2**20
    paired.show(
        what="memory beyond file pages, MiB",
        experts="mapped",
        k=K,
        model_float32=model_mib,
        sum_float64=2 * model_mib,
        largest_tensor=largest,
        held=most - bare,
        beyond_model_and_sum=most - bare - 3 * model_mib,
    )


def rounding(size: str) -> None:
    """How many elements are the float64 result's own rounding, with uneven weights."""
    weights = {f"e{i}": (i + 1) / 36 for i in range(K)}
    for dtype in (torch.float32, torch.bfloat16):
        model = models.build(size).to(dtype)
        start = {name: p.detach().clone() for name, p in params(model).items()}
        deltas: dict[str, FullDelta] = {}
        for i, name in enumerate(sorted(weights)):
            expert = models.build(size).to(dtype).float()
            models.perturb(expert, i + 1)
            deltas[name] = compare(start, {n: p.detach() for n, p in params(expert).items()}, name)
        Bank(model, deltas, 64.0 * GIB).set(weights)
        same = total = 0
        for name, param in params(model).items():
            wide = start[name].double()
            exact = wide + sum(
                weights[k] * (d.tensors[name].double() - wide) for k, d in deltas.items()
            )
            same += int((param == exact.to(dtype)).sum())
            total += param.numel()
        paired.show(
            what="elements equal to the rounded float64 result",
            model=size,
            k=K,
            dtype=str(dtype),
            share=same / total,
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in models.SIZES:
            speed(size, folder)
            rounding(size)
        base, experts = (
            folder / "124M" / "base",
            [folder / "124M" / f"expert{i + 1}" for i in range(K)],
        )
        subprocess.run([sys.executable, __file__, "memory", base, *experts], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
    else:
        main()

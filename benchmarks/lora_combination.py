"""How far each way to combine LoRA experts is from the weighted sum of their products.

That is sum_i w_i s_i B_i A_i in float64. Eight experts with uneven weights, on the layers of a
GPT-2 of 124 M params and of a Llama of 1 M, all in float32: this package's fold, its exact adapter,
its adapter of a few ranks beside the least error that any matrix of that rank has, and PEFT's
add_weighted_adapter in three ways. Factors are drawn at random, which is the worst case for a low
rank: experts share nothing.

One JSON line for each way: relative Frobenius errors (the largest and the mean over modules), and
its time as a multiple of the fold's in the same process. PEFT's svd is asked for reduced matrices,
which give the same factors in less time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mergetomix import merge
from mergetomix.export import adapter

NUM_EXPERTS, NUM_VOCAB = 8, 64  # embeddings carry no adapter here
LIMIT = 1e-6
RANKS_KEPT = (0.5, 1, 2, 4, 8)
"""Ranks of a compressed adapter, as multiples of an expert's."""

Pairs = Mapping[str, list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Case:
    """A model and the kind of its experts."""

    model: str
    rank: int
    rslora: bool = False

    def build(self) -> Any:
        """The base, its embeddings cut short."""
        if self.model == "gpt2":
            return GPT2LMHeadModel(GPT2Config(vocab_size=NUM_VOCAB, bos_token_id=0, eos_token_id=0))
        shape = {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
        }
        return LlamaForCausalLM(LlamaConfig(vocab_size=NUM_VOCAB, **shape))

    def experts(self) -> PeftModel:
        """The base with eight adapters, whose B is as small beside A as training leaves it."""
        config = LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            target_modules="all-linear",
            use_rslora=self.rslora,
        )
        model = get_peft_model(self.build(), config, adapter_name="0")
        for i in range(1, NUM_EXPERTS):
            model.add_adapter(str(i), config)
        generator = torch.Generator().manual_seed(0)
        for name, param in model.named_parameters():
            if ".lora_" in name:
                size = 1e-2 if ".lora_B." in name else param.shape[1] ** -0.5
                param.data = size * torch.randn(param.shape, generator=generator)
        return model


def layers(model: PeftModel) -> dict[str, Any]:
    """PEFT's layers that hold adapters."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and module.lora_A
    }


def factors(layer: Any, adapter: str) -> tuple[Tensor, Tensor]:
    """(B, A) of one adapter."""
    return layer.lora_B[adapter].weight.data, layer.lora_A[adapter].weight.data


def weights() -> list[float]:
    """Uneven, and of sum one."""
    drawn = (
        torch.rand(NUM_EXPERTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ** 2
        + 0.01
    )
    return [float(value) for value in drawn / drawn.sum()]


def timed(function: Callable[[], Any], runs: int) -> tuple[Any, float]:
    """A result, and the least seconds of some runs."""
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        result = function()
        taken.append(time.perf_counter() - started)
    return result, min(taken)


def errors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """||D' - D||_F / ||D||_F: the largest and the mean over modules."""
    each = [
        float((found[name].double() - want).norm() / want.norm()) for name, want in wanted.items()
    ]
    return {"largest": max(each), "mean": sum(each) / len(each)}


def least(wanted: Mapping[str, Tensor], rank: int) -> dict[str, float]:
    """The errors that no matrix of a rank goes below, by the eigenvalues of D D^T.

    They are the squares of D's singular values.

    They are good to 1e-8 of the largest, so where nothing need be lost this says some 1e-8.
    """
    each = []
    for want in wanted.values():
        squares = torch.linalg.eigvalsh(
            want @ want.T if want.shape[0] < want.shape[1] else want.T @ want
        ).clamp(min=0)
        each.append(float((squares[: max(0, len(squares) - rank)].sum() / squares.sum()).sqrt()))
    return {"least largest": max(each), "least mean": sum(each) / len(each)}


def products(pairs: Mapping[str, tuple[Tensor, Tensor]], scaling: float = 1.0) -> dict[str, Tensor]:
    """What factors stand for, multiplied in float64 so that only they are judged."""
    return {name: scaling * (b.double() @ a.double()) for name, (b, a) in pairs.items()}


def by_peft(model: PeftModel, kind: str, rank: int) -> tuple[dict[str, Tensor], float]:
    """PEFT's combination, and its seconds; its new adapter goes again."""
    names = [str(i) for i in range(NUM_EXPERTS)]
    options = {"svd_rank": rank, "svd_full_matrices": False} if kind == "svd" else {}

    def combine() -> None:
        model.add_weighted_adapter(names, weights(), kind, combination_type=kind, **options)

    _, seconds = timed(combine, 1)
    found = {
        name: factors(layer, kind)[0].double()
        @ factors(layer, kind)[1].double()
        * layer.scaling[kind]
        for name, layer in layers(model).items()
    }
    model.delete_adapter(kind)
    return found, seconds


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """A line for each way."""
    model = case.experts()
    own = layers(model)
    pairs: Pairs = {
        name: [factors(layer, str(i)) for i in range(NUM_EXPERTS)] for name, layer in own.items()
    }
    scaling = next(iter(own.values())).scaling["0"]
    scaled = [weight * scaling for weight in weights()]
    terms = {name: list(zip(each, scaled, strict=True)) for name, each in pairs.items()}
    wanted = {
        name: sum(
            (c * (b.double() @ a.double()) for (b, a), c in each),
            torch.zeros(1, dtype=torch.float64),
        )
        for name, each in terms.items()
    }
    fold, unit = timed(
        lambda: {name: merge.lora_product(each, scaled) for name, each in pairs.items()}, 3
    )
    yield {"way": "fold (merge.lora_product)", **errors(fold, wanted), "time": 1.0}
    for asked in (None, *(int(times * case.rank) for times in RANKS_KEPT)):
        found, seconds = timed(lambda asked=asked: adapter.combine(terms, asked, torch.float32), 1)
        yield {
            "way": "adapter, exact" if asked is None else f"adapter, rank {asked}",
            "rank": found.rank,
            **errors(products(found.factors), wanted),
            **({} if asked is None else least(wanted, asked)),
            "time": seconds / unit,
        }
    for kind in ("linear", "cat", "svd"):
        result, seconds = by_peft(model, kind, 2 * case.rank)
        rank = {"linear": case.rank, "cat": NUM_EXPERTS * case.rank, "svd": 2 * case.rank}[kind]
        yield {
            "way": f"PEFT {kind}",
            "rank": rank,
            **errors(result, wanted),
            "time": seconds / unit,
        }


CASES = (
    Case("llama", 8),
    Case("llama", 16),
    Case("llama", 8, rslora=True),
    Case("gpt2", 8),
    Case("gpt2", 16),
)


def main() -> None:
    for case in CASES:
        about = {
            "model": case.model,
            "experts": NUM_EXPERTS,
            "expert_rank": case.rank,
            "rslora": case.rslora,
        }
        for line in measure(case):
            rounded = {
                key: float(f"{value:.3g}") if isinstance(value, float) else value
                for key, value in line.items()
            }
            print(json.dumps({**about, **rounded}), flush=True)
            if line["way"].startswith("fold") and line["largest"] > LIMIT:
                raise SystemExit(f"the fold is {line['largest']:.2g} off, more than {LIMIT:g}")


if __name__ == "__main__":
    main()

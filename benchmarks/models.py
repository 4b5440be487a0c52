"""Models with random weights in the shapes of real ones, and experts a little off them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES = ("1M", "124M")
VOCAB = 50_257


def build(size: str) -> Any:
    """A language model by its size: GPT-2 small's shape, or a Llama with a small vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if size == "124M":
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0))
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=2048,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def perturb(model: Any, seed: int, share: float = 0.05) -> None:
    """Moves every param by noise of `share` of its standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            spread = float(param.std()) if param.numel() > 1 else 0.0
            param.add_(
                torch.randn(param.shape, generator=generator), alpha=share * (spread or 0.02)
            )


def write(folder: Path, size: str, num_experts: int) -> tuple[Path, list[Path]]:
    """Folders of a base and of some full experts of it, without tokenizers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    base = folder / size / "base"
    build(size).save_pretrained(base)
    experts = []
    for seed in range(1, num_experts + 1):
        model = build(size)
        perturb(model, seed)
        experts.append(folder / size / f"expert{seed}")
        model.save_pretrained(experts[-1])
    return base, experts


def num_params(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def tokens(size: str, shape: tuple[int, int]) -> torch.Tensor:
    vocab = 2048 if size == "1M" else VOCAB
    return torch.randint(1, vocab, shape, generator=torch.Generator().manual_seed(0))


def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def forward(model: Any, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        loss(model, ids)


def adapters(model: Any, num_experts: int, rank: int) -> dict[str, Any]:
    """Adapters with random factors on every linear layer but the head, as the package's deltas."""
    from mergetomix.experts.deltas import LoraDelta

    names = [
        n
        for n, p in model.named_parameters()
        if p.ndim == 2 and any(part in n for part in ("attn", "mlp"))
    ]
    transposed = frozenset(names) if "GPT2" in type(model).__name__ else frozenset()
    found = {}
    for seed in range(num_experts):
        generator = torch.Generator().manual_seed(seed)
        factors = {}
        for name in names:
            shape = model.get_parameter(name).shape
            num_out, num_in = reversed(shape) if transposed else shape
            b = 0.02 * torch.randn(num_out, rank, generator=generator)
            factors[name] = (b, 0.02 * torch.randn(rank, num_in, generator=generator))
        found[f"e{seed}"] = LoraDelta(factors, 2.0, transposed)
    return found

"""Tiny random causal models of many architectures, and fine-tuning in a few lines beside ours."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch.nn.functional import cross_entropy

from mergetomix.data.examples import Example
from mergetomix.experts.deltas import params

CLOSE = 2e-5
VOCAB = tiny.VOCAB
IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN = {
    **IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
GPT = {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
GPT |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}  # as the reference has none
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 6},
    "qwen2": GROUPED,
    "qwen3": HEADS,
    "phi3": GROUPED,
    "gemma": HEADS,
    "gemma2": {**HEADS, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {**HEADS, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "olmo2": GROUPED,
    "stablelm": GROUPED,
    "gpt_neox": PLAIN,
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_bigcode": GPT,
    "opt": {
        **IDS,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "dropout": 0.0,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
    },
    "bloom": {**IDS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {**IDS, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 96},
    "falcon": {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mamba": {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "mixtral": {**GROUPED, "num_local_experts": 4, "output_router_logits": True},
    "qwen3_moe": {
        **HEADS,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "gpt_oss": {
        **HEADS,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    # with a part for images beside the text
    "gemma3": {
        "text_config": {
            **HEADS,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
        "boi_token_index": 6,
        "eoi_token_index": 7,
    },
}
WITH_STACKS = {"mixtral", "qwen3_moe", "gpt_oss"}
"""Whose experts' weights stand as one tensor a layer; gpt_oss keeps them as (in, out)."""
MIXES_PACKED = {"opt", "bloom", "mpt", "falcon", "mamba", "lfm2", "gpt_oss"}
ROWS = [
    Example(i, prompt=f"the {'cat ' * i}sat", completion=" on the mat and the dog sat")
    for i in range(4)
]


def build(name: str, config: Any = None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = config or AutoConfig.for_model(name, **ARCHITECTURES[name])
    model = AutoModelForCausalLM.from_config(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() > 1:  # far enough from zero that a wrong mask would show
                param.add_(0.1 * torch.randn(param.shape, generator=draw))
    return model


def loss(model: Any, sequences: Any) -> Any:
    """The mean over all scored tokens, one sequence at a time, without padding."""
    losses = []
    for sequence in sequences:
        ids, labels = torch.tensor([sequence.ids]), torch.tensor(sequence.labels[1:])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        losses.append(cross_entropy(logits, labels, reduction="sum", ignore_index=-100))
    return sum(losses) / sum(sequence.num_scored for sequence in sequences)


def three_steps(base: str, sequences: Any, rate: float) -> Any:
    """Full fine-tuning in ten lines: AdamW, every sequence in every step."""
    model: Any = tiny.open_base(base).load()
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(3):
        loss(model, sequences).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return params(model)

"""Models with random weights for the benchmarks of evaluation, as folders for the package."""

from __future__ import annotations

import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.recipe.recipe import Base

LONGEST = 1024
KINDS = ("llama-1M", "llama-5M", "gpt2-124M")


def open_model(kind: str, folder: Path) -> CausalLM:
    """A model of random weights as a family, made in the folder where it is not there.

    `llama-1M` has 1.0 M parameters with 2,048 tokens; `llama-5M` the same body, 128 wide, with
    32,000 tokens, whose embedding alone has 4.1 M; `gpt2-124M` is GPT-2's own configuration, with
    50,257 tokens.
    """
    place = folder / kind
    if not place.exists():
        torch.manual_seed(0)
        model = (
            gpt2() if kind == "gpt2-124M" else llama({"llama-1M": 2048, "llama-5M": 32_000}[kind])
        )
        model.save_pretrained(place)
        tokenizer().save_pretrained(place)
    return CausalLM(Base(path=str(place), dtype="float32"), "cpu", LONGEST, "full")


def load(family: CausalLM) -> torch.nn.Module:
    """The model with every param read once: pages of a file would count as the first pass's
    memory.
    """
    model = family.load()
    for param in model.parameters():
        param.detach().sum()
    return model


def gpt2() -> transformers.PreTrainedModel:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def llama(num_tokens: int) -> transformers.PreTrainedModel:
    shape = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 344,
    }
    config = transformers.LlamaConfig(
        **shape, vocab_size=num_tokens, max_position_embeddings=LONGEST, tie_word_embeddings=True
    )
    return transformers.LlamaForCausalLM(config)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Bytes and an end token: the benchmarks make token ids themselves."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(
        models.BPE({letter: i for i, letter in enumerate(["<end>", *alphabet])}, [])
    )
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, eos_token="<end>", pad_token="<end>"
    )


def random_ids(draw: random.Random, length: int, family: CausalLM) -> tuple[int, ...]:
    """Token ids drawn evenly."""
    return tuple(draw.choices(range(1, family.config.vocab_size), k=length))


def all_logits(
    model: torch.nn.Module, rows: list[tuple[tuple[int, ...], int]], batch_tokens: int
) -> list[float]:
    """-log p of each row's last tokens, the plain way: rows by length, padded behind, logits of
    every place.

    Args:
        rows: token ids, and how many of them at the end are scored.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    found: dict[int, float] = {}
    while order:
        width = len(rows[order[0]][0])
        group, order = (
            order[: max(1, batch_tokens // width)],
            order[max(1, batch_tokens // width) :],
        )
        ids_BT = torch.zeros(len(group), width, dtype=torch.long)
        mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -100)
        for b, i in enumerate(group):
            ids, num_scored = rows[i]
            ids_BT[b, : len(ids)] = torch.tensor(ids)
            mask_BT[b, : len(ids)] = 1
            labels_BT[b, len(ids) - num_scored : len(ids)] = torch.tensor(
                ids[len(ids) - num_scored :]
            )
        with torch.inference_mode():
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            losses_BT = torch.nn.functional.cross_entropy(
                logits_BTV[:, :-1].flatten(0, 1),
                labels_BT[:, 1:].flatten(),
                ignore_index=-100,
                reduction="none",
            )
        sums = losses_BT.view(len(group), width - 1).double().sum(dim=1)
        found |= dict(zip(group, sums.tolist(), strict=True))
    return [found[i] for i in range(len(rows))]

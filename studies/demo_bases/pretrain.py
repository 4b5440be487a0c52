"""Pre-trains the base of the demo on text: a 1.3 M-parameter Llama on Python's standard library.

Usage: python studies/demo_bases/pretrain.py OUT_DIR [EPOCHS]

It is trained on the library's top-level modules; the packages (asyncio, email, ...) are kept out,
as they are the demo's datasets and targets. The shipped checkpoint was made by this script;
`mergetomix/demo/base/README.md` says when, where and with what result.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SEQ_TOKENS, BATCH, PEAK_LR, WARMUP_STEPS, VOCAB = 256, 16, 3e-3, 100, 4096


def modules() -> list[str]:
    """Returns the source of every top-level module of the standard library, by name."""
    folder = Path(os.__file__).parent
    return [
        path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("*.py"))
    ]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer of VOCAB tokens, trained on `texts`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # Runs of spaces stay one piece, so that an indentation costs one token
    pieces = Regex(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\n *|\s+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|eos|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{special[1]} $A", special_tokens=[(special[1], bpe.token_to_id(special[1]))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        model_max_length=SEQ_TOKENS,
    )


def windows(ids: torch.Tensor, offset: int) -> torch.Tensor:
    """Returns `ids` from `offset` on, cut into rows of SEQ_TOKENS; a new offset moves the cuts."""
    num_rows = (len(ids) - offset) // SEQ_TOKENS
    return ids[offset : offset + num_rows * SEQ_TOKENS].view(num_rows, SEQ_TOKENS)


def learning_rate(step: int, num_steps: int) -> float:
    """Returns a linear warm-up, then a half cosine down to a twentieth of the peak."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LR * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def main(out_dir: str, epochs: int = 8) -> None:
    """Trains for `epochs` passes over the modules, and saves model and tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    texts = modules()
    tokenizer = train_tokenizer(texts)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([i for doc in encoded for i in [1, *doc, 2]])
    config = LlamaConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=344,
        vocab_size=VOCAB,
        tie_word_embeddings=True,
        max_position_embeddings=SEQ_TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    num_steps = epochs * math.ceil(len(ids) / SEQ_TOKENS / BATCH)
    print(f"{len(ids)} tokens, {model.num_parameters()} parameters, {num_steps} steps", flush=True)
    start, step = time.monotonic(), 0
    for _ in range(epochs):
        rows = windows(ids, int(torch.randint(SEQ_TOKENS, ())))
        for batch in torch.randperm(len(rows)).split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, num_steps)
            loss = model(input_ids=rows[batch], labels=rows[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 100 == 0:
                print(
                    f"step {step} loss {loss.item():.3f} {time.monotonic() - start:.0f} s",
                    flush=True,
                )
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

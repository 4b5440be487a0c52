"""Greedy continuations of prompts, with a cache, until every one of a batch has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Generation:
    """Settings of greedy generation."""

    max_new_tokens: int
    stop: tuple[str, ...]
    batch_tokens: int


def continuations(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
) -> list[str]:
    """Returns the continuations of prompts, each cut before the first of the stop strings.

    The longest prompts are first, in batches of at most `batch_tokens` tokens with what may follow.
    """
    found: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    while order:
        width = len(prompts[order[0]]) + settings.max_new_tokens
        size = max(1, settings.batch_tokens // width)
        group, order = order[:size], order[size:]
        texts = _batch(model, tokenizer, [prompts[i] for i in group], settings)
        for stop in settings.stop:
            texts = [text.split(stop, 1)[0] for text in texts]
        found |= dict(zip(group, texts, strict=True))
    return [found[i] for i in range(len(prompts))]


def _batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
) -> list[str]:
    """Returns the continuations of prompts as one batch, padded before."""
    import torch
    from transformers import GenerationConfig

    width, pad = max(map(len, prompts)), int(tokenizer.pad_token_id)
    ids = [[pad] * (width - len(each)) + list(each) for each in prompts]
    mask = [[0] * (width - len(each)) + [1] * len(each) for each in prompts]
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = list(ends) if isinstance(ends, list | tuple) else [ends] if ends is not None else []
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        use_cache=True,  # whatever the model was saved with: without, every token reads all again
        eos_token_id=sorted({*ends, int(tokenizer.eos_token_id)}),
        pad_token_id=pad,
        stop_strings=list(settings.stop) or None,
    )
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=config,
            tokenizer=tokenizer,
        )
    return list(tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))

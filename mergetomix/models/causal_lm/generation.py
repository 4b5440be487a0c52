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
    """The continuations of prompts as one batch, padded before, each cut before the first of the stop strings."""
    import torch

    width, pad = max(len(prompt) for prompt in prompts), int(tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    config = _config(model, tokenizer, settings)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, tokenizer=tokenizer
        )
    return [
        _before(text, settings.stop)
        for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    ]


def _config(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Generation) -> Any:
    """transformers' settings: a row ends at an end token of the model's or the tokenizer's, or behind a stop string."""
    from transformers import GenerationConfig

    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = list(ends) if isinstance(ends, list | tuple) else [ends] if ends is not None else []
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        use_cache=True,  # whatever the model was saved with: without, every token reads all that came before again
        eos_token_id=sorted({*ends, int(tokenizer.eos_token_id)}),
        pad_token_id=int(tokenizer.pad_token_id),
        stop_strings=list(settings.stop) or None,
    )


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text

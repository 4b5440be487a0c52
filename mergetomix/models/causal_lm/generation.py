"""Greedy continuations of prompts, with a cache, until every one of a batch has ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergetomix.models.causal_lm.scoring import quiet_routers
from mergetomix.stretches import WHOLE, Stretch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

DRAWS = {"temperature", "top_p", "top_k", "min_p", "top_h", "typical_p"}
DRAWS |= {"epsilon_cutoff", "eta_cutoff"}
"""Settings of a model's own that say how tokens are drawn."""
HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("max_length", "max_new_tokens", "_from_model_config", "transformers_version", "use_cache"),
    *("cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
    *("do_sample", "trust_remote_code", *DRAWS),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
    *("return_dict_in_generate", "compile_config", "disable_compile", "low_memory"),
}
"""Settings of a model's own that change no greedy answer, or that every answer here sets anyway."""


@dataclass(frozen=True)
class Generation:
    """Settings of generation.

    Answers are greedy, whatever the model's own configuration holds; with `own` they are as it
    says, but for what `changes` says by its keys, and drawn with `seed` if it draws. An answer ends
    before the first of the stop strings; with `in_turn` each cuts what the one before it left.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    batch_tokens: int
    own: bool = False
    seed: int = 0
    changes: tuple[tuple[str, Any], ...] = ()
    in_turn: bool = False


class Continuation(str):
    """A continuation's text; `is_cut` says whether it came to its most tokens before it ended."""

    __slots__ = ("is_cut",)
    is_cut: bool

    @classmethod
    def of(cls, text: str, is_cut: bool) -> Continuation:
        """Returns a text with whether it is cut."""
        found = cls(text)
        found.is_cut = is_cut
        return found


def penalties(config: Any) -> dict[str, Any]:
    """Returns what a generation configuration would change about greedy answers, by its keys.

    Such are repetition penalties, bans of tokens and n-grams, forced ends, beams.
    """
    usual = {key: value for key, value in config._get_default_generation_params().items() if value}
    return {
        key: value
        for key, value in sorted(config.to_diff_dict().items())
        if key not in HARMLESS and value and value != usual.get(key)
    }


def repair(config: Any) -> list[str]:
    """Resets what makes a generation config invalid, and returns its keys; none if it is valid.

    Older models (Vicuna, Llama 2) say how to draw beside that nothing is drawn, which transformers
    loads and does not save.
    """
    try:
        config.validate(strict=True)
    except ValueError:
        keys = [key for key in sorted(DRAWS) if getattr(config, key, None) is not None]
        for key in keys if not config.do_sample else []:
            setattr(config, key, None)
        return keys
    return []


def continuations(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    stretch: Stretch = WHOLE,
) -> dict[int, Continuation | None]:
    """Returns the continuations of the prompts in a stretch of batches, by the prompts' places.

    Each is cut before the first of the stop strings; None stands for one whose logits were not all
    finite. Where tokens are drawn, all batches are one: what is drawn depends on what was before.
    """
    found: dict[int, Continuation | None] = {}
    groups = _groups(prompts, settings)
    with _configured(model, tokenizer, settings) as draws:
        costs = [len(group) * _width(prompts, group, settings) for group in groups]
        chosen = stretch.of(costs)
        if draws:
            chosen = list(range(len(groups))) if stretch.begin <= 0 else []
        for place in chosen:
            texts = _batch(model, tokenizer, [prompts[i] for i in groups[place]], settings)
            found |= dict(zip(groups[place], texts, strict=True))
    return found


def _groups(prompts: Sequence[Sequence[int]], settings: Generation) -> list[list[int]]:
    """Returns batches of prompts, the longest first.

    Each has at most `batch_tokens` tokens with what may follow, or is one prompt.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    groups = []
    while order:
        size = max(1, settings.batch_tokens // _width(prompts, order, settings))
        groups.append(order[:size])
        order = order[size:]
    return groups


def _width(prompts: Sequence[Sequence[int]], group: Sequence[int], settings: Generation) -> int:
    """Tokens of a batch's longest row with its answer."""
    return len(prompts[group[0]]) + settings.max_new_tokens


@contextmanager
def _configured(
    model: Any, tokenizer: PreTrainedTokenizerBase, settings: Generation
) -> Iterator[bool]:
    """Gives a model the configuration of these answers, and its own back afterwards.

    Yields whether tokens are drawn.

    `generate` fills what it is not told from the model's configuration, so that one must go; a
    model under adapters has several.
    """
    import torch
    from transformers import GenerationConfig

    mine = model.generation_config
    ends = getattr(mine, "eos_token_id", None)
    ends = list(ends) if isinstance(ends, list | tuple) else [ends] if ends is not None else []
    wanted: Mapping[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "use_cache": True,  # whatever the model was saved with: without, all is read again
        "eos_token_id": sorted({*ends, int(tokenizer.eos_token_id)}),
        "pad_token_id": int(tokenizer.pad_token_id),
    }
    if settings.own:
        # only one answer is looked at, as text
        own = {**mine.to_dict(), "num_return_sequences": 1, "return_dict_in_generate": False}
        own |= dict(settings.changes)
        config = GenerationConfig.from_dict({**own, "max_length": None, **wanted})
    else:
        config = GenerationConfig(do_sample=False, **wanted)
    holders = [each for each in model.modules() if "generation_config" in vars(each)]
    before = [each.generation_config for each in holders]
    for each in holders:
        each.generation_config = config
    cuda = [torch.cuda.current_device()] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cuda):
            torch.manual_seed(settings.seed)
            yield bool(config.do_sample)
    finally:
        for each, config in zip(holders, before, strict=True):
            each.generation_config = config


def _batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
) -> list[Continuation | None]:
    """Returns the continuations of prompts as one batch, padded before."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    width, pad = max(map(len, prompts)), int(tokenizer.pad_token_id)
    ids = [[pad] * (width - len(each)) + list(each) for each in prompts]
    mask = [[0] * (width - len(each)) + [1] * len(each) for each in prompts]
    finite = _Finite(len(prompts))
    stop = [_Stop(tokenizer, settings.stop, width)] if settings.stop else []
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            logits_processor=LogitsProcessorList([finite]),
            stopping_criteria=StoppingCriteriaList(stop),
            **quiet_routers(model),
        )
    texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    cut = _cut(tokenizer, out[:, width:], settings, model.generation_config.eos_token_id)
    return [
        Continuation.of(_before_stop(text, settings), row in cut)
        if row not in finite.broken
        else None
        for row, text in enumerate(texts)
    ]


def _cut(
    tokenizer: PreTrainedTokenizerBase, out_BT: Tensor, settings: Generation, ends: Sequence[int]
) -> set[int]:
    """Returns the rows of a batch that hold no end, though they may be no longer."""
    import torch

    if out_BT.shape[1] < settings.max_new_tokens:
        return set()
    has_end_B = torch.isin(out_BT, torch.tensor(ends, device=out_BT.device)).any(dim=1)
    rows = (~has_end_B).nonzero().flatten().tolist()
    texts = tokenizer.batch_decode(out_BT[rows], skip_special_tokens=False) if rows else []
    pairs = zip(rows, texts, strict=True)
    return {row for row, text in pairs if not any(stop in text for stop in settings.stop)}


def _before_stop(text: str, settings: Generation) -> str:
    if settings.in_turn:
        for stop in settings.stop:
            text = text.partition(stop)[0]
        return text
    places = (text.index(stop) for stop in settings.stop if stop in text)
    return text[: min(places, default=len(text))]


class _Finite:
    """A step of `generate` that changes no logits and keeps the rows in which one is not finite.

    Minus infinity is a ban of a token, unless it is all that there is.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.broken = num_rows, set[int]()

    def __call__(self, input_ids: Tensor, logits_BV: Tensor) -> Tensor:
        top_B = logits_BV.amax(dim=-1)  # of a row with nan it is nan
        for beam in (~top_B.isfinite()).nonzero().flatten().tolist():
            self.broken.add(beam * self.num_rows // len(logits_BV))
        return logits_BV


class _Stop:
    """Ends a row once its answer holds a stop string: what the prompt ends in does not count."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], width: int
    ) -> None:
        self.tokenizer, self.stops, self.width = tokenizer, stops, width
        # a stop string that was just completed lies in the last tokens, each a byte at least
        self.tail = max(len(stop.encode()) for stop in stops) + 8

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        import torch

        start = max(self.width, input_ids.shape[1] - self.tail)
        # the marks of a template may be stop strings, too
        texts = self.tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=False)
        over = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(over, device=input_ids.device)

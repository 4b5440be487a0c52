"""Logits where they are wanted alone, prompts read once: the plain way's numbers, for any model."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mergetomix.models.causal_lm import scoring
from mergetomix.models.causal_lm.generation import Generation
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.questions import MIN_ROOM, Asked, Question, rows_of
from mergetomix.models.causal_lm.scoring import logits_at, token_losses
from mergetomix.models.causal_lm.sequences import IGNORE, Encoded, grouped

BaseOf = Callable[[str], str]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": tiny.VOCAB,
    "max_position_embeddings": tiny.CONTEXT,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
}
GEMMA = {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}


def gemma2(window: int) -> Any:
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**GEMMA, sliding_window=window))


def bloom() -> Any:
    shape = {
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": tiny.VOCAB,
        "initializer_range": 0.2,
    }
    return transformers.BloomForCausalLM(transformers.BloomConfig(**shape))


def mpt() -> Any:
    shape = {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "vocab_size": tiny.VOCAB,
        "max_seq_len": tiny.CONTEXT,
    }
    return transformers.MptForCausalLM(transformers.MptConfig(**shape, initializer_range=0.2))


def mamba() -> Any:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": tiny.VOCAB, "state_size": 4}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**shape, initializer_range=0.2))


def opt() -> Any:
    more = {"num_attention_heads": 4, "max_position_embeddings": tiny.CONTEXT, "init_std": 0.2}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**OPT, **more))


def granite() -> Any:
    scales = {"logits_scaling": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7}
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**SMALL, **scales))


def lora(*targets: str, **changes: Any) -> Any:
    """An adapter with random factors on a llama."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False, **changes
    )
    return get_peft_model(tiny.llama(tie_word_embeddings=False), config)


SHARING: dict[str, Callable[[], Any]] = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "gemma2, soft caps": lambda: gemma2(64),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL)),
    "opt": opt,
    "granite, scaled logits": granite,
    "lora": lambda: lora("q_proj", "down_proj"),
    "lora on the head": lambda: lora("lm_head", "v_proj"),
    "lora and a head of its own": lambda: lora("q_proj", modules_to_save=["lm_head"]),
}
APART: dict[str, Callable[[], Any]] = {
    "gemma2, short window": lambda: gemma2(8),
    "bloom": bloom,
    "mpt": mpt,
    "mamba": mamba,
}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    return {**SHARING, **APART}[kind]().eval()


def ids(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(draw.randrange(5, tiny.VOCAB) for _ in range(length))


def sequences(seed: int = 0) -> list[Encoded]:
    """Sequences of many lengths, scored at the last token, everywhere, and from any place on."""
    draw = random.Random(seed)
    found = []
    for i, length in enumerate((2, 2, 3, 7, 12, 12, 20, 31)):
        tokens = ids(draw, length)
        first = (1, length - 1, 0, draw.randrange(length))[i % 4]
        found.append(Encoded(tokens, (IGNORE,) * first + tokens[first:], i))
    holes = tuple(t if i % 3 else IGNORE for i, t in enumerate(found[-2].ids))
    return [*found, Encoded(found[-2].ids, holes, len(found))]


def questions(seed: int = 0) -> list[Question]:
    """Prompts down to one token; options of one token and of several, of any number."""
    draw = random.Random(seed)
    lengths = ((20, (3, 1, 5, 2)), (13, (4, 4)), (1, (1, 6, 2)), (7, (1, 1, 1)), (2, (9,)))
    return [
        Question(ids(draw, n), tuple(ids(draw, m) for m in options), i)
        for i, (n, options) in enumerate(lengths)
    ]


def reference(model: Any, sequence: Encoded) -> float:
    return tiny.reference_nll(model, sequence.ids, sequence.labels)


def wanted_of(model: Any, asked: Sequence[Question]) -> list[list[float]]:
    return [[reference(model, sequence) for sequence in question.alone()] for question in asked]


def close(found: list[list[float]], wanted: list[list[float]], bound: float = 1e-5) -> bool:
    flat, right = ([value for values in nested for value in values] for nested in (found, wanted))
    return list(map(len, found)) == list(map(len, wanted)) and flat == pytest.approx(
        right, abs=bound, rel=1e-5
    )


# --- losses


@pytest.mark.parametrize("kind", [*SHARING, *APART])
def test_losses_are_those_of_each_sequence_alone_for_any_model(family: CausalLM, kind: str) -> None:
    model, some = made(kind), sequences()
    wanted = [reference(model, sequence) for sequence in some]
    assert max(wanted) - min(wanted) > 5
    for limit in (1, 60, 10**6):
        found = family.negative_log_likelihoods(model, family.batches(some, limit))
        assert found == pytest.approx(wanted, abs=1e-5, rel=1e-5)


def head_of(model: Any) -> Any:
    return model.get_output_embeddings()


@pytest.mark.parametrize("kind", SHARING)
def test_the_head_sees_the_scored_places_alone_and_keeps_no_hook(
    family: CausalLM, kind: str
) -> None:
    model, some = made(kind), sequences()
    (batch,) = family.batches(some, 10**6)
    seen: list[int] = []
    watch = head_of(model).register_forward_hook(
        lambda _, args, out: seen.append(out.shape[:-1].numel())
    )
    hooks = dict(head_of(model)._forward_pre_hooks)
    family.losses(model, batch)
    watch.remove()
    assert seen == [sum(sequence.num_scored for sequence in some)]
    assert head_of(model)._forward_pre_hooks == hooks


def test_a_model_that_fails_keeps_no_hook(
    family: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("llama")
    (batch,) = family.batches(sequences(), 10**6)
    monkeypatch.setattr(model.model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        family.losses(model, batch)
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("hidden", ["no head named", "head of keywords"])
def test_a_model_whose_head_is_not_found_computes_all_logits(
    family: CausalLM, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    model, some = made("llama"), sequences()
    wanted = family.negative_log_likelihoods(model, family.batches(some, 10**6))
    named = {"no head named": None, "head of keywords": torch.nn.Linear(1, 1)}[
        hidden
    ]  # which is never called
    monkeypatch.setattr(model, "get_output_embeddings", lambda: named)
    assert family.negative_log_likelihoods(model, family.batches(some, 10**6)) == pytest.approx(
        wanted, abs=1e-5
    )


def test_a_batch_where_every_place_or_none_is_scored(family: CausalLM) -> None:
    model = made("llama")
    alone = Encoded((9, 8, 7), (IGNORE,) * 3, 0)
    assert family.negative_log_likelihoods(model, family.batches([alone], 1)) == [0.0]
    logits = logits_at(model, torch.arange(3), {"input_ids": torch.tensor([alone.ids])})
    with torch.no_grad():
        assert torch.allclose(logits, model(torch.tensor([alone.ids])).logits[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2, soft caps", "lora"])
def test_the_gradient_of_losses_is_that_of_all_logits(family: CausalLM, kind: str) -> None:
    model, some = made(kind), sequences()
    (batch,) = family.batches(some, 10**6)
    weights = torch.linspace(0.5, 2, len(some), dtype=torch.float64)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad((weights * family.losses(model, batch)).sum(), trained)
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
    assert batch.labels is not None
    logp = logits.log_softmax(-1).gather(2, batch.labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    plain = -(logp * (batch.labels[:, 1:] != IGNORE)).double().sum(dim=1)
    wanted = torch.autograd.grad((weights * plain).sum(), trained)
    assert any(gradient.abs().max() > 1 for gradient in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def test_pieces_of_any_size_give_the_same(
    family: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = made("llama"), family.asked(questions(), 10**6)
    batches = [*family.batches(sequences(), 10**6), *asked.together]
    with torch.inference_mode():
        whole = [token_losses(model, batch) for batch in batches]
        for size in (1, 5 * tiny.VOCAB):
            monkeypatch.setitem(scoring.PIECE, "cpu", size)
            for batch, wanted in zip(batches, whole, strict=True):
                assert torch.allclose(token_losses(model, batch), wanted, atol=1e-6)


# --- options


@pytest.mark.parametrize("kind", [*SHARING, *APART])
def test_options_behind_one_prompt_have_the_losses_that_they_have_alone(
    family: CausalLM, kind: str
) -> None:
    model, some = made(kind), questions()
    wanted = wanted_of(model, some)
    for limit in (1, 60, 10**6):
        asked = family.asked(some, limit)
        assert close(asked.losses(model), wanted)
        assert asked.shares is (kind in SHARING)
    assert close(family.asked(some[::-1], 60).losses(model), wanted[::-1])


def test_a_window_of_the_configuration_is_heeded_before_any_model_is_asked(
    family: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family.config, "sliding_window", 24, raising=False)
    assert family.asked(questions(), 100).shares is False  # 20 tokens and an option of 5
    monkeypatch.setattr(family.config, "sliding_window", 25, raising=False)
    assert family.asked(questions(), 100).shares is None


def test_options_of_one_token_take_prompts_alone(family: CausalLM) -> None:
    """No mask that a model could misread; every prompt's last place is computed once."""
    draw = random.Random(0)
    some = [Question(ids(draw, n), tuple((t,) for t in ids(draw, 6)), n) for n in (9, 4, 17)]
    for kind in ("llama", "mamba", "bloom"):
        asked, model = family.asked(some, 10**6), made(kind)
        (batch,) = asked.together
        assert asked.shares is True and batch.segments is None
        assert batch.ids.shape == (3, 17) and len(batch.scored.places_P) == 3
        assert close(asked.losses(model), wanted_of(model, some))


def test_a_prompt_is_read_once_and_the_last_tokens_of_options_never(family: CausalLM) -> None:
    some = questions()
    asked = family.asked(some, 10**6)
    read = [int(batch.mask.sum()) for batch in asked.together]
    assert (
        sum(read)
        == sum(question.num_tokens for question in some)
        == 20 + 7 + 13 + 6 + 1 + 6 + 7 + 2 + 8
    )
    scored = sum(len(batch.scored.picks_K) for batch in asked.together)
    assert scored == sum(question.num_scored for question in some)


def test_batches_of_questions_stay_within_the_limit(family: CausalLM) -> None:
    draw = random.Random(0)
    some = [
        Question(ids(draw, draw.randint(1, 40)), tuple(ids(draw, 5) for _ in range(4)), i)
        for i in range(30)
    ]
    for limit in (1, 100, 400):
        for batch in family.asked(some, limit).together:
            assert len(batch.ids) == 1 or batch.ids.numel() <= limit
        for batch in family.asked(some, limit).apart:
            assert len(batch.ids) == 1 or batch.ids.numel() <= limit


def test_many_options_are_spread_over_rows(family: CausalLM) -> None:
    draw = random.Random(0)
    many = Question(ids(draw, 10), tuple(ids(draw, 6) for _ in range(120)), 0)
    few = Question(ids(draw, 30), tuple(ids(draw, 4) for _ in range(3)), 1)
    rows = [*rows_of(many), *rows_of(few)]
    assert [len(row.options) for row in rows] == [51, 51, 18, 3]
    assert [option for row in rows[:3] for option in row.options] == list(many.options)
    assert all(row.num_tokens - len(row.prompt) <= MIN_ROOM for row in rows)
    model, asked = made("gemma2, soft caps"), Asked([many, few], family.asked([few], 600).layout)
    found = asked.losses(model)
    assert asked.shares and close(found, wanted_of(model, [many, few]))


def test_an_option_longer_than_all_room_is_a_row_of_its_own() -> None:
    long = (7,) * (MIN_ROOM + 9)
    rows = rows_of(Question((5,), ((8, 9), long, (8, 9)), 0))
    assert [row.options for row in rows] == [((8, 9),), (long,), ((8, 9),)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_half_precision_stays_within_its_rounding(family: CausalLM, kind: str) -> None:
    model, some = made(kind).bfloat16(), questions()
    asked = family.asked(some, 10**6)
    found = asked.losses(model)
    assert asked.shares
    for losses, wanted, question in zip(found, wanted_of(model, some), some, strict=True):
        for loss, right, option in zip(losses, wanted, question.options, strict=True):
            assert abs(loss - right) < 0.1 * len(option)
    sums = family.negative_log_likelihoods(model, family.batches(sequences(), 10**6))
    for total, sequence in zip(sums, sequences(), strict=True):
        assert abs(total - reference(model, sequence)) < 0.1 * sequence.num_scored


# --- generation


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2, soft caps", "qwen2", "lora"])
def test_generation_is_the_likeliest_token_again_and_again(family: CausalLM, kind: str) -> None:
    """Without a cache, one prompt at a time; the model's own setting of the cache is no matter."""
    model, draw = made(kind), random.Random(0)
    prompts = [ids(draw, n) for n in (9, 2, 17, 5)]
    wanted = []
    for prompt in prompts:
        row = list(prompt)
        while len(row) < len(prompt) + 8 and row[-1] != 2:
            with torch.no_grad():
                row.append(int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        wanted.append(family.tokenizer.decode(row[len(prompt) :], skip_special_tokens=True))
    model.generation_config.use_cache = model.config.use_cache = False
    for batch_tokens in (1, 10**6):
        assert family.generate(model, prompts, Generation(8, (), batch_tokens)) == wanted


def calls(
    family: CausalLM, model: Any, prompts: Sequence[Sequence[int]], stop: tuple[str, ...]
) -> list[int]:
    """Tokens of a row that each forward pass of one batch reads."""
    read: list[int] = []
    watch = model.register_forward_pre_hook(
        lambda _, args, named: read.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    family.generate(model, prompts, Generation(20, stop, 10**6))
    watch.remove()
    return read


def test_a_batch_reads_one_token_a_step_and_ends_when_all_rows_have_ended(family: CausalLM) -> None:
    model, draw = made("llama"), random.Random(5)
    model.generation_config.use_cache = model.config.use_cache = False
    prompts = [ids(draw, n) for n in (9, 4, 6)]
    assert calls(family, model, prompts, ()) == [9] + [1] * 19
    stop = tuple(string.ascii_letters)
    alone = [len(calls(family, model, [prompt], stop)) for prompt in prompts]
    assert len(calls(family, model, prompts, stop)) == max(alone) < 20 and len(set(alone)) > 1
    free = [
        model.generate(torch.tensor([p]), do_sample=False, max_new_tokens=9, pad_token_id=0)[0]
        for p in prompts
    ]
    model.generation_config.eos_token_id = [
        int(row[-place]) for row, place in zip(free, (1, 4, 7), strict=True)
    ]
    alone = [len(calls(family, model, [prompt], ())) for prompt in prompts]
    assert len(calls(family, model, prompts, ())) == max(alone) < 20 and len(set(alone)) > 1


@settings(derandomize=True, deadline=None)
@example([3, 9, 9, 1], 18)
@example([3, 9], 1)
@given(st.lists(st.integers(1, 50)), st.integers(1, 200))
def test_groups_are_the_longest_first_and_hold_everything_once(
    widths: list[int], most: int
) -> None:
    groups = grouped(widths, most)
    flat = [i for group in groups for i in group]
    assert flat == sorted(range(len(widths)), key=lambda i: (-widths[i], i))
    for group in groups:
        assert len(group) == 1 or len(group) * widths[group[0]] <= most
    # none of the next group would have had room
    assert all((len(one) + 1) * widths[one[0]] > most for one in groups[:-1])


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 400), st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_rows_hold_all_options_in_order_and_few_behind_a_prompt(
    num_prompt: int, lengths: list[int]
) -> None:
    options = tuple((i,) * length for i, length in enumerate(lengths))
    rows = rows_of(Question((7,) * num_prompt, options, 0))
    assert [option for row in rows for option in row.options] == list(options)
    room = max(num_prompt, MIN_ROOM)
    for row in rows:
        assert row.options and row.prompt == (7,) * num_prompt
        assert len(row.options) == 1 or row.num_tokens - num_prompt <= room
    for one, other in pairwise(rows):
        assert one.num_tokens - num_prompt + len(other.options[0]) - 1 > room


def test_a_saved_base_is_scored_as_before(base: BaseOf, tmp_path: Path) -> None:
    """A bank's model, an adapter loaded from a folder and a full model alike."""
    folder = tiny.adapter(base("untied"), tmp_path / "adapter", seed=0)
    family = tiny.open_base(base("untied"))
    model, some = family.load_finetune(folder), questions()
    assert close(family.asked(some, 60).losses(model), wanted_of(model, some))
    assert not close(family.asked(some, 60).losses(family.load()), wanted_of(model, some), 1e-2)

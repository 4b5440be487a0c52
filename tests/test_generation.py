"""Answers of tiny models: greedy whatever the base's configuration holds, and where they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from mergetomix.data.examples import Example
from mergetomix.models.causal_lm.generation import Generation, penalties
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.targets.generate import GenerateTarget, number
from mergetomix.targets.numbers import last_number
from mergetomix.targets.target import TargetSetting

BaseOf = Callable[[str], str]
WHERE = "targets.t"
FREE = Generation(16, (), 10**6)


def examples(num: int) -> list[Example]:
    return [Example(i, prompt=f"the {'cat ' * i}sat", completion=" on the mat") for i in range(num)]


# --- generation


def greedy(family: CausalLM, model: Any, prompt: Sequence[int], num_new: int) -> str:
    """Transformers' own, one prompt at a time."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_new,
        pad_token_id=0,
    )
    return str(family.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "untied"])
def test_generation_is_transformers_greedy_one_by_one(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind))
    model = family.load()
    prompts = [family.prompt_ids(example, WHERE) for example in examples(7)]
    want = [greedy(family, model, prompt, 16) for prompt in prompts]
    assert len(set(want)) > 4
    for batch_tokens in (1, 70, 10**6):
        assert family.generate(model, prompts, Generation(16, (), batch_tokens)) == want


def test_generation_stops_before_the_first_stop_string(family: CausalLM) -> None:
    model = family.load()
    prompts = [family.prompt_ids(example, WHERE) for example in examples(5)]
    free = family.generate(model, prompts, Generation(16, (), 10**6))
    letters = sorted(
        {letter for text in free for letter in text[3:] if letter.isascii() and letter.isalnum()}
    )
    stops = (letters[0], letters[-1])
    want = [min((text.split(stop)[0] for stop in stops), key=len) for text in free]
    assert sum(map(len, want)) < sum(map(len, free)) and any(want)
    assert family.generate(model, prompts, Generation(16, stops, 10**6)) == want
    assert family.generate(model, prompts, Generation(16, stops, 1)) == want


def test_generation_ends_at_any_of_the_models_end_tokens(family: CausalLM) -> None:
    model = family.load()
    prompts = [family.prompt_ids(example, WHERE) for example in examples(5)]
    free = family.generate(model, prompts, Generation(12, (), 10**6))
    end = (
        cast("Any", model)
        .generate(torch.tensor([prompts[0]]), do_sample=False, max_new_tokens=6, pad_token_id=0)[
            0, -1
        ]
        .item()
    )
    model.generation_config.eos_token_id = [2, end]
    ended = family.generate(model, prompts, Generation(12, (), 10**6))
    assert len(ended[0]) < len(free[0]) and free[0].startswith(ended[0].rstrip("\ufffd"))
    assert ended == [greedy(family, model, prompt, 12) for prompt in prompts]


LEAKY = {
    "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "num_return_sequences": 2,
    "min_length": 200,
    "suppress_tokens": list(range(3, 150)),
    "bad_words_ids": [[7], [8, 9]],
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": (1, 2.0),
    "stop_strings": ["a", "e"],
    "guidance_scale": 2.0,
    "sequence_bias": {(5,): 30.0},
    "renormalize_logits": True,
}


@pytest.mark.parametrize("key", LEAKY)
def test_answers_are_greedy_whatever_the_models_configuration_holds(
    family: CausalLM, key: str
) -> None:
    model = family.load()
    prompts = [family.prompt_ids(example, WHERE) for example in examples(4)]
    want = family.generate(model, prompts, FREE)
    own = model.generation_config
    setattr(own, key, LEAKY[key])
    assert family.generate(model, prompts, FREE) == want
    assert model.generation_config is own and getattr(own, key) == LEAKY[key]
    assert list(penalties(own)) == [key]


def test_what_changes_no_greedy_answer_is_no_penalty() -> None:
    harmless = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, eos_token_id=[1, 2], max_length=4096
    )
    assert penalties(harmless) == {} == penalties(GenerationConfig())


def test_adapters_leave_no_way_around(family: CausalLM) -> None:
    from peft import LoraConfig, get_peft_model

    model = family.load()
    prompts = [family.prompt_ids(example, WHERE) for example in examples(3)]
    want = family.generate(model, prompts, FREE)
    model.generation_config.repetition_penalty = 2.5
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2))
    assert family.generate(adapted, prompts, FREE) == want
    assert adapted.get_base_model().generation_config.repetition_penalty == 2.5


def test_who_wants_the_models_own_says_so(family: CausalLM) -> None:
    model = family.load()
    prompts = [family.prompt_ids(example, WHERE) for example in examples(4)]
    plain = family.generate(model, prompts, FREE)
    own = Generation(16, (), 10**6, own=True)
    assert family.generate(model, prompts, own) == plain
    model.generation_config.repetition_penalty = 3.0
    penalised = family.generate(model, prompts, own)
    assert penalised != plain
    ids = torch.tensor([prompts[0]])
    told = {"do_sample": False, "max_new_tokens": 16, "repetition_penalty": 3.0, "pad_token_id": 0}
    out = cast("Any", model).generate(ids, attention_mask=torch.ones_like(ids), **told)
    text = family.tokenizer.decode(out[0, len(prompts[0]) :], skip_special_tokens=True)
    assert penalised[0] == text
    model.generation_config.update(do_sample=True, temperature=2.0)
    state = torch.random.get_rng_state()
    drawn = [
        family.generate(model, prompts, Generation(16, (), 10**6, own=True, seed=seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_stop_string_counts_in_the_answer_alone(family: CausalLM) -> None:
    """Whatever the prompt ends in: here every first letter of an answer completes a stop string."""
    model = family.load()
    prompts = [family.prompt_ids(example, WHERE) for example in examples(4)]
    free = [str(text) for text in family.generate(model, prompts, FREE)]
    stops = tuple({f"t{text[0]}" for text in free})  # every prompt ends in "sat"
    want = [
        text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
        for text in free
    ]
    assert all(want)
    assert family.generate(model, prompts, Generation(16, stops, 10**6)) == want


def target(family: CausalLM, rows: Sequence[Example], **changes: Any) -> Any:
    section = {"path": "x", "prompt": "p", "completion": "c", "score": "generate", **changes}
    return GenerateTarget.model_validate(section).build(rows, TargetSetting(family, WHERE, 10**6))


def test_logits_that_are_not_finite_are_no_answer(family: CausalLM) -> None:
    """As they stop a loss: all else would be the first token, and might be right."""
    model = family.load()
    prompts = [family.prompt_ids(example, WHERE) for example in examples(3)]
    rows, asked = examples(3), {"max_new_tokens": 4}
    assert all(map(math.isfinite, target(family, rows, **asked).score(model).values))
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    assert family.generate(model, prompts, FREE) == [None, None, None]
    assert all(map(math.isnan, target(family, rows, **asked).score(model).values))


def test_empty_answers_are_counted(family: CausalLM) -> None:
    model = family.load()
    rows = examples(4)
    whole = target(family, rows, max_new_tokens=8)
    assert whole.score(model).num_examples == 4
    free = family.generate(model, whole.prompts, Generation(8, (), 10**6))
    stop = sorted({str(text)[0] for text in free})
    empty = target(family, rows, max_new_tokens=8, stop=stop)
    empty.score(model)
    assert empty.remark == "4 of 4 answers were empty"


def test_answers_that_do_not_end_are_counted(family: CausalLM) -> None:
    model, rows = family.load(), examples(4)
    short = target(family, rows, max_new_tokens=8, stop=[])
    short.score(model)
    free = family.generate(model, short.prompts, Generation(8, (), 10**6))
    cut = [text is not None and text.is_cut for text in free]
    assert any(cut)
    what = "answers came to max_new_tokens: 8 before they ended"
    assert short.remark == f"{sum(cut)} of 4 {what}"
    stop = tuple({str(text)[-1] for text in free})
    for ended in family.generate(model, short.prompts, Generation(8, stop, 10**6)):
        assert ended is not None and not ended.is_cut


def test_an_address_changes_with_what_changes_answers(family: CausalLM, tmp_path: Path) -> None:
    """And only then: what earlier releases scored right is not scored again."""
    rows = examples(2)
    assert target(family, rows).address() == target(family, rows, seed=3).address()
    own = [target(family, rows, generation="model", seed=seed).address() for seed in (0, 1)]
    # "the cat sat" ends in the first letter of the second stop string
    straddling = target(family, rows, stop=["\n", "t\n"]).address()
    apart = target(family, rows, stop=["\n", "z\n"])
    assert not apart.may_straddle and target(family, rows, stop=["\n", "t\n"]).may_straddle
    model = tiny.llama()
    model.generation_config.repetition_penalty = 1.1
    leaky = tiny.open_base(tiny.save(model, tmp_path))
    assert leaky.penalties == {"repetition_penalty": 1.1} and family.penalties == {}
    found = {
        target(family, rows).address(),
        target(leaky, rows).address(),
        *own,
        straddling,
        apart.address(),
        target(family, rows, metric="number").address(),
    }
    assert len(found) == 7


# --- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\u22125", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("- 5", "-5"),
        ("the answer is - 5", "-5"),
        ("(-3)", "-3"),
        ("-.5", "-0.5"),
        ("3 - 5", "5"),
        ("x - 5", "5"),
        ("3-5", "5"),
        ("covid-19", "19"),
        ("- 5 apples\n- 6 pears", "6"),
        ("1e3", "1000"),
        ("1.5E-3", "0.0015"),
        (r"2 \times 10^{3}", "2000"),
        ("2 \u00d7 10^3", "2000"),
        ("10^2", "100"),
        ("10\u00b2", "100"),
        (r"1{,}234", "1234"),
        ("\uff11\uff12\uff13", "123"),
        ("3/2", "3/2"),
        ("1.5", "3/2"),
        ("1 1/2", "3/2"),
        (r"\frac{3}{2}", "3/2"),
        (r"-\dfrac{1}{2}", "-1/2"),
        ("12,345,678", "12345678"),
        ("1234,567", "567"),
        ("3,4", "4"),
        ("7%", "7"),
        ("1e999999999", None),
        ("no number", None),
    ],
)
def test_a_number_is_read_as_a_person_reads_it(text: str, value: str | None) -> None:
    found = last_number(text)
    assert (found if isinstance(found, Fraction) else None) == (value and Fraction(value))


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("3/2", "1/2"),
        ("11:30", "12:30"),
        ("30", "12:30"),
        (r"\frac{3}{2}", r"\frac{1}{2}"),
        ("2", r"\frac{1}{2}"),
        ("1 1/2", "1/2"),
        ("1/2/2020", "3/2/2020"),
        ("2020", "1/2/2020"),
        ("1.2.3", "2.2.3"),
        ("5", "-5"),
        ("0/0", "1/0"),
        ("1e5", "5"),
    ],
)
def test_numbers_of_equal_ends_are_not_equal(output: str, answer: str) -> None:
    assert number(output, answer) == 0.0
    assert number(output, output) == number(f"so it is {answer}.", answer) == 1.0


@given(st.fractions(-(10**6), 10**6, max_denominator=999))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_a_fraction_is_its_value_however_it_is_written(value: Fraction) -> None:
    top, bottom = value.numerator, value.denominator
    sign = "-" if top < 0 else ""
    written = (str(value), rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}", f"{top:,} / {bottom:,}")
    assert {last_number(f"of 12, it is {each}.") for each in written} == {value}


# --- where the reply of a chat ends


def chat_base(folder: Path, mark: str) -> CausalLM:
    """A base whose chat template ends a turn with a mark that its tokenizer has as a token."""
    built = tiny.tokenizer(True, False)
    built.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    built.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}" + mark + "\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tiny.llama(vocab_size=len(built)).save_pretrained(folder)
    built.save_pretrained(folder)
    return tiny.open_base(str(folder))


def asked(num: int) -> list[Example]:
    rows = examples(num)
    return [
        Example(i, messages=(("user", row.prompt), ("assistant", row.completion)))
        for i, row in enumerate(rows)
    ]


def test_answers_of_a_chat_end_where_its_template_does(tmp_path: Path) -> None:
    """The mark is a letter that the model writes here, so that it is no token of its own."""
    plain = chat_base(tmp_path / "plain", "<|im_end|>")
    rows = asked(4)
    prompts = [plain.prompt_ids(row, WHERE) for row in rows]
    free = [str(text) for text in plain.generate(plain.load(), prompts, FREE)]
    letter = next(c for c in free[0][1:] if c.isascii() and c.isalnum())
    family = chat_base(tmp_path / "ends", letter)
    assert family.end_mark == letter
    scored = target(family, rows, stop=[], max_new_tokens=16)
    prompts = [family.prompt_ids(row, WHERE) for row in rows]
    whole = [str(text) for text in family.generate(family.load(), prompts, FREE)]
    answers = family.generate(family.load(), scored.prompts, scored.settings)
    assert answers == [text.split(letter)[0] for text in whole]
    assert any(letter in text for text in whole)
    pairs = target(family, examples(4), stop=[])
    assert pairs.settings.stop == ()
    notes = family.notes({"x": family.encode(rows, WHERE), "y": family.encode(examples(2), WHERE)})
    assert f"chats end with {letter}, which is not the tokenizer's end token" in notes[0]
    assert notes[0].endswith("x 4")


def test_models_that_are_written_end_where_the_template_does(tmp_path: Path) -> None:
    family = chat_base(tmp_path / "base", "<|im_end|>")
    mark = family.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = family.load()
    assert model.generation_config.eos_token_id == [2, mark]
    family.save(model, tmp_path / "out")
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert written.eos_token_id == [2, mark]
    again = tiny.open_base(str(tmp_path / "out"))
    assert again.end_mark == "" and again.load().generation_config.eos_token_id == [2, mark]

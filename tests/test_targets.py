"""Targets: each kind against a reference by hand, and one contract for all of them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import target_section

from mergetomix.data.examples import Example
from mergetomix.data.reading import plain_content
from mergetomix.errors import DataError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.targets.function import checked
from mergetomix.targets.generate import GenerateTarget, last_number, matches, number, pick_metric
from mergetomix.targets.python import Function, PythonTarget
from mergetomix.targets.target import Target, TargetSetting

WHERE = "targets.x"
BaseOf = Callable[[str], str]
PAIRS = tiny.pairs(
    ("the cat", " sat on the mat"),
    ("one plus two is", " three"),
    ("", "dog"),
    ("the dog sat", " on"),
)


PAIR = {"path": "x.jsonl", "prompt": "p", "completion": "c"}


def build(
    family: CausalLM,
    examples: Sequence[Example],
    setting: TargetSetting | None = None,
    **changes: Any,
) -> Target:
    setting = setting or TargetSetting(family, WHERE, 10**6)
    return target_section(**{**PAIR, **changes}).build(examples, setting)


# --- loss


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loss_is_nats_per_scored_token(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind))
    model = family.load()
    scores = build(family, PAIRS).score(model)
    assert scores.kind == "loss"
    for example, value, weight in zip(PAIRS, scores.values, scores.weights, strict=True):
        answer = [*family.tokens(example.completion), family.tokenizer.eos_token_id]
        prompt = family.encoder.start + family.tokens(example.prompt) or [
            family.tokenizer.eos_token_id
        ]
        nll = tiny.reference_nll(model, prompt + answer, [-100] * len(prompt) + answer)
        assert weight == len(answer)
        assert value == pytest.approx(nll / len(answer), rel=1e-5)
    total = sum(v * w for v, w in zip(scores.values, scores.weights, strict=True))
    assert scores.mean == pytest.approx(total / sum(scores.weights))


def test_loss_of_a_text_in_windows_is_one_value(family: CausalLM) -> None:
    texts = ["the cat sat on the mat " * 30, "one plus two"]
    scores = build(family, [Example(i, text=text) for i, text in enumerate(texts)]).score(
        family.load()
    )
    assert scores.weights == tuple(len(family.tokens(text)) + 1 for text in texts)
    assert len(scores.values) == 2


def test_an_example_without_a_token_to_score_names_its_row(base: BaseOf) -> None:
    family = tiny.open_base(base("gpt2"))
    family.tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace(
        "x", ""
    )
    with pytest.raises(DataError, match=r"^targets\.x: row 5 has no token to score"):
        build(family, [Example(5, text="x")])


# --- choice


OPTIONS = (" three", " the dog sat on the log", " x")
QUESTIONS = [
    Example(i, prompt=p, completion=OPTIONS[i % 3], options=OPTIONS)
    for i, p in enumerate(("one plus two is", "the", "", "on"))
]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("normalize", [False, True])
def test_choice_is_the_likeliest_option(base: BaseOf, kind: str, normalize: bool) -> None:
    family = tiny.open_base(base(kind))
    model = family.load()
    picked = []
    for example in QUESTIONS:
        # an empty prompt behind no start token follows the end of what came before
        prompt = family.encoder.start + family.tokens(example.prompt) or [
            family.tokenizer.eos_token_id
        ]
        answers = [family.tokens(option) for option in OPTIONS]
        costs = [tiny.reference_nll(model, prompt + a, [-100] * len(prompt) + a) for a in answers]
        picked.append(costs.index(min(costs)))
        if normalize:
            per_byte = [
                cost / len(option.encode()) for cost, option in zip(costs, OPTIONS, strict=True)
            ]
            picked[-1] = per_byte.index(min(per_byte))
    for shift in range(
        3
    ):  # every option is the right one once, so that right and wrong are both seen
        right = [(pick + shift) % 3 for pick in picked]
        asked = [
            Example(i, prompt=q.prompt, completion=OPTIONS[r], options=OPTIONS)
            for i, (q, r) in enumerate(zip(QUESTIONS, right, strict=True))
        ]
        scores = build(
            family, asked, score="choice", options=list(OPTIONS), normalize=normalize
        ).score(model)
        assert scores.kind == "score" and scores.weights == (1.0,) * 4
        assert scores.values == (float(shift == 0),) * 4


def test_normalizing_changes_the_pick(family: CausalLM) -> None:
    model, prompts = family.load(), " ".join(tiny.TEXTS).split()
    options = ("x", " the dog")
    asked = [
        Example(i, prompt=p, completion=options[1], options=options) for i, p in enumerate(prompts)
    ]
    settings: dict[str, Any] = {"score": "choice", "options": list(options)}
    raw, normal = (
        build(family, asked, **settings, normalize=n).score(model) for n in (False, True)
    )
    assert raw.mean < normal.mean  # the long option gains


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_options_of_one_token_after_nothing_are_still_compared(base: BaseOf, kind: str) -> None:
    """Without any context the first token has no prediction: the first option would always win."""
    family = tiny.open_base(base(kind))
    model, options = family.load(), ("a", "b", "c", "d")
    values = [
        build(
            family,
            [Example(0, completion=o, options=options)],
            score="choice",
            options=list(options),
        )
        .score(model)
        .mean
        for o in options
    ]
    assert sorted(values) == [0, 0, 0, 1]
    opening = family.encoder.start or [family.tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([opening])).logits[0, -1]
    assert values.index(1.0) == int(logits[[family.tokens(o)[0] for o in options]].argmax())


def test_a_long_prompt_of_a_choice_keeps_its_start(family: CausalLM) -> None:
    example = Example(
        0, prompt="the cat sat on the mat " * 30, completion=" three", options=OPTIONS
    )
    target: Any = build(family, [example], score="choice", options=list(OPTIONS))
    (question,) = target.questions
    answers = [tuple(family.tokens(option)) for option in OPTIONS]
    assert question.options == tuple(answers) and question.prompt[0] == 1
    assert len(question.prompt) + max(map(len, answers)) == family.max_length
    whole = family.tokens(example.prompt)
    assert list(question.prompt[1:]) == whole[len(whole) - len(question.prompt) + 1 :]


# --- generate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("it costs $1,234.50 in all", "1234.50"),
        ("-3", "-3"),
        ("$5.", "5"),
        ("so 4 and then 12.", "12"),
        ("x = -.5", "-0.5"),
        ("3,4", "4"),
        ("12,345,678", "12345678"),
        ("1234,567", "567"),
        ("10-3", "3"),
        ("10 - 3 = 7%", "7"),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(text: str, value: str | None) -> None:
    assert last_number(text) == (None if value is None else Decimal(value))


@given(st.decimals(-(10**9), 10**9, places=2), st.booleans())
@settings(deadline=None, max_examples=50, derandomize=True)
def test_the_last_number_is_read_as_it_is_written(value: Decimal, in_thousands: bool) -> None:
    written = f"{value:,}" if in_thousands else str(value)
    assert last_number(f"of 12 the answer is {written} in all.") == value


def test_number_compares_values_and_not_texts() -> None:
    assert number("so 1,234.50.", "#### 1234.5") == 1.0
    assert number("3", "-3") == 0.0
    assert number("", "no number") == 0.0
    assert number("none", "4") == 0.0


def metric(**changes: Any) -> Callable[[str, str], float]:
    section = target_section(**PAIR, score="generate", **changes)
    assert isinstance(section, GenerateTarget)
    return pick_metric(section, WHERE)


def test_exact_trims() -> None:
    exact = metric()
    assert exact(" three\n", "three ") == 1.0
    assert exact("Three", "three") == 0.0
    assert exact("", " ") == 1.0


def test_regex_takes_the_first_group_or_the_whole() -> None:
    group = metric(metric="regex", pattern=r"is (\w+)|was (\w+)")
    assert group("it is three, is four", " three ") == 1.0
    assert group("it is four", "three") == 0.0
    assert group("it was three", "three") == 0.0
    assert group("nothing", "three") == 0.0
    whole = metric(metric="regex", pattern=r"\d+")
    assert whole("a 12 b 13", "12") == 1.0
    assert matches(re.compile("a(b)?"), "a", "") == 1.0


def test_a_pattern_is_looked_for_in_the_right_answer_too() -> None:
    gsm8k = metric(metric="regex", pattern=r"#### (.*)")
    assert gsm8k("so it is\n#### 18", "16 - 3 ... \n#### 18") == 1.0
    assert gsm8k("so it is\n#### 17", "16 - 3 ... \n#### 18") == 0.0
    assert gsm8k("it is 18", "16 - 3 ... \n#### 18") == 0.0


@pytest.mark.parametrize(
    ("output", "answer", "is_right"),
    [
        ("1,000", "1000", True),
        ("it costs $18.", "#### 18", True),
        ("-5", "- 5", True),
        ("-5", "5", False),
        (r"\boxed{3} as 4 is too many", "3.0", True),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"so \boxed{", "3", False),
        ("3.0", "3", True),
        ("18%", "18", True),
    ],
)
def test_numbers_as_people_write_them(output: str, answer: str, is_right: bool) -> None:
    assert metric(metric="number")(output, answer) == float(is_right)


def test_the_last_word_is_scored_and_no_end_behind_it(base: BaseOf) -> None:
    family = tiny.open_base(base("llama"))
    rows = [{"t": "the cat sat on the mat"}, {"t": "a dog is a dog"}]
    section = target_section(rows=rows, text="t", last_word=True)
    examples = family.read(section, WHERE).items
    built: Any = section.build(examples, TargetSetting(family, WHERE, 512))
    for sequence, word in zip(built.sequences, (" mat", " dog"), strict=True):
        scored = [label for label in sequence.labels if label >= 0]
        assert family.tokenizer.decode(scored) == word
        assert sequence.ids[-1] != family.tokenizer.eos_token_id


def test_words_and_f1_are_those_of_squad() -> None:
    words, shared = metric(metric="words"), metric(metric="f1")
    assert words(" The Eiffel tower.", "eiffel Tower") == 1.0 == shared("a b", "b, a!")
    assert words("Eiffel", "Eiffel tower") == 0.0
    assert shared("Eiffel", "Eiffel tower") == pytest.approx(2 / 3)
    assert shared("x x y", "x z") == pytest.approx(2 / 5)
    assert shared("", "the") == 1.0 and shared("x", "") == 0.0


def test_the_best_of_several_right_answers_counts_and_a_function_may_see_the_row(
    base: BaseOf,
) -> None:
    family = tiny.open_base(base("llama"))
    model, seen = family.load(), []

    def function(output: str, answer: str, row: dict[str, Any]) -> float:
        seen.append((answer, row["level"]))
        return float(answer == "two")

    examples = [
        Example(i, prompt=f"what is {i}", completion="one", answers=several, columns={"level": i})
        for i, several in enumerate([("one", "two"), ("one",)])
    ]
    given: dict[str, Any] = {"score": "generate", "metric": "function", "max_new_tokens": 2}
    built = build(family, examples, **given, function=function)
    assert built.score(model).values == (1.0, 0.0)
    assert seen == [("one", 0), ("two", 0), ("one", 1)]
    # what the row holds is part of the score, and so of its address
    other = [*examples[:1], dataclasses.replace(examples[1], columns={"level": 7})]
    assert built.address() != build(family, other, **given, function=function).address()
    fewer = build(family, examples, **given, function=lambda output, answer: 1.0)
    assert (
        fewer.address() == build(family, other, **given, function=fewer.section.function).address()
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generated_answers_are_compared_with_the_right_ones(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind))
    model, seen = family.load(), []

    def keep(output: str, answer: str) -> float:
        seen.append((output, answer))
        return len(output) / 100

    settings: dict[str, Any] = {"score": "generate", "max_new_tokens": 8, "stop": []}
    scores = build(family, PAIRS, **settings, metric="function", function=keep).score(model)
    assert [answer for _, answer in seen] == [example.completion for example in PAIRS]
    assert scores.values == tuple(len(output) / 100 for output, _ in seen)
    assert len({output for output, _ in seen}) > 1
    right = [
        Example(i, prompt=e.prompt, completion=seen[i][0] if i % 2 else "no")
        for i, e in enumerate(PAIRS)
    ]
    assert build(family, right, **settings).score(model).values == (0.0, 1.0, 0.0, 1.0)


def test_the_right_answer_of_a_chat_is_its_last_reply(base: BaseOf) -> None:
    family = tiny.open_base(base("chat"))
    turns = (("user", "why"), ("assistant", "three"), ("user", "thanks"))
    section = target_section(path="x", messages="m", score="generate")
    target: Any = section.build([Example(0, messages=turns)], TargetSetting(family, WHERE, 512))
    assert target.answers == [("three",)]
    assert str(family.tokenizer.decode(target.prompts[0])).endswith("why</s>\n<s>assistant\n")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_long_prompt_leaves_the_model_room_to_answer(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind))
    long = tiny.pairs(("the cat sat on the mat " * 30, "x"))
    assert build(family, long, score="generate", max_new_tokens=30, stop=[]).score(
        family.load()
    ).values == (0.0,)
    with pytest.raises(
        DataError,
        match=r"^targets\.x\.max_new_tokens: must be under the model's limit of 96 tokens",
    ):
        build(family, long, score="generate", max_new_tokens=96)


def fails(output: str, answer: str) -> float:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails, "raised KeyError: 'gone'"),
        (lambda o, a: math.nan, "score of example 0 is nan"),
        (lambda o, a: "1", "not text"),
    ],
)
def test_a_metric_that_fails_names_the_function(
    family: CausalLM, function: Any, message: str
) -> None:
    target = build(
        family, PAIRS, score="generate", metric="function", function=function, max_new_tokens=2
    )
    with pytest.raises(DataError, match=rf"^targets\.x\.function: .*{message}"):
        target.score(family.load())


# --- python


def norms(model: Any, tokenizer: Any) -> list[float]:
    return [float(p.detach().norm()) for p in model.parameters()][:6]


def lengths(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [len(tokenizer(row["q"])["input_ids"]) for row in rows]


ROWS = [{"q": "the cat"}, {"q": "a"}, {"q": "one plus two is three"}]


def function(
    family: CausalLM, given: Any, rows: Any = None, keep: Sequence[int] = (0, 2)
) -> Function:
    section = PythonTarget(score="python", function=given)
    contents = None if rows is None else [plain_content(row) for row in rows]
    return Function(section, rows, keep, TargetSetting(family, WHERE, 512), contents)


def test_a_function_with_rows_scores_each(family: CausalLM) -> None:
    scores = function(family, lengths, ROWS).score(family.load())
    assert scores.kind == "score" and scores.weights == (1.0,) * 3
    assert scores.values == tuple(
        float(len(family.tokenizer(row["q"])["input_ids"])) for row in ROWS
    )


def test_a_function_without_rows_gives_all_and_a_part_is_kept(family: CausalLM) -> None:
    model = family.load()
    everything = norms(model, None)
    assert function(family, norms, keep=[0, 2, 5]).score(model).values == tuple(
        everything[i] for i in (0, 2, 5)
    )


def test_results_may_be_tensors_and_booleans(family: CausalLM) -> None:
    assert function(family, lambda m, t, rows: torch.tensor([1.0, 0.5, 0.0]), ROWS).score(
        family.load()
    ).values == (1, 0.5, 0)
    assert checked([True, False], WHERE) == (1.0, 0.0)


def explode(model: Any, tokenizer: Any, rows: Any = None) -> list[float]:
    raise RuntimeError("no licence")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (explode, "raised RuntimeError: no licence"),
        (lambda m, t: 5.0, "must return one number per example"),
        (lambda m, t: None, "must return one number per example"),
        (lambda m, t: ["a", "b", "c"], "must return one number per example"),
        (lambda m, t: ["1", "2", "3"], "not text"),
        (lambda m, t: {"a": 1.0}, "must return one number per example"),
        (lambda m, t: torch.ones(3, 2), "must return one number per example"),
        (lambda m, t: [1.0, math.nan, 0.0], "the score of example 1 is nan"),
        (lambda m, t: [1.0, 0.0, math.inf], "the score of example 2 is inf"),
        (lambda m, t: [], "returned 0 scores"),
        (lambda m, t: [1.0, 2.0], "returned 2 scores, fewer"),
    ],
)
def test_what_a_function_does_wrong_names_the_target(
    family: CausalLM, given: Any, message: str
) -> None:
    with pytest.raises(DataError, match=rf"^targets\.x\.function: .*{message}"):
        function(family, given).score(family.load())


@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_count_over_rows_names_the_target(family: CausalLM, count: int) -> None:
    with pytest.raises(DataError, match=rf"^targets\.x\.function: {count} scores for 3 rows"):
        function(family, lambda m, t, rows: [1.0] * count, ROWS).score(family.load())


def test_a_function_that_raises_over_rows_names_the_target(family: CausalLM) -> None:
    with pytest.raises(DataError, match=r"^targets\.x\.function: raised RuntimeError: no licence"):
        function(family, explode, ROWS).score(family.load())


def test_a_function_cannot_change_its_rows_for_the_next_model(family: CausalLM) -> None:
    rows = [{"q": "a", "tags": [1]} for _ in range(3)]

    def greedy(model: Any, tokenizer: Any, given: list[dict[str, Any]]) -> list[float]:
        counts = [float(len(row["tags"])) for row in given]
        for row in given:
            row["tags"].append(2)
        return counts

    target = function(family, greedy, rows)
    assert target.score(family.load()).values == target.score(family.load()).values == (1.0,) * 3


# --- the contract


def chaotic(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Draws numbers and leaves the model in training mode, as careless code does."""
    model.train()
    with torch.enable_grad():
        model(torch.tensor([[1, 2, 3]])).logits.sum()
    return torch.rand(len(rows)).tolist()


KINDS: dict[str, Callable[..., Target]] = {
    "loss": lambda family, **k: build(family, PAIRS, **k),
    "choice": lambda family, **k: build(
        family, QUESTIONS, score="choice", options=list(OPTIONS), **k
    ),
    "raw choice": lambda family, **k: build(
        family, QUESTIONS, score="choice", options=list(OPTIONS), normalize=False, **k
    ),
    "generate": lambda family, **k: build(family, PAIRS, score="generate", max_new_tokens=5, **k),
    "python rows": lambda family, **k: function(family, chaotic, ROWS),
    "python": lambda family, **k: function(family, norms, keep=[1, 2, 3]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_gives_one_finite_value_an_example_and_the_same_twice(
    family: CausalLM, kind: str
) -> None:
    model, target = family.load(), KINDS[kind](family)
    first = target.score(model)
    torch.rand(7)
    assert target.score(model) == first == KINDS[kind](family).score(family.load())
    assert len(first.values) == len(first.weights) == (3 if "python" in kind else 4)
    assert all(math.isfinite(value) for value in first.values)
    assert first.kind == ("loss" if kind == "loss" else "score")


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_depends_on_the_model_and_leaves_it_as_it_was(family: CausalLM, kind: str) -> None:
    model, target = family.load(), KINDS[kind](family)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.model.layers[0].train()  # an odd mode is the caller's business
    state, config = torch.random.get_rng_state(), model.generation_config.to_dict()
    target.score(model)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model.model.layers[0].training and not model.training and not model.lm_head.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.generation_config.to_dict() == config
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["loss", "choice", "raw choice", "generate"])
def test_an_address_is_examples_and_settings_and_no_name(family: CausalLM, kind: str) -> None:
    target: Any = KINDS[kind](family)
    address = target.address()
    assert address == KINDS[kind](family).address()
    renamed = TargetSetting(family, "targets.other", 99)
    again: dict[str, Any] = {
        "loss": {},
        "generate": {"score": "generate", "max_new_tokens": 5},
    }.get(kind, {"score": "choice", "options": list(OPTIONS), "normalize": kind == "choice"})
    examples = QUESTIONS if "choice" in kind else PAIRS
    assert build(family, examples, renamed, **again).address() == address
    assert build(family, examples[:-1], renamed, **again).address() != address
    assert build(family, examples[::-1], renamed, **again).address() != address


def test_addresses_differ_by_kind_and_setting(family: CausalLM) -> None:
    generate: dict[str, Any] = {"score": "generate", "max_new_tokens": 5}
    built = [
        *(KINDS[kind](family) for kind in KINDS),
        build(family, PAIRS, **generate, stop=["."]),
        build(family, PAIRS, **generate, metric="number"),
        build(family, PAIRS, **generate, metric="regex", pattern="a"),
        build(family, PAIRS, **generate, metric="regex", pattern="b"),
        build(family, PAIRS, **generate, metric="function", function=fails),
        build(family, PAIRS, **generate, metric="function", function=lambda o, a: 1.0),
        build(family, PAIRS, score="generate", max_new_tokens=6),
        function(family, norms, keep=[0, 2]),
        function(family, lengths, ROWS),
        function(family, lengths, ROWS[::-1]),
    ]
    addresses = [target.address() for target in built]
    assert len(set(addresses)) == len(addresses)

"""Chats and texts as the model's own tokens, by tokenizers and templates of many kinds."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from mergetomix.data.examples import Example
from mergetomix.errors import DataError, ModelError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.sequences import IGNORE
from mergetomix.sections.base import Base
from mergetomix.sections.source import Source

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "rows"
WHERE = "datasets.x"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
# thoughts of earlier turns are left out, the last one's is written even if it is empty
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n"
    "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}\nassistant: {% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}"
    "({{ call.function.arguments if call.function.arguments is string"
    " else call.function.arguments | tojson }})</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
PARTS_ALONE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "alternating": ALTERNATING,
    "opens": OPENS_THOUGHT,
    "tools": TOOLS,
    "marked": MARKED,
    "parts": PARTS_ALONE,
}


def sentencepiece_like() -> Any:
    """As Llama-2's: a mark before each text and for each space, characters, bytes for the rest."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    chars = "\u2581abcdefghijklmnopqrstuvwxyz0123456789.?!,:\n[]/INST<>|_"
    words = ["\u25814", "\u2581what", "\u2581is", "ing", "\u2581"]
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *chars]
    pieces = {piece: i for i, piece in enumerate(dict.fromkeys([*vocab, *words]))}
    merges = [("\u2581", "4"), ("i", "n"), ("in", "g")]
    pieces |= {"in": len(pieces)}
    built = Tokenizer(
        models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    built.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    built.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return built


def wrapped(built: Any, **names: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **names}
    return PreTrainedTokenizerFast(tokenizer_object=built, **marks)


def family_of(tokenizer: Any, template: str | None = None, **marks: Any) -> CausalLM:
    """A family whose tokenizer is replaced; no model is loaded."""
    from transformers import LlamaConfig

    family = object.__new__(CausalLM)
    tokenizer.chat_template = template
    if marks.get("special"):
        tokenizer.add_special_tokens({"additional_special_tokens": marks["special"]})
    family.base, family.device, family.method = Base(path="tiny"), "cpu", "full"
    family.max_length = family.limit = 400
    size = len(tokenizer)
    parts = {"tokenizer": tokenizer, "config": LlamaConfig(vocab_size=size, eos_token_id=2)}
    for name, value in parts.items():
        family.__dict__[name] = value  # in the place of what is read from a folder
    return family


KINDS = ["bytes", "sentencepiece"]


def tokenizer_of(kind: str) -> Any:
    return tiny.tokenizer(True, False) if kind == "bytes" else wrapped(sentencepiece_like())


IM = ["<|im_start|>", "<|im_end|>"]


def chat(*turns: tuple[str, str], **more: Any) -> Example:
    return Example(0, messages=turns, **more)


TALK = chat(("user", "what is 2"), ("assistant", "4"), ("user", "and 3"), ("assistant", "it is 9"))


def pieces(family: CausalLM, example: Example) -> tuple[list[int], list[str]]:
    """The ids of a chat, and each run of trained tokens as text."""
    (sequence,) = family.encode([example], WHERE).sequences
    runs: list[list[int]] = []
    before = IGNORE
    for label in sequence.labels:
        if label != IGNORE:
            runs += [] if before != IGNORE else [[]]
            runs[-1].append(label)
        before = label
    # a sentencepiece-like tokenizer writes its mark of a space behind a special token, too
    texts = [family.tokenizer.decode(run).replace("|> \n", "|>\n") for run in runs]
    return list(sequence.ids), texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_exactly_what_the_template_gives(kind: str, name: str) -> None:
    family = family_of(tokenizer_of(kind), TEMPLATES[name], special=IM)
    turns = [{"role": role, "content": text} for role, text in TALK.messages]
    if name == "parts":
        turns = [
            {"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in turns
        ]
    want = family.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    ids, replies = pieces(family, TALK)
    assert ids == want
    ends = {"alternating": "</s>", "marked": "<|im_end|>"}.get(name, "<|im_end|>\n")
    assert [reply.strip(" ") for reply in replies] == [f"4{ends}", f"it is 9{ends}"]
    shown = [text for text, trained in family.shown(TALK, WHERE) if trained]
    assert [text.strip(" ") for text in shown] == [f"4{ends}", f"it is 9{ends}"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_reply_alone_is_what_a_model_would_write(kind: str) -> None:
    """The prompt of a generation and the tokens before the reply are the same tokens."""
    family = family_of(tokenizer_of(kind), CHATML, special=IM)
    last = chat(*TALK.messages, trained_from=3)
    ids, (reply,) = pieces(family, last)
    prompt = family.prompt_ids(last, WHERE)
    assert ids[: len(prompt)] == prompt and reply == "it is 9<|im_end|>\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_and_a_text_are_whole(kind: str) -> None:
    family = family_of(tokenizer_of(kind))
    encode = family.tokenizer.encode
    pair = Example(0, prompt="what is 2 ", completion="4")
    (sequence,) = family.encode([pair], WHERE).sequences
    assert list(sequence.ids) == [*encode("what is 2 4"), 2]
    (text,) = family.encode([Example(0, text="what is 2 4")], WHERE).sequences
    assert text.ids == sequence.ids
    answer = [label for label in sequence.labels if label != IGNORE]
    assert family.tokenizer.decode(answer).strip(" ") == "4</s>"
    options = Example(0, prompt="what is 2 ", completion="4", options=("4", "9", "ing"))
    question = family.question(options, 0, WHERE)
    for option, found in zip(options.options, question.options, strict=True):
        assert [*question.prompt, *found] == encode(f"what is 2 {option}")
        assert family.tokenizer.decode(found).strip(" ") == option


def test_without_offsets_the_seam_is_found_by_beginnings(monkeypatch: Any) -> None:
    for kind in KINDS:
        family = family_of(tokenizer_of(kind), CHATML, special=IM)
        rows = [TALK, Example(1, prompt="th", completion="e cat"), Example(2, text="a cat")]
        fast = family.encode(rows, WHERE)
        family = family_of(tokenizer_of(kind), CHATML, special=IM)
        monkeypatch.setattr(type(family.tokenizer), "is_fast", False)
        slow = family.encode(rows, WHERE)
        monkeypatch.undo()
        assert fast.sequences == slow.sequences and fast.num_straddling == slow.num_straddling


# --- marks


def test_marks_that_a_text_holds_are_not_written_twice() -> None:
    family = family_of(tiny.tokenizer(True, False))
    rows = [
        Example(0, prompt="stop", completion=" yes</s>"),
        Example(1, prompt="<s>start", completion=" no"),
        Example(2, prompt="plain", completion=" no"),
        Example(3, text="<s>all</s>"),
    ]
    found = family.encode(rows, WHERE)
    for sequence in found.sequences:
        assert [sequence.ids.count(mark) for mark in (1, 2)] == [1, 1]
        assert sequence.ids[0] == 1 and sequence.ids[-1] == 2 == sequence.labels[-1]
    assert found.num_marked == 3
    assert "marks of a beginning or an end" in family.notes({"x": found})[0]
    assert family.prompt_ids(rows[1], WHERE).count(1) == 1


def test_a_template_without_an_end_is_given_one() -> None:
    """Or no model would learn to stop; where it has one, nothing is added."""
    family = family_of(tiny.tokenizer(True, False), NO_END)
    ids, replies = pieces(family, chat(*TALK.messages[:2]))
    assert family.template.end is None
    assert ids[-1] == 2 and replies == ["4</s>"]
    other = family_of(tiny.tokenizer(True, False), CHATML, special=IM)
    assert other.template.end == "<|im_end|>" and pieces(other, TALK)[0].count(2) == 0


def test_a_token_without_a_row_in_the_embedding_is_named() -> None:
    family = family_of(tiny.tokenizer(True, False))
    family.config.vocab_size = 5
    with pytest.raises(ModelError, match=r"the token .* \(row 0 of datasets.x\) has the id"):
        family.encode([Example(0, text="a cat")], WHERE)
    with pytest.raises(ModelError, match="5 rows"):
        family.prompt_ids(Example(0, prompt="a cat"), WHERE)


# --- templates that change turns, and thoughts


def test_a_template_that_rewrites_earlier_turns_takes_the_last_reply() -> None:
    family = family_of(tiny.tokenizer(True, False), QWEN3, special=IM)
    with pytest.raises(DataError, match="rewrites earlier turns") as caught:
        family.encode([TALK], WHERE)
    assert "train_on: last" in str(caught.value)
    last = chat(*TALK.messages, trained_from=3)
    ids, replies = pieces(family, last)
    turns = [{"role": role, "content": text} for role, text in TALK.messages]
    assert ids == family.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert replies == ["it is 9<|im_end|>\n"]  # and no empty thought
    assert family.prompt_ids(last, WHERE)


def with_thought(thought: str) -> Example:
    turns = [
        {"role": "user", "content": "what is 2"},
        {"role": "assistant", "content": "4", "reasoning_content": thought},
    ]
    pairs = tuple((turn["role"], turn["content"]) for turn in turns)
    return Example(0, messages=pairs, chat=json.dumps({"messages": turns, "tools": None}))


@pytest.mark.parametrize("template", [QWEN3, OPENS_THOUGHT])
def test_a_thought_is_trained_as_the_template_writes_it(template: str) -> None:
    family = family_of(tiny.tokenizer(True, False), template, special=IM)
    opened = template == OPENS_THOUGHT
    _, (reply,) = pieces(family, with_thought("think hard"))
    want = "think hard\n</think>\n\n4<|im_end|>\n"
    assert reply == (want if opened else f"<think>\n{want}")
    _, (bare,) = pieces(family, chat(*TALK.messages[:2]))
    assert bare == "4<|im_end|>\n"


# --- what messages hold


def read(tmp_path: Path, rows: Sequence[Any], family: CausalLM, **mapping: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = mapping or {"messages": "messages"}
    return family.read(Source.model_validate({"path": str(path), **mapping}), WHERE)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 2, "y": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLED = [
    {"role": "user", "content": "sum"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "4"},
    {"role": "assistant", "content": "it is 4"},
]


def test_tool_calls_and_tools_go_to_the_template(tmp_path: Path) -> None:
    family = family_of(tiny.tokenizer(True, False), TOOLS, special=IM)
    examples = read(tmp_path, [{"messages": CALLED, "tools": [TOOL]}], family)
    ids, replies = pieces(family, examples.items[0])
    want = family.tokenizer.apply_chat_template(
        CALLED, tools=[TOOL], tokenize=True, return_dict=False
    )
    assert ids == want
    assert replies == ['<call>add({"x": 2, "y": 2})</call><|im_end|>\n', "it is 4<|im_end|>\n"]
    named = read(
        tmp_path,
        [{"messages": CALLED, "t": json.dumps([TOOL])}],
        family,
        messages="messages",
        tools="t",
    )
    assert pieces(family, named.items[0])[0] == want


def test_parts_of_text_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "what "}, {"type": "text", "text": "is 2"}]
    rows = [
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "4"}]}
    ]
    for template in (CHATML, PARTS_ALONE):
        family = family_of(tiny.tokenizer(True, False), template, special=IM)
        (item,) = read(tmp_path, rows, family).items
        assert pieces(family, item) == pieces(family, chat(*TALK.messages[:2]))


def test_what_a_template_refuses_is_named(tmp_path: Path) -> None:
    family = family_of(tiny.tokenizer(True, False), ALTERNATING)
    rows = [
        {"messages": [{"role": r, "content": "a"} for r in roles]}
        for roles in (("user", "assistant"), ("user", "user", "assistant"))
    ]
    examples = read(tmp_path, rows, family)
    refused = r"refused row 1 \(turns: user, user, assistant\): roles must alternate"
    with pytest.raises(DataError, match=refused):
        family.encode(examples.items, WHERE)
    kept = read(tmp_path, rows, family, messages="messages", on_bad_row="skip")
    assert [item.row for item in kept.items] == [0]
    assert "passed over 1 bad rows" in kept.notes[0]


def test_other_ways_to_say_a_chat(tmp_path: Path) -> None:
    family = family_of(tiny.tokenizer(True, False), CHATML, special=IM)
    sharegpt = [{"c": [{"from": "human", "value": "what is 2"}, {"from": "gpt", "value": "4"}]}]
    pair = [{"q": "what is 2", "a": "4"}]
    lists = [
        {
            "q": [{"role": "user", "content": "what is 2"}],
            "a": [{"role": "assistant", "content": "4"}],
        }
    ]
    want = pieces(family, chat(*TALK.messages[:2]))
    asked = {"prompt": "q", "completion": "a"}
    for rows, mapping in (
        (sharegpt, {"messages": "c"}),
        (pair, {**asked, "chat": True}),
        (lists, asked),
    ):
        (item,) = read(tmp_path, rows, family, **mapping).items
        assert pieces(family, item) == want
    with_system = pieces(family, chat(("system", "be brief"), *TALK.messages[:2]))
    for rows, system in (
        (pair, "be brief"),
        ([{**pair[0], "s": "be brief"}], "s"),
        ([{**pair[0], "s": "brief"}], "be {s}"),
    ):
        (item,) = read(tmp_path, rows, family, **asked, chat=True, system=system).items
        assert pieces(family, item) == with_system


def test_only_the_completion_of_a_conversation_is_trained_on(tmp_path: Path) -> None:
    family = family_of(tiny.tokenizer(True, False), CHATML, special=IM)
    turns = [{"role": role, "content": text} for role, text in TALK.messages]
    (item,) = read(
        tmp_path, [{"p": turns[:3], "c": turns[3:]}], family, prompt="p", completion="c"
    ).items
    assert pieces(family, item)[1] == ["it is 9<|im_end|>\n"]


def test_a_base_with_a_template_is_told_of_pairs_without(tmp_path: Path) -> None:
    family = family_of(tiny.tokenizer(True, False), CHATML, special=IM)
    pair, asked = [{"q": "what is 2?", "a": "4"}], {"prompt": "q", "completion": "a"}
    (note,) = read(tmp_path, pair, family, **asked).notes
    assert "chat: true" in note and "chat: false" in note
    assert read(tmp_path, pair, family, **asked, chat=False).notes == ()
    plain = family_of(tiny.tokenizer(True, False))
    assert read(tmp_path, pair, plain, **asked).notes == ()


def test_turns_without_roles_and_with_dates(tmp_path: Path) -> None:
    family = family_of(tiny.tokenizer(True, False), CHATML, special=IM)
    wanted = (("user", "a"), ("assistant", "b"))
    for turns in (["a", "b"], [{"input": "a", "output": "b"}], json.dumps([*USER_AND_REPLY])):
        rows = [{"c": turns}]
        assert read(tmp_path, rows, family, messages="c").items[0].messages == wanted
    dated = [{**turn, "at": datetime.datetime(2026, 1, 2)} for turn in USER_AND_REPLY]
    found = family.read(Source(rows=[{"c": dated}], messages="c"), WHERE)
    assert "2026-01-02" in found.items[0].chat


USER_AND_REPLY = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def test_options_of_a_chat_are_replies() -> None:
    family = family_of(tiny.tokenizer(True, False), CHATML, special=IM)
    example = Example(
        0,
        prompt="what is 2",
        completion="4",
        options=("4", "9"),
        messages=(("user", "what is 2"), ("assistant", "4")),
    )
    question = family.question(example, 0, WHERE)
    assert list(question.prompt) == family.prompt_ids(example, WHERE)
    assert [family.tokenizer.decode(option) for option in question.options] == ["4", "9"]


def test_a_template_may_be_the_recipes(tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(), tmp_path / "base", chat=True)
    file = tmp_path / "own.jinja"
    file.write_text(NO_END)
    for given in (NO_END, str(file)):
        base = Base(path=folder, dtype="float32", chat_template=given)
        family = CausalLM(base, "cpu", 96, "full")
        assert family.template.prompt(TALK, WHERE).startswith("user: what is 2assistant: 4")
        family.save(family.load(), tmp_path / "out")
        assert tiny.open_base(str(tmp_path / "out")).tokenizer.chat_template == NO_END
    for broken, said in (("{% for m in", "not a template"), ("no/file.jinja", "read as a file")):
        base = Base(path=folder, dtype="float32", chat_template=broken)
        with pytest.raises(ModelError, match=rf"base.chat_template: .*{said}"):
            _ = CausalLM(base, "cpu", 96, "full").tokenizer


@pytest.mark.skipif(not CASES.exists(), reason="shared/cases lies beside the checkout alone")
@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("okchat", CHATML),
        ("multi", CHATML),
        ("system", CHATML),
        ("same", CHATML),
        ("okchat", ALTERNATING),
        ("multi", ALTERNATING),
        ("reason", QWEN3),
        ("reason", OPENS_THOUGHT),
        ("parts", CHATML),
        ("tool_text", TOOLS),
        ("tool_null", TOOLS),
        ("tools_col", TOOLS),
    ],
)
def test_odd_rows_are_as_the_template_writes_them(name: str, template: str) -> None:
    family = family_of(tiny.tokenizer(True, False), template, special=IM)
    path = CASES / f"{name}.jsonl"
    source = Source.model_validate({"path": str(path), "messages": "messages"})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    items = family.read(source, WHERE).items
    assert len(items) == len(rows)
    for row, item in zip(rows, items, strict=True):
        turns = [
            {**turn, "content": "".join(part["text"] for part in turn["content"])}
            if isinstance(turn["content"], list)
            else turn
            for turn in row["messages"]
        ]
        want = family.tokenizer.apply_chat_template(
            turns, tools=row.get("tools"), tokenize=True, return_dict=False
        )
        assert pieces(family, item)[0] == want

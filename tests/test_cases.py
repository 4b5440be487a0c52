"""Odd files and the row shapes of public datasets: the right value, or one clear message.

The chats of `rows` are in `test_chats.py`, where they are compared with the template's own ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from test_chats import CHATML, TOOLS, family_of
from test_generation import target as generate_target

from mergetomix.data import labelled_images, reading
from mergetomix.data.examples import Examples
from mergetomix.errors import DataError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.sections.source import Source
from mergetomix.targets.choice import ChoiceTarget
from mergetomix.targets.generate import GenerateTarget, number
from mergetomix.targets.numbers import last_number

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
WHERE = "datasets.x"
PAIR = {"prompt": "q", "completion": "a"}
pytestmark = pytest.mark.skipif(
    not CASES.exists(), reason="the cases lie beside this project's own checkout alone"
)


def read(name: str, kind: type[Source] = Source, **lines: Any) -> Examples:
    return reading.read(kind.model_validate({"path": str(CASES / name), **lines}), WHERE)


def pairs(examples: Examples) -> list[tuple[str, str]]:
    return [(each.prompt, each.completion) for each in examples.items]


# --- rows


@pytest.mark.parametrize("name", ["bom", "crlf", "ls", "nul"])
def test_files_of_many_makes_hold_what_they_say(name: str) -> None:
    text = (CASES / "rows" / f"{name}.jsonl").read_bytes().decode("utf-8-sig")
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    assert pairs(read(f"rows/{name}.jsonl", **PAIR)) == [(row["q"], row["a"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("nums", [("int", "7"), ("float", "7.0"), ("big", "12345678901234567890123")]),
        ("inf", [("value", "inf")]),
        ("dup", [("same key twice", "second")]),
    ],
)
def test_odd_values_are_the_text_that_stands_there(name: str, first: list[tuple[str, str]]) -> None:
    assert pairs(read(f"rows/{name}.jsonl", **PAIR))[: len(first)] == first


def test_fields_of_a_table_are_the_text_that_stands_there() -> None:
    found = dict(pairs(read("rows/na.csv", **PAIR)))
    assert found == {
        "what follows M": "NA",
        "empty word": "null",
        "zip code of x": "00712",
        "says": 'he said "no", then\nleft',
        "flag": "True",
        "nan?": "nan",
    }


def test_a_doubled_key_is_said() -> None:
    note, glued = read("rows/dup.jsonl", **PAIR).notes
    assert "run into their answer" in glued
    assert "dup.jsonl: the key 'a' stands twice in an object (1 in all); the last one" in note


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "completion: row 0 (counting from 0): 'a': the value is missing"),
        ("nulla", "completion: row 0 (counting from 0): 'a': the value is missing"),
        ("emptya", "completion: row 0 (counting from 0): 'a' gives an empty text"),
        ("emptyq", "prompt: row 0 (counting from 0): 'q' gives an empty text"),
        ("mixed", "completion: row 0 (counting from 0): 'a': the value is of type list"),
        ("surr", "prompt: row 0 (counting from 0): a lone surrogate '\\ud83d' at character 7"),
    ],
)
def test_a_bad_row_is_named_or_passed_over_and_counted(name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(f"rows/{name}.jsonl", **PAIR)
    assert message in caught.value.message
    num_bad = 2 if name == "surr" else 1
    found = read(f"rows/{name}.jsonl", **PAIR, on_bad_row="skip")
    assert len(found.items) == found.num_rows - num_bad > 0
    assert f"passed over {num_bad} bad rows" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("utf16", "utf16.jsonl is not text in UTF-8: invalid start byte at byte 0"),
        ("latin", "latin.jsonl is not text in UTF-8: invalid continuation byte at byte 9"),
        ("pretty", "pretty.jsonl, line 1: not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(f"rows/{name}.jsonl", **PAIR)
    assert message in caught.value.message and caught.value.where == f"{WHERE}.path"


def test_marks_that_a_text_holds_are_not_written_twice() -> None:
    tokenizer = tiny.tokenizer(start=True, chat=False)
    tokenizer.add_special_tokens({"bos_token": "<|bos|>", "eos_token": "<|eos|>"})
    family = family_of(tokenizer)
    items = read("rows/special.jsonl", **PAIR).items
    found = family.encode(items, WHERE)
    bos, eos = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|eos|>"])
    for sequence in found.sequences:
        assert sequence.ids.count(eos) == 1 and sequence.ids[-1] == eos
        assert sequence.ids.count(bos) <= 1 and bos not in sequence.ids[1:]
    assert found.num_marked == 2


def test_labels_that_are_digits_count_from_zero() -> None:
    source = Source(path=str(CASES / "rows" / "stars.parquet"), image="image", label="label")
    found = labelled_images.read(source, WHERE, skip_broken=False)
    labels = pq.read_table(CASES / "rows" / "stars.parquet").column("label").to_pylist()
    assert [each.label for each in found.items] == [str(label + 1) for label in labels]


@pytest.mark.parametrize("name", ["edge", "lead", "run"])
def test_answers_are_cut_at_a_stop_string_of_their_own(tmp_path: Path, name: str) -> None:
    """A prompt may end in the stop string, an answer begin with it, or run on after it."""
    family = tiny.open_base(tiny.save(tiny.llama(), tmp_path))
    rows = read(f"rows/{name}.jsonl", **PAIR).items
    said = {"edge": "18", "lead": "\n18", "run": "18\n\nQ: more"}[name]
    wanted = {"edge": 1.0, "lead": 0.0, "run": 1.0}[name]
    built = generate_target(family, rows, metric="exact", stop=["\n"], max_new_tokens=8)
    model = saying(family, said)
    scores = built.score(model)
    assert scores.values == (wanted,) * len(rows)
    assert bool(built.remark) == (name == "lead")
    if name == "lead":
        assert f"{len(rows)} of {len(rows)} answers were empty" in built.remark


def saying(family: CausalLM, answer: str) -> Any:
    """A model that continues whatever it is asked by one answer and the end of text."""
    model = family.load()
    ids = [*family.tokens(answer), family.encoder.end]
    asked: list[int] = []

    def say(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        past = kwargs.get("past_key_values")
        first = past is None or kwargs["input_ids"].shape[1] > 1
        asked[:] = [0] if first else [asked[0] + 1]
        logits = torch.zeros_like(out.logits)
        logits[:, -1, ids[min(asked[0], len(ids) - 1)]] = 1.0
        out.logits = logits
        return out

    model.register_forward_hook(say, with_kwargs=True)
    return model


# --- shapes of public datasets

TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "alpaca.jsonl": (
        {"prompt": "{instruction}\n{input}\n", "completion": "output"},
        "{instruction}\n{input}\n|{output}",
    ),
    "alpaca_arr.json": (
        {"prompt": "{instruction}\n{input}\n", "completion": "output"},
        "{instruction}\n{input}\n|{output}",
    ),
    "dolly.jsonl": (
        {"prompt": "{context}\n{instruction}\n", "completion": "response"},
        "{context}\n{instruction}\n|{response}",
    ),
    "openorca.jsonl": (
        {"prompt": "{system_prompt}\n{question}\n", "completion": "response"},
        "{system_prompt}\n{question}\n|{response}",
    ),
    "gsm8k.jsonl": ({"prompt": "question", "completion": " {answer}"}, "{question}| {answer}"),
    "math.jsonl": ({"prompt": "problem", "completion": " {solution}"}, "{problem}| {solution}"),
    "mbpp.jsonl": ({"prompt": "{text}\n", "completion": "code"}, "{text}\n|{code}"),
    "humaneval.jsonl": (
        {"prompt": "prompt", "completion": "canonical_solution"},
        "{prompt}|{canonical_solution}",
    ),
    "svamp.jsonl": (
        {"prompt": "{Body} {Question}", "completion": " {Answer}"},
        "{Body} {Question}| {Answer}",
    ),
    "dpo_str.jsonl": ({"prompt": "prompt", "completion": "chosen"}, "{prompt}|{chosen}"),
    "wikitext.jsonl": ({"text": "text"}, "|{text}"),
    "squad.jsonl": (
        {"prompt": "{context} {question}", "completion": " {answers[text][0]}"},
        "{context} {question}| {answers[text][0]}",
    ),
    "wmt.jsonl": (
        {"prompt": "{translation[en]} =", "completion": " {translation[de]}"},
        "{translation[en]} =| {translation[de]}",
    ),
    "nq_open.jsonl": (
        {"prompt": "question", "completion": " {answer[0]}"},
        "{question}| {answer[0]}",
    ),
    "boolq.jsonl": (
        {"prompt": "{passage} {question}", "completion": " {answer}"},
        "{passage} {question}| {answer}",
    ),
    "mnli.jsonl": (
        {"prompt": "{premise} {hypothesis}", "completion": " {label}"},
        "{premise} {hypothesis}| {label}",
    ),
    "piqa.jsonl": ({"prompt": "goal", "completion": " {sol1}"}, "{goal}| {sol1}"),
    "winogrande.jsonl": (
        {"prompt": "sentence", "completion": " {option1}"},
        "{sentence}| {option1}",
    ),
    "hh.jsonl": ({"text": "chosen"}, "|{chosen}"),
    "truthfulqa.jsonl": (
        {"prompt": "question", "completion": " {mc1_targets[choices][0]}"},
        "{question}| {mc1_targets[choices][0]}",
    ),
}


def rows_of(name: str) -> list[dict[str, Any]]:
    text = (CASES / "shapes" / name).read_text()
    if name.endswith(".json"):
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", TEXTS)
def test_a_shape_is_a_line_or_two(name: str) -> None:
    lines, wanted = TEXTS[name]
    found = read(f"shapes/{name}", **lines)
    rows = rows_of(name)
    assert len(found.items) == len(rows)
    for item, row in zip(found.items, rows, strict=True):
        prompt, completion = (part.format(**row) for part in wanted.split("|"))
        assert (item.prompt, item.completion or item.text) == (prompt, completion)


CHATS: dict[str, dict[str, Any]] = {
    "openai.jsonl": {"messages": "messages"},
    "multi.jsonl": {"messages": "messages"},
    "tulu.jsonl": {"messages": "messages"},
    "ultrachat.jsonl": {"messages": "messages"},
    "toolcall.jsonl": {"messages": "messages"},
    "parts.jsonl": {"messages": "messages"},
    "sharegpt.jsonl": {"messages": "conversations"},
    "sharegpt_nosys.jsonl": {"messages": "conversations"},
    "promptcompl_msgs.jsonl": {"prompt": "prompt", "completion": "completion"},
    "dpo_msgs.jsonl": {"messages": "chosen"},
}
ROLES = {"human": "user", "gpt": "assistant"}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_what_the_template_writes(name: str) -> None:
    template = TOOLS if name == "toolcall.jsonl" else CHATML
    marks = ["<|im_start|>", "<|im_end|>"]
    family = family_of(tiny.tokenizer(start=False, chat=False), template, special=marks)
    found = family.read(
        Source.model_validate({"path": str(CASES / "shapes" / name), **CHATS[name]}), WHERE
    )
    sequences = family.encode(found.items, WHERE).sequences
    for item, sequence, row in zip(found.items, sequences, rows_of(name), strict=True):
        column = CHATS[name].get("messages")
        given = row[column] if column else [*row["prompt"], *row["completion"]]
        turns = [
            {"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
            if "from" in turn
            else turn
            for turn in given
        ]
        for turn in turns:
            if isinstance(turn["content"], list):
                turn["content"] = "".join(part["text"] for part in turn["content"])
        ids = family.tokenizer.apply_chat_template(
            turns, tools=row.get("tools"), tokenize=True, return_dict=False
        )
        assert list(sequence.ids) == list(ids), item.row
        trained = [i for i, label in zip(sequence.ids, sequence.labels, strict=True) if label >= 0]
        replies = [turn for turn in turns if turn["role"] == "assistant"]
        text = family.tokenizer.decode(trained)
        assert all((turn["content"] or "") in text for turn in replies)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("no_asst.jsonl", {"messages": "messages"}, "no turn of the assistant"),
        (
            "empty_out.jsonl",
            {"prompt": "instruction", "completion": "output"},
            "'output' gives an empty text",
        ),
    ],
)
def test_a_shape_that_cannot_be_learnt_from_is_named(
    name: str, lines: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(f"shapes/{name}", **lines)
    assert message in caught.value.message


def test_rows_that_stand_twice_are_read_as_they_are() -> None:
    found = pairs(read("shapes/dup.jsonl", prompt="question", completion="answer"))
    assert len(found) == len(rows_of("dup.jsonl")) > len(set(found))


CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "mmlu.jsonl": (
        {"options": "choices", "prompt": "question", "completion": "answer"},
        "'0' is not among the options",
    ),
    "arc.jsonl": (
        {"options": "choices", "prompt": "question", "completion": "answerKey"},
        "'1' is not among the options",
    ),
    "csqa.jsonl": (
        {"options": "choices", "prompt": "question", "completion": "answerKey"},
        "'A' is not among the options",
    ),
    "aqua.jsonl": (
        {"options": "options", "prompt": "question", "completion": "correct"},
        "'A' is not among the options",
    ),
    "hellaswag.jsonl": (
        {"options": "endings", "prompt": "ctx", "completion": "label"},
        "'0' is not among the options",
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_whose_answer_is_no_option_is_named(name: str) -> None:
    lines, message = CHOICES[name]
    with pytest.raises(DataError) as caught:
        read(f"shapes/{name}", ChoiceTarget, score="choice", **lines)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("boolq.jsonl", {"prompt": "{passage} {question}", "completion": "answer"}),
        ("mnli.jsonl", {"prompt": "{premise} {hypothesis}", "completion": "label"}),
    ],
)
def test_a_choice_of_fixed_words(name: str, lines: dict[str, Any]) -> None:
    rows = rows_of(name)
    words = sorted({str(row[lines["completion"]]) for row in rows})
    found = read(f"shapes/{name}", ChoiceTarget, score="choice", options=words, **lines)
    assert [item.completion for item in found.items] == [
        f" {row[lines['completion']]}" for row in rows
    ]
    assert all(item.options == tuple(f" {word}" for word in words) for item in found.items)


@pytest.mark.parametrize("name", ["gsm8k.jsonl", "svamp.jsonl", "math.jsonl"])
def test_numbers_are_right_where_they_are_the_same(name: str) -> None:
    lines, _ = TEXTS[name]
    found = read(
        f"shapes/{name}",
        GenerateTarget,
        score="generate",
        metric="number",
        max_new_tokens=4,
        **lines,
    )
    values = [last_number(item.completion) for item in found.items]
    assert None not in values and len(set(values)) > 1
    for item, value in zip(found.items, values, strict=True):
        for each, other in zip(found.items, values, strict=True):
            assert number(item.completion, each.completion) == float(value == other)


def test_every_case_is_tried() -> None:
    tried = {*TEXTS, *CHATS, *CHOICES, "no_asst.jsonl", "empty_out.jsonl", "nested.json"}
    assert {file.name for file in (CASES / "shapes").iterdir()} == tried | {"dup.jsonl"}

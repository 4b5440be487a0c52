"""Options and right answers, as benchmarks say them; preference pairs; several right answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sources import target_section

from mergetomix.data.examples import Example, Examples
from mergetomix.data.reading import read
from mergetomix.errors import DataError, RecipeError
from mergetomix.recipe.errors import readable
from mergetomix.sections.source import Dataset

LETTERS = {"text": ["oak", "elm", "fir"], "label": ["A", "B", "C"]}


def choice(rows: list[dict[str, Any]], **lines: Any) -> Examples:
    section = target_section(rows=rows, score="choice", **{"prompt": "q", **lines})
    return read(section, "targets.t")


def right(options: Any, answer: Any, **lines: Any) -> str:
    """The option that is right of one row."""
    rows = [{"q": "which?", "o": options, "a": answer}]
    (item,) = choice(rows, options="o", answer="a", **lines).items
    assert item.completion in item.options
    return item.completion.strip()


@pytest.mark.parametrize(
    ("options", "answer", "wanted"),
    [
        (["oak", "elm", "fir"], 0, "oak"),
        (["oak", "elm", "fir"], "2", "fir"),
        (["oak", "elm", "fir"], 1.0, "elm"),
        (["oak", "elm", "fir"], "B", "elm"),
        (["oak", "elm", "fir"], "(c)", "fir"),
        (["oak", "elm", "fir"], "c.", "fir"),
        (["oak", "elm", "fir"], "elm", "elm"),
        (["oak", "elm", "fir"], " elm ", "elm"),
        (["oak", "elm"], [0, 1], "elm"),
        (["oak", "elm"], [1, 0], "oak"),
        (["no", "yes"], True, "yes"),
        (["yes", "no"], True, "yes"),
        (["False", "True"], False, "False"),
        (["dry", "wet"], True, "wet"),
        (["1", "2"], "2", "2"),
        (["oak", "oak", "elm"], 1, "oak"),
        ([3, 4], 1, "4"),
        (LETTERS, "C", "fir"),
        ({"text": ["oak", "elm"], "label": ["1", "2"]}, "1", "oak"),
        ({"text": ["oak", "elm"], "label": ["1", "2"]}, 2, "elm"),
        ({"A": "oak", "B": "elm", "C": None}, "B", "elm"),
        ([{"text": "oak", "label": "x"}, {"text": "elm", "label": "y"}], "y", "elm"),
        ([{"text": "oak"}, {"text": "elm"}], 1, "elm"),
        ([{"key": "x", "value": "oak"}, {"key": "y", "value": "elm"}], "y", "elm"),
        ("['oak', 'elm']", 1, "elm"),
        ('["oak", "elm"]', "elm", "elm"),
        (["no", "yes"], "True", "yes"),
        (["1.0", "2.0", "3.0"], "1.0", "1.0"),
        (["006", "007"], "007", "007"),
        (["0.5", "1.5"], 1.5, "1.5"),
        (json.dumps(["\U0001f600 a", "b/c"]), 0, "\U0001f600 a"),
        ({"oak": 0, "elm": 1}, {"oak": 0, "elm": 1}, "elm"),
    ],
)
def test_the_right_option_by_whatever_the_data_calls_it(
    options: Any, answer: Any, wanted: str
) -> None:
    assert right(options, answer) == wanted


@pytest.mark.parametrize(
    ("options", "answer", "says"),
    [
        (["oak", "elm"], 3, "3 is none of the options ['oak', 'elm']"),
        (["oak", "elm"], -1, "-1 is none of"),
        (["oak", "elm"], "fir", "'fir' is none of"),
        (["oak", "elm"], "D", "'D' is none of"),
        (LETTERS, "X", "which are called A, B, C"),
        (["oak", "elm"], [1, 1], "[1, 1] is none of"),
        (["oak", "elm"], None, "None is none of"),
        (["oak", "elm", "fir"], True, "True is none of"),
        ({"text": ["oak", "elm"], "label": ["1", "2"]}, 0, "which are called 1, 2"),
        (["oak"], 0, "at least 2"),
        ("oak", 0, "not str"),
        (["oak", ""], 0, "not ''"),
    ],
)
def test_an_answer_outside_the_options_is_named_with_the_row(
    options: Any, answer: Any, says: str
) -> None:
    with pytest.raises(DataError) as caught:
        right(options, answer)
    assert says in caught.value.message
    assert "row 0 (counting from 0)" in caught.value.message


def test_numbers_count_from_one_where_the_rows_say_so() -> None:
    rows = [{"q": "?", "o": ["oak", "elm"], "a": each} for each in (1, 2, 1)]
    found = choice(rows, options="o", answer="a")
    assert [item.completion.strip() for item in found.items] == ["oak", "elm", "oak"]
    assert found.notes == ()


def test_where_they_do_not_it_is_said_and_may_be_told() -> None:
    rows = [{"q": "?", "o": ["oak", "elm", "fir"], "a": 1}] * 3
    found = choice(rows, options="o", answer="a")
    assert found.items[0].completion.strip() == "elm"
    (note,) = found.notes
    assert "answer_from: 1" in note
    told = choice(rows, options="o", answer="a", answer_from=1)
    assert told.items[0].completion.strip() == "oak" and told.notes == ()


def test_numbers_are_texts_only_where_all_of_them_are() -> None:
    digits = ["2", "0", "1", "3"]
    rows = [{"q": "?", "o": digits, "a": each} for each in ("2", "0")]
    assert choice(rows, options="o", answer="a").items[0].completion.strip() == "2"
    places = choice(rows, options="o", answer="a", answer_from=0)
    assert places.items[0].completion.strip() == "1"
    rows.append({"q": "?", "o": ["5", "6", "7", "8"], "a": "1"})
    mixed = [item.completion.strip() for item in choice(rows, options="o", answer="a").items]
    assert mixed == ["1", "2", "6"]


def test_answers_that_count_from_both_are_refused() -> None:
    rows = [{"q": "?", "o": ["oak", "elm"], "a": each} for each in (0, 1, 2)]
    with pytest.raises(DataError, match=r"row 2 .* 0 is among the answers, and so is 2"):
        choice(rows, options="o", answer="a")
    assert len(choice(rows[:2], options="o", answer="a", answer_from=0).items) == 2


def test_words_of_labels_may_be_keyed_as_yaml_reads_them() -> None:
    rows = [{"q": "this is", "a": each} for each in (0.0, 1, "1")]
    found = choice(rows, answer="a", answer_map={0: "wet", 1: "dry"})
    assert [item.completion for item in found.items] == [" wet", " dry", " dry"]
    truths = [{"q": "this is", "a": each} for each in (True, "False")]
    found = choice(truths, answer="a", answer_map={True: "dry", False: "wet"})
    assert [item.completion for item in found.items] == [" dry", " wet"]
    many = {1_000_001: "wet", 1_000_002: "dry"}
    assert Dataset(rows=[], answer="a", answer_map=many).answer_map == {  # type: ignore[arg-type]
        "1000001": "wet",
        "1000002": "dry",
    }
    plain = choice(rows, answer="a", answer_map={0: "wet", 1: "dry"}, option_format="{option}")
    assert plain.items[0].options == ("wet", "dry")


def test_columns_are_options_by_format_strings_and_not_by_their_names() -> None:
    rows = [{"q": "?", "one": "oak", "two": "elm", "a": "2"}] * 2
    found = choice(rows, options=["{one}", "{two}"], answer="a", answer_from=1)
    assert found.items[0].options == (" oak", " elm") and found.items[0].completion == " elm"
    with pytest.raises(DataError, match="are columns") as caught:
        choice(rows, options=["one", "two"], answer="a")
    assert "{one}" in str(caught.value.hint)


def test_words_of_labels_are_options_and_completions() -> None:
    rows = [{"q": "this is", "a": each} for each in (0, 1, 0)]
    words = {"0": "wet", "1": "dry"}
    found = choice(rows, answer="a", answer_map=words)
    assert found.items[1].options == (" wet", " dry") and found.items[1].completion == " dry"
    data = Dataset.model_validate({"rows": rows, "prompt": "q", "answer": "a", "answer_map": words})
    assert [item.completion for item in read(data, "x").items] == [" wet", " dry", " wet"]
    assert read(data, "x").items[0].options == ()
    with pytest.raises(DataError, match="7 is not in answer_map"):
        choice([{"q": "?", "a": 7}], answer="a", answer_map=words)


@pytest.mark.parametrize(
    ("prompt", "option", "written"),
    [("Answer:", "oak", " oak"), ("Answer: ", "oak", "oak"), ("It is\n", "oak", "oak")],
)
def test_the_space_before_an_option_is_taken_care_of(
    prompt: str, option: str, written: str
) -> None:
    rows = [{"q": prompt, "o": [option, "elm"], "a": 0}]
    assert choice(rows, options="o", answer="a").items[0].options[0] == written
    assert choice(rows, options="o", answer="a", option_format="<{option}>").items[0].options == (
        "<oak>",
        "<elm>",
    )


def test_a_choice_over_messages() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "which?"}]
    rows = [
        {"m": turns, "o": ["oak", "elm"], "a": "B"},
        {"m": turns[1:], "o": ["fir", "yew"], "a": "A"},
    ]
    first, second = choice(rows, prompt="m", options="o", answer="a").items
    # a template writes what stands between
    assert (first.options, first.completion) == (("oak", "elm"), "elm")
    assert first.messages == (("system", "Be brief."), ("user", "which?"), ("assistant", "elm"))
    assert second.messages[-1] == ("assistant", "fir") and second.trained_from == 1


# --- preference pairs


USER, BETTER, WORSE = (
    {"role": role, "content": text}
    for role, text in (("user", "dry?"), ("assistant", "yes"), ("assistant", "no"))
)


@pytest.mark.parametrize(
    ("row", "lines"),
    [
        ({"chosen": [USER, BETTER], "rejected": [USER, WORSE]}, {}),
        ({"prompt": "dry?", "chosen": [BETTER], "rejected": [WORSE]}, {"prompt": "prompt"}),
        ({"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]}, {"prompt": "prompt"}),
        ({"prompt": [USER], "chosen": "yes", "rejected": "no"}, {"prompt": "prompt"}),
        (
            {
                "prompt": "x",
                "chosen": json.dumps([USER, BETTER]),
                "rejected": json.dumps([USER, WORSE]),
            },
            {"prompt": "prompt"},
        ),
        (
            {"prompt": "x", "chosen": [USER, BETTER], "rejected": [USER, WORSE]},
            {"prompt": "prompt"},
        ),
        ({"prompt": "dry?", "chosen": "yes", "rejected": "no"}, {"prompt": "prompt", "chat": True}),
        (
            {
                "chosen": "\n\nHuman: dry?\n\nAssistant: yes",
                "rejected": "\n\nHuman: dry?\n\nAssistant: no",
            },
            {"chat": True},
        ),
    ],
)
def test_preference_pairs_are_chats_and_a_choice(
    row: dict[str, Any], lines: dict[str, Any]
) -> None:
    pair = {"prompt": None, "chosen": "chosen", "rejected": "rejected", **lines}
    (item,) = choice([row], **pair).items
    assert item.messages == (("user", "dry?"), ("assistant", "yes"))
    assert (item.options, item.completion) == (("yes", "no"), "yes")
    data = Dataset.model_validate({"rows": [row], "chosen": "chosen", **lines})
    (trained,) = read(data, "x").items
    assert trained.messages == item.messages and trained.options == ()


def test_a_pair_keeps_thoughts_and_what_was_asked_first() -> None:
    better = {**BETTER, "reasoning_content": "the sun is out"}
    rows = [{"p": "dry?", "chosen": [better], "rejected": [WORSE]}]
    data = Dataset.model_validate({"rows": rows, "prompt": "p", "chosen": "chosen"})
    assert "the sun is out" in read(data, "x").items[0].chat
    named = [{"who": "bot", "said": "yes"}]
    names = {"role_key": "who", "content_key": "said", "role_map": {"bot": "assistant"}}
    rows = [{"p": "dry?", "chosen": named}]
    data = Dataset.model_validate({"rows": rows, "prompt": "p", "chosen": "chosen", **names})
    assert read(data, "x").items[0].messages == (("user", "dry?"), ("assistant", "yes"))
    longer = [BETTER, {"role": "user", "content": "sure?"}, {**BETTER, "content": "quite"}]
    rows = [{"p": "dry?", "chosen": longer}]
    data = Dataset.model_validate({"rows": rows, "prompt": "p", "chosen": "chosen"})
    (item,) = read(data, "x").items
    assert [text for _, text in item.messages] == ["dry?", "yes", "sure?", "quite"]
    assert item.trained_from == 3


def test_a_pair_that_is_the_same_is_a_bad_row() -> None:
    with pytest.raises(DataError, match="the same answer"):
        choice([{"q": "?", "c": "a", "r": "a"}], chosen="c", rejected="r")
    with pytest.raises(DataError, match="no transcript"):
        choice([{"c": "a", "r": "b"}], prompt=None, chosen="c", rejected="r")


# --- several right answers


def test_generated_answers_may_meet_any_of_several() -> None:
    rows = [{"q": "?", "a": {"text": ["oak", "an oak"]}}]
    lines = {"prompt": "q", "completion": "a.text", "score": "generate"}
    (item,) = read(target_section(rows=rows, **lines), "targets.t").items
    assert (item.completion, item.answers) == ("oak", ("oak", "an oak"))
    assert item.content() != Example(0, prompt="?", completion="oak").content()
    padded = read(target_section(rows=[{"q": "?", "a": {"text": ["", "oak"]}}], **lines), "t")
    assert padded.items[0].answers == ("oak",)
    empty = [{"q": "?", "a": {"text": []}}]
    with pytest.raises(DataError, match="no right answer in an empty list"):
        read(target_section(rows=empty, **lines), "targets.t")
    with pytest.raises(DataError, match="of type list"):
        read(Dataset.model_validate({"rows": rows, "prompt": "q", "completion": "a.text"}), "x")


# --- what the section refuses


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ({"answer": "a"}, "answer needs options or an answer_map"),
        ({"completion": "c", "options": ["x", "y"]}, "options is for score: choice"),
        ({"completion": "c", "option_format": " {option}"}, "option_format needs options"),
        ({"completion": "c", "answer": "a", "options": "o"}, "not completion and answer"),
        ({"rejected": "r", "completion": "c"}, "rejected needs a chosen"),
        ({"answer": "a", "options": [False, True]}, "quote it"),
        ({"answer": "a", "answer_map": {0: False}}, "quote it"),
        ({"completion": "c", "max_bad": "1%"}, "max_bad needs on_bad_row: skip"),
        ({"completion": "c", "max_bad": "x%", "on_bad_row": "skip"}, "valid number"),
        ({"completion": "c", "max_bad": 2, "on_bad_row": "skip"}, "less than or equal to 1"),
    ],
)
def test_lines_that_do_not_go_together(lines: dict[str, Any], says: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        Dataset.model_validate({"rows": [], "prompt": "q", **lines})
    error: RecipeError = readable(caught.value, Dataset)
    assert says in error.message

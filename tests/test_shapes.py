"""The usual shapes of public datasets: each is told, and becomes what a person would expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cookbook
import pytest
from pydantic import TypeAdapter
from shape_rows import ROWS

from mergetomix.data import shapes
from mergetomix.data.examples import Example
from mergetomix.data.reading import read
from mergetomix.sections.source import Dataset
from mergetomix.targets.kinds import AnyTarget

NAMES = [shape.name for shape in shapes.SHAPES]
TARGET: TypeAdapter[Any] = TypeAdapter(AnyTarget)


def examples(lines: dict[str, Any], rows: list[dict[str, Any]], is_target: bool) -> list[Example]:
    values = {"rows": rows, **lines}
    source = TARGET.validate_python(values) if is_target else Dataset.model_validate(values)
    return list(read(source, "targets.x" if is_target else "datasets.x").items)


def test_every_shape_has_rows_made_up_for_it() -> None:
    assert sorted(ROWS) == sorted(NAMES) and len(set(NAMES)) == len(NAMES) > 50
    public = [name for shape in shapes.SHAPES for name in shape.names]
    assert len(set(public)) == len(public) >= 50


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=NAMES)
def test_a_shape_becomes_what_a_person_would_expect(shape: shapes.Shape) -> None:
    made = ROWS[shape.name]
    if shape.is_told:
        assert shapes.recognised(made.rows) is shape
    else:
        found = shapes.recognised(made.rows)
        assert found is None or found.name == "texts"
    (first, *_) = examples(shape.of(False), made.rows, False)
    assert said(first) == made.candidate
    (first, *_) = examples(shape.of(True), made.rows, True)
    assert (first.options, first.answers) == (made.options, made.answers)
    if made.options:
        assert first.completion == made.options[made.right]


def said(example: Example) -> str:
    """What an example says, `|` before what is trained on."""
    if example.messages:
        turns = [
            f"{'|' if role == 'assistant' and i >= example.trained_from else ''}{role}: {text}"
            for i, (role, text) in enumerate(example.messages)
        ]
        return "\n".join(turns)
    return f"{example.prompt}|{example.completion or example.text}"


def test_two_languages_are_told_whichever_they_are() -> None:
    rows = [{"translation": {"cs": "dobrý den", "uk": "добрий день"}}] * 3
    found = shapes.recognised(rows)
    assert found is not None and found.name == "translations from cs to uk"
    (first, *_) = examples(found.of(False), rows, False)
    assert said(first) == "dobrý den\n|добрий день"


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "weight": 2.5},
        {"text": "good film", "label": 1},
        {"question": ["a"], "answer": 3},
        {"messages": "hello"},
        {"translation": {"en": "a", "de": "b", "fr": "c"}},
    ],
)
def test_what_has_no_usual_shape_is_none(row: dict[str, Any]) -> None:
    assert shapes.recognised([row]) is None
    assert shapes.recognised([]) is None


def test_what_is_missing_in_some_rows_says_nothing() -> None:
    rows = [
        {"instruction": "a", "input": None, "output": "b"},
        {"instruction": "a", "input": "x", "output": None},
    ]
    found = shapes.recognised(rows)
    assert found is not None and found.name == "instructions with an input"
    assert said(examples(found.of(False), rows[:1], False)[0]) == "a\n|b"


def test_the_cookbook_is_that_of_the_shapes() -> None:
    page = Path(__file__).parents[1] / "docs" / "cookbook.md"
    assert page.read_text(encoding="utf-8") == cookbook.text(), "python tests/cookbook.py writes it"

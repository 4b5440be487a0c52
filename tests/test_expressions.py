"""What a key may say of a row: a column, a place, a format string, a template; and a condition."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from mergetomix import bounds
from mergetomix.data.expressions import Expression, condition, reached
from mergetomix.errors import DataError

ROW = {
    "q": "why",
    "input": "",
    "n": 7,
    "gone": None,
    "a b": "spaced",
    "answers": {"text": ["one", "two"], "deep": [{"x": 1}, {"x": 2}]},
    "turns": [{"from": "human", "value": "hi"}],
    "opts": {"A": "yes", "1": "no"},
    "day": datetime.date(2026, 1, 2),
}
COLUMNS = tuple(ROW)


def value(pattern: str, row: dict[str, Any] | None = None) -> Any:
    return Expression.parse("x.prompt", pattern, COLUMNS).value(3, {**ROW, **(row or {})})


def text(pattern: str, row: dict[str, Any] | None = None) -> str:
    return Expression.parse("x.prompt", pattern, COLUMNS).of(3, {**ROW, **(row or {})})


@pytest.mark.parametrize(
    ("pattern", "kind", "wanted"),
    [
        ("q", "column", "why"),
        ("a b", "column", "spaced"),
        ("answers.text", "place", ["one", "two"]),
        ("answers.text[1]", "place", "two"),
        ("answers.text[-1]", "place", "two"),
        ("answers[text][0]", "place", "one"),
        ("answers['text'][0]", "place", "one"),
        ("turns[0].value", "place", "hi"),
        ("turns.value", "place", ["hi"]),
        ("answers.deep.x", "place", [1, 2]),
        ("opts.A", "place", "yes"),
        ("opts[1]", "place", "no"),
        ("Q: {q}\nA:", "format", "Q: why\nA:"),
        ("{answers.text[0]} {n:>3}", "format", "one   7"),
        ("{a b}", "format", "spaced"),
        ('{{"a": {n}}}', "format", '{"a": 7}'),
        ("{{ q }}!", "template", "why!"),
        ("{q}{% if n %}", "template", None),
        ("{% if input %}{{ input }}\n{% endif %}\n{{ q }}", "template", "why"),
        ("{{ answers.text | join(', ') }}", "template", "one, two"),
        ("{{ day }}", "template", "2026-01-02"),
        ("{{ row['a b'] }}", "template", "spaced"),
        ("{% if gone %}x{% endif %}y", "template", "y"),
        ("\\boxed{{{n}}}", "format", "\\boxed{7}"),
    ],
)
def test_what_a_string_means(pattern: str, kind: str, wanted: Any) -> None:
    if wanted is None:
        with pytest.raises(DataError):
            Expression.parse("x.prompt", pattern, COLUMNS)
        return
    assert Expression.parse("x.prompt", pattern, COLUMNS).kind == kind
    assert value(pattern) == wanted


@pytest.mark.parametrize(
    ("pattern", "row", "says"),
    [
        ("answers.text[5]", {}, "no item 5 in a list of 2"),
        ("answers.titel", {}, "there is no 'titel'"),
        ("q.x", {}, "no 'x' in a value of type str"),
        ("answers.text", {"answers": None}, "missing (null)"),
        ("answers", {}, "of type dict"),
        ("{gone}", {}, "missing (null)"),
        ("{{ gone }}", {}, "missing (null)"),
        ("{{ answers }}", {}, "of type dict"),
        ("{{ answers.titel }}", {}, "no attribute 'titel'"),
        ("{{ ''.__class__.__mro__ }}", {}, "unsafe"),
        ("{{ q.__init__.__globals__ }}", {}, "unsafe"),
        ("{% for i in range(10**9) %}x{% endfor %}", {}, "Range too big"),
        ("{{ 1 / 0 }}", {}, "division by zero"),
        ("{{ q | nothing }}", {}, "No filter named 'nothing'"),
        ("{{ [1, 2] | random }}", {}, "No filter named 'random'"),
        ("{{ lipsum() }}", {}, "no column 'lipsum'"),
        ("{{ gone | trim }}", {}, "missing (null)"),
        ("{{ gone ~ 'x' }}", {}, "missing (null)"),
        ("{{ gone | upper }}", {}, "missing (null)"),
        ("{{ q }}\nA: {n}", {}, "{{ q }} would be written as it stands"),
        ('Reply as {"a": 1}', {}, "names no column"),
    ],
)
def test_what_a_row_has_not_is_named_with_the_row(
    pattern: str, row: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError) as caught:
        text(pattern, row)
    assert says in caught.value.message and caught.value.where == "x.prompt"


def test_a_template_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds.limited.__wrapped__, "__defaults__", (0.2,))
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match="takes longer than"):
        text(loop)


def test_a_template_never_changes_its_row() -> None:
    row = {"answers": {"text": ["one"], "deep": []}}
    with pytest.raises(DataError, match="unsafe"):
        text("{{ answers.text.append('x') }}", row)
    assert row["answers"]["text"] == ["one"]


@pytest.mark.parametrize(
    ("pattern", "meets"),
    [
        ("n > 3 and q == 'why'", True),
        ("n in [1, 2]", False),
        ("answers.text | length == 2", True),
        ('row["a b"] == "spaced"', True),
        ("gone is none and gone == none", True),
        ("not input", True),
    ],
)
def test_a_condition_is_met_or_not(pattern: str, meets: bool) -> None:
    assert condition("x.where", pattern, COLUMNS)(0, ROW) is meets


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("m > 3", "no column 'm'"),
        ("n >", "broken template"),
        ("n, q", "no expression"),
        ("n }} {{ q", "no expression"),
        ("n > 'a'", "not supported between"),
        ("gone > 1", "missing (null)"),
        ("q.__class__", "unsafe"),
    ],
)
def test_a_condition_that_cannot_be_told_is_named(pattern: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        condition("x.where", pattern, COLUMNS)(4, ROW)
    assert says in caught.value.message and caught.value.where == "x.where"


def test_a_place_in_a_list_is_that_of_every_item() -> None:
    assert reached("a.b.c", {"a": [{"b": {"c": 1}}, {"b": {"c": 2}}]}) == [1, 2]

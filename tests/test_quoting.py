"""Names and texts of users in Markdown, HTML and YAML: shown as they are."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mergetomix.quoting import code, front_matter, plain
from mergetomix.report.markdown import table

ODD = [
    "a: b",
    "# not a heading",
    "`code`",
    "``",
    "a\nb",
    "<script>alert(1)</script>",
    "<!-- gone -->",
    "[x](javascript:alert(1))",
    "![x](http://example.com/x.png)",
    "[x]: http://example.com",
    "a|b",
    "*a* **b** _c_ __d__ ~~e~~",
    "commonsense_qa",
    "- item",
    "1. item",
    "> quoted",
    "---",
    "&amp; &lt;",
    "\\*",
    "{{ 7 * 7 }}",
    "'\"",
    "é 漢 \u202e",
    "+",
]
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30) | st.sampled_from(ODD)
parser = MarkdownIt("commonmark", {"linkify": False}).enable("table").enable("strikethrough")


def shown(markdown: str) -> str:
    """What a reader sees of one paragraph: its text, and no other kind of token."""
    tokens = parser.parse(markdown)
    kinds = [token.type for token in tokens]
    assert kinds in (["paragraph_open", "inline", "paragraph_close"], []), (markdown, kinds)
    inside = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inside} <= {"text", "text_special"}, markdown
    return "".join(child.content for child in inside)


def words(of: str) -> str:
    return " ".join(of.split())


@given(text)
def test_a_text_is_shown_as_it_is(given_text: str) -> None:
    assert words(shown(f"x {plain(given_text)} x")) == words(f"x {given_text} x")


@pytest.mark.parametrize("odd", ODD)
def test_a_line_of_its_own_is_shown_as_it_is(odd: str) -> None:
    if odd != "---":
        assert shown(plain(odd)) == words(odd)


@given(text)
def test_a_cell_is_shown_as_it_is(cell: str) -> None:
    tokens = parser.parse(table([["what", "value"], [f"x{cell}", "y"]]))
    cells = [
        "".join(child.content for child in token.children or [])
        for token in tokens
        if token.type == "inline"
    ]
    assert cells == ["what", "value", words(f"x{cell}"), "y"]


@given(text)
def test_code_is_shown_as_it_is(span: str) -> None:
    (_, inline, _) = parser.parse(f"x {code(span)} x")
    kinds = [child.type for child in inline.children or []]
    assert kinds == ["text", "code_inline", "text"]
    assert (inline.children or [])[1].content.strip() == words(span)


@given(st.dictionaries(text, text | st.lists(text), max_size=4))
def test_front_matter_is_read_back(values: dict[str, Any]) -> None:
    written = front_matter(values)
    assert written.startswith("---\n") and written.endswith("\n---")
    assert yaml.safe_load(written[4:-4]) == (values or {})

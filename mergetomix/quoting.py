"""Texts of users and files within Markdown and YAML: they mean themselves, whatever they hold."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

import yaml

_MARKS = re.compile(
    r"[\\`*|]+|\](?=[(\[:])|~{2,}|(?<![^\W_])_+|_+(?![^\W_])|^(?:#+|[-+>=]|\d+[.)])(?=\s|$)"
)
"""What Markdown would take for a mark: of underscores those that stand within no word."""


def plain(text: str) -> str:
    r"""Returns a text for a line of Markdown or a cell of a table, which shows it as it is.

    >>> plain("a|b <script> *c*\n# d commonsense_qa _e")
    'a\\|b &lt;script&gt; \\*c\\* # d commonsense_qa \\_e'
    """
    line = html.escape(" ".join(text.split()), quote=False)
    return _MARKS.sub(_escaped, line)


def _escaped(found: re.Match[str]) -> str:
    """Returns marks with a backslash before each; a list's number has one before its point."""
    return "".join(each if each.isdigit() else f"\\{each}" for each in found[0])


def code(text: str, in_table: bool = False) -> str:
    r"""Returns a text as a span of code in Markdown, whatever it quotes (CommonMark, section 6.1).

    >>> code("a"), code("a`b"), code("`"), code("a|b", in_table=True)
    ('`a`', '``a`b``', '`` ` ``', '`a\\|b`')
    """
    line = " ".join(text.split()) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    room = " " if line.startswith("`") or line.endswith("`") else ""
    # a table takes the bar away even within code
    line = line.replace("|", "\\|") if in_table else line
    return f"{fence}{room}{line}{room}{fence}"


def front_matter(values: Mapping[str, Any]) -> str:
    """Returns the YAML in front of a card, as model hubs read it."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---"

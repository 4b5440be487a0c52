"""Shows the examples within docstrings as code; Markdown would take `>>>` for a quotation."""

from __future__ import annotations

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts every example of a docstring within a block of code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Is called by griffe for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    r"""Returns a docstring with its examples, each up to an empty line, as blocks of code.

    >>> fenced("Sums.\n\n>>> 1 + 1\n2")
    'Sums.\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    parts = text.split("\n\n")
    return "\n\n".join(
        f"```pycon\n{part}\n```" if part.startswith(">>> ") else part for part in parts
    )

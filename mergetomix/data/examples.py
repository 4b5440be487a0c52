"""Read a recipe's dataset or target, and map every row to an example.

Where the rows come from is the business of `rows`; nothing here knows a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergetomix.data.image import LabelSpace, Picture
from mergetomix.data.tables import Row


@dataclass(frozen=True)
class Example:
    """One row (or document), mapped. `row` is its index in the source before drawing; error messages name it.

    `prompt` is not trained on, `completion` is; `text` is trained on whole; `messages` are pairs of role and content;
    `options` are the formatted options of a target with `score: choice`. An image has a `picture`, its class as `label`, and
    the `space` of classes that the label is of.
    """

    row: int
    prompt: str = ""
    completion: str = ""
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    label: str = ""
    picture: Picture | None = None
    space: LabelSpace | None = None

    def content(self) -> tuple[Any, ...]:
        """Everything but `row`: what makes two examples the same."""
        if self.picture is not None:
            return (self.picture.digest, self.label)
        return (self.prompt, self.completion, self.text, self.messages, self.options)


@dataclass(frozen=True)
class Examples:
    """What one source gives: its examples in the order of the source.

    `num_rows` counts the rows (or documents) before drawing, the empty ones included. `num_empty_files` counts the
    empty documents (`text: true`) or whitespace-only lines (plain text) passed over, `num_binary_files` the files in a
    folder or glob that hold no text; `passed` says what else was passed over. `columns` is empty for `text: true`; `raw` holds
    the first three rows.
    """

    name: str
    where: str
    items: tuple[Example, ...]
    num_rows: int
    num_empty_files: int
    columns: tuple[str, ...]
    raw: tuple[Row, ...]
    num_binary_files: int = 0
    passed: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """The SHA-256 (hex) of the contents in order: the same whatever the path, the name or the file format."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(canonical(item) + b"\n")
        return digest.hexdigest()

    def take(self, places: Sequence[int]) -> Examples:
        """The same source with the items at these places alone, in the order given."""
        return replace(self, items=tuple(self.items[place] for place in places))

    def notes(self) -> tuple[str, ...]:
        """What was passed over, one line each, for the user to see."""
        noun = "rows" if self.columns else "files"
        counts = {f"empty {noun}": self.num_empty_files, "binary files": self.num_binary_files}
        return (
            *(
                f"{self.where}: passed over {count} {what}"
                for what, count in counts.items()
                if count
            ),
            *self.passed,
        )


# --- drawing, splitting


def canonical(item: Example) -> bytes:
    # escaped, because JSON may hold lone surrogates, which UTF-8 cannot
    return json.dumps(item.content(), separators=(",", ":")).encode("ascii")


# --- from a row to an example


def last_reply(example: Example) -> int:
    """The place of the assistant's last turn among an example's messages."""
    return max(i for i, (role, _) in enumerate(example.messages) if role == "assistant")

"""What a source gives: its rows as examples, which no model or tokenizer has touched yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergetomix.data.image import LabelSpace, Picture


@dataclass(frozen=True)
class Example:
    """One row (or document), mapped. `row` is its index in the source, which errors name.

    `prompt` is not trained on, `completion` is, and with `is_open` no end follows it. `before` are
    examples shown before the prompt, as text; of a chat they are `num_shown` of its turns. `text`
    is trained on whole; `messages` are pairs of role and text, `chat` the same turns and the tools
    as JSON if they hold more than that, and the replies from turn `trained_from` on are trained on.
    `options` are the formatted options of a target with `score: choice`, `answers` all right
    completions where there are several. `columns` are those of its row, for a function of the
    user's. An image has a `picture`, its class as `label`, and the `space` of classes that the
    label is of.
    """

    row: int
    prompt: str = ""
    completion: str = ""
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    chat: str = ""
    trained_from: int = 0
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    before: str = ""
    num_shown: int = 0
    is_open: bool = False
    columns: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    label: str = ""
    picture: Picture | None = None
    space: LabelSpace | None = None

    def content(self) -> tuple[Any, ...]:
        """Returns everything but `row`: what makes two examples the same."""
        if self.picture is not None:
            return (self.picture.digest, self.label)
        more = tuple(each for each in (self.chat, self.answers, self.before) if each)
        return (self.prompt, self.completion, self.text, self.messages, self.options, *more)


@dataclass(frozen=True)
class Examples:
    """What one source gives, its examples in the order of the source.

    `where` is the source's place in the recipe. `num_rows` counts the rows (or documents) before
    drawing, the empty ones included. `columns` is empty for `text: true`. `notes` say what was
    passed over, a line each, for the user to see.
    """

    where: str
    items: tuple[Example, ...]
    num_rows: int
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) of the contents in order, whatever the path and file format."""
        return hashlib.sha256(b"".join(canonical(item) + b"\n" for item in self.items)).hexdigest()

    def take(self, places: Sequence[int]) -> Examples:
        """Returns the same source with the items at these places alone, in the order given."""
        return replace(self, items=tuple(self.items[place] for place in places))


def canonical(item: Example) -> bytes:
    """Returns the content of an example as JSON.

    >>> canonical(Example(7, text="é"))
    b'["","","\\\\u00e9",[],[]]'
    """
    # escaped, because JSON may hold lone surrogates, which UTF-8 cannot
    return json.dumps(item.content(), separators=(",", ":")).encode("ascii")


def last_reply(example: Example) -> int:
    """Returns the place of the assistant's last turn among an example's messages."""
    return max(i for i, (role, _) in enumerate(example.messages) if role == "assistant")

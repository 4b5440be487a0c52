"""Chats as the tokenizer's template writes them, and where in the text the replies are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetomix.bounds import MOST_CHARACTERS, Exceeded, limited
from mergetomix.data.chats import Turn, text_of
from mergetomix.data.examples import Example, last_reply
from mergetomix.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Where a piece of a text begins and ends, in characters."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
EMPTY_THOUGHT = re.compile(r"\s*<(think|thinking|thought|reasoning)>\s*</\1>\s*")
PROBE = "mergetomix"


def put_template(tokenizer: PreTrainedTokenizerBase, given: str) -> None:
    """Gives a tokenizer the chat template that is meant: a text, or the path of a file.

    Raises ModelError for a file that cannot be read, and a text that is no template.
    """
    from jinja2 import TemplateSyntaxError

    key, text = "base.chat_template", given
    if "{" not in given:
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            message = f"{given} cannot be read as a file, and a template holds braces: {error}"
            raise ModelError(key, message) from None
    tokenizer.chat_template = text
    try:
        with limited():
            tokenizer.apply_chat_template([{"role": "user", "content": PROBE}], tokenize=False)
    except Exceeded as error:
        raise ModelError(key, f"the template {error}") from None
    except TemplateSyntaxError as error:
        raise ModelError(key, f"not a template: {error} (line {error.lineno})") from None
    except Exception:  # noqa: BLE001, S110  # what it refuses, an example of the user's will show
        pass


def num_shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns how many items at the front two sequences share.

    >>> num_shared("abcd", "abd")
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


class ChatTemplate:
    """The chat template of a tokenizer; `base` is what the tokenizer belongs to, for errors."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
        self._tokenizer, self._base = tokenizer, base

    def prompt(self, example: Example, where: str) -> str:
        """Returns the text up to where the model's last reply begins."""
        turns, tools = self._turns(example)
        return self._rendered(example, turns[: last_reply(example)], tools, where, reply=True)

    def spans(self, example: Example, where: str) -> tuple[str, list[Span]]:
        """Returns a chat as text, up to its last reply, and where the replies trained on lie.

        A reply ends behind its end mark. If the template has marks of its own for what a model
        generates, these say it. A thought that the template writes although there is none is no
        part of a reply.

        Raises:
            DataError: the template refuses the chat, or changes earlier turns, so that all replies
                cannot be those of one text.
        """
        turns, tools = self._turns(example)
        turns = turns[: last_reply(example) + 1]
        whole = self._rendered(example, turns, tools, where)
        replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        marked = self._marked(turns, tools)
        if len(marked) == len(replies):
            pairs = zip(replies, marked, strict=True)
            return whole, [span for i, span in pairs if i >= example.trained_from]
        trained = (i for i in replies if i >= example.trained_from)
        return whole, [self._span(example, turns, tools, i, whole, where) for i in trained]

    def _span(
        self,
        example: Example,
        turns: Sequence[Turn],
        tools: Any,
        place: int,
        whole: str,
        where: str,
    ) -> Span:
        """Returns where the reply at a place among the turns lies in the text of all of them."""
        before = self._rendered(example, turns[:place], tools, where) if place else ""
        asked = self._rendered(example, turns[:place], tools, where, reply=True) if place else ""
        until = whole
        if place < len(turns) - 1:
            until = self._rendered(example, turns[: place + 1], tools, where)
        if not whole.startswith(until) or not until.startswith((before, asked)):
            rewrites = "the chat template rewrites earlier turns"
            message = f"{rewrites}, so a reply's place cannot be found (row {example.row})"
            hint = "train_on: last takes the last reply alone, in the text that the template writes"
            raise DataError(f"{where}.messages", message, hint=hint)
        start = num_shared(asked, until)
        if start < len(asked) or not place:
            # what the template opens for the model, such as a thought, this reply does not hold
            said = until.find(text_of(turns[place]).strip(), num_shared(before, until))
            start = said if said >= 0 and (said < start or not place) else start
        empty = EMPTY_THOUGHT.match(until, start)
        return (empty.end() if empty else start), len(until)

    def _marked(self, turns: Sequence[Turn], tools: Any) -> list[Span]:
        """Returns what the template itself marks as generated; nothing if it does not."""
        template = self._tokenizer.get_chat_template(None, tools)
        if not GENERATION.search(template):
            return []
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # its annotation leaves the second result out
        given = [{key: each for key, each in turn.items() if each is not None} for turn in turns]
        try:
            with limited():
                _, found = render(
                    [given],
                    tools=tools,
                    chat_template=template,
                    return_assistant_tokens_mask=True,
                    **self._tokenizer.special_tokens_map,
                )
        except Exceeded:
            return []
        return [(start, end) for start, end in found[0]]

    @cached_property
    def end(self) -> str | None:
        """What the template writes behind a reply, without white space; None if it writes nothing.

        It is None as well for a template that refuses to write a question and its answer.
        """
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
        example = Example(0, messages=(("user", "a"), ("assistant", PROBE)))
        try:
            text = self._rendered(example, turns, None, "")
        except DataError:
            return None
        return text.rpartition(PROBE)[2].strip() or None

    def _turns(self, example: Example) -> tuple[list[Turn], Any]:
        """Returns an example's turns and tools, with contents as the template takes them."""
        if example.chat:
            given = json.loads(example.chat)
            turns, tools = given["messages"], given["tools"]
        else:
            turns = [{"role": role, "content": content} for role, content in example.messages]
            tools = None
        if self._wants_parts:
            for turn in turns:
                if turn["content"] is not None:
                    turn["content"] = [{"type": "text", "text": text_of(turn)}]
        else:
            for turn in turns:
                if isinstance(turn["content"], list):
                    turn["content"] = text_of(turn)
        return turns, tools

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether the template reads lists of parts alone, and would leave a plain text out."""
        turn = [{"role": "user", "content": PROBE}]
        try:
            with limited():
                return PROBE not in str(self._tokenizer.apply_chat_template(turn, tokenize=False))
        except Exception:  # noqa: BLE001  # whatever it is, an example of the user's will show it
            return False

    def _rendered(
        self, example: Example, turns: Sequence[Turn], tools: Any, where: str, reply: bool = False
    ) -> str:
        """Returns turns as text; with `reply`, up to where the assistant's next turn begins."""
        if not self._tokenizer.chat_template:
            message = f"the tokenizer of {self._base} has no chat template"
            hint = "use prompt and completion, an instruction-tuned base, or base.chat_template"
            raise DataError(f"{where}.messages", message, hint=hint)
        template = self._tokenizer.apply_chat_template
        try:
            with limited():
                text = str(
                    template(list(turns), tools=tools, tokenize=False, add_generation_prompt=reply)
                )
            if len(text) > MOST_CHARACTERS:
                raise Exceeded(f"writes {len(text):,} characters")
            return text
        except Exception as error:  # a template may raise anything; the user must see what it said
            roles = ", ".join(turn["role"] for turn in turns)
            message = f"the chat template refused row {example.row} (turns: {roles}): {error}"
            raise DataError(f"{where}.messages", message) from error

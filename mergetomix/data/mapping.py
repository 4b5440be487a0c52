"""Map rows to examples, by what the recipe says of a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergetomix.data.answers import Answer, Choices, options_of, written_options
from mergetomix.data.chats import (
    Names,
    Turn,
    as_json,
    check_replies,
    is_plain,
    parsed,
    text_of,
    tools_of,
    transcript,
    turns_of,
)
from mergetomix.data.errors import Place, missing_column
from mergetomix.data.examples import Example
from mergetomix.data.expressions import HINT as SKIP
from mergetomix.data.expressions import Columns, Expression, encodable, is_written
from mergetomix.data.tables import Row
from mergetomix.errors import DataError
from mergetomix.sections.source import WHOLE, Source
from mergetomix.sections.target import TargetSection

ToExample = Callable[[int, Row], Example]
BY_NAME = ("prompt", "completion", "messages", "text", "options", "answer", "chosen", "rejected")
"""The columns that rows of a user's function have, where the recipe names no others."""


def mapping(source: Source, where: str, columns: Columns, answer: Answer | None) -> ToExample:
    """Returns the function that maps a row and its index.

    Args:
        answer: the source's, which knows from the rows how it counts.

    Raises:
        DataError: the recipe's strings fit no row; raised before any row is mapped.
    """
    if source.label:
        hint = "family: image-classifier fine-tunes on images"
        raise DataError(f"{where}.label", "labelled images are not for a language model", hint=hint)
    if source.text:
        return _text_mapping(source, where, columns)
    if source.messages:
        return _chat_mapping(source, where, columns)
    if source.chosen:
        return _preference_mapping(source, where, columns)
    if source.prompt is None and source.completion is None and source.answer is None:
        known = "prompt and completion, messages, or text"
        raise DataError(where, f"say how a row becomes an example: {known}")
    return _pair_mapping(source, where, columns, answer)


def by_name(source: Source, where: str, columns: Columns) -> Source:
    """Returns a source whose function names the columns, if the recipe does not."""
    if source.map is None or any(getattr(source, key) for key in WHOLE):
        return source
    found = {key: key for key in BY_NAME if key in columns and getattr(source, key) is None}
    given = [key for key in WHOLE if key in found]
    if len(given) != 1:
        known = "prompt and completion, messages, text, or chosen and rejected"
        problem = f"the rows that it gives have the columns {', '.join(columns)}, not {known}"
        raise DataError(f"{where}.map", problem)
    return source.model_copy(update=found)


# --- texts


def _text_mapping(source: Source, where: str, columns: Columns) -> ToExample:
    pattern = "text" if source.text is True else str(source.text)
    text = Expression.parse(f"{where}.text", pattern, columns)
    is_last = isinstance(source, TargetSection) and source.last_word

    def to_example(index: int, row: Row) -> Example:
        found = text.filled(index, row)
        if not is_last:
            return Example(index, text=found)
        parted = re.match(r"(.*\S)(\s+\S+)\s*\Z", found, re.DOTALL)
        if parted is None:
            raise Place(f"{where}.text", index).error("has one word, and so none before the last")
        return Example(index, prompt=parted[1], completion=parted[2], is_open=True)

    return to_example


# --- prompts and answers


@dataclass(frozen=True)
class _Reply:
    """What a row should be answered: a text, of what options, all right texts; or messages."""

    text: str = ""
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    turns: Sequence[Turn] = ()


_ToReply = Callable[[int, Row, str], _Reply]
"""The reply of a row behind the text of its prompt."""


def _pair_mapping(source: Source, where: str, columns: Columns, answer: Answer | None) -> ToExample:
    """Returns the function that maps a row with a prompt, an answer or both.

    If both are lists of messages, as in TRL's conversational data, the row is a chat whose
    completion is trained on.
    """
    prompt = None
    if source.prompt is not None:
        prompt = Expression.parse(f"{where}.prompt", source.prompt, columns)
    chat = _Chat(source, where, columns)
    if answer is not None:
        reply_of = _picked(source, where, columns, answer)
    else:
        reply_of = _completed(source, where, columns, chat)

    def to_example(index: int, row: Row) -> Example:
        asked = None if prompt is None else parsed(prompt.value(index, row))
        before, given = [], ""
        if is_chat(asked):
            before = chat.turns(Place(f"{where}.prompt", index), asked)
        elif prompt is not None:
            given = prompt.not_empty(index, prompt.text_of(index, asked), "asks nothing")
        reply = reply_of(index, row, "" if source.chat or before else given)
        return _answered(chat, Place(f"{where}.prompt", index), row, _Asked(given, before), reply)

    return to_example


def _picked(source: Source, where: str, columns: Columns, answer: Answer) -> _ToReply:
    """Returns the function that gives the reply of a row by its answer among the options."""
    options, write = options_of(source, where, columns), written_options(source, where)

    def picked(index: int, row: Row, prompt: str) -> _Reply:
        own = options(index, row)
        assert own is not None  # the section asks for them
        texts = write(index, prompt, own.texts)
        right = texts[answer.place(index, row, own)]
        return _Reply(right, texts if _is_choice(source) else ())

    return picked


def _is_choice(source: Source) -> bool:
    return isinstance(source, TargetSection) and source.score == "choice"


def _completed(source: Source, where: str, columns: Columns, chat: _Chat) -> _ToReply:
    """Returns the function that gives the reply of a row by its completion."""
    options, write = options_of(source, where, columns), written_options(source, where)
    if source.completion is None:
        return lambda index, row, prompt: _Reply()
    completion = Expression.parse(f"{where}.completion", source.completion, columns)
    may_be_several = isinstance(source, TargetSection) and source.score == "generate"

    def completed(index: int, row: Row, prompt: str) -> _Reply:
        value, place = parsed(completion.value(index, row)), Place(completion.where, index)
        if is_chat(value):
            return _Reply(turns=chat.turns(place, value))
        if may_be_several and isinstance(value, list | tuple):
            if not value:
                raise place.error("there is no right answer in an empty list", hint=SKIP)
            written = [completion.text_of(index, each) for each in value]
            several = tuple(each for each in written if each.strip())
            return _Reply(completion.not_empty(index, "".join(several[:1])), answers=several)
        wanted = completion.not_empty(index, completion.text_of(index, value))
        own = options(index, row)
        if own is None or not _is_choice(source):
            return _Reply(wanted)
        texts = write(index, prompt, own.texts)
        return _Reply(_among(wanted, texts, own, place), texts)

    return completed


def _among(wanted: str, written: Sequence[str], options: Choices, place: Place) -> str:
    """Returns the option that a completion is, as it is written."""
    if wanted in written:
        return wanted
    bare = [text.strip() for text in options.texts]
    if wanted.strip() in bare:
        return written[bare.index(wanted.strip())]
    problem = f"{wanted!r} is not among the options {list(written)}"
    hint = "answer: finds it by its place, letter or label"
    raise place.error(problem, hint=hint)


@dataclass(frozen=True)
class _Asked:
    """What a row asks: a text, or the turns before the reply."""

    prompt: str = ""
    turns: Sequence[Turn] = ()


def _answered(chat: _Chat, place: Place, row: Row, asked: _Asked, reply: _Reply) -> Example:
    """Returns the example of what a row asks, and its reply."""
    plain = Example(
        place.row,
        prompt=asked.prompt,
        completion=reply.text,
        options=reply.options,
        answers=reply.answers,
    )
    if not chat.is_meant and not asked.turns and not reply.turns:
        return plain
    turns = list(asked.turns)
    if not turns and asked.prompt.strip():
        turns = [{"role": "user", "content": asked.prompt}]
    first = len(turns) if asked.turns or reply.turns else 0
    turns += reply.turns or [{"role": "assistant", "content": reply.text}]
    found = chat.example(place.row, row, place, turns, first)
    return replace(plain, messages=found.messages, chat=found.chat, trained_from=found.trained_from)


# --- preference pairs


def _preference_mapping(source: Source, where: str, columns: Columns) -> ToExample:
    """Returns the function that maps a row with a better and a worse answer.

    Both stand behind what was asked before the better one.
    """
    chosen, rejected, prompt = (
        None if pattern is None else Expression.parse(f"{where}.{key}", pattern, columns)
        for key, pattern in (
            ("chosen", source.chosen),
            ("rejected", source.rejected),
            ("prompt", source.prompt),
        )
    )
    chat, write = _Chat(source, where, columns), written_options(source, where)
    is_choice = _is_choice(source)
    assert chosen is not None

    def to_example(index: int, row: Row) -> Example:
        place = Place(chosen.where, index)
        asked, right = _side(chat, chosen, prompt, index, row)
        texts: tuple[str, ...] = (right.text,)
        if is_choice and rejected is not None:
            texts = (right.text, _side(chat, rejected, prompt, index, row)[1].text)
            if texts[0] == texts[1]:
                raise place.error("chosen and rejected are the same answer", hint=SKIP)
        is_text = not asked.turns and not chat.is_meant
        texts = write(index, asked.prompt if is_text else "", texts)
        reply = replace(right, text=texts[0], options=texts if is_choice else ())
        return _answered(chat, place, row, asked, reply)

    return to_example


def _side(
    chat: _Chat, answer: Expression, prompt: Expression | None, index: int, row: Row
) -> tuple[_Asked, _Reply]:
    """Returns what was asked before an answer, and the answer."""
    value, place = parsed(answer.value(index, row)), Place(answer.where, index)
    given = None if prompt is None else parsed(prompt.value(index, row))
    if chat.is_meant and isinstance(value, str) and prompt is None:
        value = transcript(value) or value
    if is_chat(value):
        turns = chat.turns(place, value)
        check_replies(place, turns, len(turns) - 1)
        before, last = turns[:-1], turns[-1]
        speakers = [turn["role"] for turn in turns if turn["role"] not in ("system", "developer")]
        if prompt is not None and speakers[0] == "assistant":
            if is_chat(given):
                opening = chat.turns(Place(prompt.where, index), given)
            else:
                said = prompt.not_empty(index, prompt.text_of(index, given), "asks nothing")
                opening = [{"role": "user", "content": said}]
            before = [*opening, *before]
        return _Asked(turns=before), _Reply(text_of(last), turns=[last])
    text = answer.not_empty(index, answer.text_of(index, value))
    if prompt is None:
        head, mark, said = text.rpartition("\n\nAssistant:")
        if not mark:
            raise place.error("there is no prompt, and no transcript with 'Assistant:' in it")
        return _Asked(head + mark), _Reply(answer.not_empty(index, said))
    if is_chat(given):
        return _Asked(turns=chat.turns(Place(prompt.where, index), given)), _Reply(text)
    asked = prompt.not_empty(index, prompt.text_of(index, given), "asks nothing")
    return _Asked(asked), _Reply(text)


# --- chats


def is_chat(value: Any) -> bool:
    """Returns whether a value is a list of messages."""
    return isinstance(value, list) and any(isinstance(each, Mapping) for each in value)


def _chat_mapping(source: Source, where: str, columns: Columns) -> ToExample:
    """Returns the function that maps a row with a chat."""
    messages = Expression.parse(f"{where}.messages", source.messages or "", columns)
    chat = _Chat(source, where, columns)

    def to_example(index: int, row: Row) -> Example:
        place = Place(messages.where, index)
        return chat.example(index, row, place, chat.turns(place, messages.value(index, row)))

    return to_example


class _Chat:
    """What the recipe adds to the chat of every row: tools, a system turn, what is trained on."""

    def __init__(self, source: Source, where: str, columns: Columns) -> None:
        self.is_meant = bool(source.chat)
        self._key, self._last_alone = f"{where}.tools", source.train_on == "last"
        self._names = Names(source.role_key, source.content_key, source.role_map or {})
        may_have = "tools" in columns and not source.chat
        self._tools = source.tools or ("tools" if may_have else None)
        if self._tools is not None and self._tools not in columns:
            raise missing_column(self._key, self._tools, columns)
        self._system: Expression | None = None
        self._said = source.system or ""
        if self._said and is_written(self._said, columns):
            self._system = Expression.parse(f"{where}.system", self._said, columns)

    def turns(self, place: Place, value: Any) -> list[Turn]:
        """Returns the turns of a chat by the names that the recipe gives."""
        return turns_of(place, value, self._names)

    def example(
        self, index: int, row: Row, place: Place, turns: Sequence[Turn], first: int = 0
    ) -> Example:
        """Returns an example of turns, whose replies from turn `first` on are trained on."""
        check_replies(place, turns, first)
        said = self._said
        if self._system is not None:
            found = self._system.value(index, row)
            said = "" if found is None else self._system.text_of(index, found)
        if said.strip() and turns[0]["role"] not in ("system", "developer"):
            turns, first = [{"role": "system", "content": said}, *turns], first + 1
        if self._last_alone:
            first = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        tools = None
        if self._tools is not None:
            tools = tools_of(Place(self._key, index), row[self._tools])
        pairs = tuple((turn["role"], encodable(place, text_of(turn))) for turn in turns)
        chat = "" if is_plain(turns, tools) else as_json(place, turns, tools)
        return Example(index, messages=pairs, chat=chat, trained_from=first)

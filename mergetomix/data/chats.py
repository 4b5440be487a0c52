"""Chats as rows hold them: turns with roles, tools, thoughts and parts of content, checked."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergetomix.data.errors import Place

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
"""Roles of chats whose turns hold `from` and `value`."""
Turn = dict[str, Any]
PAIR = {"input", "output"}
"""The keys of an item that is a user's turn and its reply."""
SPEAKERS = {"Human": "user", "Assistant": "assistant", "System": "system"}
SPOKEN = re.compile(rf"(?:\A|\n\n)({'|'.join(SPEAKERS)}):")


@dataclass(frozen=True)
class Names:
    """How a source calls a message's role and content, and the roles themselves."""

    role: str | None = None
    content: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)


def transcript(text: str) -> list[Turn]:
    r"""Returns the turns of a text in which `Human:` and `Assistant:` open paragraphs.

    None of both, no turns.

    >>> transcript("\n\nHuman: hi\n\nAssistant: yes?")[1]
    {'role': 'assistant', 'content': 'yes?'}
    """
    parts = SPOKEN.split(text)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": SPEAKERS[name], "content": said.strip()} for name, said in pairs]


def parsed(value: Any) -> Any:
    """Returns a list of messages that is written as JSON; any other value as it stands.

    >>> parsed('[{"role": "user", "content": "hi"}]'), parsed("[1]")
    ([{'role': 'user', 'content': 'hi'}], '[1]')
    """
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_list = all(isinstance(each, Mapping) and {"role", "from"} & set(each) for each in found)
    return found if is_list else value


def turns_of(place: Place, value: Any, names: Names | None = None) -> list[Turn]:
    """Returns the turns of a chat as they stand, but for keys without a value.

    A turn holds `role` and `content`, or `from` and `value`, or what `names` says. A chat may be
    written as JSON. The content is text, a list of parts
    of type text, or nothing beside tool calls or thoughts; what else a turn holds is the chat
    template's to read. Raises DataError, naming the turn and the key.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise place.error(f"the messages are no JSON: {error}") from None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise place.error("messages must be a list of mappings with role and content, both text")
    names = names or Names()
    if value and all(isinstance(turn, str) for turn in value):
        # as LIMA has them: the user begins, and both take turns
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(value)]
    if value and all(isinstance(turn, Mapping) and set(turn) == PAIR for turn in value):
        value = [
            {"role": role, "content": turn[key]}
            for turn in value
            for key, role in (("input", "user"), ("output", "assistant"))
        ]
        names = Names()
    return [_turn(place, number, turn, names) for number, turn in enumerate(value)]


def _turn(place: Place, number: int, given: Any, names: Names) -> Turn:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise place.error("messages must be a list of mappings with role and content, both text")
    turn: Turn = {key: _without_nulls(each) for key, each in given.items() if each is not None}
    is_sharegpt = "role" not in turn and "from" in turn
    role_key = names.role or ("from" if is_sharegpt else "role")
    content_key = names.content or ("value" if is_sharegpt else "content")
    role = turn.pop(role_key, None)
    if isinstance(role, str):
        known_roles = {**(SHAREGPT if is_sharegpt else {}), **names.roles}
        role = known_roles.get(role, role)
    turn = {"role": role, "content": turn.pop(content_key, None), **turn}
    if not isinstance(role, str) or role not in ROLES:
        known = f"the roles are {', '.join(ROLES)}"
        hint = "role_map says what other names mean, role_key where the role stands"
        raise place.error(f"turn {number} has the role {role!r}; {known}", hint=hint)
    content = turn["content"]
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, str) and not (
                isinstance(part, Mapping) and isinstance(part.get("text"), str)
            ):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                rule = f"turn {number} ({role}) has a part of type {kind!r} in content"
                raise place.error(f"{rule}; a language model reads text alone")
    elif content is None and not any(turn.get(key) for key in turn if key not in ("role", "name")):
        raise place.error(f"turn {number} ({role}) has no content")
    elif content is not None and not isinstance(content, str):
        kind = type(content).__name__
        raise place.error(f"turn {number} ({role}) has content of type {kind}, not text")
    return turn


def text_of(turn: Turn) -> str:
    """Returns a turn's content as one text; parts are joined.

    >>> text_of({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]})
    'ab'
    """
    content = turn["content"]
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part["text"] for part in content)
    return content or ""


def check_replies(place: Place, turns: Sequence[Turn], first: int = 0) -> None:
    """Raises DataError if the turns from `first` on hold no reply, or an empty one.

    A reply is a turn of the assistant; it may be tool calls alone.
    """
    replies = [turn for turn in turns[first:] if turn["role"] == "assistant"]
    if not replies:
        raise place.error("no turn of the assistant, so there is nothing to learn")
    if not all(text_of(turn).strip() or turn.get("tool_calls") for turn in replies):
        raise place.error("a turn of the assistant is empty")


def is_plain(turns: Sequence[Turn], tools: Any) -> bool:
    """Returns whether role and text say all that there is."""
    keys = {"role", "content"}
    return not tools and all(
        set(turn) == keys and isinstance(turn["content"], str) for turn in turns
    )


def as_json(place: Place, turns: Sequence[Turn], tools: Any) -> str:
    """Returns turns and tools as JSON. Raises DataError for what JSON cannot hold."""
    try:
        given = {"messages": turns, "tools": tools}
        return json.dumps(given, ensure_ascii=True, default=_written)
    except (TypeError, ValueError) as error:
        raise place.error(f"a turn or tool holds what JSON cannot: {error}") from None


def _written(value: Any) -> str:
    """Returns a date or time as text. Raises TypeError for anything else that JSON lacks."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__}")


def tools_of(place: Place, value: Any) -> list[Any] | None:
    """Returns a row's tools: a list of mappings, or that as JSON; None if there are none."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise place.error(f"tools must be a list, or JSON of one: {error}") from None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise place.error("tools must be a list of mappings, each a JSON schema")
    return [_without_nulls(tool) for tool in value]


def _without_nulls(value: Any) -> Any:
    """Drops the keys that `datasets` adds, so that all rows have the same."""
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(each) for each in value]
    return value

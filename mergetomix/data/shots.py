"""Examples with their answers before a prompt, as benchmarks show them (few-shot prompts)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

from mergetomix.data.answers import behind
from mergetomix.data.examples import Example, canonical
from mergetomix.errors import DataError
from mergetomix.sections.target import TargetSection


def with_shots(
    items: Sequence[Example], pool: Sequence[Example], source: TargetSection, where: str
) -> list[Example]:
    """Returns examples with others before their prompts, drawn by the seed and their own content.

    An example is never shown before itself, nor before another with the same prompt. Of chats the
    examples shown are earlier turns, which are not scored.

    Raises:
        DataError: there are too few others, or a chat holds more than one turn and its reply.
    """
    found = []
    for item in items:
        content = b"shots:%d:" % source.seed + canonical(item)
        rng = random.Random(hashlib.sha256(content).digest())
        asked = _asked(item)
        others = [each for each in pool if _asked(each) != asked]
        if len(others) < source.shots:
            problem = f"{source.shots} wanted, and there are {len(others)} other examples"
            raise DataError(f"{where}.shots", problem)
        found.append(_behind(item, rng.sample(others, source.shots), source, where))
    return found


def _asked(item: Example) -> str:
    return item.prompt or "\n".join(text for _, text in item.messages[:-1])


def _behind(item: Example, shown: Sequence[Example], source: TargetSection, where: str) -> Example:
    if not item.messages:
        # one of several right answers is no continuation of the prompt as it stands
        answers = [
            behind(each.prompt, each.completion) if each.answers else each.completion
            for each in shown
        ]
        parts = [each.prompt + answer for each, answer in zip(shown, answers, strict=True)]
        return replace(item, before="".join(part + source.shot_separator for part in parts))
    if item.chat or any(each.chat for each in shown):
        problem = "a chat with tools or thoughts takes no examples before it"
        raise DataError(f"{where}.shots", problem)
    opening = [turn for turn in item.messages[:1] if turn[0] in ("system", "developer")]
    own = item.messages[len(opening) :]
    turns = [turn for each in shown for turn in each.messages if turn[0] in ("user", "assistant")]
    messages = (*opening, *turns, *own)
    first = max(item.trained_from, len(opening)) + len(turns)
    return replace(item, messages=messages, trained_from=first, num_shown=len(turns))

"""Examples that a target shares with a dataset."""

from __future__ import annotations

from typing import Any

from mergetomix.data.examples import Example, Examples


def shared(dataset: Examples, target: Examples) -> list[tuple[int, int]]:
    """Returns pairs (row of the dataset, row of the target) that say the same.

    Whitespace around each string is trimmed. Prompt and completion, the text, or all messages must
    be equal; options do not count.
    """
    rows: dict[tuple[Any, ...], list[int]] = {}
    for item in target.items:
        rows.setdefault(_trimmed(item), []).append(item.row)
    return [(item.row, row) for item in dataset.items for row in rows.get(_trimmed(item), ())]


def _trimmed(item: Example) -> tuple[Any, ...]:
    if item.picture is not None:
        return item.content()
    messages = tuple((role, content.strip()) for role, content in item.messages)
    return (item.prompt.strip(), item.completion.strip(), item.text.strip(), messages)

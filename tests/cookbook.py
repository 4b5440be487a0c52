"""Writes docs/cookbook.md: public datasets by their shape, and what the recipe says of each.

python tests/cookbook.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from shape_rows import ROWS

from mergetomix.cli.first_recipe import written
from mergetomix.data import shapes
from mergetomix.data.examples import Example
from mergetomix.data.reading import read
from mergetomix.sections.source import Dataset, Source
from mergetomix.targets.kinds import AnyTarget

OWN = "Data of one's own"
HEAD = """\
# Cookbook: public datasets, and their lines in a recipe

`mergetomix init` knows these shapes by their columns. Put a path or a hub id before the lines:
`name: {path: ..., LINES}`, the first of each pair under `datasets`, the second under `targets`.
Beside them stands what a made-up row becomes: in [brackets] what is trained on or scored, behind
`|` the other options or right answers. Add `chat: true` for a base with a chat template. The
names are the hub's as of 2026; have a look at the rows with `mergetomix check`.

What these lines cannot say: `map: file.py:function` gets a row and returns columns, several rows
or None. `where: 'label >= 0'` leaves rows out, `on_bad_row: skip` passes over bad ones and counts
them, `shots: 4` and `shots_from: train` put examples before a target's prompts, and
`datasets_from: {path: ..., messages: messages, by: source}` makes a candidate of every value of a
column, such as Tulu's `source` or Dolly's `category`.
"""


def text() -> str:
    """The page."""
    parts = [HEAD]
    for shape in shapes.SHAPES:
        rows = ROWS[shape.name].rows
        names = ", ".join(f"`{name}`" for name in shape.names)
        columns = ", ".join(f"`{each}`" for each in shape.places)
        parts.append(f"## {shape.name[0].upper()}{shape.name[1:]}\n")
        parts.append(f"{names or OWN}. Told by {columns}.\n")
        parts.append("```yaml")
        for is_target in (False, True):
            lines = shape.of(is_target)
            parts += [written(lines), f"# {shown(lines, rows, is_target)}"]
        parts.append("```\n")
    return "\n".join(parts)


def shown(lines: dict[str, Any], rows: list[dict[str, Any]], is_target: bool) -> str:
    """What the first row becomes, on one line."""
    adapter: TypeAdapter[Source] = TypeAdapter(AnyTarget if is_target else Dataset)
    return one_line(read(adapter.validate_python({"rows": rows, **lines}), "x").items[0])


def one_line(item: Example) -> str:
    others = [each for each in (*item.options, *item.answers) if each != item.completion]
    more = "".join(f" | {each}" for each in dict.fromkeys(others))
    if item.messages:
        *turns, (role, last) = item.messages
        said = f"{' '.join(f'{each}: {text}' for each, text in turns)} {role}: [{last}]"
    else:
        said = f"{item.prompt}[{item.text or item.completion}]"
    return repr(said + more)[1:-1]


if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "cookbook.md"
    page.write_text(text(), encoding="utf-8")
    print(page, file=sys.stderr)

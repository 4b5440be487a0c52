"""The reference of the recipe as Markdown, from its JSON schema: every section, every key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Node = Mapping[str, Any]
"""A part of a JSON schema."""

SOURCE = "Dataset"
"""The definition whose keys other sections share: where rows come from, and what they become."""

HEAD = """\
# The recipe, key by key

Everything that a run depends on stands in one YAML file. These are its sections and keys, as the
schema has them that `mergetomix schema` prints (the file itself: [recipe.schema.json]({schema})).
`--set train.seed=1` overrides any key on the command line. NAME stands for a name of your own.
"""
BOUNDS = {
    "minimum": "at least {}",
    "ge": "at least {}",
    "exclusiveMinimum": "over {}",
    "maximum": "at most {}",
    "le": "at most {}",
    "exclusiveMaximum": "under {}",
}
PLAIN = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}


@dataclass
class Section:
    """A part of the recipe with keys of its own, and where it stands."""

    path: str
    """Its place in a recipe, such as `train.lora`; empty for the recipe itself."""
    node: Node
    depth: int
    shared: list[str] = field(default_factory=list)
    """Keys that are the source's, to the letter."""

    @property
    def title(self) -> str:
        """Its heading."""
        return f"`{self.path}`" if self.path else "The recipe itself"

    @property
    def link(self) -> str:
        """A link to it."""
        return f"[{self.title}](#{slug(self.title)})"


Sections = Mapping[str, Section]
"""Sections by the names of their definitions; the recipe itself by the name ""."""


def reference(schema: Node, link: str = "recipe.schema.json") -> str:
    """Returns the page: a heading for every section, an entry for every key.

    `link` is where the schema lies, seen from the page.
    """
    found = sections(schema)
    parts = [HEAD.format(schema=link)]
    for section in found.values():
        parts += _section(section, found)
    return "\n".join(parts)


def sections(schema: Node) -> dict[str, Section]:
    """Returns the sections in the order in which a reader of a recipe comes to them."""
    found = {"": Section("", schema, 2)}
    for key, node in schema["properties"].items():
        _collect(schema, node, key, 2, found)
    source = found[SOURCE].node["properties"]
    for name, section in found.items():
        if name != SOURCE:
            keys = section.node["properties"]
            section.shared = [key for key in keys if keys[key] == source.get(key)]
    return found


def _collect(schema: Node, node: Node, path: str, depth: int, found: dict[str, Section]) -> None:
    for name, place in _definitions(node, path):
        if name in found:
            continue
        definition = schema["$defs"][name]
        kind = definition["properties"].get("score", {}).get("const")
        found[name] = Section(f"{place}, score: {kind}" if kind else place, definition, depth)
        for key, below in definition["properties"].items():
            _collect(schema, below, f"{place}.{key}", 3, found)


def _definitions(node: Node, path: str) -> Iterator[tuple[str, str]]:
    """Yields the definitions that a key may hold, each with its place."""
    if "$ref" in node:
        yield node["$ref"].rpartition("/")[2], path
    for each in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _definitions(each, path)
    if "items" in node:
        yield from _definitions(node["items"], path)
    for each in node.get("patternProperties", {}).values():
        yield from _definitions(each, f"{path}.NAME")


# --- one section


def _section(section: Section, found: Sections) -> Iterator[str]:
    yield f"{'#' * section.depth} {section.title}\n"
    if text := section.node.get("description"):
        yield f"{text}\n"
    required = section.node.get("required", ())
    for key, node in section.node["properties"].items():
        if key not in section.shared:
            place = f"{section.path or 'recipe'}.{key}"
            yield _entry(place, key, node, key in required, found)
    if section.shared:
        where = found[SOURCE].link
        names = ", ".join(f"`{key}`" for key in section.shared)
        yield f"These keys are those of {where}: {names}.\n"


def _entry(place: str, key: str, node: Node, is_required: bool, found: Sections) -> str:
    """Returns a key as a term with its kind and default, and its text as the definition."""
    said = [kind(node, found), "required" if is_required else default(node)]
    anchor = re.sub(r"[^\w.]+", "-", place)
    term = f'<a id="{anchor}"></a>**`{key}`**: ' + "; ".join(each for each in said if each)
    held = [found[name].node for name, _ in _definitions(node, "")]
    text = next(each["description"] for each in (node, *held) if "description" in each)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{term}\n\n:   " + "\n    ".join(lines) + "\n"


def default(node: Node) -> str:
    """Returns what holds where the key is left out; nothing for a section, whose keys say it."""
    if "default" not in node or "$ref" in node:
        return ""
    return f"default `{json.dumps(node['default'], ensure_ascii=False)}`"


def kind(node: Node, found: Sections) -> str:
    """Returns what a key may hold, in words.

    >>> kind({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, {})
    'whole number (at least 1) or null'
    >>> kind({"enum": ["lora", "full"], "type": "string"}, {})
    '`lora` or `full`'
    """
    *others, last = dict.fromkeys(_kinds(node, found))
    return f"{', '.join(others)} or {last}" if others else last


def _kinds(node: Node, found: Sections) -> Iterator[str]:
    if "anyOf" in node or "oneOf" in node:
        for each in (*node.get("anyOf", ()), *node.get("oneOf", ())):
            yield from _kinds({**each, **_bounds(node)}, found)
    elif "$ref" in node:
        yield f"the section {found[node['$ref'].rpartition('/')[2]].link}"
    elif "enum" in node:
        yield from (f"`{json.dumps(each).strip(chr(34))}`" for each in node["enum"])
    elif "const" in node:
        yield f"`{node['const']}`"
    elif node.get("type") == "array":
        yield f"a list (each: {kind(node['items'], found)})"
    elif node.get("type") == "object":
        yield _mapping(node, found)
    elif "type" in node:
        is_number = node["type"] in ("integer", "number")
        limits = [words.format(node[bound]) for bound, words in BOUNDS.items() if bound in node]
        yield PLAIN[node["type"]] + (f" ({', '.join(limits)})" if limits and is_number else "")
    else:
        yield "anything"


def _mapping(node: Node, found: Sections) -> str:
    values = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    held = next((each for each in values if isinstance(each, Mapping)), None)
    return f"a mapping of names (each: {kind(held, found)})" if held else "a mapping"


def _bounds(node: Node) -> dict[str, Any]:
    return {bound: node[bound] for bound in BOUNDS if bound in node}


def slug(heading: str, separator: str = "-") -> str:
    """Returns the anchor of a heading, as GitHub makes it: one link does for both.

    >>> slug("2026-11-26: `final/` is a copy, Not a link")
    '2026-11-26-final-is-a-copy-not-a-link'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", separator)

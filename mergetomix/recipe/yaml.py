"""Read plain values of a recipe: YAML with every key once, and `--set` on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mergetomix.bounds import MOST_VALUES
from mergetomix.data.errors import one_line
from mergetomix.errors import RecipeError, UserError


def read_values(path: Path) -> Any:
    """Returns what a YAML file says. Raises RecipeError if it cannot be read."""
    try:
        return _loaded(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"`mergetomix init {path}` writes a commented one"
        raise RecipeError("", f"no recipe at {path}", hint=hint) from None
    except IsADirectoryError:
        raise RecipeError("", f"{path} is a folder; a recipe is a YAML file") from None
    except OSError as error:
        raise RecipeError("", f"{path} cannot be read: {error}") from None
    except UnicodeDecodeError:
        raise RecipeError("", f"{path} is not text in UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # an impossible date is a ValueError, and deep nesting exceeds Python's stack
        raise RecipeError("", f"{path} is not valid YAML: {one_line(error)}") from None


def _loaded(text: str) -> Any:
    """Returns what YAML says. Raises ValueError where its aliases stand for too much."""
    root = yaml.compose(text, Loader=_UniqueKeys)
    if root is not None:
        _check_size(root, {})
    return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 (a subclass of SafeLoader)


def _check_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many values a node stands for, its aliases written out."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias stands within what it stands for")
        return known[id(node)]
    known[id(node)] = 0
    below: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        below = node.value
    elif isinstance(node, yaml.MappingNode):
        below = [each for pair in node.value for each in pair]
    size = 1 + sum(_check_size(each, known) for each in below)
    if size > MOST_VALUES:
        raise ValueError(f"it stands for more than {MOST_VALUES:,} values")
    known[id(node)] = size
    return size


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key may stand once only."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        # before merges (<<) are written out, which may repeat keys rightly
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                message = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node


def override(raw: dict[str, Any], change: str) -> None:
    """Puts one `a.b=value` of `--set` into the values of a recipe.

    A name with dots is taken whole if it is there.

    >>> values = {"datasets": {"v1.2": {}}}
    >>> override(values, "datasets.v1.2.seed=7")
    >>> override(values, "train.lora.rank=4")
    >>> values
    {'datasets': {'v1.2': {'seed': 7}}, 'train': {'lora': {'rank': 4}}}

    Raises:
        UserError: it is no such thing.
    """
    key, _, text = change.partition("=")
    if "=" not in change or not key.strip():
        hint = "for example --set train.learning_rate=1e-3"
        raise UserError(f"--set needs key=value, not {change!r}", hint=hint)
    try:
        value = _loaded(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--set {change}: not valid YAML: {one_line(error)}") from None
    if isinstance(raw.get("base"), str) and key.strip().startswith("base."):
        raw["base"] = {"path": raw["base"]}
    place, name, rest = raw, *_first(key.strip().split("."), raw)
    while rest:
        if place.get(name) is None:
            place[name] = {}
        if not isinstance(place[name], dict):
            raise UserError(f"--set {change}: {name} is not a section")
        place = place[name]
        name, rest = _first(rest, place)
    place[name] = value


def _first(parts: list[str], place: dict[str, Any]) -> tuple[str, list[str]]:
    """Returns the first key of a dotted path, the longest that is there, and the rest."""
    ends = (end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in place)
    end = next(ends, 1)
    return ".".join(parts[:end]), parts[end:]

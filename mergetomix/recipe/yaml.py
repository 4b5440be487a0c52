"""Plain values of a recipe: YAML with every key once, and `--set` on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergetomix.errors import RecipeError, UserError


def read_values(path: Path) -> Any:
    """What a YAML file says; what is wrong with the file is a RecipeError."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 (a subclass of SafeLoader)
    except FileNotFoundError:
        hint = f"`mergetomix init {path}` writes a commented one"
        raise RecipeError("", f"no recipe at {path}", hint=hint) from None
    except IsADirectoryError:
        raise RecipeError("", f"{path} is a folder; a recipe is a YAML file") from None
    except OSError as error:
        raise RecipeError("", f"{path} cannot be read: {error}") from None
    except UnicodeDecodeError:
        raise RecipeError("", f"{path} is not text in UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:
        # an impossible date is a ValueError
        raise RecipeError("", f"{path} is not valid YAML: {_one_line(error)}") from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key may stand once only."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        # before merges (<<) are written out, which may repeat keys rightly
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return node


def override(raw: dict[str, Any], change: str) -> None:
    """Puts one `a.b=value` of `--set` into the values of a recipe. Raises UserError where it is no such thing."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"--set needs key=value, not {change!r}",
            hint="for example --set train.learning_rate=1e-3",
        )
    try:
        value = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 (a subclass of SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {change}: not valid YAML: {_one_line(error)}") from None
    if isinstance(raw.get("base"), str) and key.strip().startswith("base."):
        raw["base"] = {"path": raw["base"]}
    place, parts = raw, key.strip().split(".")
    while len(head := _head(parts, place)) < len(parts):
        name, parts = ".".join(head), parts[len(head) :]
        if place.get(name) is None:
            place[name] = {}
        if not isinstance(place[name], dict):
            raise UserError(f"--set {change}: {name} is not a section")
        place = place[name]
    place[".".join(parts)] = value


def _head(parts: list[str], place: Mapping[str, Any]) -> list[str]:
    """The first key of a dotted path: the longest that is there, for names may hold dots; else the first part."""
    found = (parts[:end] for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in place)
    return next(found, parts[:1])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

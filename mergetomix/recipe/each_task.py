"""A group of benchmarks as many targets: one for each of its tasks, which share its weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mergetomix.errors import RecipeError
from mergetomix.recipe.paths import resolve_target
from mergetomix.targets.harness.kind import HarnessTarget

FOREIGN = re.compile(r"[^A-Za-z0-9_.-]")
"""What a target's name may not hold."""


def each_task(targets: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a recipe's targets, those with `each: true` as one for each task of their group.

    They are called by the target and the task, so that the resolved recipe says what is scored.
    What is wrong with a section is left for the recipe to say.

    Raises:
        RecipeError: there is no such group, or a name stands twice.
    """
    found: dict[str, Any] = {}
    for name, given in targets.items():
        section = _of_group(given)
        several = {name: given} if section is None else _tasks(name, section, folder)
        for each, values in several.items():
            if each in found:
                message = f"{each} stands twice, once as a task of a group"
                raise RecipeError(f"targets.{name}", message, hint="call that target otherwise")
            found[each] = values
    return found


def _of_group(given: Any) -> HarnessTarget | None:
    """Returns the section of a target that stands for each task of a group."""
    if isinstance(given, HarnessTarget):
        return given if given.each else None
    is_one = isinstance(given, Mapping) and given.get("score") == "harness" and given.get("each")
    try:
        return HarnessTarget.model_validate(given) if is_one else None
    except ValidationError:
        return None


def _tasks(name: str, section: HarnessTarget, folder: Path) -> dict[str, HarnessTarget]:
    from mergetomix.targets.harness import tasks

    where = f"targets.{name}"
    resolved = resolve_target(section, folder)
    assert isinstance(resolved, HarnessTarget)
    names = tasks.names(resolved, where)
    beside = [str(Path(resolved.task).parent)] if Path(resolved.task).is_file() else []
    update = {
        "each": False,
        "weight": resolved.weight / len(names),
        "include_path": [*resolved.folders, *beside] or None,
    }
    return {
        FOREIGN.sub("_", each if each.startswith(f"{name}_") else f"{name}_{each}"): (
            resolved.model_copy(update={**update, "task": each})
        )
        for each in names
    }

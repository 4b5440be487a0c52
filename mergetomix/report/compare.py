"""Two runs beside each other: what was decided, what came of it, and what was different."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergetomix.errors import UserError
from mergetomix.recipe.yaml import read_values
from mergetomix.report.tables import Table

MOST = 60
"""Settings that differ, of those that are shown."""


def compare(first: Path, second: Path) -> dict[str, Table]:
    """Returns tables by title, with a column for each run.

    Args:
        first: the folder of a run that was finished.
        second: the folder of another one.

    Raises:
        UserError: a folder holds no finished run.
    """
    folders = first, second
    results, recipes = [_result(each) for each in folders], [_recipe(each) for each in folders]
    header = [str(each) for each in folders]
    return {
        "Decisions": [["what", *header], *_decided(results)],
        "Gains over the base, on examples that the searches never saw": [
            ["datasets", *header],
            *_gains(results),
        ],
        "Settings that differ": [["key", *header], *_different(recipes)],
    }


def _result(folder: Path) -> dict[str, Any]:
    file = folder / "result.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "name the folder of a finished run, such as runs/first"
        raise UserError(f"{folder} holds no finished run: {error}", hint=hint) from None
    if not isinstance(found, dict) or "decision" not in found:
        hint = f"mergetomix report {folder} writes it anew"
        raise UserError(f"{file} is of an older version", hint=hint)
    return found


def _recipe(folder: Path) -> dict[str, Any]:
    found = read_values(folder / "recipe.yaml")
    return found if isinstance(found, dict) else {}


def _decided(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = {
        "decision": [each["decision"]["headline"] for each in results],
        "gain of its fine-tune": [_interval(each["decision"]["gain"]) for each in results],
        "picked by the checks": [" + ".join(each["selected"]["datasets"]) for each in results],
        "chance to be the best": [_chance(each) for each in results],
        "merges tried": [str(len(each["trials"])) for each in results],
        "seconds up to the final model": [f"{each['cost']['total_s']:.1f}" for each in results],
        "warnings": [str(len(each["warnings"])) for each in results],
    }
    return [[name, *values] for name, values in rows.items()]


def _interval(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['value']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"


def _chance(result: Mapping[str, Any]) -> str:
    checked = result["verification"]
    if checked is None:
        return ""
    chances = [
        each["best_probability"]
        for each in checked["predictions"]
        if each["mixture"]["datasets"] == result["selected"]["datasets"]
    ]
    return f"{chances[0]:.0%}" if chances else ""


def _gains(results: list[dict[str, Any]]) -> list[list[str]]:
    """Returns the gains of what was fine-tuned in either run, the best of the first run first."""
    by_run = [_fine_tunes(each) for each in results]
    names = dict.fromkeys(sorted(by_run[0], key=lambda name: -by_run[0][name]))
    names |= dict.fromkeys(sorted(by_run[1], key=lambda name: -by_run[1][name]))
    return [
        [name, *(f"{each[name]:+.4f}" if name in each else "" for each in by_run)] for name in names
    ]


def _fine_tunes(result: Mapping[str, Any]) -> dict[str, float]:
    baselines = result["baselines"]
    rows = [*baselines["experts"], *baselines.get("random", [])]
    rows += [row for row in (result["final"], baselines.get("all")) if row is not None]
    return {" + ".join(row["datasets"]): row["gain"] for row in rows}


def _different(recipes: list[dict[str, Any]]) -> list[list[str]]:
    flat = [_flat(each) for each in recipes]
    keys = [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]
    rows = [[key, *(str(each.get(key, "")) for each in flat)] for key in keys[:MOST]]
    return rows or [["none", "", ""]]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    found: dict[str, Any] = {}
    for name, each in value.items():
        found |= _flat(each, f"{key}.{name}" if key else str(name))
    return found

"""Tiny runs to be disturbed: every strategy, ways to merge, both families, `merge` and `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import recipes
import test_harness_run
import test_image_run
import yaml


@dataclass(frozen=True)
class World:
    """One kind of run: what it changes of the tiny recipe, and what is done with it.

    `is_shared` puts the store on shared storage, which is a folder here; then one process writes at
    a time, and storage that refuses a write is tried again for minutes.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    does: str = "run"
    is_shared: bool = False
    values: Callable[[Path], dict[str, Any]] = recipes.recipe_values

    def write(self, folder: Path) -> Path:
        """Writes the data and the recipe into a folder, which is made."""
        folder.mkdir(parents=True)
        values = self.values(folder)
        for key, value in self.changes.items():
            *parents, last = key.split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        values["store"] = self.store(folder)
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def store(self, folder: Path) -> str:
        """Returns where the store of a run in a folder is."""
        return f"file://{folder}/shared" if self.is_shared else str(folder / "store")


def with_more_examples(folder: Path) -> dict[str, Any]:
    """The tiny recipe with as many examples of its target as a race needs."""
    values = recipes.recipe_values(folder)
    rows = [{"question": f"what about {i} and {i + 1}?", "answer": f" {i % 7}"} for i in range(80)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "t.jsonl").write_text(text)
    return values


SHORT = {"train.max_steps": 2, "final.num_random": 1}
LORA = {"train.method": "lora", "train.lora.rank": 2}
WORLDS: dict[str, World] = {
    "exhaustive": World(SHORT),
    "lora": World({**SHORT, **LORA}),
    "greedy": World({**SHORT, "search.strategy": "greedy"}),
    "gradient": World({**SHORT, **LORA, "search.strategy": "gradient", "search.budget": 8}),
    "regression": World({**SHORT, "search.strategy": "regression", "search.budget": 5}),
    "weights": World(
        {**SHORT, "search.space": "weights", "search.strategy": "gradient", "search.budget": 8}
    ),
    "optuna": World({**SHORT, "search.strategy": "optuna", "search.budget": 5}),
    "racing": World({**SHORT, "search.racing": 0.05}, values=with_more_examples),
    "regmean": World({**SHORT, "merge.method": "regmean"}),
    "fisher": World({**SHORT, "merge.method": "fisher"}),
    "ties": World({**SHORT, "merge.method": "ties"}),
    "repeats": World({**SHORT, "verify.budget": 2, "verify.repeats": 1}),
    "images": World({"train.max_steps": 2}, values=test_image_run.values),
    "benchmarks": World({"train.max_steps": 2}, values=test_harness_run.values),
    "workers": World({**SHORT, "executor.workers": 2, "executor.threads": 1}),
    "shared storage": World(SHORT, is_shared=True),
    "merge": World(SHORT, does="merge"),
    "study": World({**SHORT, "study.seeds": [0], "study.num_draws": 2}, does="study"),
}

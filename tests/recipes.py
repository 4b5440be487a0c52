"""Recipes of tiny runs, and a listener that keeps what it hears."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mergetomix.demo.text import BASE

TIMES = {"cost", "environment"}
WORDS = ["red", "green", "blue", "sun", "moon", "star", "cat", "dog", "cow", "one", "two", "six"]


def write_rows(path: Path, question: str, shift: int) -> None:
    """Rows whose answer is the word `shift` places on."""
    rows = [
        {"question": f"{question} {word}?", "answer": f" {WORDS[(i + shift) % len(WORDS)]}"}
        for i, word in enumerate(WORDS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe_values(
    folder: Path, datasets: tuple[str, ...] = ("a", "b", "c"), targets: tuple[str, ...] = ("t",)
) -> dict[str, Any]:
    """A recipe whose every stage takes a moment."""
    for shift, name in enumerate((*datasets, *targets)):
        write_rows(folder / f"{name}.jsonl", f"what about {name} and", shift)
    source = {"prompt": "question", "completion": "answer"}
    return {
        "base": str(BASE),
        "datasets": {name: {"path": f"{name}.jsonl", **source} for name in datasets},
        "targets": {name: {"path": f"{name}.jsonl", **source} for name in targets},
        "train": {"method": "full", "learning_rate": 1e-3, "batch_size": 4, "max_length": 32},
        "verify": {"budget": 1, "repeats": 0, "exponents": []},
        "final": {"num_random": 2},
        "device": "cpu",
        "store": "store",
        "run_dir": "run",
    }


def write_recipe(folder: Path, values: dict[str, Any], name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


def result_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "run" / "result.json").read_text())
    assert isinstance(found, dict)
    return found


def without_times(result: dict[str, Any], folder: Path) -> Any:
    """A result without what may differ between two runs: times, and the folder they ran in."""
    kept = {key: value for key, value in result.items() if key not in TIMES}
    for expert in kept["experts"]:
        del expert["train_s"]
    return json.loads(json.dumps(kept).replace(str(folder), "FOLDER"))


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.states: list[str] = []
        self.warnings: list[str] = []

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Any]:
        self.tasks.append(f"{stage}: {text}")
        yield lambda _: None

    def state(self, text: str) -> None:
        self.states.append(text)

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def trained(self) -> list[str]:
        return [text for text in self.tasks if "expert " in text or "fine-tuning" in text]

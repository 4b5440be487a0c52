"""How often a training is said not to have learned, where it did and where it did not.

Usage: python studies/learning.py

Experts of eight packages of Python's library on the demo's base, at learning rates from far too low
to far too high, at two lengths. What is true is told by the loss on other files of the same
package: an expert has learned if a five-hundredth of the base's loss is gone or more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mergetomix as m2m
from mergetomix.curves import complaint
from mergetomix.demo.text import BASE, library
from mergetomix.objectives.objective import gains
from mergetomix.recipe.recipe import Recipe
from mergetomix.session.session import open_session
from mergetomix.stages import pipeline

PACKAGES = ("asyncio", "email", "http", "importlib", "json", "multiprocessing", "unittest", "xml")
RATES = (1e-9, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
LENGTHS = (20, 60)
LITTLE = 0.002
"""Part of the base's loss that must be gone to say that something was learned."""


def recipe_of(folder: Path, rate: float, steps: int) -> Recipe:
    """Returns a recipe whose targets are the packages themselves: other files of the same."""
    files = {name: sorted((library() / name).rglob("*.py")) for name in PACKAGES}
    values: dict[str, Any] = {
        "base": str(BASE),
        "datasets": {
            name: {"path": [*map(str, each[::2])], "text": True} for name, each in files.items()
        },
        "targets": {
            name: {"path": [*map(str, each[1::2])], "text": True, "max_tokens": 4000, **SCORED}
            for name, each in files.items()
        },
        "train": {"method": "full", "learning_rate": rate, "max_steps": steps, **SHORT},
        "device": "cpu",
        "store": str(folder / "store"),
        "run_dir": str(folder / "run"),
    }
    return m2m.load_recipe(values)


SCORED = {"score": "loss", "lines_per_example": 24}
SHORT = {"batch_size": 4, "max_length": 128}


def looked_at(recipe: Recipe) -> list[tuple[float, str]]:
    """Returns of every expert the part of its own package's loss that is gone, and what is said."""
    with open_session(recipe) as session:
        experts = pipeline.train_experts(session)
        base = session.evaluations.base("select")
        found = []
        for each in experts:
            scores = session.evaluations.proxy(each.mixture, "select")
            said = complaint(session.finetunes.curve(each.key).own) or ""
            found.append((gains(scores, base)[str(each.mixture)], said))
        return found


def main() -> None:
    """Prints a line for each learning rate and length."""
    print(
        "| learning rate | steps | experts | loss gone (least, most) | learned, and pointed out |"
        " did not learn, and pointed out | went astray | did not learn |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rate in RATES:
        for steps in LENGTHS:
            with tempfile.TemporaryDirectory() as folder:
                found = looked_at(recipe_of(Path(folder), rate, steps))
            gone = [gain for gain, _ in found]
            learned = [said for gain, said in found if gain > LITTLE]
            others = [said for gain, said in found if gain <= LITTLE]
            print(
                f"| {rate:g} | {steps} | {len(found)} | {min(gone):.3f}, {max(gone):.3f} |"
                f" {len(learned)}, {sum(map(bool, learned))} |"
                f" {len(others)}, {sum(map(bool, others))} |"
                f" {sum('astray' in said for _, said in found)} |"
                f" {sum('did not learn' in said for _, said in found)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Writes the recipe of a study whose targets are noisy: accuracies, and few examples.

python studies/noisy/make_recipe.py BASE DATA OUT_DIR

BASE is the tiny language model of the text study, DATA the folder of its tasks. Datasets and
training are those of `studies/text/recipe.yaml`, so that one store serves both; the targets are
questions with options, scored by accuracy, and two small ones scored by their loss.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

PAIR = {"prompt": "{input}\n", "completion": "{output}"}
NUM_ROWS = 120
NUM_OPTIONS = 5
Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    """Returns the rows of a gzipped file of JSON Lines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def words(rows: list[Row]) -> list[Row]:
    """Returns questions whose options are the words of the question."""
    return [row | {"options": row["input"].split(", ")} for row in rows]


def labels(rows: list[Row]) -> list[Row]:
    """Returns questions whose options are the right label and four others."""
    rng = np.random.default_rng(0)
    every = sorted({row["output"] for row in rows})
    found = []
    for row in rows:
        others = [label for label in every if label != row["output"]]
        drawn = rng.choice(others, size=NUM_OPTIONS - 1, replace=False).tolist()
        found.append(row | {"options": [row["output"], *drawn]})
    return found


def letters(rows: list[Row]) -> list[Row]:
    """Returns questions whose options are the letters a to e."""
    return [row | {"options": list("abcde")} for row in rows]


CHOICES: dict[str, tuple[str, Callable[[list[Row]], list[Row]]]] = {
    "choose": ("choose.train", words),
    "alphabetically_first_5": ("alphabetically_first_5.train", words),
    "hwu64": ("hwu64.train", labels),
    # at chance for every model: a target that says nothing
    "commonsense_qa": ("commonsense_qa.test", letters),
}
SMALL = {"svamp_loss": "svamp.test", "hwu64_loss": "hwu64.train"}


def main(base: Path, data: Path, out: Path) -> None:
    """Writes the questions with their options, and the recipe."""
    out.mkdir(parents=True, exist_ok=True)
    text = (Path(__file__).parents[1] / "text" / "recipe.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    recipe["base"] = str(base.resolve())
    for section in recipe["datasets"].values():
        section["path"] = str((data / Path(section["path"]).name).resolve())
    recipe["targets"] = {}
    for name, (file, options) in CHOICES.items():
        rows = options(rows_of(data / f"{file}.jsonl.gz")[:NUM_ROWS])
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        scored = {"score": "choice", "options": "options"}
        recipe["targets"][name] = {"path": f"{name}.jsonl", **PAIR, **scored}
    for name, file in SMALL.items():
        path = str((data / f"{file}.jsonl.gz").resolve())
        recipe["targets"][name] = {"path": path, **PAIR, "max_examples": NUM_ROWS // 2}
    recipe |= {"store": "store", "run_dir": "run"}
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))

"""Writes recipes of worlds whose datasets differ in rows and in the length of their answers.

python studies/unequal/make_recipes.py BASE DATA OUT

BASE is the tiny language model of the text study, DATA the folder of its tasks. Every world has
four datasets, so 15 mixtures, and four targets. Run each with `studies/worlds.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

PAIR = {"prompt": "{input}\n", "completion": "{output}"}
TARGETS = ("alphabetically_first_5.train", "hwu64.train", "choose.train", "svamp.test")
FIXED = {"max_tokens": 18_000}
ONE_PASS = {"epochs": 1.0}
WORLDS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    # answers of one to a few tokens, rows as 1 to 3 to 10
    "rows": (
        {"alphabetically_first_3": 300, "banking77": 300, "letters": 900, "clinc150": 3000},
        FIXED,
    ),
    "rows-one-pass": (
        {"alphabetically_first_3": 150, "banking77": 150, "letters": 450, "clinc150": 1500},
        ONE_PASS,
    ),
    # answers of a hundred tokens beside answers of one
    "answers": ({"gsm8k": 300, "commonsense_qa": 300, "clinc150": 600, "letters": 600}, FIXED),
    "answers-one-pass": (
        {"gsm8k": 100, "commonsense_qa": 200, "clinc150": 600, "category_pick": 400},
        ONE_PASS,
    ),
    # a rule and its opposite, the opposite three times as large, beside long answers
    "clash": (
        {"gsm8k": 200, "alphabetically_first_3": 250, "alphabetically_last": 750, "clinc150": 900},
        FIXED,
    ),
}


def recipe(base: Path, data: Path, rows: dict[str, int], length: dict[str, Any]) -> dict[str, Any]:
    """Returns the recipe of one world."""
    return {
        "base": str(base.resolve()),
        "datasets": {
            name: {
                "path": str((data / f"{name}.train.jsonl.gz").resolve()),
                **PAIR,
                "max_examples": num,
            }
            for name, num in rows.items()
        },
        "targets": {
            name.split(".")[0]: {
                "path": str((data / f"{name}.jsonl.gz").resolve()),
                **PAIR,
                "max_examples": 400,
            }
            for name in TARGETS
        },
        "train": {
            "method": "full",
            "learning_rate": 1e-4,
            "batch_size": 16,
            "max_length": 256,
            **length,
        },
        "device": "cpu",
        "batch_tokens": 4096,
        "store": "store",
        "run_dir": "run",
    }


def main() -> None:
    """Writes OUT/WORLD/recipe.yaml for every world."""
    base, data, out = map(Path, sys.argv[1:4])
    for name, (rows, length) in WORLDS.items():
        path = out / name / "recipe.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = recipe(base, data, rows, length)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()

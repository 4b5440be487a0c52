"""Writes the recipe of the study on a real model with datasets as they come.

python studies/smollm2/make_recipe.py BASE DATA recipe.yaml [--equal]

BASE is a folder with SmolLM2-135M-Instruct, DATA one with gsm8k, commonsense_qa, clinc150,
banking77, svamp and hwu64 as JSON Lines of `input` and `output`. With `--equal` every dataset has
as many tokens; without, their sizes are natural: some hundred rows each, of very unequal lengths.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

QUESTION = {"prompt": "Question: {input}\nAnswer:", "completion": " {output}", "chat": False}
REQUEST = {"prompt": "Request: {input}\nIntent:", "completion": " {output}", "chat": False}
DATASETS = {
    "gsm8k": (QUESTION, 300),
    "commonsense_qa": (QUESTION, 300),
    "clinc150": (REQUEST, 600),
    "banking77": (REQUEST, 600),
}
EQUAL = 11_000
"""Tokens of each dataset in the equal world, about as many as the smallest has."""


def recipe(base: Path, data: Path, equal: bool) -> dict[str, object]:
    """Returns the recipe: LoRA for 8,000 tokens, two targets by their loss."""

    def train(name: str) -> str:
        return str((data / f"{name}.train.jsonl.gz").resolve())

    def test(name: str) -> str:
        return str((data / f"{name}.test.jsonl.gz").resolve())

    size = {"max_tokens": EQUAL} if equal else {}
    return {
        "base": str(base.resolve()),
        "datasets": {
            name: {"path": train(name), **columns, "max_examples": rows, **size}
            for name, (columns, rows) in DATASETS.items()
        },
        "targets": {
            "svamp": {"path": test("svamp"), **QUESTION, "max_examples": 120},
            "hwu64": {"path": test("hwu64"), **REQUEST, "max_examples": 160},
        },
        "train": {
            "method": "lora",
            "learning_rate": 5e-4,
            "batch_size": 8,
            "max_length": 512,
            "max_tokens": 8000,
        },
        "study": {"seeds": [1, 2]},
        "device": "cpu",
        "store": "store",
        "run_dir": "run",
    }


def main() -> None:
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--equal", action="store_true")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    values = recipe(given.base, given.data, given.equal)
    given.out.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes the recipe of the study on Python's standard library, wherever that lies.

python studies/code/make_recipe.py recipe.yaml [--second]

With `--second` it is on other parts of the library, which no setting was chosen on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mergetomix.demo.text import BASE, DATASETS, sources

TARGETS = ("concurrent", "importlib", "logging", "multiprocessing", "urllib")
SECOND = (
    ("ctypes", "html", "importlib", "json", "multiprocessing", "re"),
    ("logging", "wsgiref", "xmlrpc"),
)
"""The second split: its datasets, and its targets."""


def main() -> None:
    """Writes the recipe: the demo's base, datasets, and targets in examples of 24 lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--second", action="store_true")
    given = parser.parse_args()
    datasets, targets = SECOND if given.second else (tuple(DATASETS), TARGETS)
    write(given.out, datasets, targets)


def write(path: Path, datasets: Sequence[str], targets: Sequence[str]) -> None:
    """Writes a recipe of some parts of the library."""
    lines = [f"base: {BASE}\n", "datasets:\n"]
    lines += [
        f'  {name}: {{path: "{sources(name)}", text: true, max_tokens: 24000}}\n'
        for name in datasets
    ]
    lines.append("targets:\n")
    options = "text: true, lines_per_example: 24, score: loss, max_tokens: 16000"
    lines += [f'  {name}: {{path: "{sources(name)}", {options}}}\n' for name in targets]
    lines.append(
        "train: {method: full, learning_rate: 1.0e-4, batch_size: 4, max_length: 256,"
        " max_tokens: 72000}\n"
    )
    lines.append("merge: {weighting: equal}  # as when the study was recorded\n")
    lines.append(
        "study: {seeds: [1, 2, 3, 4, 5]}  # seed 0 was looked at while the calibration was made\n"
    )
    lines.append("device: cpu\nbatch_tokens: 4096\nstore: store\nrun_dir: run\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

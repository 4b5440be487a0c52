"""The demo on text: packages of Python's standard library, and a shipped 1.3 M-parameter Llama."""

from __future__ import annotations

import os
from pathlib import Path

from mergetomix.errors import UserError

DATASETS = ("asyncio", "encodings", "http", "pydoc_data", "unittest", "xml")
TARGETS = ("concurrent", "urllib")
BASE = Path(__file__).parent / "base"

RECIPE = """\
# Which packages of Python's standard library should a small code model be fine-tuned on, to be good
# at {names}? The base is a Llama of 1.3 M parameters, pre-trained on the library's
# top-level modules alone (see its README). This is an ordinary recipe: change it and run
#   mergetomix run {path}
# again; what is in the store is not done twice.

base: {base}

datasets:      # every package is one candidate; every file one document
{datasets}
targets:       # packages that are no candidate
{targets}
train:
  method: full
  learning_rate: 1.5e-4
  batch_size: 4
  max_length: 256
  epochs: 1

verify:        # a few real fine-tunes prove the pick
  budget: 2
  repeats: 0
  exponents: []

final:
  baselines: [all, random]
  num_random: 3

select_fraction: 0.5
device: cpu
batch_tokens: 2048
store: store
run_dir: run
"""


def library() -> Path:
    """Returns the folder of the standard library."""
    return Path(os.__file__).parent


def sources(package: str) -> str:
    """Returns the glob of a package's own modules. Raises `UserError` if there is no source."""
    folder = library() / package
    if not folder.is_dir():
        message = f"this Python has no source of {package} at {folder}"
        raise UserError(message, hint="use a CPython with its library unzipped")
    return str(folder / "**" / "*.py")


def write_recipe(folder: Path, max_tokens: int = 24_000) -> Path:
    """Writes the demo's recipe in `folder` if there is none, and returns its path."""
    path = folder / "recipe.yaml"
    if path.exists():
        return path
    scored = "lines_per_example: 24, score: loss, max_tokens: 10000"
    limits = dict.fromkeys(DATASETS, f"max_tokens: {max_tokens}") | dict.fromkeys(TARGETS, scored)
    lines = {
        name: f'  {name}: {{path: "{sources(name)}", text: true, {limit}}}\n'
        for name, limit in limits.items()
    }
    text = RECIPE.format(
        names=" and ".join(TARGETS),
        path=path,
        base=BASE,
        datasets="".join(lines[name] for name in DATASETS),
        targets="".join(lines[name] for name in TARGETS),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path

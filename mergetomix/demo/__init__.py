"""The demos: everything is on the machine already, real data without a download.

On text: packages of Python's own standard library are datasets and targets, a shipped Llama of 1.3 M parameters is the base. On
images: `mergetomix.demo.images`.
"""

from __future__ import annotations

import os
from pathlib import Path

from mergetomix.errors import UserError

DATASETS = ("asyncio", "encodings", "http", "pydoc_data", "unittest", "xml")
TARGETS = ("concurrent", "urllib")
BASE = Path(__file__).parent / "base"

HEAD = """\
# Which packages of Python's standard library should a small code model be fine-tuned on, to be good at {targets}?
# The base is a Llama of 1.3 M parameters, pre-trained on the library's top-level modules alone (see its README).
# This is an ordinary recipe: change it and run `mergetomix run {name}` again; what is in the store is not done twice.

base: {base}

datasets:      # every package is one candidate; every file one document
"""

TAIL = """
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
    """The folder of the standard library."""
    return Path(os.__file__).parent


def sources(package: str) -> str:
    """The glob of a package's own modules."""
    folder = library() / package
    if not folder.is_dir():
        raise UserError(
            f"this Python has no source of {package} at {folder}",
            hint="use a CPython with its library unzipped",
        )
    return str(folder / "**" / "*.py")


def write_recipe(folder: Path, max_tokens: int = 24_000) -> Path:
    """Write the demo's recipe in `folder` and give its path; an existing one is kept, so that a change to it counts."""
    path = folder / "recipe.yaml"
    if path.exists():
        return path
    lines = [HEAD.format(targets=" and ".join(TARGETS), name=path, base=BASE)]
    lines += [
        f'  {name}: {{path: "{sources(name)}", text: true, max_tokens: {max_tokens}}}\n'
        for name in DATASETS
    ]
    lines.append("\ntargets:       # packages that are no candidate\n")
    lines += [
        f'  {name}: {{path: "{sources(name)}", text: true, lines_per_example: 24, score: loss, max_tokens: 10000}}\n'
        for name in TARGETS
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines) + TAIL, encoding="utf-8")
    return path


def write(family: str, folder: Path | None) -> Path:
    """Write the demo's recipe of a family (`text` or `image`) and give its path. Raises UserError for another family."""
    from mergetomix.demo import images

    writers = {"text": write_recipe, "image": images.write_recipe}
    if family not in writers:
        raise UserError(f"--family must be {' or '.join(writers)}, not {family!r}")
    default = "mergetomix-demo" if family == "text" else f"mergetomix-demo-{family}"
    return writers[family](folder or Path(default))

"""What a person looks at: `result.json` and `report.md`. Computes no scores."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from mergetomix.errors import Fault
from mergetomix.recipe.recipe import Recipe, dump
from mergetomix.report.document import to_dict
from mergetomix.report.markdown import model_card, render
from mergetomix.results import Result

__all__ = ["render", "to_dict", "write"]


def write(result: Result, recipe: Recipe) -> Path:
    """Write the resolved recipe, `result.json`, `report.md` and the final model into the run's folder; gives the folder.

    Each file appears whole or not at all.
    """
    folder = begin(recipe)
    final = result.row("final")
    if final is not None and final.path is not None:
        hand_over(Path(final.path), folder / "final", model_card(result, recipe))
    _put(folder / "result.json", json.dumps(to_dict(result), indent=2) + "\n")
    _put(folder / "report.md", render(result, recipe))
    return folder


def begin(recipe: Recipe) -> Path:
    """Make the run's folder and write the resolved recipe into it: `status` finds the store by it while the run goes on."""
    folder = Path(recipe.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _put(folder / "recipe.yaml", dump(recipe))
    return folder


def hand_over(source: Path, to: Path, card: str) -> None:
    """The fine-tune in folder `source` as a folder of the user's own: weights are linked where the disk allows, the rest is
    copied, and a model card says where it comes from. Raises Fault where the disk does not take it."""
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial, copy_function=_link_weights)
    except shutil.Error as error:  # it holds a line for every file
        shutil.rmtree(partial, ignore_errors=True)
        reason = str(error.args[0][0][2]).partition(": ")[0]
        message = f"the final model cannot be written to {to}: {reason}"
        raise Fault(
            message,
            hint=f"it is in {source}; make room, or set another run_dir, and run the same command again",
        ) from None
    (partial / "README.md").unlink(missing_ok=True)
    _put(partial / "README.md", card)
    shutil.rmtree(to, ignore_errors=True)
    partial.rename(to)


def _link_weights(source: str, to: str) -> None:
    if source.endswith(".safetensors"):
        try:
            os.link(source, to)
        except OSError:
            shutil.copy2(source, to)
    else:
        shutil.copy2(source, to)


def _put(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)

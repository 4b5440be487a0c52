"""How many example evaluations a race saves, and how often it picks what evaluating everything picks.

python docs/studies/racing.py table RECIPE WORK/NAME.npz [--set key=value]   every mixture's score of every example; resumable
python docs/studies/racing.py race WORK/NAME.npz ...                         the bootstrap over such tables, printed
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mergetomix.job import evaluate_base, evaluate_proxy, open_job
from mergetomix.progress import Silent
from mergetomix.recipe import load


def table(recipe: str, out: Path, overrides: Sequence[str]) -> None:
    """Score every mixture of a recipe, in the order of an exhaustive search; what the store holds is not scored again."""
    with open_job(load(recipe, [*overrides]), Silent()) as job:
        mixtures = list(job.space())
        base = evaluate_base(job, "select")
        trials = [evaluate_proxy(job, mixture, "select") for mixture in mixtures]
        found = {"mixtures": np.array([str(mixture) for mixture in mixtures])}
        for name, spec in job.recipe.targets.items():
            found[f"{name}/values"] = np.array([trial[name].values for trial in trials])
            found[f"{name}/base"] = np.array(base[name].values)
            found[f"{name}/weights"] = np.array(base[name].weights)
            found[f"{name}/about"] = np.array([spec.weight, base[name].kind == "loss"])
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out, **found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[])
    a = parser.parse_args()
    table(a.recipe, a.out, a.set)


main()

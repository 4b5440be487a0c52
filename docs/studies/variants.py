"""What makes a proxy faithful: one change of a study's recipe at a time, on a seeded sample of its mixtures.

python docs/studies/variants.py RECIPE OUT.json [--num 20] [--seed 0] NAME=KEY=VALUE[;KEY=VALUE...] ...

Every NAME is a variant with the overrides that `--set` would take; `base=` is the recipe as it stands. Fine-tunes on `--num`
mixtures for real (the experts among them) and writes the Spearman correlation between proxies and reals on the select part, by
exponent of the scale and for the experts pooled. How good the models are: the gain over the base of the fine-tune on all data,
mean over targets (loss in nats per token, or score). What the store holds is not done again; OUT.json keeps earlier variants.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from mergetomix import load_recipe, pipeline
from mergetomix.job import open_job
from mergetomix.study.truth import World, gather, mixtures_of

EXPONENTS = (0.5, 0.75, 1.0)


def main() -> None:
    """Read the command line, run every variant, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_intermixed_args()
    found: dict[str, Any] = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    for text in arguments.variants:
        name, _, changes = text.partition("=")
        overrides = [each for each in changes.split(";") if each]
        worlds = worlds_of(arguments.recipe, [*overrides, f"train.seed={arguments.seed}"], arguments.num)
        found[name] = {"set": overrides, "mixtures": len(worlds[0].mixtures), "seed": arguments.seed, **measured(worlds)}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(line(name, found[name]), file=sys.stderr, flush=True)
    print(table(found))


def worlds_of(recipe: str, overrides: Sequence[str], num: int) -> list[World]:
    """The worlds of one variant."""
    with open_job(load_recipe(recipe, overrides)) as job:
        mixtures = mixtures_of(job, num, seed=0)
        every = job.space().mixture(job.space().allowed)
        pipeline.train_experts(job)
        return gather(job, [*(m for m in mixtures if m != every), every], EXPONENTS)


def measured(worlds: Sequence[World]) -> dict[str, Any]:
    """Correlations by target and exponent, those of the pooled experts, and the gain of the fine-tune on all data."""
    by_target = {
        world.target: {
            **{f"{exponent:g}": rank(proxy_M, world) for exponent, proxy_M in world.proxies.items()},
            "pooled": rank(world.pooled_M, world),
        }
        for world in worlds
    }
    means = {key: round(fmean(each[key] for each in by_target.values()), 4) for key in next(iter(by_target.values()))}
    gain = fmean(float(world.real_select_M[-1]) - world.base_select for world in worlds)
    return {"mean": means, "targets": by_target, "gain_all": round(gain, 5)}


def rank(guess_M: Any, world: World) -> float:
    """Spearman correlation with the reals."""
    return round(float(spearmanr(guess_M, world.real_select_M).statistic), 4)


def line(name: str, values: dict[str, Any]) -> str:
    """One row of the table."""
    means = [f"{value:.3f}" for value in values["mean"].values()]
    ranges = [f"{min(v):.2f} to {max(v):.2f}" for v in [[each["1"] for each in values["targets"].values()]]]
    return "| " + " | ".join([name, ", ".join(values["set"]), *means, *ranges, f"{values['gain_all']:+.4f}"]) + " |"


def table(found: dict[str, Any]) -> str:
    """All variants as Markdown."""
    header = ["variant", "set", *[f"k^-{e:g}" for e in EXPONENTS], "pooled", "targets at k^-1", "gain of all data"]
    return "\n".join(["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *(line(*each) for each in found.items())])


if __name__ == "__main__":
    main()

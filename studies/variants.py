"""What makes a proxy faithful: one change of a study's recipe at a time, on a seeded sample.

python studies/variants.py RECIPE OUT.json [--num 20] [--seed 0] NAME=KEY=VALUE[;KEY=VALUE...] ...

Every NAME is a variant with the overrides that `--set` would take; `base=` is the recipe as it
stands. Fine-tunes on `--num` mixtures for real (the experts among them) and writes the Spearman
correlation between proxies and reals on the select part, by exponent of the scale and for the
experts pooled. How good the models are: the gain over the base of the fine-tune on all data, mean
over targets (loss in nats per token, or score). What the store holds is not done again; OUT.json
keeps earlier variants.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from mergetomix import load_recipe
from mergetomix.records import Mixture, Scores
from mergetomix.session.session import open_session
from mergetomix.statistics.opinion_pool import pooled
from mergetomix.study.truth import mixtures_of

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
    found: dict[str, Any] = (
        json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    )
    for text in arguments.variants:
        name, _, changes = text.partition("=")
        overrides = [each for each in changes.split(";") if each]
        values = measured(
            arguments.recipe, [*overrides, f"train.seed={arguments.seed}"], arguments.num
        )
        found[name] = {"set": overrides, "seed": arguments.seed, **values}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(line(name, found[name]), file=sys.stderr, flush=True)
    print(table(found))


def measured(recipe: str, overrides: Sequence[str], num: int) -> dict[str, Any]:
    """Correlations by target and exponent, of the pooled experts too, and the gain of all data."""
    with open_session(load_recipe(recipe, overrides)) as session:
        space = session.spaces.searched
        every = space.mixture(space.allowed)
        mixtures = list(dict.fromkeys([*mixtures_of(session, num, seed=0), every]))
        experts = {
            name: session.evaluations.real(
                session.finetunes.fit(Mixture.union([name]), "variants"), "select"
            )
            for name in space.allowed
        }
        guesses = {
            f"{e:g}": [session.evaluations.proxy(each, "select", e) for each in mixtures]
            for e in EXPONENTS
        }
        guesses["pooled"] = [
            all_pooled(mixture, experts, list(session.recipe.targets)) for mixture in mixtures
        ]
        base = session.evaluations.base("select")
        session.proxies.release()
        reals = {
            mixture: session.evaluations.real(session.finetunes.fit(mixture, "variants"), "select")
            for mixture in mixtures
        }
    targets = {
        name: {key: rank(found, list(reals.values()), name) for key, found in guesses.items()}
        for name in session.recipe.targets
    }
    means = {key: round(fmean(each[key] for each in targets.values()), 4) for key in guesses}
    gain = fmean(higher(reals[every][name]) - higher(base[name]) for name in targets)
    return {
        "num_mixtures": len(mixtures),
        "mean": means,
        "targets": targets,
        "gain_all": round(gain, 5),
    }


def all_pooled(
    mixture: Mixture, experts: Mapping[str, Mapping[str, Scores]], targets: Sequence[str]
) -> dict[str, Scores]:
    """The experts of a mixture pooled, for every target."""
    return {
        name: pooled(mixture, {each: experts[each][name] for each in mixture.datasets})
        for name in targets
    }


def higher(scores: Scores) -> float:
    """The mean, better when higher."""
    return -scores.mean if scores.kind == "loss" else scores.mean


def rank(
    guesses: Sequence[Mapping[str, Scores]], reals: Sequence[Mapping[str, Scores]], target: str
) -> float:
    """Spearman correlation with the reals on one target."""
    pair = ([higher(each[target]) for each in found] for found in (guesses, reals))
    return round(float(spearmanr(*pair).statistic), 4)


def line(name: str, values: dict[str, Any]) -> str:
    """One row of the table."""
    means = [f"{value:.3f}" for value in values["mean"].values()]
    ranges = [
        f"{min(v):.2f} to {max(v):.2f}"
        for v in [[each["1"] for each in values["targets"].values()]]
    ]
    return (
        "| "
        + " | ".join(
            [name, ", ".join(values["set"]), *means, *ranges, f"{values['gain_all']:+.4f}"]
        )
        + " |"
    )


def table(found: dict[str, Any]) -> str:
    """All variants as Markdown."""
    header = [
        "variant",
        "set",
        *[f"k^-{e:g}" for e in EXPONENTS],
        "pooled",
        "targets at k^-1",
        "gain of all data",
    ]
    return "\n".join(
        [
            "| " + " | ".join(header) + " |",
            "|---" * len(header) + "|",
            *(line(*each) for each in found.items()),
        ]
    )


if __name__ == "__main__":
    main()

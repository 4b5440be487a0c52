"""Which way of merging gives the better proxies, against the real fine-tunes of a study.

python studies/methods.py RECIPE STUDY.json OUT.json [--num 32] [--seeds 1 2 3] [--exponents 1.0]
    [--only linear fisher]

Takes the study's mixtures and real scores as recorded, scores the proxies of a seeded sample of
them by every method (the experts among them; methods that take two experts have the pairs alone),
and writes, by seed, target and exponent, the Spearman correlation with the reals on the select
part, and the regret of the method's own pick: the best real score of the sample less that of the
mixture whose proxy is best. What the store holds is not done again; OUT.json keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from mergetomix import load_recipe
from mergetomix.merge import METHODS
from mergetomix.records import Mixture
from mergetomix.session.session import Session, open_session
from mergetomix.stages import pipeline

VARIANTS: Mapping[str, Sequence[str]] = {
    **{name: (f"merge.method={name}",) for name in METHODS},
    "ties, density .5": ("merge.method=ties", "merge.density=0.5"),
    "breadcrumbs, density .5": ("merge.method=breadcrumbs", "merge.density=0.5"),
    "dare_linear, density .9": ("merge.method=dare_linear", "merge.density=0.9"),
}


def main() -> None:
    """Read the command line, score what is missing, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--exponents", type=float, nargs="*", default=[1.0])
    parser.add_argument(
        "--only", nargs="*", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT"
    )
    arguments = parser.parse_args()
    worlds = json.loads(arguments.study.read_text(encoding="utf-8"))["worlds"]
    found: dict[str, Any] = (
        json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    )
    for seed in arguments.seeds:
        mine = [world for world in worlds if world["seed"] == seed]
        for name, changes in ((name, VARIANTS[name]) for name in arguments.only):
            for exponent in arguments.exponents if METHODS[method_of(changes)].scaled else [1.0]:
                key = f"{name}|{exponent:g}|{seed}"
                if key not in found:
                    found[key] = measured(
                        arguments.recipe,
                        [*changes, f"train.seed={seed}"],
                        mine,
                        arguments.num,
                        exponent,
                    )
                    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                    print(key, found[key], file=sys.stderr, flush=True)
    print(table(found))


def method_of(changes: Sequence[str]) -> str:
    """The method among a variant's overrides."""
    return changes[0].partition("=")[2]


def sample(mixtures: Sequence[Any], num: int, most: int | None) -> list[int]:
    """Rows of the experts and of others drawn by a fixed seed, `num` in all, `most` datasets."""
    rows = range(len(mixtures))
    allowed = [row for row in rows if most is None or len(datasets(mixtures[row])) <= most]
    singles = [row for row in allowed if len(datasets(mixtures[row])) == 1]
    others = [row for row in allowed if row not in singles]
    return sorted(
        [*singles, *random.Random(0).sample(others, min(len(others), num - len(singles)))]
    )


def datasets(mixture: Any) -> list[str]:
    """The names of a recorded mixture."""
    return list(mixture)


def measured(
    recipe: str,
    overrides: Sequence[str],
    worlds: Sequence[Mapping[str, Any]],
    num: int,
    exponent: float,
) -> dict[str, Any]:
    """Correlations and regrets by target, means over targets, and seconds of merging a proxy."""
    limit = METHODS[method_of(overrides)].max_experts
    changes = [*overrides, *([] if limit is None else [f"search.max_datasets={limit}"])]
    rows = sample(worlds[0]["mixtures"], num, limit)
    chosen = [datasets(worlds[0]["mixtures"][row]) for row in rows]
    with open_session(load_recipe(recipe, changes)) as session:
        pipeline.train_experts(session)
        started = time.monotonic()
        scores = [scored(session, names, exponent) for names in chosen]
        seconds = time.monotonic() - started
        merge_s, _ = session.store.seconds(
            [session.addresses.proxy(Mixture.union(names), exponent) for names in chosen]
        )
    targets = {
        world["target"]: compared(world, rows, [each[world["target"]] for each in scores])
        for world in worlds
    }
    means = {
        key: round(fmean(each[key] for each in targets.values()), 4)
        for key in ("spearman", "regret")
    }
    cost = {"seconds": round(seconds, 1), "merge_s": round(merge_s / len(rows), 4)}
    return {**means, "num": len(rows), "targets": targets, **cost}


def scored(session: Session, names: Sequence[str], exponent: float) -> dict[str, float]:
    """A proxy's mean score on the select part of each target, better when higher."""
    found = session.evaluations.proxy(Mixture.union(names), "select", exponent)
    return {
        target: -scores.mean if scores.kind == "loss" else scores.mean
        for target, scores in found.items()
    }


def compared(
    world: Mapping[str, Any], rows: Sequence[int], proxies: Sequence[float]
) -> dict[str, float]:
    """How proxies rank the reals of one target, and what choosing by them costs."""
    reals = [world["real_select_M"][row] for row in rows]
    pick = max(range(len(rows)), key=lambda i: proxies[i])
    return {
        "spearman": round(float(spearmanr(proxies, reals).statistic), 4),
        "regret": round(max(reals) - reals[pick], 5),
    }


def table(found: Mapping[str, Any]) -> str:
    """Means over seeds as Markdown, the best correlation first."""
    groups: dict[str, list[Any]] = {}
    for key, values in found.items():
        groups.setdefault(key.rpartition("|")[0], []).append(values)
    lines = []
    for key, values in groups.items():
        name, _, exponent = key.partition("|")
        correlations = [each["spearman"] for each in values]
        means = [
            fmean(correlations),
            fmean(each["regret"] for each in values),
            fmean(each["merge_s"] for each in values),
        ]
        spread = f"{min(correlations):.3f} to {max(correlations):.3f}"
        cells = [
            name,
            exponent,
            str(values[0]["num"]),
            f"{means[0]:.3f}",
            spread,
            f"{means[1]:.4f}",
            f"{means[2]:.3f}",
        ]
        lines.append((-means[0], f"| {' | '.join(cells)} |"))
    header = "| method | exponent | mixtures | Spearman | seeds | regret | seconds a merge |\n"
    header += "|---" * 7 + "|"
    return "\n".join([header, *(line for _, line in sorted(lines))])


if __name__ == "__main__":
    main()

"""Weights through to the end: fine-tunes on searched weights beside the best on equal ones.

python studies/weights.py RECIPE STUDY.json OUT.json [--seeds 1 2 3] [--checks 3]

For every seed and target of a study, whose real fine-tunes on all equal-weight mixtures are
recorded, searches the weights for that target alone, checks a few, fine-tunes on the pick with as
many tokens, and scores it on the report part. The equal-weight model beside it is the best of all
of them by its real score on the select part: 63 fine-tunes for six datasets, where the search pays
for its checks. OUT.json keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from mergetomix.recipe import recipe
from mergetomix.session.session import open_session
from mergetomix.stages import pipeline, search


def main() -> None:
    """Read the command line, search and fine-tune what is missing, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--checks", type=int, default=3)
    arguments = parser.parse_args()
    worlds = json.loads(arguments.study.read_text(encoding="utf-8"))["worlds"]
    found: dict[str, Any] = (
        json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    )
    for world in worlds:
        key = f"{world['target']}|{world['seed']}|{arguments.checks}"
        if world["seed"] in arguments.seeds and key not in found:
            found[key] = compared(arguments.recipe, world, arguments.checks)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(key, found[key], file=sys.stderr, flush=True)
    print(table(found))


def compared(path: Path, world: Mapping[str, Any], checks: int) -> dict[str, Any]:
    """Losses on the report part of searched weights, of equal ones, and of the base."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["targets"] = {world["target"]: raw["targets"][world["target"]]}
    raw["train"]["seed"] = world["seed"]
    raw |= {
        "search": {"space": "weights"},
        "final": {"baselines": []},
        "verify": {"budget": checks, "repeats": 0},
    }
    with open_session(recipe.parse(raw, path.resolve().parent)) as session:
        pipeline.train_experts(session)
        selection = search.search_mixtures(session)
        verification = pipeline.verify_mixtures(session, selection)
        rows = pipeline.finalize(session, selection, verification)
    final = next(row for row in rows if row.kind == "final")
    reals, proxies = (
        np.array(world["real_select_M"]),
        np.array(world["proxies"][str(world["exponent"])]),
    )
    reports = -np.array(world["real_report_M"])  # kept as better when higher
    return {
        "mixture": str(final.mixture),
        "weights": round(final.scores[world["target"]].mean, 6),
        "best_equal": round(float(reports[reals.argmax()]), 6),
        "best_equal_mixture": " + ".join(world["mixtures"][int(reals.argmax())]),
        "equal_by_proxy": round(float(reports[proxies.argmax()]), 6),
        "mean_equal": round(float(reports.mean()), 6),
        "base": round(-float(world["base_report"]), 6),
        "trials": len(selection.trials),
    }


def table(found: Mapping[str, Any]) -> str:
    """Fractions of the base's loss removed, by target, and how often weights are as good."""
    lines = [
        "| target | checks | seeds | weights | best of all equal | equal, by proxy | mean of equal"
        " | at least as good |"
    ]
    lines.append("|---" * 8 + "|")
    keys = sorted({(key.split("|")[0], key.split("|")[2]) for key in found})
    for target, checks in keys:
        some = [
            values
            for key, values in found.items()
            if key.startswith(f"{target}|") and key.endswith(f"|{checks}")
        ]
        columns = ("weights", "best_equal", "equal_by_proxy", "mean_equal")
        gains = {name: [1 - values[name] / values["base"] for values in some] for name in columns}
        shown = [
            f"{fmean(each):+.4f} ({min(each):+.4f} to {max(each):+.4f})" for each in gains.values()
        ]
        wins = sum(a >= b for a, b in zip(gains["weights"], gains["best_equal"], strict=True))
        lines.append(
            f"| {target} | {checks} | {len(some)} | {' | '.join(shown)} | {wins} of {len(some)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""How well proxies rank in unequal worlds, by the rule of their weights.

python studies/unequal/table.py WORLD.json.gz ...

Spearman between proxies and real fine-tunes over the mixtures of several datasets, mean over
targets and seeds, for weights n^g (n the scored tokens) and each exponent of the scale; the experts
pooled with the same weights; and what the proxy's best mixture of all loses (normalised regret on
the report part: 0 is the best mixture, 1 a random pick).

The second table is the regret with 3 checks, by the weights of merges and of the pool; beside it
the best of all real fine-tunes by their select scores, which is what noise leaves to be had without
a model, and a mixture at random.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from mergetomix.records import Mixture, Scores
from mergetomix.statistics import opinion_pool
from mergetomix.statistics.posterior import Array
from mergetomix.study import rivals, truth

World = Mapping[str, Any]
POWERS = ("0", "0.5", "1")
"""Of the scored tokens, to weigh experts by."""


def main() -> None:
    """Prints one table for each world, and the mean of all."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for path in map(Path, sys.argv[1:]):
        worlds = json.loads(gzip.decompress(path.read_bytes()))
        done = [world for world in worlds.values() if world.get("proxies") and complete(world)]
        if done:
            found[path.name.removesuffix(".json.gz")] = rules_of(done)
    several_checks: dict[str, dict[str, float]] = {}
    for path in map(Path, sys.argv[1:]):
        worlds = json.loads(gzip.decompress(path.read_bytes()))
        done = [world for world in worlds.values() if world.get("proxies") and complete(world)]
        if done:
            several_checks[path.name.removesuffix(".json.gz")] = with_checks(done)
    rules = sorted({rule for own in found.values() for rule in own})
    names = list(found)
    print(f"| weights, exponent | {' | '.join(names)} | mean |")
    print("|---" * (len(names) + 2) + "|")
    for rule in rules:
        own = [found[name][rule] for name in names if rule in found[name]]
        cells = [f"{r:.2f}, {regret:.2f}" for r, regret in own]
        mean = ", ".join(f"{fmean(column):.2f}" for column in zip(*own, strict=True))
        print(f"| {rule} | {' | '.join(cells)} | {mean} |")
    print(f"\n| merges, pool | {' | '.join(names)} | mean |")
    print("|---" * (len(names) + 2) + "|")
    for way in next(iter(several_checks.values())):
        values = [several_checks[name][way] for name in names]
        cells = [f"{value:.3f}" for value in values]
        print(f"| {way} | {' | '.join(cells)} | {fmean(values):.3f} |")


def with_checks(worlds: Sequence[World], num: int = 3) -> dict[str, float]:
    """Returns the mean normalised regret with checks, by the weights of merges and pool."""
    found: dict[str, list[float]] = {}
    for world in worlds:
        for target in world["targets"]:
            for merge_power in POWERS:
                for pool_power in (0.0, 0.5, 1.0):
                    own = as_world(world, target, merge_power, pool_power)
                    pick = rivals.checked(own, num)[-1].pick
                    way = f"g {merge_power}, g {pool_power:g}"
                    found.setdefault(way, []).append(regret(own, pick))
            best = int(own.real_select_M.argmax())
            found.setdefault("best by select", []).append(regret(own, best))
    return {way: fmean(values) for way, values in found.items()}


def regret(world: truth.World, row: int) -> float:
    """Returns what a mixture loses on the report part: 0 is the best, 1 the mean of all."""
    report_M = world.real_report_M
    return float((report_M.max() - report_M[row]) / (report_M.max() - report_M.mean()))


def as_world(world: World, target: str, merge_power: str, pool_power: float) -> truth.World:
    """Returns one target's world with the weights of merges and of the pool."""
    keys = sorted(world["real"])
    sizes = {name: own["scored"] for name, own in world["datasets"].items()}
    mixtures = tuple(
        Mixture.union(key.split("+"), {n: sizes[n] ** float(merge_power) for n in key.split("+")})
        for key in keys
    )
    select, report = (
        np.array([score(world, world["real"][key][part], part, target) for key in keys])
        for part in ("select", "report")
    )
    proxies = {
        float(rule.split("|")[1]): np.array(
            [signed(world, own[key][target], target) for key in keys]
        )
        for rule, own in world["proxies"].items()
        if rule.split("|")[0] == merge_power
    }
    exponents = {key: each for key, each in proxies.items() if key >= 0.5}
    return truth.World(
        seed=0,
        target=target,
        kind=world["kinds"][target],
        mixtures=mixtures,
        proxies=exponents,
        exponent=1.0,
        pooled_M=np.array([pooled(world, key, pool_power, target) for key in keys]),
        proxy_report_M=report,
        real_select_M=select,
        real_report_M=report,
        base_select=score(world, world["base"]["select"], "select", target),
        base_report=score(world, world["base"]["report"], "report", target),
        train_tokens_M=np.array([world["real"][key]["tokens"] for key in keys], dtype=float),
        expert_tokens=float(sum(world["real"][key]["tokens"] for key in keys if "+" not in key)),
        eval_tokens=1000,
    )


def complete(world: World) -> bool:
    """Whether every mixture of a world was fine-tuned, and scored by every rule."""
    num = 2 ** len(world["datasets"]) - 1
    powers = {rule.split("|")[0] for rule in world["proxies"]}
    every = all(len(own) == num for own in world["proxies"].values())
    return len(world["real"]) == num and powers == set(POWERS) and every


def rules_of(worlds: Sequence[World]) -> dict[str, tuple[float, float]]:
    """Returns the mean rank correlation and the mean regret of every rule."""
    found: dict[str, list[tuple[float, float]]] = {}
    for world in worlds:
        for target in world["targets"]:
            keys = sorted(world["real"])
            several = [place for place, key in enumerate(keys) if "+" in key]
            select, report = (
                np.array([score(world, world["real"][key][part], part, target) for key in keys])
                for part in ("select", "report")
            )
            for rule, own in world["proxies"].items():
                proxy = np.array([signed(world, own[key][target], target) for key in keys])
                found.setdefault(f"g {rule.replace('|', ', e ')}", []).append(
                    judged(proxy, select, report, several)
                )
            for power in POWERS:
                pool = np.array([pooled(world, key, float(power), target) for key in keys])
                found.setdefault(f"pooled g {power}", []).append(
                    judged(pool, select, report, several)
                )
    return {
        rule: (fmean(r for r, _ in own), fmean(x for _, x in own)) for rule, own in found.items()
    }


def score(world: World, scores: World, part: str, target: str) -> float:
    """Returns the mean of one model's scores on a target, better when higher."""
    weights = world["weights"][part][target]
    return signed(world, float(np.average(scores[target], weights=weights)), target)


def signed(world: World, mean: float, target: str) -> float:
    """Returns a mean score, better when higher."""
    return -mean if world["kinds"][target] == "loss" else mean


def pooled(world: World, key: str, power: float, target: str) -> float:
    """Returns what the experts of a mixture give if their probabilities are averaged."""
    names, weights = key.split("+"), tuple(world["weights"]["select"][target])
    sizes = {name: world["datasets"][name]["scored"] ** power for name in names}
    experts = {
        name: Scores(world["kinds"][target], tuple(world["real"][name]["select"][target]), weights)
        for name in names
    }
    found = opinion_pool.pooled(Mixture.union(names, sizes), experts)
    return -found.mean if found.kind == "loss" else found.mean


def judged(
    proxy: Array, select: Array, report: Array, several: Sequence[int]
) -> tuple[float, float]:
    """Returns the rank correlation over mixtures of several, and the regret of the best."""
    rank = float(stats.spearmanr(proxy[several], select[several]).statistic)
    best, picked = report.max(), report[int(proxy.argmax())]
    return rank, float((best - picked) / (best - report.mean()))


if __name__ == "__main__":
    main()

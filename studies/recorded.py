"""Worlds that `worlds.py` gathered, as a study has them: one for each target and seed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergetomix.records import Mixture, Scores, Weighting
from mergetomix.stages.expectations import example_variance, on_examples
from mergetomix.statistics import opinion_pool
from mergetomix.statistics.noise import OnExamples
from mergetomix.statistics.posterior import Array, how_much_longer
from mergetomix.study import truth

POWERS: Mapping[Weighting, float] = {"equal": 0.0, "sqrt_tokens": 0.5, "tokens": 1.0}
Gathered = Mapping[str, Any]


def read(path: Path) -> dict[str, Gathered]:
    """Returns the gathered worlds of a file by seed, those that are whole."""
    found = json.loads(gzip.decompress(path.read_bytes()))
    return {seed: world for seed, world in found.items() if is_whole(world)}


def weighting_of(path: Path) -> Weighting:
    """Returns the weights to take a suite's merges by: the default's, or those there are."""
    (first, *_) = read(path).values()
    return "sqrt_tokens" if "0.5|1" in first["proxies"] else "equal"


def is_whole(world: Gathered) -> bool:
    """Whether every mixture was fine-tuned, and scored by every rule that some were scored by."""
    num = 2 ** len(world["datasets"]) - 1
    rules = world["proxies"].values()
    return bool(rules) and len(world["real"]) == num and all(len(own) == num for own in rules)


def worlds(path: Path, weighting: Weighting) -> list[truth.World]:
    """Returns the worlds of a file, with merges by some weights first; scores are better higher."""
    return [
        each for seed, own in read(path).items() for each in worlds_of(own, int(seed), weighting)
    ]


def worlds_of(gathered: Gathered, seed: int, weighting: Weighting) -> Iterator[truth.World]:
    """Yields the worlds of one seed, one for each target."""
    keys = sorted(gathered["real"], key=lambda key: (key.count("+"), key))
    sizes = {name: own["scored"] for name, own in gathered["datasets"].items()}
    own = merged_by(keys, sizes, weighting)
    for target in gathered["targets"]:
        sign = -1.0 if gathered["kinds"][target] == "loss" else 1.0
        base = {part: scores_of(gathered, "base", part, target) for part in ("select", "report")}
        reals = {
            part: [scores_of(gathered, key, part, target) for key in keys]
            for part in ("select", "report")
        }
        pools = [pool_of(gathered, mixture, target, sizes) for mixture in own]
        proxies = by_example(gathered, keys, target) or reals["select"]
        found = means(gathered, keys, target, sign)
        power = POWERS[weighting]
        exponents = {e: each for (g, e), each in found.items() if g == power and e >= 0.5}
        others = {name: g for name, g in POWERS.items() if name != weighting and (g, 1.0) in found}
        yield truth.World(
            seed=seed,
            target=target,
            kind=base["select"].kind,
            mixtures=own,
            proxies=exponents,
            exponent=1.0,
            pooled_M=sign * np.array([each.mean for each in pools]),
            proxy_report_M=sign * np.array([each.mean for each in reals["report"]]),
            real_select_M=sign * np.array([each.mean for each in reals["select"]]),
            real_report_M=sign * np.array([each.mean for each in reals["report"]]),
            base_select=sign * base["select"].mean,
            base_report=sign * base["report"].mean,
            train_tokens_M=np.array([gathered["real"][key]["tokens"] for key in keys], float),
            expert_tokens=float(sum(gathered["real"][key]["tokens"] for key in sizes)),
            eval_tokens=int(sum(base["select"].weights)),
            weighting=weighting,
            weighted={name: found[g, 1.0] for name, g in others.items()},
            longer_M=longer_of(gathered, own),
            **noise_of(own, proxies, pools, reals, base),
        )


def merged_by(
    keys: Sequence[str], sizes: Mapping[str, float], weighting: Weighting
) -> tuple[Mixture, ...]:
    """Returns the mixtures with their experts' weights."""
    power = POWERS[weighting]
    names = (key.split("+") for key in keys)
    return tuple(Mixture.union(each, {n: sizes[n] ** power for n in each}) for each in names)


def longer_of(gathered: Gathered, mixtures: Sequence[Mixture]) -> Array | None:
    """Returns how much longer than its experts each fine-tune was trained, None if equally long."""
    names = sorted(gathered["datasets"])
    tokens = {key: own["tokens"] for key, own in gathered["real"].items()}
    if tokens["+".join(names)] < 1.1 * max(tokens[name] for name in names):
        return None
    is_in_MN = np.array([[float(name in m.datasets) for name in names] for m in mixtures])
    return how_much_longer(is_in_MN, np.array([float(tokens[name]) for name in names]))


def scores_of(gathered: Gathered, key: str, part: str, target: str) -> Scores:
    """Returns the scores of the base or of a mixture's real fine-tune."""
    own = gathered["base"] if key == "base" else gathered["real"][key]
    weights = tuple(gathered["weights"][part][target])
    return Scores(gathered["kinds"][target], tuple(own[part][target]), weights)


def by_example(gathered: Gathered, keys: Sequence[str], target: str) -> list[Scores] | None:
    """Returns the scores of the proxies with equal weights, None if only means were kept."""
    kept = gathered.get("by_example") or {}
    weights = tuple(gathered["weights"]["select"][target])
    if len(kept) < len(keys):
        return None
    kind = gathered["kinds"][target]
    return [Scores(kind, tuple(kept[key][target]), weights) for key in keys]


def pool_of(
    gathered: Gathered, mixture: Mixture, target: str, sizes: Mapping[str, float]
) -> Scores:
    """Returns the scores of a mixture's experts pooled by their shares of the union's tokens."""
    experts = {name: scores_of(gathered, name, "select", target) for name in mixture.datasets}
    return opinion_pool.pooled(Mixture.union(mixture.datasets, sizes), experts)


def means(
    gathered: Gathered, keys: Sequence[str], target: str, sign: float
) -> dict[tuple[float, float], Array]:
    """Returns the proxies' scores by power of the tokens and exponent of the scale."""
    found = {}
    for rule, own in gathered["proxies"].items():
        power, exponent = map(float, rule.split("|"))
        found[power, exponent] = sign * np.array([own[key][target] for key in keys])
    return found


def noise_of(
    mixtures: Sequence[Mixture],
    proxies: Sequence[Scores],
    pools: Sequence[Scores],
    reals: Mapping[str, Sequence[Scores]],
    base: Mapping[str, Scores],
) -> dict[str, Any]:
    """Returns what the examples add to the scores, in the unit of the scores.

    Of worlds without their proxies by example the reals stand for them.
    """
    names = sorted({name for mixture in mixtures for name in mixture.datasets})
    weights_MN = np.array([[m.as_dict().get(name, 0.0) for name in names] for m in mixtures])
    select = base["select"]
    unit = select.mean if select.kind == "loss" else 1.0
    ratio = select.num_examples / base["report"].num_examples
    found = on_examples(weights_MN, proxies, pools, select, ratio)
    lies_apart = pools if proxies is reals["select"] else proxies
    check_M = [
        unit**2 * example_variance(real, other, select) if len(mixture) > 1 else 0.0
        for mixture, real, other in zip(mixtures, reals["select"], lies_apart, strict=True)
    ]
    root_MR = unit * truth.main_columns(found.root_MR)
    examples = OnExamples(root_MR, unit**2 * found.unchecked, ratio)
    return {"examples": examples, "check_M": np.array(check_M)}


def regret(world: truth.World, row: int) -> float:
    """Returns what a mixture loses on the report part: 0 is the best, 1 the mean of all."""
    report_M = world.real_report_M
    spread = float(report_M.max() - report_M.mean())
    return float(report_M.max() - report_M[row]) / spread if spread > 0 else 0.0

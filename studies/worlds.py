"""Every mixture of a recipe for real by example, and its proxies by many rules.

python studies/worlds.py RECIPE OUT.json.gz [--seeds 1 2] [--powers 0 0.5 1] [--exponents 1 0.5 0]

Kept by example are the real fine-tunes on both parts of every target, which a study's table has as
means alone, and the proxies with equal weights at the recipe's exponent on the select part; as
means on the select part the proxies with weights n^g (n the scored tokens of a dataset) at each
exponent of the scale. OUT is written after every mixture; what it or the store holds is not done
again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mergetomix.recipe import recipe as recipes
from mergetomix.records import Mixture, Scores
from mergetomix.session.session import Session, open_session
from mergetomix.showing import listening
from mergetomix.stages import pipeline

PARTS = ("select", "report")
DIGITS = 6


def main() -> None:
    """Reads the command line and gathers every seed's world."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--powers", type=float, nargs="*", default=[0.0, 0.5, 1.0])
    parser.add_argument("--exponents", type=float, nargs="*", default=[1.0, 0.5, 0.0])
    given = parser.parse_args()
    worlds: dict[str, Any] = {}
    if given.out.exists():
        worlds = json.loads(gzip.decompress(given.out.read_bytes()))
    raw = yaml.safe_load(given.recipe.read_text(encoding="utf-8"))
    for seed in given.seeds:
        raw["train"]["seed"] = seed
        checked = recipes.parse(raw, given.recipe.resolve().parent)
        with listening() as listener, open_session(checked, listener) as session:
            world = worlds.setdefault(str(seed), {"real": {}, "proxies": {}})
            world.setdefault("by_example", {})
            world |= about(session)
            for _ in gather(session, world, given.powers, given.exponents):
                write(worlds, given.out)


def write(worlds: Mapping[str, Any], out: Path) -> None:
    """Writes all worlds, the same bytes for the same numbers."""
    text = json.dumps(worlds, sort_keys=True, separators=(",", ":"))
    out.write_bytes(gzip.compress(text.encode(), mtime=0))


def about(session: Session) -> dict[str, Any]:
    """Returns what is not a score: sizes of the datasets, weights of the examples."""
    inputs = session.inputs
    scored, sizes, tokens = inputs.scored_tokens, inputs.sizes, inputs.tokens
    return {
        "datasets": {
            name: {"scored": scored[name], "tokens": tokens[name], "sequences": sizes[name]}
            for name in sorted(inputs.candidates)
        },
        "targets": sorted(session.recipe.targets),
    }


def gather(
    session: Session, world: dict[str, Any], powers: Sequence[float], exponents: Sequence[float]
) -> Any:
    """Fills a world, and yields after each thing that is worth keeping."""
    pipeline.train_experts(session)
    yield
    base = {part: session.evaluations.base(part) for part in PARTS}
    world["base"] = {
        part: {name: rounded(scores) for name, scores in found.items()}
        for part, found in base.items()
    }
    world["weights"] = {
        part: {name: list(scores.weights) for name, scores in found.items()}
        for part, found in base.items()
    }
    world["kinds"] = {name: scores.kind for name, scores in base["select"].items()}
    subsets = [tuple(mixture.datasets) for mixture in session.spaces.subsets]
    for names in sorted(subsets, key=len):
        key = "+".join(names)
        if key in world["real"]:
            continue
        record = session.finetunes.fit(Mixture.union(names), "study")
        found = {part: session.evaluations.real(record, part) for part in PARTS}
        world["real"][key] = {
            part: {name: rounded(scores) for name, scores in own.items()}
            for part, own in found.items()
        }
        world["real"][key]["tokens"] = record.num_tokens
        print(f"real {key}", file=sys.stderr, flush=True)
        yield
    sizes = session.inputs.scored_tokens
    for power in powers:
        for exponent in exponents:
            kept = world["proxies"].setdefault(f"{power:g}|{exponent:g}", {})
            mixtures = {
                "+".join(names): Mixture.union(names, {n: sizes[n] ** power for n in names})
                for names in subsets
            }
            for key, mixture in mixtures.items():
                scores = session.evaluations.proxy(mixture, "select", exponent)
                if power == 0 and exponent == session.recipe.merge.scale.exponent:
                    found = {name: rounded(each) for name, each in scores.items()}
                    world["by_example"][key] = found
                kept[key] = {name: round(each.mean, DIGITS) for name, each in scores.items()}
            print(f"proxies {power:g} {exponent:g}", file=sys.stderr, flush=True)
            yield


def rounded(scores: Scores) -> list[float]:
    """Returns the values of scores with as many digits as the arithmetic has."""
    return [round(value, DIGITS) for value in scores.values]


if __name__ == "__main__":
    main()

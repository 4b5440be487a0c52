"""Search over weights: every strategy at the same price, on the weights of twelve datasets.

python studies/simplex.py run WORK SEED    with the experts of `search.py table WORK SEED`;
                                                writes search/simplex-seedSEED.json
python studies/simplex.py show             the table of all seeds that are there

Nothing says which weights are best, so a search is measured by the way from the mean of random
weights (0) to the best that any search of the same target and seed found (1).
"""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from many import Live, timed
from search import DATASETS, EXPONENT, OUT, TARGETS, recipe_text

from mergetomix.mixtures.spaces import Simplex
from mergetomix.objectives.objective import Objective
from mergetomix.recipe import recipe
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Ask, Options, Setting
from mergetomix.session.session import open_session

STRATEGIES: dict[str, tuple[str, Options]] = {
    "gradient": ("gradient", Options()),
    "regression": ("regression", Options()),
    "regression, GP": ("regression", Options(regressor="gp")),
    "TPE": ("optuna", Options(sampler="tpe")),
    "CMA-ES": ("optuna", Options(sampler="cmaes")),
    "Optuna's GP": ("optuna", Options(sampler="gp")),
}
SEARCH_SEEDS = (0, 1, 2)
BUDGET, NUM_RANDOM = 40, 64
SPACE = Simplex(DATASETS, min_share=0.01)


def run(work: Path, seed: int) -> None:
    """Let every strategy search the weights for each target."""
    found: list[dict[str, Any]] = []
    means: dict[str, float] = {}
    for target in TARGETS:
        raw = yaml.safe_load(recipe_text(work.resolve(), seed))
        raw["targets"] = {target: raw["targets"][target]}
        with open_session(recipe.parse(raw)) as session:
            live = Live(session, session.evaluations.base("select"))
            drawn = SPACE.sample(NUM_RANDOM, 0)
            means[target] = round(
                fmean(live.told(Ask(mixture), (target,)).objective for mixture in drawn), 6
            )
            for name, search_seed in product(STRATEGIES, SEARCH_SEEDS):
                found.append(one_search(live, target, name, search_seed))
                print(*found[-1].values(), flush=True)
    lines = ",\n".join(json.dumps(line) for line in found)
    about = {"seed": seed, "budget": BUDGET, "random": means}
    (OUT / f"simplex-seed{seed}.json").write_text(
        json.dumps(about)[:-1] + f', "searches": [\n{lines}\n]}}\n'
    )


def one_search(live: Live, target: str, name: str, search_seed: int) -> dict[str, Any]:
    """How one search went. `own_s` is the strategy's own time, evaluations left out."""
    kind, options = STRATEGIES[name]
    wanted = Objective({target: 1.0})
    strategy = build(kind, Setting(SPACE, wanted, EXPONENT, search_seed, BUDGET, True, options))
    own_s, passes, best, mixture = 0.0, 0, float("-inf"), ""
    while asked := strategy.ask():
        told = live.told(asked[0], (target,))
        passes += asked[0].cost
        if told.objective > best:
            best, mixture = told.objective, str(told.mixture)
        own_s, _ = timed(own_s, partial(strategy.tell, told))
    about = {"target": target, "strategy": name, "search_seed": search_seed, "passes": passes}
    return {**about, "best": round(best, 6), "own_s": round(own_s, 2), "mixture": mixture}


def show() -> None:
    """What each strategy reached by target: the mean over searches, and the least."""
    runs = [json.loads(path.read_text()) for path in sorted(OUT.glob("simplex-seed*.json"))]
    print(
        "| target | searches | "
        + " | ".join(STRATEGIES)
        + " |\n"
        + "|---" * (len(STRATEGIES) + 2)
        + "|"
    )
    for target in TARGETS:
        cells = []
        for name in STRATEGIES:
            reached = [each for run in runs for each in _reached(run, target, name)]
            cells.append(f"{fmean(reached):.3f} ({min(reached):.3f})")
        print(f"| {target} | {len(runs) * len(SEARCH_SEEDS)} | {' | '.join(cells)} |")


def _reached(run: dict[str, Any], target: str, name: str) -> list[float]:
    top = max(line["best"] for line in run["searches"] if line["target"] == target)
    mean = run["random"][target]
    some = [
        line["best"]
        for line in run["searches"]
        if (line["target"], line["strategy"]) == (target, name)
    ]
    return [(best - mean) / (top - mean) for best in some]


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "run":
        run(Path(rest[0]), int(rest[1]))
    else:
        show()

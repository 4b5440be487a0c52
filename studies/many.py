"""Search among many datasets: what grows with their number, and who finds the best at one price.

python studies/many.py run WORK NUM SEED    with NUM files of the standard library;
                                                 writes search/many-NUM-seedSEED.json
python studies/many.py show                 the tables of all that is there
python studies/many.py plot                 search/many.svg: seconds and memory by number

Datasets are the largest files inside packages, none of the targets' own; the base is the demo's,
which saw top-level modules alone. WORK holds the experts and every score met. No search can be
compared with all mixtures here: what counts is the best objective that each strategy finds, as a
share of the way from the mean of random mixtures to the best that anyone found.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from mergetomix.demo.text import BASE, library, sources
from mergetomix.mixtures.spaces import Subsets
from mergetomix.objectives.objective import Objective
from mergetomix.progress import Silent
from mergetomix.recipe.recipe import load
from mergetomix.records import Mixture, Scores, gain
from mergetomix.search.budgets import default_budget
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Ask, Setting, Told
from mergetomix.session.session import Session, open_session

TARGETS = ("concurrent", "logging", "urllib")
EXPONENT = 0.75
OUT = Path(__file__).parent / "search"
STRATEGIES = ("gradient", "greedy", "regression", "optuna")
SEARCH_SEEDS = (0, 1)
NUM_RANDOM = 64
OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in TARGETS},
    "mean of all": TARGETS,
}
SKIPPED = {"test", "tests", "idle_test", "site-packages", "__pycache__", *TARGETS}


def files(num: int) -> dict[str, Path]:
    """The largest files inside packages, by a name that a dataset may have."""
    found = [path for path in library().rglob("*.py") if len(path.relative_to(library()).parts) > 1]
    kept = [path for path in found if not SKIPPED & set(path.relative_to(library()).parts)]
    kept.sort(key=lambda path: (-path.stat().st_size, str(path)))
    return {
        ".".join(path.relative_to(library()).with_suffix("").parts).lstrip("_"): path
        for path in kept[:num]
    }


def recipe_text(work: Path, num: int, seed: int) -> str:
    """The recipe of a number of datasets and a seed."""
    lines = [f"base: {BASE}\n", "datasets:\n"]
    lines += [
        f'  {name}: {{path: "{path}", text: true, max_tokens: 8000, seed: {seed}}}\n'
        for name, path in files(num).items()
    ]
    options = f"text: true, lines_per_example: 24, score: loss, max_tokens: 4000, seed: {seed}"
    lines += [
        "targets:\n",
        *(f'  {name}: {{path: "{sources(name)}", {options}}}\n' for name in TARGETS),
    ]
    lines.append(
        "train: {method: full, learning_rate: 1.5e-4, batch_size: 4, max_length: 256, "
        f"seed: {seed}}}\n"
    )
    lines.append(
        f"merge: {{scale: {{exponent: {EXPONENT}}}}}\nselect_fraction: 0.5\n"
        "device: cpu\nbatch_tokens: 4096\n"
    )
    return "".join(lines) + f"store: {work / 'store'}\nrun_dir: {work / 'run'}\n"


def peak_mib() -> float:
    """The most memory that this process had so far (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class Live:
    """Experts merged and scored on demand; the store keeps what was met."""

    session: Session
    base: Mapping[str, Scores]
    passes_s: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    def told(self, asked: Ask, targets: tuple[str, ...]) -> Told:
        """The answer to what a strategy asks; notes the seconds of those that the store lacks."""
        held = (
            self.session.store.scores(
                self.session.addresses.proxy(asked.mixture), self.addresses[0], "select"
            )
            is not None
        )
        started = time.monotonic()
        scores = self.session.evaluations.proxy(asked.mixture, "select")
        gradients = None
        if asked.gradient:
            found = self.session.gradients.of(asked.mixture, self.base)
            gradients = {name: found[name] for name in targets}
        if not held:
            self.passes_s[asked.gradient].append(time.monotonic() - started)
        values = {name: gain(scores[name], self.base[name]) for name in targets}
        return Told(asked.mixture, fmean(values.values()), values, gradients)

    @property
    def addresses(self) -> list[str]:
        """Of the targets' select parts."""
        return [scorer.address for scorer in self.session.inputs.targets("select").values()]


def one_search(
    live: Live, objective: str, name: str, search_seed: int, budget: int
) -> dict[str, Any]:
    """How one search went. `own_s` is the strategy's own time, evaluations left out."""
    space, targets = Subsets(live.session.spaces.searched.allowed), OBJECTIVES[objective]
    wanted = Objective(dict.fromkeys(targets, 1.0))
    setting = Setting(space, wanted, EXPONENT, search_seed, budget, True)
    started = time.monotonic()
    strategy = build(name, setting)
    own_s, passes, best, best_mixture = time.monotonic() - started, 0, float("-inf"), ""
    while asked := strategy.ask():
        told = live.told(asked[0], targets)
        passes += asked[0].cost
        if told.objective > best:
            best, best_mixture = told.objective, str(told.mixture)
        own_s, _ = timed(own_s, partial(strategy.tell, told))
    about = {"objective": objective, "strategy": name, "search_seed": search_seed, "passes": passes}
    return {**about, "best": round(best, 6), "own_s": round(own_s, 2), "mixture": best_mixture}


def timed(before: float, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds with those of this work, and what it gives."""
    started = time.monotonic()
    found = work()
    return before + time.monotonic() - started, found


def run(work: Path, num: int, seed: int) -> None:
    """Train the experts, measure what one evaluation takes, and let every strategy search."""
    work = work.resolve() / f"{num}-{seed}"
    work.mkdir(parents=True, exist_ok=True)
    (work / "recipe.yaml").write_text(recipe_text(work, num, seed))
    with open_session(load(work / "recipe.yaml"), Silent()) as session:
        names = session.spaces.searched.allowed
        experts_s = [
            session.finetunes.fit(Mixture.union([name]), "experts").train_s for name in names
        ]
        started, before = time.monotonic(), peak_mib()
        live = Live(session, session.evaluations.base("select"))
        session.proxies.bank()
        about = {
            "num": num,
            "seed": seed,
            "budget": default_budget("gradient", num),
            "experts_s": round(sum(experts_s), 1),
        }
        about |= {
            "bank_s": round(time.monotonic() - started, 2),
            "bank_mib": round(peak_mib() - before),
        }
        tokens = {
            name: scorer.num_tokens for name, scorer in session.inputs.targets("select").items()
        }
        drawn = Subsets(names).sample(NUM_RANDOM, 0)
        random = {
            name: [live.told(Ask(m), targets).objective for m in drawn]
            for name, targets in OBJECTIVES.items()
        }
        found = []
        for objective, name, search_seed in product(OBJECTIVES, STRATEGIES, SEARCH_SEEDS):
            found.append(one_search(live, objective, name, search_seed, about["budget"]))
            print(*found[-1].values(), flush=True)
        seconds = {
            "value_s": median(live.passes_s[False]),
            "gradient_s": median(live.passes_s[True]),
            "peak_mib": peak_mib(),
        }
        about |= {"tokens": tokens, **{key: round(value, 3) for key, value in seconds.items()}}
        means = {name: round(fmean(values), 6) for name, values in random.items()}
    lines = ",\n".join(json.dumps(line) for line in found)
    text = json.dumps({**about, "random": means})[:-1] + f', "searches": [\n{lines}\n]}}\n'
    OUT.mkdir(exist_ok=True)
    (OUT / f"many-{num}-seed{seed}.json").write_text(text)


def records() -> list[dict[str, Any]]:
    """All runs that are there."""
    return [json.loads(path.read_text()) for path in sorted(OUT.glob("many-*.json"))]


def reached(run: Mapping[str, Any], objective: str, line: Mapping[str, Any]) -> float:
    """How far a search came from the mean of random mixtures (0) to the best found (1)."""
    top = max(each["best"] for each in run["searches"] if each["objective"] == objective)
    mean = run["random"][objective]
    return float((line["best"] - mean) / (top - mean))


def show() -> None:
    """What each strategy reached by datasets and objective, then what the searches took."""
    runs = sorted(records(), key=lambda run: (run["num"], run["seed"]))
    print(
        "| datasets | budget | objective | "
        + " | ".join(STRATEGIES)
        + " |\n"
        + "|---" * (len(STRATEGIES) + 3)
        + "|"
    )
    for num, objective in product(sorted({run["num"] for run in runs}), OBJECTIVES):
        cells = []
        for name in STRATEGIES:
            some = [
                reached(run, objective, line)
                for run in runs
                for line in run["searches"]
                if (run["num"], line["objective"], line["strategy"]) == (num, objective, name)
            ]
            cells.append(f"{fmean(some):.3f} ({min(some):.3f} to {max(some):.3f})")
        print(f"| {num} | {default_budget('gradient', num)} | {objective} | {' | '.join(cells)} |")
    print(
        "\n| datasets | experts | bank | value | gradient | gradient strategy itself | one search "
        "| peak memory |\n" + "|---" * 8 + "|"
    )
    for run in runs:
        own = own_s(run)
        whole = own + search_s(run)
        cells = [
            f"{run['experts_s']:.0f} s",
            f"{run['bank_s']:.1f} s",
            f"{run['value_s']:.3f} s",
            f"{run['gradient_s']:.3f} s",
        ]
        cells += [f"{own:.1f} s", f"{whole:.0f} s", f"{run['peak_mib']:.0f} MiB"]
        print(f"| {run['num']} (seed {run['seed']}) | {' | '.join(cells)} |")


def search_s(run: Mapping[str, Any]) -> float:
    """Seconds of one gradient search's evaluations; gradients take three fifths of its passes."""
    gradients = int(0.6 * run["budget"]) // 3
    return float(gradients * run["gradient_s"] + (run["budget"] - 3 * gradients) * run["value_s"])


def plot() -> None:
    """Seconds and memory by number of datasets, medians over expert seeds."""
    import matplotlib.pyplot as plt

    runs = records()
    nums = sorted({run["num"] for run in runs})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for label, of in (
        ("experts", lambda run: run["experts_s"]),
        ("evaluations of a search", search_s),
        ("model and choice", own_s),
        ("reading the bank", lambda run: run["bank_s"]),
    ):
        left.plot(nums, by_num(runs, of), "o-", label=label)
    left.set(xlabel="datasets", ylabel="seconds", xscale="log", yscale="log")
    left.set_xticks(nums, [str(num) for num in nums])
    left.minorticks_off()
    left.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    right.plot(nums, by_num(runs, lambda run: run["peak_mib"]), "o-")
    right.set(xlabel="datasets", ylabel="peak memory, MiB", ylim=(0, None), xticks=nums)
    figure.tight_layout()
    figure.savefig(OUT / "many.svg")


def by_num(runs: list[dict[str, Any]], of: Callable[[Mapping[str, Any]], float]) -> list[float]:
    """The median of something over the runs with each number of datasets."""
    return [
        median(of(run) for run in runs if run["num"] == num)
        for num in sorted({run["num"] for run in runs})
    ]


def own_s(run: Mapping[str, Any]) -> float:
    """Seconds of one search that the gradient strategy itself takes."""
    return median(line["own_s"] for line in run["searches"] if line["strategy"] == "gradient")


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "run":
        run(Path(rest[0]), int(rest[1]), int(rest[2]))
    else:
        {"show": show, "plot": plot}[command]()

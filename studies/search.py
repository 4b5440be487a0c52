"""How close strategies come to the best of 4,095 mixtures of twelve datasets, and at what price.

python studies/search.py table WORK 1      every mixture's proxy on every target, for experts
                                                of seed 1; resumable
python studies/search.py compare WORK 1    each strategy against that table, with real
                                                gradients; after `table`
python studies/search.py show              the tables of all seeds that are there

Twelve packages of Python's standard library are the datasets, others the targets; the base is the
demo's. WORK holds the experts and the gradients met so far. A strategy's regret is
(best - found) / (best - mean), over all mixtures.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from mergetomix import merge
from mergetomix.demo.text import BASE, sources
from mergetomix.mixtures.spaces import Subsets
from mergetomix.objectives.objective import Objective
from mergetomix.progress import Silent
from mergetomix.recipe.recipe import load
from mergetomix.records import Mixture
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Ask, Setting, Told
from mergetomix.session.session import Session, open_session

DATASETS = (
    "asyncio", "ctypes", "distutils", "email", "encodings", "http",
    "idlelib", "lib2to3", "pydoc_data", "tkinter", "unittest", "xml",
)  # fmt: skip
TARGETS = ("concurrent", "logging", "multiprocessing", "urllib")
EXPONENT = 0.75
OUT = Path(__file__).parent / "search"
KEPT_EVERY = 50


def recipe_text(work: Path, seed: int) -> str:
    """The recipe of a seed, which draws the tokens that are trained on and scored."""
    lines = [f"base: {BASE}\n", "datasets:\n"]
    lines += [
        f'  {name}: {{path: "{sources(name)}", text: true, max_tokens: 20000, seed: {seed}}}\n'
        for name in DATASETS
    ]
    options = f"text: true, lines_per_example: 24, score: loss, max_tokens: 2000, seed: {seed}"
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


def subset(datasets: tuple[str, ...]) -> str:
    """A subset as a key of the table: a digit for every dataset, in or out."""
    return "".join("1" if name in datasets else "0" for name in DATASETS)


@dataclass
class Real:
    """The experts of one seed, merged and scored on demand; what was met once is kept in files."""

    session: Session
    work: Path
    seed: int
    base: dict[str, float] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    gradients: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.table.exists():
            known = json.loads(self.table.read_text())
            self.base, self.values = known["base"], known["losses"]
        if self.kept.exists():
            self.gradients = json.loads(self.kept.read_text())

    @property
    def table(self) -> Path:
        """The file of losses."""
        return OUT / f"table-seed{self.seed}.json"

    @property
    def kept(self) -> Path:
        """The file of gradients."""
        return self.work / f"gradients-seed{self.seed}.json"

    def keep(self) -> None:
        """Writes what is known."""
        about = {
            "seed": self.seed,
            "datasets": DATASETS,
            "targets": TARGETS,
            "exponent": EXPONENT,
            "base": self.base,
        }
        text = json.dumps(about)[:-1] + ', "losses": {\n'
        text += ",\n".join(
            f'"{key}": {json.dumps([round(loss, 7) for loss in row])}'
            for key, row in self.values.items()
        )
        _replace(self.table, text + "\n}}\n")
        _replace(self.kept, json.dumps(self.gradients))

    def losses(self, mixture: Mixture) -> list[float]:
        """Nats per token of a mixture's proxy, by target."""
        key = subset(mixture.datasets)
        if key not in self.values:
            self.session.proxies.bank().set(merge.coefficients(mixture, EXPONENT))
            self.values[key] = self.score()
        return self.values[key]

    def score(self) -> list[float]:
        """Nats per token of the live model, by target."""
        scorers = self.session.inputs.targets("select")
        return [scorers[name].score(self.session.proxies.bank().model).mean for name in TARGETS]

    def slopes(self, mixture: Mixture) -> list[dict[str, float]]:
        """Derivatives of the losses in the experts' coefficients, by target."""
        key = subset(mixture.datasets)
        if key not in self.gradients:
            bank, family, found = self.session.proxies.bank(), self.session.inputs.family, []
            bank.set(merge.coefficients(mixture, EXPONENT))
            for name in TARGETS:
                target = self.session.inputs.targets("select")[name].target
                num = sum(target.num_scored)
                _, slope = bank.gradient(
                    family.losses(bank.model, batch).sum() for batch in target.batches
                )
                found.append({dataset: slope[dataset] / num for dataset in DATASETS})
            self.gradients[key] = found
        return self.gradients[key]

    def told(self, asked: Ask, objective: Objective) -> Told:
        """The answer to what a strategy asks: gains are fractions of the base's loss."""
        index = {name: TARGETS.index(name) for name in objective.weights}
        losses = self.losses(asked.mixture)
        values = {name: 1 - losses[i] / self.base[name] for name, i in index.items()}
        gradients = None
        if asked.gradient:
            slopes = self.slopes(asked.mixture)
            gradients = {
                name: {d: -s / self.base[name] for d, s in slopes[i].items()}
                for name, i in index.items()
            }
        return Told(asked.mixture, objective.combine(values), values, gradients)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(text)
    unfinished.rename(path)


@contextmanager
def opened(work: Path, seed: int) -> Iterator[Real]:
    """The experts of a seed, trained where they are not."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"recipe-seed{seed}.yaml"
    path.write_text(recipe_text(work, seed))
    with open_session(load(path), Silent()) as session:
        for name in DATASETS:
            session.finetunes.fit(Mixture.union([name]), "experts")
            print("expert", name, flush=True)
        real = Real(session, work, seed)
        if not real.base:
            session.proxies.bank().reset()
            real.base = dict(zip(TARGETS, real.score(), strict=True))
        yield real
        real.keep()


def table(work: Path, seed: int) -> None:
    """Score every mixture."""
    space = Subsets(DATASETS)
    with opened(work, seed) as real:
        started = time.monotonic()
        for i, mixture in enumerate(space):
            if subset(mixture.datasets) not in real.values:
                real.losses(mixture)
                if i % KEPT_EVERY == 0:
                    real.keep()
                    print(i, round(time.monotonic() - started), flush=True)


ALIKE = dict.fromkeys(TARGETS, 1.0)
OBJECTIVES = {
    **{name: Objective({name: 1.0}) for name in TARGETS},
    "mean of all": Objective(ALIKE),
    "worst of all": Objective(ALIKE, "worst"),
}
STRATEGIES = ("gradient", "greedy", "regression", "optuna")
SEARCH_SEEDS = (0, 1, 2)
BUDGET = 40
LOOKED_AT = (10, 15, 20, 25, 30, 35, 40)


def compare(work: Path, seed: int) -> None:
    """Each strategy at the same budget on each objective, against the table of all mixtures."""
    with opened(work, seed) as real:
        missing = sum(subset(mixture.datasets) not in real.values for mixture in Subsets(DATASETS))
        if missing:
            raise SystemExit(
                f"{missing} mixtures of seed {seed} are not in the table: run `table` first"
            )
        found = []
        for objective, strategy, search_seed in product(OBJECTIVES, STRATEGIES, SEARCH_SEEDS):
            found.append(one_search(real, objective, strategy, search_seed))
            print(*found[-1].values(), flush=True)
            real.keep()
    lines = ",\n".join(json.dumps(line) for line in found)
    _replace(
        OUT / f"compare-seed{seed}.json",
        f'{{"seed": {seed}, "budget": {BUDGET}, "searches": [\n{lines}\n]}}\n',
    )


def one_search(real: Real, objective: str, name: str, search_seed: int) -> dict[str, Any]:
    """How one search went. `own_s` leaves out what evaluations took."""
    wanted = OBJECTIVES[objective]
    strategy = build(name, Setting(Subsets(DATASETS), wanted, EXPONENT, search_seed, BUDGET, True))
    own_s, passes, best, curve = 0.0, 0, -math.inf, []
    while asked := strategy.ask():
        told = real.told(asked[0], wanted)
        passes, best = passes + asked[0].cost, max(best, told.objective)
        curve.append((passes, best))
        started = time.monotonic()
        strategy.tell(told)
        own_s += time.monotonic() - started
    spread = Spread.of(real, wanted)
    regrets = [
        spread.regret(max((b for p, b in curve if p <= limit), default=None)) for limit in LOOKED_AT
    ]
    first = next(p for p, b in curve if b == best)
    about = {
        "objective": objective,
        "strategy": name,
        "search_seed": search_seed,
        "passes": passes,
        "found_at": first,
    }
    return {
        **about,
        "regret": spread.regret(best),
        "regrets": regrets,
        "rank": spread.rank(best),
        "own_s": round(own_s, 2),
    }


@dataclass(frozen=True)
class Spread:
    """The objectives of all mixtures."""

    all: list[float]

    @classmethod
    def of(cls, real: Real, objective: Objective) -> Spread:
        """From the table."""
        return cls([real.told(Ask(mixture), objective).objective for mixture in Subsets(DATASETS)])

    def regret(self, best: float | None) -> float | None:
        """(best of all - found) / (best - mean of all)."""
        return (
            None
            if best is None
            else round((max(self.all) - best) / (max(self.all) - fmean(self.all)), 5)
        )

    def rank(self, best: float) -> int:
        """How many are better, and one."""
        return 1 + sum(each > best for each in self.all)


def show() -> None:
    """Mean regret of each strategy by objective and forward passes, over all seeds."""
    lines = [
        line
        for path in sorted(OUT.glob("compare-seed*.json"))
        for line in json.loads(path.read_text())["searches"]
    ]
    print(
        "| objective | strategy | searches | "
        + " | ".join(f"{limit} passes" for limit in LOOKED_AT)
        + " | worst | best of all |"
    )
    print("|---" * (len(LOOKED_AT) + 5) + "|")
    for objective, name in product(OBJECTIVES, STRATEGIES):
        some = [
            line for line in lines if (line["objective"], line["strategy"]) == (objective, name)
        ]
        if some:
            means = [fmean(line["regrets"][i] for line in some) for i in range(len(LOOKED_AT))]
            worst, hits = (
                max(line["regret"] for line in some),
                sum(line["rank"] == 1 for line in some),
            )
            cells = " | ".join(f"{mean:.2%}" for mean in means)
            print(
                f"| {objective} | {name} | {len(some)} | {cells} "
                f"| {worst:.2%} | {hits} of {len(some)} |"
            )


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "show":
        show()
    else:
        {"table": table, "compare": compare}[command](Path(rest[0]), int(rest[1]))

"""How close strategies come to the best of all 4,095 mixtures of twelve datasets, and for how many forward passes.

python docs/studies/search.py table WORK 1      every mixture's proxy on every target, for experts of seed 1; resumable
python docs/studies/search.py compare WORK 1    each strategy against that table, with real gradients; after `table`
python docs/studies/search.py show              the tables of all seeds that are there

Twelve packages of Python's standard library are the datasets, others the targets; the base is the demo's. WORK holds the
experts and the gradients met so far. A strategy's regret is (best - found) / (best - mean), over all mixtures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergetomix import merge
from mergetomix.demo import BASE, sources
from mergetomix.job import Job, fit, open_job
from mergetomix.mixture import Subsets
from mergetomix.progress import Silent
from mergetomix.recipe import load
from mergetomix.records import Mixture
from mergetomix.search import Ask, Told

DATASETS = (
    "asyncio", "ctypes", "distutils", "email", "encodings", "http",
    "idlelib", "lib2to3", "pydoc_data", "tkinter", "unittest", "xml",
)  # fmt: skip
TARGETS = ("concurrent", "logging", "multiprocessing", "urllib")
EXPONENT = 0.75
OUT = Path(__file__).parent / "search"
KEPT_EVERY = 50


def recipe_text(work: Path, seed: int) -> str:
    """The recipe of a seed: which tokens of the packages are trained on and scored, and the training's own draws."""
    lines = [f"base: {BASE}\n", "datasets:\n"]
    lines += [f'  {name}: {{path: "{sources(name)}", text: true, max_tokens: 20000, seed: {seed}}}\n' for name in DATASETS]
    options = f"text: true, lines_per_example: 24, score: loss, max_tokens: 2000, seed: {seed}"
    lines += ["targets:\n", *(f'  {name}: {{path: "{sources(name)}", {options}}}\n' for name in TARGETS)]
    lines.append(f"train: {{method: full, learning_rate: 1.5e-4, batch_size: 4, max_length: 256, seed: {seed}}}\n")
    lines.append(f"merge: {{scale: {{exponent: {EXPONENT}}}}}\nselect_fraction: 0.5\ndevice: cpu\nbatch_tokens: 4096\n")
    return "".join(lines) + f"store: {work / 'store'}\nrun_dir: {work / 'run'}\n"


def subset(datasets: tuple[str, ...]) -> str:
    """A subset as a key of the table: a digit for every dataset, in or out."""
    return "".join("1" if name in datasets else "0" for name in DATASETS)


@dataclass
class Real:
    """The experts of one seed, merged and scored on demand; scores and gradients met once are kept in files."""

    job: Job
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
        about = {"seed": self.seed, "datasets": DATASETS, "targets": TARGETS, "exponent": EXPONENT, "base": self.base}
        text = json.dumps(about)[:-1] + ', "losses": {\n'
        text += ",\n".join(f'"{key}": {json.dumps([round(loss, 7) for loss in row])}' for key, row in self.values.items())
        _replace(self.table, text + "\n}}\n")
        _replace(self.kept, json.dumps(self.gradients))

    def losses(self, mixture: Mixture) -> list[float]:
        """Nats per token of a mixture's proxy, by target."""
        key = subset(mixture.datasets)
        if key not in self.values:
            self.job.bank().set(merge.coefficients(mixture, EXPONENT))
            self.values[key] = self.score()
        return self.values[key]

    def score(self) -> list[float]:
        """Nats per token of the live model, by target."""
        scorers = self.job.inputs.targets("select")
        return [scorers[name].score(self.job.bank().model).mean for name in TARGETS]

    def slopes(self, mixture: Mixture) -> list[dict[str, float]]:
        """Derivatives of the losses in the experts' coefficients, by target."""
        key = subset(mixture.datasets)
        if key not in self.gradients:
            bank, family, found = self.job.bank(), self.job.inputs.family, []
            bank.set(merge.coefficients(mixture, EXPONENT))
            for name in TARGETS:
                target = self.job.inputs.targets("select")[name].target
                num = sum(target.num_scored)
                _, slope = bank.gradient(family.losses(bank.model, batch).sum() for batch in target.batches)
                found.append({dataset: slope[dataset] / num for dataset in DATASETS})
            self.gradients[key] = found
        return self.gradients[key]

    def told(self, asked: Ask, targets: tuple[str, ...], combine: Callable[[Mapping[str, float]], float]) -> Told:
        """The answer to what a strategy asks: gains are fractions of the base's loss."""
        index = {name: TARGETS.index(name) for name in targets}
        losses = self.losses(asked.mixture)
        values = {name: 1 - losses[i] / self.base[name] for name, i in index.items()}
        gradients = None
        if asked.gradient:
            slopes = self.slopes(asked.mixture)
            gradients = {name: {d: -s / self.base[name] for d, s in slopes[i].items()} for name, i in index.items()}
        return Told(asked.mixture, combine(values), values, gradients)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(path)


@contextmanager
def opened(work: Path, seed: int) -> Iterator[Real]:
    """The experts of a seed, trained where they are not."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"recipe-seed{seed}.yaml"
    path.write_text(recipe_text(work, seed))
    with open_job(load(path), Silent()) as job:
        for name in DATASETS:
            fit(job, [name], "experts")
            print("expert", name, flush=True)
        real = Real(job, work, seed)
        if not real.base:
            job.bank().reset()
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


if __name__ == "__main__":
    table(Path(sys.argv[2]), int(sys.argv[3]))

"""The stages and `run`: experts, search, final. It reads as the method's algorithm.

What the store holds is not done twice, so every stage can be run alone, and again.
"""

from __future__ import annotations

import math
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergetomix import merge, search, train
from mergetomix.bank import Bank, read_delta
from mergetomix.bank import params as live_params
from mergetomix.errors import Fault, StoreError, TrainingError, UserError
from mergetomix.inputs import Inputs, Scorer, read_inputs
from mergetomix.mixture import Subsets
from mergetomix.progress import Listener, Silent
from mergetomix.recipe import Recipe
from mergetomix.records import Cost, Finetune, Mixture, Part, Result, Row, Scores, Selection, Trial, objective
from mergetomix.store import Store, digest


@dataclass
class Job:
    """What the stages of one recipe share: its inputs, the store, and who listens."""

    recipe: Recipe
    inputs: Inputs
    store: Store
    listener: Listener
    run: int | None = None
    started: float = field(default_factory=time.monotonic)
    reused: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _bank: Bank | None = None
    _keys: dict[tuple[str, ...], str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a fine-tune depends on, beside its data."""
        family = self.inputs.family
        precision = {"dtype": str(family.dtype), "bf16": family.bf16, "max_length": family.max_length}
        values = self.recipe.train.model_dump(exclude_none=True)
        if values["method"] == "full":
            del values["lora"]
        return {**values, **precision}

    def space(self) -> Subsets:
        """The mixtures that the recipe allows."""
        options = self.recipe.search
        sizes = self.inputs.sizes if self.recipe.merge.weighting == "size" else None
        return Subsets(
            tuple(sorted(self.recipe.datasets)),
            options.min_datasets,
            options.max_datasets,
            frozenset(options.require),
            frozenset(options.forbid),
            sizes,
        )

    def finetune_key(self, datasets: Sequence[str]) -> str:
        """The address of the base fine-tuned on the union of some datasets."""
        names = tuple(sorted(datasets))
        if names not in self._keys:
            contents = [self.inputs.content(name) for name in self.by_content(names)]
            given = [self.inputs.expert_content(name, self.store) for name in names] if len(names) == 1 else []
            self._keys[names] = digest("finetune", self.inputs.base_key(self.store), contents, self.settings, given)
        return self._keys[names]

    def by_content(self, datasets: Sequence[str]) -> list[str]:
        """Datasets in the order of their content, in which a union is trained on: a new name changes nothing."""
        return sorted(datasets, key=self.inputs.content)

    def proxy_key(self, mixture: Mixture) -> str:
        """The address of a mixture's proxy: its experts and their factors."""
        factors = merge.coefficients(mixture, self.recipe.merge.scale.exponent)
        experts = sorted([self.finetune_key([name]), factor] for name, factor in factors.items())
        return digest("proxy", self.recipe.merge.method, experts)

    def bank(self) -> Bank:
        """The live base and every expert's delta, read from disk once."""
        if self._bank is None:
            model = self.inputs.family.load()
            base = live_params(model)
            names = self.space().allowed
            with self.listener.task("experts", "reading experts", len(names)) as advance:
                deltas = {}
                for name in names:
                    record = self.store.finetune(self.finetune_key([name]))
                    if record is None:
                        raise Fault(f"the expert of {name} is gone from the store", hint="run the experts stage again")
                    where = f"datasets.{name}.expert"
                    deltas[name] = read_delta(self.inputs.family, base, record.path, where)
                    advance(1)
            self._bank = Bank(model, deltas)
        return self._bank

    def release(self) -> None:
        """Frees the bank: a fine-tune needs the memory."""
        self._bank = None
        free_memory()

    def count(self, what: str) -> None:
        """Keeps count of what the store held already."""
        self.reused[what] = self.reused.get(what, 0) + 1

    def tell_reused(self, what: str, total: int) -> None:
        """Says how much of a stage was in the store."""
        if self.reused.get(what):
            self.listener.note(f"{what}: {self.reused[what]} of {total} were in the store")

    def warn(self, text: str) -> None:
        """Tells the user now, and again in the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.listener.warn(text)


@contextmanager
def open_job(recipe: Recipe, listener: Listener | None = None) -> Iterator[Job]:
    """Reads everything that a recipe names and opens its store; records how the run ends.

    Raises:
        UserError: something that the user can mend, before any training.
    """
    listener = listener or Silent()
    store = Store(recipe.store)
    try:
        job = Job(recipe, read_inputs(recipe, listener), store, listener)
        for warning in job.inputs.warnings:
            job.warn(warning)
        check_given_experts(job)
        job.run = store.begin_run(recipe.run_dir, {"datasets": sorted(recipe.datasets), "targets": sorted(recipe.targets)})
        outcome = "interrupted"
        try:
            yield job
            outcome = "finished"
        except Exception as error:
            outcome = f"failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            raise
        finally:
            store.end_run(job.run, outcome)
    finally:
        store.close()


def run(recipe: Recipe, listener: Listener | None = None) -> Result:
    """The whole method: one expert for each dataset, the best mixture by proxy, a real fine-tune on it, and the evidence."""
    with open_job(recipe, listener) as job:
        experts = train_experts(job)
        selection = search_mixtures(job)
        table = finalize(job, selection)
        return result_of(job, experts, selection, table)


def train_experts(job: Job) -> tuple[Finetune, ...]:
    """One expert for each dataset that a mixture may hold, in order of their names.

    An expert that fails does not stop the others. Raises TrainingError at the end, naming each that failed.
    """
    check_space(job)
    experts, failures = [], []
    for name in job.space().allowed:
        try:
            experts.append(fit(job, [name], "experts"))
        except TrainingError as error:
            failures.append(f"expert {name}: {error.message}")
            job.listener.warn(failures[-1])
    if failures:
        hint = "the other experts are in the store; lower train.learning_rate or look for odd rows in these datasets"
        raise TrainingError("; ".join(failures), hint=hint)
    job.tell_reused("experts", len(experts))
    return tuple(experts)


def search_mixtures(job: Job) -> Selection:
    """Evaluate proxies on the select part of the targets until the strategy is done; the best first."""
    base = evaluate_base(job, "select")
    strategy = search.build(job.recipe.search.strategy, job.space())
    trials: list[Trial] = []
    with job.listener.task("search", f"trying mixtures ({strategy.name})", strategy.expected()) as advance:
        while (mixture := strategy.ask()) is not None:
            trials.append(trial_of(job, mixture, base))
            strategy.tell(mixture, trials[-1].objective)
            advance(1)
            beat(job, "search", len(trials), strategy.expected())
    job.tell_reused("trials", len(trials))
    tried = {trial.mixture: trial for trial in trials}
    singles = [Mixture((name,), (1.0,)) for name in job.space().allowed]
    experts = [tried.get(single) or trial_of(job, single, base) for single in singles]
    best_first = ranked(trials)
    return Selection(best_first[0].mixture, best_first, strategy.name, base, ranked(experts))


def ranked(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials, the best objective first; of equals the one with fewer datasets, then by name."""
    return tuple(sorted(trials, key=lambda trial: (-trial.objective, len(trial.mixture), trial.mixture.datasets)))


def trial_of(job: Job, mixture: Mixture, base: Mapping[str, Scores]) -> Trial:
    """A mixture's proxy scored on the select part."""
    scores = evaluate_proxy(job, mixture, "select")
    weights = {name: spec.weight for name, spec in job.recipe.targets.items()}
    return Trial(mixture, scores, objective(scores, base, weights))


def finalize(job: Job, selection: Selection) -> tuple[Row, ...]:
    """The final table, on the report part that the search never saw: base, experts, proxy, the selected mixture fine-tuned
    for real, and the baselines that the recipe asks for."""
    options = job.recipe.final
    rows = merged_rows(job, selection)
    base = rows[0].scores
    job.release()
    if options.train:
        rows.append(real_row(job, "selected", "final", selection.mixture, base))
    if "all" in options.baselines:
        rows += baseline_row(job, "all datasets", "all", job.space().mixture(job.space().allowed), base)
    if "random" in options.baselines:
        drawn = job.space().sample(options.num_random, job.recipe.train.seed)
        for i, mixture in enumerate(drawn):
            rows += baseline_row(job, f"random {i + 1}", "random", mixture, base)
    job.tell_reused("real fine-tunes", sum(line.path is not None and len(line.mixture or ()) > 1 for line in rows))
    return tuple(rows)


def merged_rows(job: Job, selection: Selection) -> list[Row]:
    """The lines of the final table that need no fine-tune: base, experts, and the selected mixture's proxy."""
    singles = [Mixture((name,), (1.0,)) for name in job.space().allowed]
    with job.listener.task("final", "scoring base, experts and proxy on the report part", len(singles) + 2) as advance:
        base = evaluate_base(job, "report")
        rows = [row(job, "base", "base", None, base, base)]
        for single in singles:
            advance(1)
            beat(job, "final: scoring experts", len(rows), len(singles) + 2)
            scores = evaluate_proxy(job, single, "report")
            rows.append(row(job, f"expert {single}", "expert", single, scores, base))
        advance(1)
        scores = evaluate_proxy(job, selection.mixture, "report")
        rows.append(row(job, "proxy", "proxy", selection.mixture, scores, base))
        advance(1)
    return rows


def baseline_row(job: Job, name: str, kind: Any, mixture: Mixture, base: Mapping[str, Scores]) -> list[Row]:
    """A baseline's line, or none where its training failed: a comparison less, but the result stands."""
    try:
        return [real_row(job, name, kind, mixture, base)]
    except TrainingError as error:
        job.warn(f"the baseline {name!r} is left out: {error.message}")
        return []


def fit(job: Job, datasets: Sequence[str], stage: str) -> Finetune:
    """The base fine-tuned on the union of some datasets: from the store, or trained now and kept there."""
    key, names = job.finetune_key(datasets), sorted(datasets)
    known = job.store.finetune(key)
    if known is not None:
        job.count("experts" if len(names) == 1 else "real fine-tunes")
        return known
    text = " + ".join(names)
    waiting = f"waiting for another process that trains {text}"
    with job.store.lock(key, on_wait=lambda: job.listener.note(waiting)):
        known = job.store.finetune(key)  # the process that was waited for may have trained it
        return known or _train(job, key, names, stage)


def _train(job: Job, key: str, names: Sequence[str], stage: str) -> Finetune:
    mixture = Mixture.union(names)
    given = job.recipe.datasets[names[0]].expert if len(names) == 1 else None
    sequences = train.union([job.inputs.sequences(name) for name in job.by_content(names)])
    num_tokens, seconds = 0, 0.0
    if given is not None:
        path = given
    else:
        schedule = train.plan(len(sequences), sum(len(s.ids) for s in sequences), job.recipe.train)
        text = f"{'expert' if len(names) == 1 else 'fine-tuning on'} {mixture}"
        with job.store.artifact(key) as folder, job.listener.task(stage, text, schedule.num_steps) as advance:
            step = Steps(job, f"{stage}: {mixture}", schedule.num_steps, advance)
            step(0)
            try:
                num_tokens, seconds = train.finetune(job.inputs.family, sequences, job.recipe.train, folder, step)
            except TrainingError as error:
                raise TrainingError(f"{error.message} of {text}", hint=error.hint) from None
        path = str(job.store.artifact_path(key))
    record = Finetune(mixture, key, path, len(sequences), num_tokens, seconds)
    job.store.add_finetune(record, job.settings, environment(job))
    return record


@dataclass
class Steps:
    """Passes optimizer steps on to the progress bar and the store's heartbeat."""

    job: Job
    text: str
    total: int
    advance: Any
    done: int = 0

    def __call__(self, steps: int) -> None:
        """Counts `steps` more optimizer steps."""
        self.done += steps
        self.advance(steps)
        beat(self.job, self.text, self.done, self.total)


def evaluate_proxy(job: Job, mixture: Mixture, part: Part) -> dict[str, Scores]:
    """A mixture's proxy, merged in memory, scored on every target; only what the store lacks is computed."""
    key = job.proxy_key(mixture)
    known, missing = known_scores(job, key, part)
    if not missing:
        if part == "select":
            job.count("trials")
        return known
    bank = job.bank()
    started = time.monotonic()
    bank.set(merge.coefficients(mixture, job.recipe.merge.scale.exponent))
    merge_s = time.monotonic() - started
    return known | score_and_keep(job, bank.model, Model(key, "proxy", mixture, merge_s), missing, part)


def evaluate_base(job: Job, part: Part) -> dict[str, Scores]:
    """The base scored on every target."""
    key = job.inputs.base_key(job.store)
    known, missing = known_scores(job, key, part)
    if not missing:
        return known
    if job._bank is not None:
        job._bank.reset()
    model = job._bank.model if job._bank is not None else job.inputs.family.load()
    return known | score_and_keep(job, model, Model(key, "base", None, 0.0), missing, part)


def evaluate_real(job: Job, record: Finetune, part: Part) -> dict[str, Scores]:
    """A real fine-tune, loaded from its folder as a user would, scored on every target."""
    known, missing = known_scores(job, record.key, part)
    if not missing:
        return known
    entry = Model(record.key, "real", record.mixture, 0.0)
    with job.listener.task("final", f"scoring the fine-tune on {record.mixture}", len(missing)) as advance:
        scored = score_and_keep(job, job.inputs.family.load_finetune(record.path), entry, missing, part)
        advance(len(missing))
    return known | scored


@dataclass(frozen=True)
class Model:
    """What the ledger says of a model that is scored."""

    key: str
    kind: str
    mixture: Mixture | None
    merge_s: float


def known_scores(job: Job, key: str, part: Part) -> tuple[dict[str, Scores], list[str]]:
    """What the store holds of a model's scores, and the targets it lacks."""
    known = {}
    for name, target in job.inputs.targets(part).items():
        scores = job.store.scores(key, target.address, part)
        if scores is not None:
            known[name] = scores
    return known, [name for name in job.recipe.targets if name not in known]


def score_and_keep(job: Job, model: Any, entry: Model, names: Sequence[str], part: Part) -> dict[str, Scores]:
    """Score a model on some targets and write all of it to the store at once."""
    scored, seconds = {}, {}
    for name in names:
        started = time.monotonic()
        scored[name] = within_memory(job.inputs.targets(part)[name], model, name)
        seconds[name] = time.monotonic() - started
        check_finite(scored[name], entry, name)
    with job.store.transaction():
        job.store.add_model(entry.key, entry.kind, entry.mixture, entry.merge_s)
        for name in names:
            address = job.inputs.targets(part)[name].address
            job.store.add_scores(entry.key, address, part, scored[name], seconds[name])
    return scored


def within_memory(scorer: Scorer, model: Any, name: str) -> Scores:
    """The scores of a model. Raises Fault where the device's memory is too small for the batches."""
    import torch

    try:
        return scorer.score(model)
    except torch.OutOfMemoryError as error:
        message = f"scoring target {name} needs more memory than the device has: {str(error).splitlines()[0]}"
        raise Fault(message, hint="lower batch_tokens") from None


def free_memory() -> None:
    """Gives back what models that are no longer used still hold."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_finite(scores: Scores, entry: Model, target: str) -> None:
    """Raises Fault where a score is not finite: a ranking over such numbers means nothing."""
    bad = next((i for i, value in enumerate(scores.values) if value - value != 0), None)
    if bad is not None:
        what = entry.mixture or entry.kind
        message = f"the {scores.kind} of example {bad} of target {target} is {scores.values[bad]} for {entry.kind} {what}"
        raise Fault(message, hint="lower train.learning_rate or merge.scale, or set base.dtype: float32")


def row(job: Job, name: str, kind: Any, mixture: Mixture | None, scores: Any, base: Mapping[str, Scores]) -> Row:
    """One line of the final table."""
    weights = {target: spec.weight for target, spec in job.recipe.targets.items()}
    return Row(name, kind, mixture, scores, objective(scores, base, weights))


def real_row(job: Job, name: str, kind: Any, mixture: Mixture, base: Mapping[str, Scores]) -> Row:
    """Fine-tune on a mixture for real and score it."""
    record = fit(job, mixture.datasets, "final")
    line = row(job, name, kind, mixture, evaluate_real(job, record, "report"), base)
    free_memory()
    return Row(line.name, line.kind, line.mixture, line.scores, line.gain, record.path)


def result_of(job: Job, experts: Sequence[Finetune], selection: Selection, table: Sequence[Row]) -> Result:
    """Everything that a run found, with what it cost and where it ran."""
    path = str(Path(job.recipe.run_dir))
    cost = cost_of(job, experts, selection, table)
    return Result(selection, tuple(experts), tuple(table), cost, environment(job), path, tuple(job.warnings))


def cost_of(job: Job, experts: Sequence[Finetune], selection: Selection, table: Sequence[Row]) -> Cost:
    """Seconds of the work behind a result, from the ledger: what earlier runs did counts too."""
    keys = {job.inputs.base_key(job.store)} | {job.proxy_key(trial.mixture) for trial in selection.trials}
    addresses = [target.address for target in job.inputs.targets("select").values()]
    merge_s, evaluate_s = job.store.seconds(keys, addresses, "select")
    seconds = {line.kind: 0.0 for line in table}
    for line in table:
        if line.mixture is not None and line.kind in ("final", "all", "random") and len(line.mixture) > 1:
            record = job.store.finetune(job.finetune_key(line.mixture.datasets))
            seconds[line.kind] += record.train_s if record else 0.0
    experts_s = sum(expert.train_s for expert in experts)
    per_trial = (evaluate_s + merge_s) / max(1, len(keys))
    return Cost(
        experts_s=experts_s,
        merge_s=merge_s,
        evaluate_s=evaluate_s,
        final_s=seconds.get("final", 0.0),
        baselines_s=seconds.get("all", 0.0) + seconds.get("random", 0.0),
        brute_force_s_estimate=brute_force_s(job, experts_s, per_trial),
        wall_s=time.monotonic() - job.started,
        reused=dict(job.reused),
    )


def brute_force_s(job: Job, experts_s: float, evaluate_s: float) -> float:
    """Seconds to fine-tune on every mixture of the space and evaluate each.

    A dataset stands in a share of the mixtures, so all fine-tunes together see its tokens so many times; with a fixed number
    of steps every fine-tune costs the same.
    """
    space = job.space()
    least, most = space.bounds
    sizes = {k: len(Subsets(space.names, k, k, space.require, space.forbid)) for k in range(least, most + 1)}
    mean_s = experts_s / max(1, len(space.allowed))
    fixed = job.recipe.train.max_steps is not None or job.recipe.train.max_tokens is not None
    return sum(count * (mean_s * (1 if fixed else k) + evaluate_s) for k, count in sizes.items())


def finetunes(job: Job) -> list[tuple[str, ...]]:
    """The datasets of every fine-tune of a run, each once. The final one is not known before the search: the first half of
    the datasets, two at least, stand for it."""
    space, options = job.space(), job.recipe.final
    wanted: list[tuple[str, ...]] = [(name,) for name in space.allowed]
    if options.train:
        least, most = space.bounds
        wanted.append(space.allowed[: max(least, min(most, max(2, (len(space.allowed) + 1) // 2)))])
    if "all" in options.baselines:
        wanted.append(space.allowed)
    if "random" in options.baselines:
        wanted += [mixture.datasets for mixture in space.sample(options.num_random, job.recipe.train.seed)]
    return list(dict.fromkeys(wanted))


def check_given_experts(job: Job) -> None:
    """Raises ModelError where an expert that the recipe gives does not fit the base."""
    given = {name: spec.expert for name, spec in job.recipe.datasets.items() if spec.expert is not None}
    if not given:
        return
    base = live_params(job.inputs.family.load())
    for name, path in given.items():
        read_delta(job.inputs.family, base, path, f"datasets.{name}.expert")


def check_space(job: Job) -> None:
    """Raises StoreError where the disk has no room for what is to be trained."""
    given = {name for name, spec in job.recipe.datasets.items() if spec.expert is not None}
    todo = [names for names in finetunes(job) if job.store.finetune(job.finetune_key(names)) is None and set(names) - given]
    needed = job.inputs.finetune_bytes() * len(todo)
    free = job.store.free_bytes()
    if needed > free:
        message = f"{job.store.path} has {free / 1e9:.1f} GB free, and the fine-tunes need about {needed / 1e9:.1f} GB"
        raise StoreError(message, hint="free some space, name another store, or train with method: lora")


def mixture_of(job: Job, datasets: Sequence[str], weights: Sequence[float] | None) -> Mixture:
    """The mixture that a user names. Raises UserError for an unknown dataset or weights that make none."""
    unknown = sorted(set(datasets) - set(job.recipe.datasets))
    if unknown or not datasets:
        known = ", ".join(job.recipe.datasets)
        raise UserError(f"no dataset is called {unknown[0]!r}" if unknown else "name at least one dataset", hint=known)
    forbidden = sorted(set(datasets) & set(job.recipe.search.forbid))
    if forbidden:
        raise UserError(f"the recipe forbids {forbidden[0]!r}", hint="take it out of search.forbid")
    if weights is None:
        return job.space().mixture(frozenset(datasets))
    finite = all(math.isfinite(weight) and weight >= 0 for weight in weights)
    if len(weights) != len(datasets) or not finite or sum(weights) <= 0:
        raise UserError(f"{len(datasets)} datasets need as many weights, none negative, not all zero; got {list(weights)}")
    return Mixture.union(datasets, dict(zip(datasets, weights, strict=True)))


def merge_to_folder(job: Job, mixture: Mixture, out: Path) -> None:
    """Write a mixture's proxy as a Hugging Face folder that `from_pretrained` loads."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no empty folder", hint="name a new folder")
    train_experts(job)
    bank = job.bank()
    bank.set(merge.coefficients(mixture, job.recipe.merge.scale.exponent))
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    job.inputs.family.save(bank.model, partial)
    if out.exists():
        out.rmdir()
    partial.rename(out)


def beat(job: Job, stage: str, done: int, total: int) -> None:
    """Tell `status` how far the run is."""
    if job.run is not None:
        job.store.heartbeat(job.run, stage, done, total)


def environment(job: Job) -> dict[str, Any]:
    """Versions, device and seeds: what a figure depends on beside the recipe."""
    from importlib.metadata import version

    import torch

    packages = ("mergetomix", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
    device = job.inputs.family.device
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if job.inputs.family.bf16 else "float32",
        "seeds": {
            "train": job.recipe.train.seed,
            **{f"datasets.{name}": spec.seed for name, spec in job.recipe.datasets.items()},
            **{f"targets.{name}": spec.seed for name, spec in job.recipe.targets.items()},
        },
    }

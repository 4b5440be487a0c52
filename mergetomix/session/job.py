"""A job: what the stages of one recipe share, and the steps that they are made of: fine-tune, evaluate, keep."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mergetomix import merge, training
from mergetomix.errors import Fault, RecipeError, TrainingError
from mergetomix.experts import statistics
from mergetomix.experts.bank import GIB, Bank, Rule
from mergetomix.experts.deltas import mapped, read_delta
from mergetomix.experts.deltas import params as live_params
from mergetomix.mixtures import rows
from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.models.encoding import Item
from mergetomix.objectives.objective import Objective
from mergetomix.progress import Listener, Silent
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Finetune, Mixture, Part, Portion, Scores, Trial
from mergetomix.sections.train import Train
from mergetomix.session import blocks
from mergetomix.session.inputs import Inputs, Scorer, read_inputs
from mergetomix.store.address import digest
from mergetomix.store.store import Store


@dataclass
class Job:
    """What the stages of one recipe share: its inputs, the store, and who listens.

    `objective` is what mixtures are chosen by; `aims` makes it ready for a search, and for what comes after.
    """

    recipe: Recipe
    inputs: Inputs
    store: Store
    listener: Listener
    run: int | None = None
    started: float = field(default_factory=time.monotonic)
    warnings: list[str] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)
    _bank: Bank | None = None
    _scratch: Path | None = None
    _statistics: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _keys: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _met: dict[str, dict[str, bool]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    objective: Objective = field(init=False)

    def __post_init__(self) -> None:
        weights = {name: spec.weight for name, spec in self.recipe.targets.items()}
        self.objective = Objective(weights, self.recipe.search.objective)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a fine-tune depends on, beside its data."""
        values = self.recipe.train.model_dump(exclude_none=True, exclude={"anchor"})
        anchor = self.recipe.train.anchor
        if anchor is not None:
            values["anchor"] = [self.inputs.anchor_content(), anchor.share]
        if values["method"] == "full":
            del values["lora"]
        return {**values, **self.inputs.family.settings()}

    @property
    def exponent(self) -> float:
        """The recipe's exponent of the scale."""
        return self.recipe.merge.scale.exponent

    @property
    def is_drawn(self) -> bool:
        """Whether the rows of a mixture are drawn by its weights; else its fine-tune is on the union of its datasets."""
        return self.recipe.search.space != "subsets"

    def space(self) -> Space:
        """The mixtures that the recipe allows. Raises RecipeError where its constraints allow none."""
        try:
            subsets = self.subsets()  # of space: both, searched first
            return self._weights() if self.is_drawn else subsets
        except ValueError as error:
            raise RecipeError("search", str(error)) from None

    def subsets(self) -> Subsets:
        """The subsets that the recipe allows, the weights of their datasets left aside."""
        weighting = self.recipe.merge.weighting
        sizes = self.inputs.sizes if weighting == "size" else self.inputs.scored_tokens if weighting == "tokens" else None
        return Subsets(*self._bounds(), sizes, tuple(frozenset(group) for group in self.recipe.search.groups))

    def _weights(self) -> Simplex:
        return Simplex(*self._bounds(), self.recipe.search.min_share, self._caps())

    def _bounds(self) -> tuple[tuple[str, ...], int, int | None, frozenset[str], frozenset[str]]:
        """What every space is bounded by: names, fewest and most datasets, those required and forbidden."""
        options = self.recipe.search
        fates = frozenset(options.require), frozenset(options.forbid)
        return (tuple(sorted(self.recipe.datasets)), options.min_datasets, options.max_datasets, *fates)

    def _caps(self) -> dict[str, float] | None:
        """The largest weight of each dataset, from how often it may be repeated."""
        most, length = self.recipe.search.max_repeats, self.length
        if most is None:
            return None
        num_tokens = {name: sum(each.num_tokens for each in self.inputs.sequences(name)) for name in self.recipe.datasets}
        num_sequences = {name: len(self.inputs.sequences(name)) for name in self.recipe.datasets}
        return length.caps(length.sizes(num_sequences, num_tokens), most)

    @property
    def length(self) -> rows.Length:
        """How much a drawn mixture's fine-tune takes of the datasets, general data left aside."""
        settings = self.recipe.train
        own = 1.0 if settings.anchor is None else 1 - settings.anchor.share
        if settings.max_steps is not None:
            return rows.Length(own * settings.max_steps * settings.batch_size * settings.gradient_accumulation, "examples")
        if settings.max_tokens is None:
            raise RecipeError("train.max_tokens", "a weighted mixture needs max_tokens or max_steps: how much it is trained on")
        return rows.Length(own * settings.max_tokens, "tokens")

    def finetune_key(self, datasets: Sequence[str], seed: int | None = None) -> str:
        """The address of the base fine-tuned on the union of some datasets, with train.seed or another seed."""
        names, settings = tuple(sorted(datasets)), self.settings
        if seed is not None:
            settings["seed"] = seed
        known = (settings["seed"], *names)
        if known not in self._keys:
            contents = [self.inputs.content(name) for name in self.by_content(names)]
            given = [self.inputs.expert_content(name, self.store) for name in names] if len(names) == 1 else []
            self._keys[known] = digest("finetune", self.inputs.base_key(self.store), contents, settings, given)
        return self._keys[known]

    def real_key(self, mixture: Mixture, seed: int | None = None) -> str:
        """The address of the base fine-tuned on a mixture: on rows drawn by its weights, or on the union of its datasets."""
        if not self.is_drawn or len(mixture.members) == 1:
            return self.finetune_key(mixture.members, seed)
        settings, weights = self.settings, mixture.as_dict()
        if seed is not None:
            settings["seed"] = seed
        parts = [[self.inputs.content(name), round(weights[name], 9)] for name in self.by_content(mixture.members)]
        return digest("drawn", self.inputs.base_key(self.store), parts, settings)

    def by_content(self, datasets: Sequence[str]) -> list[str]:
        """Datasets in the order of their content, in which a union is trained on: a new name changes nothing."""
        return sorted(datasets, key=self.inputs.content)

    def sequences(self, mixture: Mixture, seed: int | None = None) -> list[Item]:
        """The training sequences of a mixture, with general data where the recipe asks for it.

        Args:
            seed: of the draw of a weighted mixture's rows, where it is not train.seed.
        """
        names = self.by_content(mixture.members)
        if self.is_drawn and len(names) > 1:
            wanted = self.counts(mixture)
            own = training.union([self._drawn(name, wanted[name], seed) for name in names])
        else:
            own = training.union([self.inputs.sequences(name) for name in names])
        anchor = self.recipe.train.anchor
        return own if anchor is None else own + self.inputs.general(training.num_anchors(len(own), anchor.share))

    def counts(self, mixture: Mixture) -> dict[str, int]:
        """Sequences that a weighted mixture takes of each dataset. Raises RecipeError where training is too short for it."""
        sequences = {name: self.inputs.sequences(name) for name in mixture.members}
        mean_tokens = {name: sum(each.num_tokens for each in own) / len(own) for name, own in sequences.items()}
        try:
            return rows.counts(mixture.as_dict(), mean_tokens, self.length)
        except ValueError as error:
            raise RecipeError("train.max_tokens" if self.length.unit == "tokens" else "train.max_steps", str(error)) from None

    def _drawn(self, name: str, num: int, seed: int | None) -> list[Item]:
        """`num` sequences of a dataset: which ones depends on the seed and the dataset's content."""
        sequences, content = self.inputs.sequences(name), self.inputs.content(name)
        rng = np.random.default_rng([self.recipe.train.seed if seed is None else seed, int(content[:16], 16)])
        return [sequences[i] for i in rows.rows(num, len(sequences), rng)]

    def portions(self, mixture: Mixture) -> tuple[Portion, ...]:
        """What the fine-tune on a weighted mixture takes of each dataset; empty where it is on the union."""
        if not self.is_drawn or len(mixture.members) == 1:
            return ()
        wanted, weights = self.counts(mixture), mixture.as_dict()
        found = []
        for name in mixture.members:
            num_tokens = sum(each.num_tokens for each in self._drawn(name, wanted[name], None))
            found.append(
                Portion(name, weights[name], wanted[name], num_tokens, wanted[name] / len(self.inputs.sequences(name)))
            )
        return tuple(found)

    def schedule(self, mixture: Mixture, sequences: Sequence[Item]) -> training.Schedule:
        """The steps of a mixture's fine-tune on its sequences."""
        return training.plan(len(sequences), sum(each.num_tokens for each in sequences), self.train_settings(mixture))

    def train_settings(self, mixture: Mixture) -> Train:
        """The settings of a mixture's fine-tune: what is drawn is seen once."""
        settings = self.recipe.train
        if not self.is_drawn or len(mixture.members) == 1 or settings.max_steps is not None:
            return settings
        return settings.model_copy(update={"max_tokens": None, "epochs": 1.0})

    def num_tokens(self, mixture: Mixture) -> int:
        """Tokens that a fine-tune on a mixture sees."""
        return self.schedule(mixture, self.sequences(mixture)).num_tokens

    def proxy_key(self, mixture: Mixture, exponent: float | None = None) -> str:
        """The address of a mixture's proxy: its experts and their factors."""
        method, options = self.recipe.merge.method, self.recipe.merge.options
        exponent = self.exponent if exponent is None else exponent
        if method == "linear":
            factors = merge.coefficients(mixture, exponent)
            return digest("proxy", method, sorted([self.finetune_key([name]), each] for name, each in factors.items()))
        weights = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
        experts = sorted([self.finetune_key([name]), weight] for name, weight in weights.items())
        return digest("proxy", method, options, experts, self.gain(mixture, exponent))

    def gain(self, mixture: Mixture, exponent: float) -> float:
        """The factor on a mixture's merged delta; 1 where the method is not scaled."""
        weights = [weight for weight in mixture.weights if weight > 0]
        return merge.gain(weights, exponent) if merge.METHODS[self.recipe.merge.method].scaled else 1.0

    def merge_live(self, mixture: Mixture, exponent: float) -> Any:
        """The live model as a mixture's proxy."""
        bank = self.bank()
        if self.recipe.merge.method == "linear":
            bank.set(merge.coefficients(mixture, exponent))
        else:
            bank.combine(self.rule(mixture.datasets), mixture.as_dict(), self.gain(mixture, exponent))
        return bank.model

    def rule(self, datasets: Sequence[str]) -> Rule:
        """How the recipe's method combines some experts; statistics that it needs are made the first time."""
        section = self.recipe.merge
        needed = merge.METHODS[section.method].needs
        for name in datasets if needed is not None else ():
            if name not in self._statistics:
                self._statistics[name] = self._statistic(str(needed), name)
        experts = {name: self.finetune_key([name]) for name in datasets}
        return Rule(section.method, section.options, experts, self._statistics, self.inputs.family.transposed)

    def _statistic(self, kind: str, name: str) -> Mapping[str, Any]:
        """A statistic of an expert from its own data: from the store, or made now and kept there."""
        from safetensors.torch import load_file, save_file

        key = digest("statistic", kind, self.finetune_key([name]), self.inputs.content(name), statistics.MAX_SEQUENCES)
        file = self.store.artifact_path(key) / "statistic.safetensors"
        if not file.exists():
            bank, family = self.bank(), self.inputs.family
            bank.set({name: 1.0})
            with self.store.artifact(key) as folder, self.listener.task("search", f"{kind} of the expert {name}", 1) as advance:
                compute = statistics.STATISTICS[kind]
                found = compute(family, bank.model, self.inputs.sequences(name), self.recipe.batch_tokens)
                save_file({param: each.cpu().contiguous() for param, each in found.items()}, folder / file.name)
                advance(1)
        return load_file(file)

    def bank(self, datasets: Sequence[str] | None = None) -> Bank:
        """The live base and the deltas of the experts of some datasets, of all that a mixture may hold without; read from disk
        when first asked for."""
        if self._bank is None:
            model = self.inputs.family.load()
            base = live_params(model)
            names = self.space().allowed if datasets is None else datasets
            with self.listener.task("experts", "reading experts", len(names)) as advance:
                deltas = {}
                for name in names:
                    record = self.store.finetune(self.finetune_key([name]))
                    if record is None:
                        raise Fault(f"the expert of {name} is gone from the store", hint="run the experts stage again")
                    where = f"datasets.{name}.expert"
                    scratch = self.scratch() / record.key
                    deltas[name] = read_delta(self.inputs.family, base, record.path, where, scratch)
                    advance(1)
            self._bank = Bank(model, deltas, self.memory_bytes, self.origin(base))
        return self._bank

    @property
    def memory_bytes(self) -> float | None:
        """Memory for the bank; None where the recipe leaves it open."""
        wanted = self.recipe.merge.memory_gib
        return None if wanted is None else wanted * GIB

    def origin(self, base: Mapping[str, Any]) -> Mapping[str, Any]:
        """The base's params as pages of its files, where it is a folder whose files hold them by their names."""
        folder = Path(self.recipe.base.path)
        found = mapped(self.inputs.family, folder, base, "base.path") if folder.is_dir() else None
        return found or {}

    def scratch(self) -> Path:
        """A folder that goes when the job ends."""
        if self._scratch is None:
            self._scratch = self.closing.enter_context(self.store.scratch())
        return self._scratch

    def release(self) -> None:
        """Frees the bank: a fine-tune needs the memory."""
        self._bank = None
        free_memory()

    @property
    def reused(self) -> dict[str, int]:
        """How many things of each kind the store held before this run came to them, each once."""
        held = {what: sum(known.values()) for what, known in self._met.items()}
        return {what: num for what, num in held.items() if num}

    def count(self, what: str, key: str, held: bool) -> None:
        """Remembers whether the store held a thing when the run first came to it."""
        self._met.setdefault(what, {}).setdefault(key, held)

    def tell_reused(self, what: str) -> None:
        """Says, once, how much of a stage was in the store."""
        text = f"{what}: {self.reused.get(what, 0)} of {len(self._met.get(what, {}))} were in the store"
        if self.reused.get(what) and text not in self._told:
            self._told.add(text)
            self.listener.note(text)

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
            job.closing.close()
            store.end_run(job.run, outcome)
    finally:
        store.close()


def trial_of(job: Job, mixture: Mixture, base: Mapping[str, Scores], exponent: float | None = None) -> Trial:
    """A mixture's proxy scored on the select part."""
    scores = evaluate_proxy(job, mixture, "select", exponent)
    return Trial(mixture, scores, job.objective.of(scores, base))


def fit(job: Job, mixture: Mixture, stage: str, seed: int | None = None) -> Finetune:
    """The base fine-tuned on a mixture: from the store, or trained now and kept there.

    Args:
        seed: where it is not train.seed.
    """
    key = job.real_key(mixture, seed)
    known = job.store.finetune(key)
    job.count("experts" if len(mixture.members) == 1 else "real fine-tunes", key, known is not None)
    if known is not None:
        return known
    waiting = f"waiting for another process that trains {mixture}"
    with job.store.lock(key, on_wait=lambda: job.listener.note(waiting)):
        known = job.store.finetune(key)  # the process that was waited for may have trained it
        return known or _train(job, key, mixture, stage, seed)


def _train(job: Job, key: str, mixture: Mixture, stage: str, seed: int | None) -> Finetune:
    is_expert = len(mixture.members) == 1
    given = job.recipe.datasets[mixture.members[0]].expert if is_expert else None
    sequences = job.sequences(mixture, seed)
    num_tokens, seconds = 0, 0.0
    if given is not None:
        path = given
    else:
        settings = job.train_settings(mixture)
        settings = settings if seed is None else settings.model_copy(update={"seed": seed})
        schedule = job.schedule(mixture, sequences)
        text = f"{'expert' if is_expert else 'fine-tuning on'} {mixture}"
        with job.store.artifact(key) as folder, job.listener.task(stage, text, schedule.num_steps) as advance:
            step = Steps(job, f"{stage}: {mixture}", schedule.num_steps, advance)
            step(0)
            try:
                num_tokens, seconds = training.finetune(job.inputs.family, sequences, settings, folder, step)
            except TrainingError as error:
                raise TrainingError(f"{error.message} of {text}", hint=error.hint) from None
        path = str(job.store.artifact_path(key))
    record = Finetune(mixture, key, path, len(sequences), num_tokens, seconds)
    used = job.settings if seed is None else {**job.settings, "seed": seed}
    job.store.add_finetune(record, used, environment(job))
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


def evaluate_proxy(job: Job, mixture: Mixture, part: Part, exponent: float | None = None) -> dict[str, Scores]:
    """A mixture's proxy, merged in memory, scored on every target; only what the store lacks is computed.

    Args:
        exponent: of the scale, where it is not the recipe's.
    """
    exponent = job.exponent if exponent is None else exponent
    key = job.proxy_key(mixture, exponent)
    known, missing = known_scores(job, key, part)
    if part == "select":
        job.count("trials", key, not missing)
    if not missing:
        return known
    job.bank()
    started = time.monotonic()
    model = job.merge_live(mixture, exponent)
    merge_s = time.monotonic() - started
    return known | score_and_keep(job, model, Model(key, "proxy", mixture, merge_s), missing, part)


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
        scores = blocks.kept(job.store, key, target, part)
        if scores is not None:
            known[name] = scores
    return known, [name for name in job.recipe.targets if name not in known]


def score_and_keep(job: Job, model: Any, entry: Model, names: Sequence[str], part: Part) -> dict[str, Scores]:
    """Score a model on some targets and write all of it to the store at once."""
    scorers = job.inputs.targets(part)
    pieces = [(name, each) for name in names for each in blocks.lacking(job.store, entry.key, scorers[name], part)]
    score_pieces(job, model, entry, pieces, part)
    known, _ = known_scores(job, entry.key, part)
    return {name: known[name] for name in names}


def score_pieces(job: Job, model: Any, entry: Model, pieces: Sequence[tuple[str, Scorer]], part: Part = "select") -> None:
    """Score a model on targets or blocks of them, each beside its target's name, and write all of it to the store at once."""
    found = []
    for name, piece in pieces:
        started = time.monotonic()
        scores = within_memory(piece, model, name)
        found.append((piece.address, scores, time.monotonic() - started))
        check_finite(scores, entry, name, piece.places)
    with job.store.transaction():
        job.store.add_model(entry.key, entry.kind, entry.mixture, entry.merge_s)
        for address, scores, seconds in found:
            job.store.add_scores(entry.key, address, part, scores, seconds)


def within_memory(scorer: Scorer, model: Any, name: str) -> Scores:
    """The scores of a model. Raises Fault where the device's memory is too small for the batches."""
    with enough_memory(f"scoring target {name}", "lower batch_tokens"):
        return scorer.score(model)


@contextmanager
def enough_memory(what: str, hint: str) -> Iterator[None]:
    """Raises Fault where the device's memory is too small for something."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        message = f"{what} needs more memory than the device has: {str(error).splitlines()[0]}"
        raise Fault(message, hint=hint) from None


def free_memory() -> None:
    """Gives back what models that are no longer used still hold."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_finite(scores: Scores, entry: Model, target: str, places: Sequence[int] = ()) -> None:
    """Raises Fault (TrainingError for a real fine-tune) where a score is not finite: ranks of such numbers mean nothing.

    `places` are those of the examples among all, where these are some of them.
    """
    bad = next((i for i, value in enumerate(scores.values) if value - value != 0), None)
    if bad is not None:
        what = entry.mixture or entry.kind
        place = places[bad] if places else bad
        message = f"the {scores.kind} of example {place} of target {target} is {scores.values[bad]} for {entry.kind} {what}"
        hint = "lower train.learning_rate or merge.scale, or set base.dtype: float32"
        raise TrainingError(message, hint=hint) if entry.kind == "real" else Fault(message, hint=hint)


def check_given_experts(job: Job) -> None:
    """Raises ModelError where an expert that the recipe gives does not fit the base."""
    given = {name: spec.expert for name, spec in job.recipe.datasets.items() if spec.expert is not None}
    if not given:
        return
    base = live_params(job.inputs.family.load())
    for name, path in given.items():
        read_delta(job.inputs.family, base, path, f"datasets.{name}.expert")


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

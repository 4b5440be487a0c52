"""Fine-tunes of an open recipe: the rows that a mixture takes, and the models that were trained."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeAlias

import numpy as np

from mergetomix import curves, launch, training
from mergetomix.curves import Curve, OwnRows, StepLog
from mergetomix.devices import visible_gpus
from mergetomix.errors import RecipeError, TrainingError
from mergetomix.executors.work import FinetuneResult, FinetuneWork
from mergetomix.mixtures import rows
from mergetomix.models.encoding import Item
from mergetomix.records import Finetune, Mixture, Portion
from mergetomix.sections.train import Train
from mergetomix.session.addresses import Addresses
from mergetomix.session.open_recipe import OpenRecipe
from mergetomix.session.spaces import Spaces
from mergetomix.store.mirroring import HANDED_OVER
from mergetomix.trackers.trackers import About, Tracked

Draft: TypeAlias = Generator[Path, tuple[Finetune, Mapping[str, Any]], None]
"""A fine-tune that is being made: yields its folder, is sent its record and its environment."""


class Finetunes:
    """The fine-tunes of one recipe, experts among them: taken from the store, or made now."""

    def __init__(self, opened: OpenRecipe, addresses: Addresses, spaces: Spaces) -> None:
        self._open, self._addresses, self._spaces = opened, addresses, spaces
        self._recipe, self._inputs, self._store = opened.recipe, opened.inputs, opened.store
        self.curves: dict[str, Curve] = {}
        """The curves of all fine-tunes that the run has used so far, by what they are called."""
        self.complaints: dict[str, str] = {}
        """What is wrong with those that did not learn. They are no warnings of the open recipe, as
        their order is that in which fine-tunes come, from the store or from workers."""

    # --- rows

    def is_drawn(self, mixture: Mixture) -> bool:
        """Whether a mixture's rows are drawn by its weights; else they are the union's."""
        return self._recipe.search.draws_rows and len(mixture.members) > 1

    def sequences(self, mixture: Mixture, seed: int | None = None) -> list[Item]:
        """Returns a mixture's training sequences, general data included.

        Args:
            seed: of the draw of a weighted mixture's rows, where it is not train.seed.
        """
        names = self._addresses.by_content(mixture.members)
        if self.is_drawn(mixture):
            wanted = self.counts(mixture)
            own = training.union([self._drawn(name, wanted[name], seed) for name in names])
        else:
            own = training.union([self._inputs.sequences(name) for name in names])
        anchor = self._recipe.train.anchor
        if anchor is None:
            return own
        return own + self._inputs.general(training.num_anchors(len(own), anchor.share))

    def counts(self, mixture: Mixture) -> dict[str, int]:
        """Returns how many sequences a weighted mixture takes of each dataset.

        Raises RecipeError where training is too short for it.
        """
        sequences = {name: self._inputs.sequences(name) for name in mixture.members}
        mean_tokens = {
            n: sum(each.num_tokens for each in own) / len(own) for n, own in sequences.items()
        }
        length = self._spaces.length
        try:
            return rows.counts(mixture.as_dict(), mean_tokens, length)
        except ValueError as error:
            key = "train.max_tokens" if length.unit == "tokens" else "train.max_steps"
            raise RecipeError(key, str(error)) from None

    def _drawn(self, name: str, num: int, seed: int | None) -> list[Item]:
        """Draws `num` sequences of a dataset, by the seed and the dataset's content."""
        sequences, content = self._inputs.sequences(name), self._inputs.content(name)
        seed = self._recipe.train.seed if seed is None else seed
        rng = np.random.default_rng([seed, int(content[:16], 16)])
        return [sequences[i] for i in rows.rows(num, len(sequences), rng)]

    def portions(self, mixture: Mixture) -> tuple[Portion, ...]:
        """Returns what the fine-tune on a weighted mixture takes of each dataset.

        Empty where it is on the union.
        """
        if not self.is_drawn(mixture):
            return ()
        wanted, weights = self.counts(mixture), mixture.as_dict()
        found = []
        for name in mixture.members:
            num_tokens = sum(each.num_tokens for each in self._drawn(name, wanted[name], None))
            num_passes = wanted[name] / len(self._inputs.sequences(name))
            found.append(Portion(name, weights[name], wanted[name], num_tokens, num_passes))
        return tuple(found)

    def shares(self, mixture: Mixture) -> Mixture:
        """Returns a mixture's datasets, weighted by what its fine-tune has of each.

        That is their share of the tokens on which the loss of the union is taken, whatever the
        weights of the experts in a merge; where rows are drawn by the weights, the weights.
        """
        if self.is_drawn(mixture):
            return mixture
        return Mixture.union(mixture.members, self._inputs.scored_tokens)

    def train_settings(self, mixture: Mixture) -> Train:
        """Returns the settings of a mixture's fine-tune: rows that are drawn are seen once."""
        settings = self._recipe.train
        if not self.is_drawn(mixture) or settings.max_steps is not None:
            return settings
        return settings.model_copy(update={"max_tokens": None, "epochs": 1.0})

    def schedule(self, mixture: Mixture, sequences: Sequence[Item]) -> training.Schedule:
        """Returns the steps of a mixture's fine-tune on its sequences."""
        num_tokens = sum(each.num_tokens for each in sequences)
        return training.plan(len(sequences), num_tokens, self.train_settings(mixture))

    def num_tokens(self, mixture: Mixture) -> int:
        """Returns how many tokens a fine-tune on a mixture sees."""
        return self.schedule(mixture, self.sequences(mixture)).num_tokens

    # --- models

    def known(self, mixture: Mixture, seed: int | None = None) -> Finetune | None:
        """Returns the fine-tune that the store holds, or None."""
        found = self._store.finetune(self._addresses.finetune(mixture, seed))
        return None if found is None else replace(found, mixture=mixture)

    def fit(self, mixture: Mixture, stage: str, seed: int | None = None) -> Finetune:
        """Returns the base fine-tuned on a mixture: from the store, or trained now and kept there.

        Args:
            stage: for the progress bar.
            seed: where it is not train.seed.

        Raises:
            TrainingError: the fine-tune cannot go on.
        """
        ((_, found),) = self.fit_all([mixture], stage, seed)
        if isinstance(found, TrainingError):
            raise found
        return found

    def fit_all(
        self, mixtures: Iterable[Mixture], stage: str, seed: int | None = None
    ) -> Iterator[tuple[Mixture, Finetune | TrainingError]]:
        """Yields the fine-tune on each mixture, or why it could not be made, in any order.

        The user is told of one whose loss did not fall. What is trained is kept at once. A key is
        locked while it is worked on, so that two processes do not train the same model; one that
        another process works on is waited for when nothing of this one is under way. An error that
        is no TrainingError is raised once what is under way is kept.
        """
        for mixture, found in self._fitted(mixtures, stage, seed):
            if isinstance(found, Finetune):
                self.look_at(found, seed)
            yield mixture, found

    def look_at(self, record: Finetune, seed: int | None) -> None:
        """Keeps the curve of a fine-tune for the report, and says what is wrong with it."""
        curve, name = self.curve(record.key), called(record.mixture, seed)
        if curve.step:
            self.curves[name] = curve
        if (wrong := curves.complaint(curve.own)) is not None:
            hint = "look at train.learning_rate and at the data"
            text = f"fine-tune on {name}: {wrong}; {hint}"
            if name not in self.complaints:
                self._open.listener.warn(text)
            self.complaints[name] = text

    def curve(self, key: str) -> Curve:
        """Returns how a fine-tune's training went; an empty curve where that is not known."""
        return Curve.read(self._store.environment(key).get("curve"))

    def _fitted(
        self, mixtures: Iterable[Mixture], stage: str, seed: int | None
    ) -> Iterator[tuple[Mixture, Finetune | TrainingError]]:
        waiting: dict[str, Draft] = {}
        ready: list[tuple[Mixture, Finetune]] = []
        alike: dict[str, list[Mixture]] = {}
        later: list[Mixture] = []
        faults: list[Exception] = []

        def lacking() -> Iterator[FinetuneWork]:
            for mixture in self._free_first(mixtures, seed):
                if faults:
                    return
                key = self._addresses.finetune(mixture, seed)
                if key in waiting:  # datasets of the same content have the same fine-tune
                    alike.setdefault(key, []).append(mixture)
                    continue
                known = self.known(mixture, seed)
                kind = "experts" if len(mixture.members) == 1 else "real fine-tunes"
                self._open.count(kind, key, known is not None)
                draft = self._draft(key, mixture, seed, may_wait=not waiting)
                folder = None if known is not None else next(draft, None)
                if folder is None:
                    found = known or self.known(mixture, seed)  # by the process waited for
                    if found is None:
                        later.append(mixture)
                    else:
                        ready.append((mixture, found))
                    continue
                waiting[key] = draft
                yield FinetuneWork(key, mixture, seed, stage, str(folder))

        try:
            for done in self._open.executor.run(lacking()):
                yield from _emptied(ready)
                work = done.work
                assert isinstance(work, FinetuneWork)
                draft = waiting.pop(work.key)
                if done.failure is not None:
                    failed = _thrown(draft, done.failure.error)
                    if not isinstance(failed, TrainingError):
                        faults.append(failed)
                        continue
                    yield from ((each, failed) for each in _all_of(work, alike))
                    continue
                trained = done.outcome
                assert isinstance(trained, FinetuneResult)
                record = self._keep(draft, work, trained)
                for each in _all_of(work, alike):
                    yield each, replace(record, mixture=each)
            yield from _emptied(ready)
        finally:
            for draft in waiting.values():
                draft.close()
        if faults:
            raise faults[0]
        if later:
            yield from self._fitted(later, stage, seed)

    def fit_each(
        self, mixtures: Iterable[Mixture], stage: str, seed: int | None = None
    ) -> dict[Mixture, Finetune | TrainingError]:
        """Returns the fine-tune on each mixture, or why it could not be made, see `fit_all`."""
        return dict(self.fit_all(dict.fromkeys(mixtures), stage, seed))

    def _free_first(self, mixtures: Iterable[Mixture], seed: int | None) -> Iterator[Mixture]:
        """Yields mixtures, those last that another process works on just now."""
        busy = []
        for mixture in mixtures:
            key = self._addresses.finetune(mixture, seed)
            if self.known(mixture, seed) is None and self._store.is_busy(key):
                busy.append(mixture)
            else:
                yield mixture
        yield from busy

    def _draft(self, key: str, mixture: Mixture, seed: int | None, may_wait: bool) -> Draft:
        """Yields a folder to train in; nothing where the store has the model.

        It is sent the record, and the environment in which the model was trained.

        The key is locked until the record is in the ledger. Without `may_wait` nothing is yielded
        either if another process holds it.
        """
        if not may_wait and self._store.is_busy(key):
            return
        waiting = f"waiting for another process that trains {mixture}"
        with self._store.lock(key, on_wait=lambda: self._open.listener.note(waiting)):
            if self._store.finetune(key) is not None:
                return
            with self._store.artifact(key) as folder:
                record, about = yield folder
            self._store.add_finetune(record, self._addresses.settings(seed), about)

    def _keep(self, draft: Draft, work: FinetuneWork, found: FinetuneResult) -> Finetune:
        """Puts a trained model in its place in the store, and its record beside it."""
        given = self._given(work.mixture)
        path = given or str(self._store.artifact_path(work.key))
        numbers = found.num_examples, found.num_tokens, found.seconds
        record = Finetune(work.mixture, work.key, path, *numbers)
        if self._store.shared is not None and found.name.startswith(HANDED_OVER):
            keep_alone(Path(work.folder), "")
            self._store.shared.take_over(work.key, found.name, Path(work.folder))
        else:
            keep_alone(Path(work.folder), found.name)
        about = {**found.environment, "curve": found.curve.written()}
        try:
            draft.send((record, about))
        except StopIteration:
            return record
        raise AssertionError("a draft ends when it is sent its record")

    def _given(self, mixture: Mixture) -> str | None:
        """The folder of an expert that the recipe gives, or None."""
        if len(mixture.members) > 1:
            return None
        return self._recipe.datasets[mixture.members[0]].expert

    def train(self, work: FinetuneWork) -> FinetuneResult:
        """Carries out the work: trains the model in the work's folder."""
        mixture, sequences = work.mixture, self.sequences(work.mixture, work.seed)
        if self._given(mixture) is not None:
            return FinetuneResult("", len(sequences), 0, 0.0, environment(self._open))
        settings = self.train_settings(mixture)
        if work.seed is not None:
            settings = settings.model_copy(update={"seed": work.seed})
        num_steps = self.schedule(mixture, sequences).num_steps
        shared, folder = self._store.shared, Path(work.folder)
        is_elsewhere = shared is not None and not folder.is_dir()
        where = self._open.scratch() if is_elsewhere else folder
        out = Path(mkdtemp(prefix="attempt-", dir=where))
        text = f"{'expert' if len(mixture.members) == 1 else 'fine-tuning on'} {mixture}"
        with self._open.listener.task(work.stage, text, num_steps) as advance:
            shown = f"{work.stage}: {mixture}"
            try:
                with self._open.trackers.run(self._about(work, settings)) as tracked:
                    steps = Steps(self._open, shown, num_steps, advance, tracked)
                    num_tokens, seconds = self._finetuned(work, sequences, settings, out, steps)
            except TrainingError as error:
                raise TrainingError(f"{error.message} of {text}", hint=error.hint) from None
        name = out.name
        if shared is not None and is_elsewhere:
            name = shared.hand_over(work.key, out) if launch.is_first() else ""
            shutil.rmtree(out)
        about, curve = environment(self._open), Curve.of(steps.taken, steps.own)
        return FinetuneResult(name, len(sequences), num_tokens, seconds, about, curve)

    def _about(self, work: FinetuneWork, settings: Train) -> About:
        """What trackers say of a fine-tune. Of several processes that train it one speaks."""
        values = {
            "datasets": ", ".join(work.mixture.members),
            "weights": ", ".join(f"{each:.4g}" for each in work.mixture.weights),
            "stage": work.stage,
            "key": work.key,
            **settings.model_dump(mode="json", exclude={"anchor", "augment", "launch"}),
        }
        return About(called(work.mixture, work.seed), values, is_silent=not launch.is_first())

    def _finetuned(
        self,
        work: FinetuneWork,
        sequences: Sequence[Item],
        settings: Train,
        out: Path,
        steps: Steps,
    ) -> tuple[int, float]:
        """Fine-tunes in this process, or on several, which it starts or is one of.

        Gives tokens and seconds.
        """
        family = self._inputs.family
        if launch.is_joined():
            return launch.take_part(family, sequences, settings, out, steps)
        if settings.launch is None:
            return training.finetune(family, sequences, settings, out, steps, steps.measured)
        there = visible_gpus() if family.device == "cuda" else ()
        devices = work.devices or there[: settings.launch.processes]
        return launch.finetune(family, sequences, settings, out, steps, devices)


@dataclass
class Steps:
    """Passes optimizer steps on to the progress bar, the store's heartbeat and trackers."""

    opened: OpenRecipe
    text: str
    total: int
    advance: Any
    tracked: Tracked
    taken: list[StepLog] = field(default_factory=list)
    own: OwnRows | None = None

    def __post_init__(self) -> None:
        self.opened.beat(self.text, 0, self.total)

    def __call__(self, step: StepLog) -> None:
        """Counts an optimizer step."""
        before = self.taken[-1] if self.taken else None
        self.taken.append(step)
        self.advance(1)
        self.opened.beat(self.text, len(self.taken), self.total)
        tokens = step.num_tokens - (before.num_tokens if before else 0)
        seconds = step.seconds - (before.seconds if before else 0.0)
        values = {
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "tokens_per_second": tokens / seconds if seconds > 0 else 0.0,
        }
        self.tracked.log({f"train/{name}": value for name, value in values.items()}, step.number)

    def measured(self, own: OwnRows) -> None:
        """Takes what became of the loss on some of the training's own rows."""
        self.own = own
        self.tracked.log({"rows/before": own.before, "rows/after": own.after})


def called(mixture: Mixture, seed: int | None) -> str:
    """Returns what a fine-tune is called: its mixture, and its seed where it is another."""
    return str(mixture) if seed is None else f"{mixture}, seed {seed}"


def environment(opened: OpenRecipe) -> dict[str, Any]:
    """Returns versions, device and seeds: what a figure depends on beside the recipe."""
    from importlib.metadata import version

    import torch

    packages = ("mergetomix", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
    recipe, family = opened.recipe, opened.inputs.family
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if family.device == "cuda" else family.device,
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if family.bf16 else "float32",
        "seeds": {
            "train": recipe.train.seed,
            **{f"datasets.{name}": spec.seed for name, spec in recipe.datasets.items()},
            **{f"targets.{name}": spec.seed for name, spec in recipe.targets.items()},
        },
    }


def _all_of(work: FinetuneWork, alike: dict[str, list[Mixture]]) -> tuple[Mixture, ...]:
    """The mixture of a piece of work, and those whose data are the same."""
    return work.mixture, *alike.pop(work.key, ())


def keep_alone(folder: Path, name: str) -> None:
    """Moves what lies in one of a folder's folders up into it, and removes all else there."""
    for each in list(folder.iterdir()):
        if each.name != name:
            shutil.rmtree(each, ignore_errors=True)
    if name:
        for each in list((folder / name).iterdir()):
            each.replace(folder / each.name)
        (folder / name).rmdir()


def _emptied(ready: list[tuple[Mixture, Finetune]]) -> Iterator[tuple[Mixture, Finetune]]:
    while ready:
        yield ready.pop(0)


def _thrown(draft: Draft, error: Exception) -> Exception:
    """Ends a draft by an error and returns what the store makes of it, such as a full disk."""
    try:
        draft.throw(error)
    except Exception as found:  # noqa: BLE001  # whatever comes out is for the caller to raise
        return found
    return error

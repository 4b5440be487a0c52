"""Everything that a recipe names, read and checked before any training: datasets as sequences, targets ready to score."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergetomix.data import leaks, splits
from mergetomix.data.examples import Example, Examples
from mergetomix.errors import DataError, RecipeError
from mergetomix.models.encoding import Encoding, Item, content, counted, take_tokens
from mergetomix.models.family import Family
from mergetomix.models.opening import open_family
from mergetomix.progress import Listener
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Part, Scores
from mergetomix.sections.source import Dataset, Source
from mergetomix.sections.target import WithHead
from mergetomix.statistics import race
from mergetomix.store.address import digest
from mergetomix.store.store import Store, hash_files
from mergetomix.targets.function import call, load_function
from mergetomix.targets.kinds import AnyTarget, check_score
from mergetomix.targets.loss import Loss
from mergetomix.targets.python import Function, PythonTarget
from mergetomix.targets.target import Target, TargetSetting


@dataclass(frozen=True)
class Material:
    """A dataset or target as read and as encoded."""

    examples: Examples
    encoding: Encoding


@dataclass(frozen=True)
class Scorer:
    """A target over one part of its examples, with the address that its scores are kept under.

    Where mixtures race, `blocks` are the examples in the order in which they are seen, each block a scorer of its own with its
    `stage` of the race and the `places` of its examples among all; their scores together are the target's (`blocks.py`).
    `num_cut` prompts lost their beginning to leave room for the answer. `num_tokens` are read in one evaluation; zero where
    that is not known, as for a function.
    """

    target: Target
    address: str
    num_examples: int
    num_cut: int = 0
    num_tokens: int = 0
    blocks: tuple[Scorer, ...] = ()
    places: tuple[int, ...] = ()
    stage: int = 0

    @property
    def addresses(self) -> list[str]:
        """Every address that scores of these examples are kept under."""
        return [self.address, *(block.address for block in self.blocks)]

    def score(self, model: Any) -> Scores:
        """The scores of a model."""
        return self.target.score(model)


@dataclass
class Inputs:
    """What a recipe names, ready for use."""

    recipe: Recipe
    family: Family
    candidates: Mapping[str, Material]
    scorers: Mapping[Part, Mapping[str, Scorer]]
    warnings: list[str] = field(default_factory=list)
    anchor: Material | None = None
    wanted: Mapping[str, Material] = field(default_factory=dict)
    _contents: dict[str, str] = field(default_factory=dict)
    _companions: dict[str, Scorer | None] = field(default_factory=dict)

    def sequences(self, name: str) -> Sequence[Item]:
        """The training sequences of a dataset."""
        return self.candidates[name].encoding.sequences

    def general(self, num: int) -> list[Item]:
        """`num` sequences of the anchor dataset: the first of an order drawn by its seed, so that a larger draw holds a smaller
        one; taken round again where there are too few."""
        if self.anchor is None or self.recipe.train.anchor is None:
            return []
        sequences = self.anchor.encoding.sequences
        order = list(range(len(sequences)))
        random.Random(self.recipe.train.anchor.dataset.seed).shuffle(order)
        return [sequences[order[i % len(order)]] for i in range(num)]

    def anchor_content(self) -> str:
        """The address of the anchor dataset's sequences, in their order."""
        return (
            ""
            if self.anchor is None
            else content(self.general(len(self.anchor.encoding.sequences)))
        )

    def content(self, name: str) -> str:
        """The address of a dataset's training sequences."""
        if name not in self._contents:
            self._contents[name] = content(self.sequences(name))
        return self._contents[name]

    @property
    def sizes(self) -> dict[str, float]:
        """Training sequences of each dataset."""
        return {
            name: float(len(candidate.encoding.sequences))
            for name, candidate in self.candidates.items()
        }

    @property
    def scored_tokens(self) -> dict[str, float]:
        """Tokens of one pass over each dataset on which the loss is taken."""
        sequences = {
            name: candidate.encoding.sequences for name, candidate in self.candidates.items()
        }
        return {
            name: float(sum(each.num_scored for each in own)) for name, own in sequences.items()
        }

    def targets(self, part: Part) -> Mapping[str, Scorer]:
        """The targets over the select or the report part of their examples."""
        return self.scorers[part]

    def scorer(self, name: str, part: Part, address: str) -> Scorer:
        """Returns what of a target has an address: all of it, a block, or its companion loss."""
        whole = self.scorers[part][name]
        found = next((each for each in (whole, *whole.blocks) if each.address == address), None)
        found = found or self.companion(name)
        if found is None or found.address != address:
            raise ValueError(f"nothing of target {name} has the address {address}")
        return found

    def select_examples(self, target: str) -> Sequence[Example]:
        """The examples of a target's select part; none for a function's target."""
        if target not in self.wanted:
            return ()
        spec = self.recipe.targets[target]
        return splits.split(self.wanted[target].examples, self.recipe.select_fraction, spec.seed)[0]

    def companion(self, target: str) -> Scorer | None:
        """The loss that stands for a target's score where derivatives are needed: of its right answers on the same select
        examples. None where there are no answers, as with a function without prompt and completion."""
        if target not in self._companions:
            examples = self._answered(target)
            setting = TargetSetting(self.family, f"targets.{target}", self.recipe.batch_tokens)
            try:
                found = _lossy(examples, setting) if examples else None
            except DataError as error:
                self.warnings.append(f"target {target} has no companion loss: {error}")
                found = None
            self._companions[target] = found
        return self._companions[target]

    def _answered(self, target: str) -> Sequence[Example]:
        """A target's select examples with their answers."""
        scorer, spec = self.scorers["select"][target].target, self.recipe.targets[target]
        if not isinstance(scorer, Function):
            return self.select_examples(target)
        if not spec.has_data or not (spec.completion or spec.messages or spec.text):
            return ()
        items = self.family.read(spec, f"targets.{target}").items
        return [items[row] for row in scorer.keep]

    def expert_content(self, name: str, store: Store) -> str | None:
        """The address of an expert that the user gives, or None where one is trained."""
        path = self.recipe.datasets[name].expert
        if path is None:
            return None
        files = sorted(Path(path).glob("*.safetensors")) + sorted(Path(path).glob("*.json"))
        return hash_files(files, store)

    def finetune_bytes(self) -> int:
        """Disk that one fine-tune takes: its params in float32, and what comes with them."""
        lora = self.recipe.train.lora if self.recipe.train.method == "lora" else None
        return 4 * self.family.num_saved(lora) + 4_000_000


def read_inputs(recipe: Recipe, listener: Listener) -> Inputs:
    """Read the base's configuration and tokenizer, every dataset and every target.

    Raises:
        UserError: something cannot be read or does not fit; names its place in the recipe.
    """
    settings = recipe.train
    _refuse_foreign(recipe)
    family = open_family(recipe.family, recipe.base, recipe.device, settings, recipe.images)
    warnings = list(family.limits)
    read = _read(recipe, family, listener)
    anchor = read.pop("train.anchor.dataset", None)
    found = {name: read[f"datasets.{name}"] for name in recipe.datasets}
    wanted = {name: read[f"targets.{name}"] for name in recipe.targets if f"targets.{name}" in read}
    general = () if anchor is None else (anchor,)
    family.settle({each.where: each for each in (*found.values(), *general, *wanted.values())})
    candidates = {
        name: _candidate(recipe.datasets[name], examples, family)
        for name, examples in found.items()
    }
    materials = {
        name: _target_material(recipe.targets[name], examples, family)
        for name, examples in wanted.items()
    }
    scorers: dict[Part, dict[str, Scorer]] = {"select": {}, "report": {}}
    for name, spec in recipe.targets.items():
        setting = TargetSetting(family, f"targets.{name}", recipe.batch_tokens)
        racing = recipe.search.racing is not None
        if name in materials:
            both = _scorers(spec, materials[name].examples, setting, recipe.select_fraction, racing)
        elif isinstance(spec, PythonTarget):
            both = _python_scorers(spec, setting, recipe.select_fraction, racing)
        scorers["select"][name], scorers["report"][name] = both
    warnings += _notes(candidates | materials, family)
    prompts = {
        name: sum(scorers[part][name].num_cut for part in scorers) for name in recipe.targets
    }
    warnings += counted(prompts, "prompts lose their beginning to leave room for max_new_tokens")
    _check_shared(candidates, materials, warnings)
    beside = (
        None
        if settings.anchor is None or anchor is None
        else _candidate(settings.anchor.dataset, anchor, family)
    )
    return Inputs(recipe, family, candidates, scorers, warnings, beside, materials)


def _refuse_foreign(recipe: Recipe) -> None:
    """Raises RecipeError for a key that only another family heeds, so that none is ignored."""
    if recipe.family == "image-classifier":
        return
    default = type(recipe).model_fields["images"].default
    augment = recipe.train.augment
    foreign = {"images": recipe.images != default, "train.augment": augment is not None}
    for name, spec in recipe.targets.items():
        foreign[f"targets.{name}.head"] = isinstance(spec, WithHead) and spec.head is not None
    for key, given in foreign.items():
        if given:
            hint = "add that key at the top, or take this one out"
            raise RecipeError(key, "is for family: image-classifier", hint=hint)


def _read(recipe: Recipe, family: Family, listener: Listener) -> dict[str, Examples]:
    """The examples of every source, by its place in the recipe; a target that is a function brings its own."""
    sources: dict[str, Source] = {
        f"datasets.{name}": spec for name, spec in recipe.datasets.items()
    }
    if recipe.train.anchor is not None:
        sources["train.anchor.dataset"] = recipe.train.anchor.dataset
    for name, spec in recipe.targets.items():
        check_score(family, spec, f"targets.{name}")
        if not isinstance(spec, PythonTarget):
            sources[f"targets.{name}"] = spec
    found = {}
    with listener.task("inputs", "reading datasets and targets", len(sources)) as advance:
        for where, source in sources.items():
            found[where] = family.read(source, where)
            advance(1)
    return found


def _notes(materials: Mapping[str, Material], family: Family) -> list[str]:
    """What the user should know of how rows became examples, and examples sequences."""
    encodings = {name: material.encoding for name, material in materials.items()}
    return [
        *family.notes(encodings),
        *(note for material in materials.values() for note in material.examples.notes()),
    ]


def _candidate(spec: Dataset, examples: Examples, family: Family) -> Material:
    where = examples.where
    encoding = take_tokens(family.encode(examples.items, where), spec.max_tokens, spec.seed)
    if not any(sequence.num_scored for sequence in encoding.sequences):
        raise DataError(where, "no example has a token to train on")
    return Material(examples, encoding)


def _target_material(spec: AnyTarget, examples: Examples, family: Family) -> Material:
    where = examples.where
    encoding = family.encode(examples.items, where)
    if spec.max_tokens is not None:
        examples = examples.take(_within_tokens(encoding, spec.max_tokens, spec.seed))
        encoding = family.encode(examples.items, where)
    return Material(examples, encoding)


def _scorers(
    spec: AnyTarget,
    examples: Examples,
    setting: TargetSetting,
    select_fraction: float,
    racing: bool,
) -> tuple[Scorer, Scorer]:
    """The target over its select and its report part."""
    select, report = splits.split(examples, select_fraction, spec.seed)
    blocks = (
        _blocks(select, spec, setting, lambda some: _scorer(spec, some, setting)) if racing else ()
    )
    return replace(_scorer(spec, select, setting), blocks=blocks), _scorer(spec, report, setting)


def _blocks(
    select: Sequence[Example],
    spec: AnyTarget,
    setting: TargetSetting,
    scorer: Callable[[list[Example]], Scorer],
) -> tuple[Scorer, ...]:
    """The select part cut as a race sees it. Raises DataError where there are too few examples to race on."""
    if len(select) < race.MIN_EXAMPLES:
        message = f"search.racing needs at least {race.MIN_EXAMPLES} select examples, and there are {len(select)}"
        raise DataError(
            setting.where,
            message,
            hint="give the target more rows, raise select_fraction, or leave racing out",
        )
    order, found, start = splits.drawn_order(select, spec.seed), [], 0
    for stage, end in enumerate(race.stages(len(select))):
        places = tuple(
            sorted(order[start:end])
        )  # in the examples' own order, as batches are made of the whole
        if places:
            found.append(
                replace(scorer([select[place] for place in places]), places=places, stage=stage)
            )
        start = end
    return tuple(found)


def _scorer(spec: AnyTarget, part: Sequence[Example], setting: TargetSetting) -> Scorer:
    target = spec.build(part, setting)
    # scores depend on the batches they were computed in, by a rounding
    address = digest(target.address(), setting.batch_tokens)
    return Scorer(target, address, len(part), target.num_cut, target.num_tokens)


def _lossy(examples: Sequence[Example], setting: TargetSetting) -> Scorer:
    """The loss of some examples."""
    loss = Loss(examples, setting)
    return Scorer(
        loss, digest(loss.address(), setting.batch_tokens), len(examples), 0, loss.num_tokens
    )


def _python_scorers(
    spec: PythonTarget, setting: TargetSetting, select_fraction: float, racing: bool
) -> tuple[Scorer, Scorer]:
    """A function's target: over rows where it has data, else over the scores that it returns for the base."""
    rows, contents = setting.family.rows(spec, setting.where) if spec.has_data else (None, [])
    if rows is None:
        function = load_function(spec.function, setting.where)
        num = len(
            call(function, setting.family.load(), setting.family.processor, None, setting.where)
        )
    else:
        num = len(rows)
    texts = [repr(contents[i]) if rows is not None else str(i) for i in range(num)]
    items = tuple(Example(row=i, text=text) for i, text in enumerate(texts))
    select, report = splits.split(
        Examples(setting.where, setting.where, items, num, 0, (), ()), select_fraction, spec.seed
    )

    def scorer(part: Sequence[Example]) -> Scorer:
        keep = [item.row for item in part]
        some = [contents[i] for i in keep] if rows is not None else None
        target = Function(
            spec, None if rows is None else [rows[i] for i in keep], keep, setting, some
        )
        return Scorer(target, target.address(), len(keep))

    blocks = _blocks(select, spec, setting, scorer) if racing else ()
    return replace(scorer(select), blocks=blocks), scorer(report)


def _within_tokens(encoding: Encoding, max_tokens: int, seed: int) -> list[int]:
    """Places of whole examples of at most `max_tokens` tokens in all (two examples at least), drawn by the seed."""
    sizes = [0] * encoding.num_examples
    for sequence in encoding.sequences:
        sizes[sequence.example] += sequence.num_tokens
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    kept: list[int] = []
    for i in order:
        if len(kept) >= 2 and sum(sizes[j] for j in kept) + sizes[i] > max_tokens:
            break
        kept.append(i)
    return sorted(kept)


def _check_shared(
    candidates: Mapping[str, Material], wanted: Mapping[str, Material], warnings: list[str]
) -> None:
    """A target that a dataset holds whole says nothing; one that it shares some rows with is worth a warning."""
    for target, material in wanted.items():
        for name, candidate in candidates.items():
            rows = {row for _, row in leaks.shared(candidate.examples, material.examples)}
            if rows and len(rows) == len(material.examples.items):
                message = f"every example is also in datasets.{name}: the target would reward learning it by heart"
                raise DataError(
                    f"targets.{target}", message, hint="keep the target's rows out of the datasets"
                )
            if rows:
                warnings.append(
                    f"targets.{target} shares {len(rows)} of its {len(material.examples.items)} examples with datasets.{name}"
                    f" (first: row {min(rows)})"
                )

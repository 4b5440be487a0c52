"""Everything that a recipe names, read and checked before any training.

Datasets become training sequences, targets become scorers over their select and report parts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergetomix.data import splits
from mergetomix.data.examples import Example, Examples
from mergetomix.errors import DataError, RecipeError
from mergetomix.models.encoding import Encoding, Item, content, counted, take_tokens
from mergetomix.models.family import ClassifiesImages, Family
from mergetomix.models.opening import open_family
from mergetomix.progress import Listener
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Part, Scores
from mergetomix.sections.source import Dataset, Source
from mergetomix.sections.target import TargetSection, WithHead
from mergetomix.session.leaks import Leaks
from mergetomix.statistics import early_stopping
from mergetomix.store.address import digest
from mergetomix.store.store import Store, hash_files
from mergetomix.targets.kinds import check_score
from mergetomix.targets.loss import Loss
from mergetomix.targets.python import Function
from mergetomix.targets.target import BringsExamples, OwnExamples, Target, TargetSetting

Both = tuple[tuple[Example, ...], tuple[Example, ...]]
"""A target's select and its report examples."""


LEAST_EVEN = 0.6
"""Datasets are unequal if their effective number (of their shares) is a smaller part of them."""


@dataclass(frozen=True)
class Material:
    """A dataset or target as read and as encoded."""

    examples: Examples
    encoding: Encoding


@dataclass(frozen=True)
class Scorer:
    """A target over one part of its examples, with the address that its scores are kept under.

    If mixtures race, `blocks` are the examples in the order in which they are seen, each block a
    scorer of its own with its `stage` of the race and the `places` of its examples among all;
    their scores together are the target's.
    """

    target: Target
    address: str
    num_examples: int
    blocks: tuple[Scorer, ...] = ()
    places: tuple[int, ...] = ()
    stage: int = 0

    @property
    def addresses(self) -> list[str]:
        """Every address that scores of these examples are kept under."""
        return [self.address, *(block.address for block in self.blocks)]

    def score(self, model: Any) -> Scores:
        """Returns the scores of a model."""
        return self.target.score(model)


@dataclass
class Inputs:
    """What a recipe names, ready for use.

    `candidates` are the datasets, `scorers` all targets by part and name, `selected` the select
    examples of those that have any, and `own` what targets bring themselves.
    """

    recipe: Recipe
    family: Family
    candidates: Mapping[str, Material]
    scorers: Mapping[Part, Mapping[str, Scorer]]
    warnings: list[str] = field(default_factory=list)
    anchor: Material | None = None
    selected: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    own: Mapping[str, OwnExamples] = field(default_factory=dict)
    _contents: dict[str, str] = field(default_factory=dict)
    _companions: dict[str, Scorer | None] = field(default_factory=dict)

    # --- datasets

    def sequences(self, name: str) -> Sequence[Item]:
        """Returns the training sequences of a dataset."""
        return self.candidates[name].encoding.sequences

    def content(self, name: str) -> str:
        """Returns the address of a dataset's training sequences."""
        if name not in self._contents:
            self._contents[name] = content(self.sequences(name))
        return self._contents[name]

    def expert_content(self, name: str, store: Store) -> str | None:
        """Returns the address of an expert that the user gives, or None if one is trained."""
        path = self.recipe.datasets[name].expert
        if path is None:
            return None
        return hash_files(expert_files(path), store)

    @property
    def sizes(self) -> dict[str, float]:
        """Training sequences of each dataset."""
        return {name: float(len(self.sequences(name))) for name in self.candidates}

    @property
    def tokens(self) -> dict[str, float]:
        """Tokens of one pass over each dataset."""
        return {
            name: float(sum(each.num_tokens for each in self.sequences(name)))
            for name in self.candidates
        }

    @property
    def scored_tokens(self) -> dict[str, float]:
        """Tokens of one pass over each dataset on which the loss is taken."""
        return {
            name: float(sum(each.num_scored for each in self.sequences(name)))
            for name in self.candidates
        }

    def general(self, num: int) -> list[Item]:
        """Returns `num` sequences of the anchor dataset.

        They are the first of an order drawn by its seed, so that a larger draw holds a smaller
        one; taken round again if there are too few.
        """
        if self.anchor is None or self.recipe.train.anchor is None:
            return []
        sequences = self.anchor.encoding.sequences
        order = list(range(len(sequences)))
        random.Random(self.recipe.train.anchor.dataset.seed).shuffle(order)
        return [sequences[order[i % len(order)]] for i in range(num)]

    def anchor_content(self) -> str:
        """Returns the address of the anchor dataset's sequences, in their order."""
        if self.anchor is None:
            return ""
        return content(self.general(len(self.anchor.encoding.sequences)))

    def finetune_bytes(self) -> int:
        """Returns the disk that one fine-tune takes: float32 params, and what comes with them."""
        lora = self.recipe.train.lora if self.recipe.train.method == "lora" else None
        return 4 * self.family.num_saved(lora) + 4_000_000

    # --- targets

    def targets(self, part: Part) -> Mapping[str, Scorer]:
        """Returns the targets over the select or the report part of their examples."""
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
        """Returns the examples of a target's select part; none for a function's target.

        Those of a benchmark are its requests with their right answers.
        """
        if target not in self.own:
            return self.selected[target]
        return self._answered(target) if self.own[target].has_texts else ()

    def companion(self, target: str) -> Scorer | None:
        """Returns the loss that stands for a target's score if derivatives are needed.

        It is that of the right answers on the same select examples. None without answers, as with
        a function that has no prompt and completion.
        """
        if target not in self._companions:
            examples = self._answered(target)
            setting = TargetSetting(self.family, f"targets.{target}", self.recipe.batch_tokens)
            try:
                found = _scorer_of(Loss(examples, setting), examples, setting) if examples else None
            except DataError as error:
                self.warnings.append(f"target {target} has no companion loss: {error}")
                found = None
            self._companions[target] = found
        return self._companions[target]

    def _answered(self, target: str) -> Sequence[Example]:
        """A target's select examples with their answers."""
        own = self.own.get(target)
        return self.selected[target] if own is None else own.answered(self.selected[target])


def read_inputs(recipe: Recipe, listener: Listener) -> Inputs:
    """Reads the base's configuration and tokenizer, every dataset and every target.

    Raises:
        UserError: something cannot be read or does not fit; names its place in the recipe.
    """
    family = open_family(recipe.family, recipe.base, recipe.device, recipe.train, recipe.images)
    if not isinstance(family, ClassifiesImages):
        _refuse_foreign(recipe)
    if recipe.train.launch is not None:
        family.untrained()  # raises if the family is always trained in one process
    read, own = _read(recipe, family, listener)
    leaks = Leaks(recipe, read)
    for name in recipe.datasets:
        where = f"datasets.{name}"
        read[where] = leaks.without_leaks(where, read[where])
    family.settle(read)
    candidates = {
        name: _candidate(spec, read[f"datasets.{name}"], family)
        for name, spec in recipe.datasets.items()
    }
    materials = {
        name: _target_material(spec, read[f"targets.{name}"], family)
        for name, spec in recipe.targets.items()
        if isinstance(spec, TargetSection) and name not in own
    }
    taken = {name: material.examples for name, material in materials.items()}
    taken |= {name: each.examples for name, each in own.items()}
    parts = _parts(recipe, read, taken, leaks)
    scorers: dict[Part, dict[str, Scorer]] = {"select": {}, "report": {}}
    for name in recipe.targets:
        setting = TargetSetting(family, f"targets.{name}", recipe.batch_tokens)
        both = _scorers(recipe, name, parts[name], own.get(name), setting)
        scorers["select"][name], scorers["report"][name] = both
    every = candidates | materials
    warnings = [
        *family.limits,
        *family.notes({name: material.encoding for name, material in every.items()}),
        *(note for material in candidates.values() for note in material.examples.notes),
        *(note for examples in taken.values() for note in examples.notes),
        *counted(
            {n: sum(scorers[part][n].target.num_cut for part in scorers) for n in recipe.targets},
            "prompts lose their beginning to leave room for max_new_tokens",
        ),
        *_unequal(recipe, candidates, family.has_texts),
        *leaks.sentences(
            {material.examples.where: trained(material) for material in candidates.values()}
        ),
        *(
            line
            for name, both in parts.items()
            if f"targets.{name}" in read
            for line in leaks.between(f"targets.{name}", *both)
        ),
    ]
    anchor = recipe.train.anchor
    general = (
        None if anchor is None else _candidate(anchor.dataset, read["train.anchor.dataset"], family)
    )
    selected = {name: select for name, (select, _) in parts.items()}
    return Inputs(recipe, family, candidates, scorers, warnings, general, selected, own)


def trained(material: Material) -> list[int]:
    """Returns the places of a dataset's examples that are trained on, in order."""
    return sorted({sequence.example for sequence in material.encoding.sequences})


def _parts(
    recipe: Recipe, read: Mapping[str, Examples], taken: Mapping[str, Examples], leaks: Leaks
) -> dict[str, Both]:
    """The select and the report examples of every target, of those that are `taken`.

    What is asked in several targets is on one side of all of them. Larger targets come first, so
    that neither names nor their order in the recipe matter.
    """
    sides, fraction = splits.Sides(), recipe.select_fraction
    asked: dict[str, list[Hashable]] = {}
    for name, examples in taken.items():
        where = f"targets.{name}"
        if where not in read:
            asked[name] = []
            continue
        known = {
            item.row: key for item, key in zip(read[where].items, leaks.asked(where), strict=True)
        }
        asked[name] = [known[item.row] for item in examples.items]

    def rank(name: str) -> tuple[int, str]:
        return -len(taken[name].items), taken[name].fingerprint()

    found = {}
    for name in sorted(taken, key=rank):
        own = sides if asked[name] else None  # a function's examples are like no others
        found[name] = splits.split(
            taken[name], fraction, recipe.targets[name].seed, asked[name], own
        )
    return {name: found[name] for name in recipe.targets}


def _unequal(recipe: Recipe, candidates: Mapping[str, Material], has_texts: bool) -> list[str]:
    """A line where a union is mostly one dataset, and what is done about it."""
    if recipe.search.draws_rows or len(candidates) < 2:
        return []
    scored = {
        name: sum(each.num_scored for each in material.encoding.sequences)
        for name, material in candidates.items()
    }
    shares = {name: num / sum(scored.values()) for name, num in scored.items()}
    effective = 1 / sum(share**2 for share in shares.values())
    if effective >= LEAST_EVEN * len(shares):
        return []
    largest_first = sorted(shares.items(), key=lambda each: -each[1])
    listed = ", ".join(f"{name} {share:.0%}" for name, share in largest_first[:5])
    more = f" and {len(shares) - 5} more" if len(shares) > 5 else ""
    unit = "tokens that the loss is taken on" if has_texts else "examples"
    says = f"the datasets are unequal, by their shares of the {unit}: {listed}{more}"
    own, others = recipe.merge.weighting, recipe.verify.weightings
    by = {"equal": "alike", "tokens": "by these shares", "size": "by their sequences"}
    weigh = by.get(own, "by the root of these shares")
    may = [by.get(each, "by their root") for each in others if each != own]
    then = f", and checks may ask to weigh them {' or '.join(may)}" if may else ""
    how = f"merges weigh the experts {weigh}{then}; experts are pooled by these shares"
    return [f"{says}; a union of all is mostly the largest: {how}"]


def _refuse_foreign(recipe: Recipe) -> None:
    """Raises RecipeError for a key that only image classifiers heed, so that none is ignored."""
    default = type(recipe).model_fields["images"].default
    augment = recipe.train.augment
    foreign = {"images": recipe.images != default, "train.augment": augment is not None}
    for name, spec in recipe.targets.items():
        foreign[f"targets.{name}.head"] = isinstance(spec, WithHead) and spec.head is not None
    for key, given in foreign.items():
        if given:
            hint = "add that key at the top, or take this one out"
            raise RecipeError(key, "is for family: image-classifier", hint=hint)


def _read(
    recipe: Recipe, family: Family, listener: Listener
) -> tuple[dict[str, Examples], dict[str, OwnExamples]]:
    """The examples of every source by its place in the recipe, and what targets bring themselves.

    What can be compared by its words is among the first, too.
    """
    sources: dict[str, Source] = {f"datasets.{n}": spec for n, spec in recipe.datasets.items()}
    if recipe.train.anchor is not None:
        sources["train.anchor.dataset"] = recipe.train.anchor.dataset
    bringing: dict[str, BringsExamples] = {}
    for name, spec in recipe.targets.items():
        check_score(family, spec, f"targets.{name}")
        if isinstance(spec, BringsExamples):
            bringing[name] = spec
        elif isinstance(spec, TargetSection):
            sources[f"targets.{name}"] = spec
    found, own = {}, {}
    num = len(sources) + len(bringing)
    with listener.task("inputs", "reading datasets and targets", num) as advance:
        for where, source in sources.items():
            found[where] = family.read(source, where)
            advance(1)
        for name, each in bringing.items():
            where = f"targets.{name}"
            own[name] = each.open(TargetSetting(family, where, recipe.batch_tokens))
            if own[name].has_texts:
                found[where] = own[name].examples
            advance(1)
    return found, own


def _candidate(spec: Dataset, examples: Examples, family: Family) -> Material:
    where = examples.where
    encoding = take_tokens(family.encode(examples.items, where), spec.max_tokens, spec.seed)
    if not any(sequence.num_scored for sequence in encoding.sequences):
        raise DataError(where, "no example has a token to train on")
    return Material(examples, encoding)


def _target_material(spec: TargetSection, examples: Examples, family: Family) -> Material:
    """A target's examples; of more than `max_tokens` tokens, whole ones drawn by the seed."""
    encoding = family.encode(examples.items, examples.where)
    if spec.max_tokens is None:
        return Material(examples, encoding)
    sizes = [0] * encoding.num_examples
    for sequence in encoding.sequences:
        sizes[sequence.example] += sequence.num_tokens
    order = list(range(len(sizes)))
    random.Random(spec.seed).shuffle(order)
    kept: list[int] = []
    for i in order:
        # two at least, as one cannot be split
        if len(kept) >= 2 and sum(sizes[j] for j in kept) + sizes[i] > spec.max_tokens:
            break
        kept.append(i)
    some = examples.take(sorted(kept))
    return Material(some, family.encode(some.items, examples.where))


def _scorers(
    recipe: Recipe, name: str, parts: Both, own: OwnExamples | None, setting: TargetSetting
) -> tuple[Scorer, Scorer]:
    """A target over its select and its report part."""
    spec = recipe.targets[name]

    def scorer(part: Sequence[Example]) -> Scorer:
        target = spec.build(part, setting) if own is None else own.over(part)
        return _scorer_of(target, part, setting)

    select, report = parts
    blocks: tuple[Scorer, ...] = ()
    if recipe.search.racing is not None:
        if own is not None and own.whole_only:
            message = f"scores examples in blocks, and of {setting.where} {own.whole_only}"
            raise RecipeError("search.racing", message, hint="leave racing out")
        blocks = _blocks(select, spec.seed, setting.where, scorer)
    return replace(scorer(select), blocks=blocks), scorer(report)


def _scorer_of(target: Target, part: Sequence[Example], setting: TargetSetting) -> Scorer:
    # scores depend on the batches they were computed in, by a rounding; a function makes its own
    is_own = isinstance(target, Function)
    address = target.address() if is_own else digest(target.address(), setting.batch_tokens)
    return Scorer(target, address, len(part))


def _blocks(
    select: Sequence[Example],
    seed: int,
    where: str,
    scorer: Callable[[Sequence[Example]], Scorer],
) -> tuple[Scorer, ...]:
    """The select part cut as a race sees it. Raises DataError for too few examples."""
    if len(select) < early_stopping.MIN_EXAMPLES:
        wanted = (
            f"at least {early_stopping.MIN_EXAMPLES} select examples, and there are {len(select)}"
        )
        hint = "give the target more rows, raise select_fraction, or leave racing out"
        raise DataError(where, f"search.racing needs {wanted}", hint=hint)
    order, found, start = splits.drawn_order(select, seed), [], 0
    for stage, end in enumerate(early_stopping.stages(len(select))):
        # in the examples' own order, as batches are made of the whole
        places = tuple(sorted(order[start:end]))
        if places:
            block = scorer([select[place] for place in places])
            found.append(replace(block, places=places, stage=stage))
        start = end
    return tuple(found)


def expert_files(path: str) -> list[Path]:
    """Returns the files of an expert that the user gives: weights and configurations."""
    return sorted(Path(path).glob("*.safetensors")) + sorted(Path(path).glob("*.json"))

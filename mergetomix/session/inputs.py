"""Everything that a recipe names, read and checked before any training.

Datasets become training sequences, targets become scorers over their select and report parts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
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
from mergetomix.sections.target import WithHead
from mergetomix.sections.user_function import load_function
from mergetomix.session.leaks import Leaks
from mergetomix.statistics import early_stopping
from mergetomix.store.address import digest
from mergetomix.store.store import Store, hash_files
from mergetomix.targets.function import call
from mergetomix.targets.kinds import AnyTarget, check_score
from mergetomix.targets.loss import Loss
from mergetomix.targets.python import Function, PythonTarget
from mergetomix.targets.target import Target, TargetSetting

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
    examples of those that have any of their own.
    """

    recipe: Recipe
    family: Family
    candidates: Mapping[str, Material]
    scorers: Mapping[Part, Mapping[str, Scorer]]
    warnings: list[str] = field(default_factory=list)
    anchor: Material | None = None
    selected: Mapping[str, Sequence[Example]] = field(default_factory=dict)
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
        """Returns the examples of a target's select part; none for a function's target."""
        return self.selected.get(target, ())

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
        scorer, spec = self.scorers["select"][target].target, self.recipe.targets[target]
        if not isinstance(scorer, Function):
            return self.select_examples(target)
        if not spec.has_data or not (spec.completion or spec.messages or spec.text):
            return ()
        found = self.family.read(spec, f"targets.{target}")
        others = self.scorers["report"][target].target
        num_rows = len(scorer.keep) + (len(others.keep) if isinstance(others, Function) else 0)
        if len(found.items) < num_rows:  # bad rows were left out, and places are other rows
            return ()
        return [found.items[row] for row in scorer.keep]


def read_inputs(recipe: Recipe, listener: Listener) -> Inputs:
    """Reads the base's configuration and tokenizer, every dataset and every target.

    Raises:
        UserError: something cannot be read or does not fit; names its place in the recipe.
    """
    family = open_family(recipe.family, recipe.base, recipe.device, recipe.train, recipe.images)
    if not isinstance(family, ClassifiesImages):
        _refuse_foreign(recipe)
    read = _read(recipe, family, listener)
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
        if f"targets.{name}" in read
    }
    parts = _parts(recipe, read, materials, leaks)
    scorers: dict[Part, dict[str, Scorer]] = {"select": {}, "report": {}}
    for name, spec in recipe.targets.items():
        setting = TargetSetting(family, f"targets.{name}", recipe.batch_tokens)
        both = _scorers(recipe, spec, parts.get(name), setting)
        scorers["select"][name], scorers["report"][name] = both
    every = candidates | materials
    warnings = [
        *family.limits,
        *family.notes({name: material.encoding for name, material in every.items()}),
        *(note for material in every.values() for note in material.examples.notes),
        *counted(
            {n: sum(scorers[part][n].target.num_cut for part in scorers) for n in recipe.targets},
            "prompts lose their beginning to leave room for max_new_tokens",
        ),
        *_unequal(recipe, candidates, family.has_texts),
        *leaks.sentences(
            {material.examples.where: trained(material) for material in candidates.values()}
        ),
        *(line for name, both in parts.items() for line in leaks.between(f"targets.{name}", *both)),
    ]
    anchor = recipe.train.anchor
    general = (
        None if anchor is None else _candidate(anchor.dataset, read["train.anchor.dataset"], family)
    )
    selected = {name: select for name, (select, _) in parts.items()}
    return Inputs(recipe, family, candidates, scorers, warnings, general, selected)


def trained(material: Material) -> list[int]:
    """Returns the places of a dataset's examples that are trained on, in order."""
    return sorted({sequence.example for sequence in material.encoding.sequences})


def _parts(
    recipe: Recipe, read: Mapping[str, Examples], materials: Mapping[str, Material], leaks: Leaks
) -> dict[str, Both]:
    """The select and the report examples of every target that has data of its own.

    What is asked in several targets is on one side of all of them. Larger targets come first, so
    that neither names nor their order in the recipe matter.
    """
    asked, sides = {}, splits.Sides()
    for name, material in materials.items():
        whole = zip(read[f"targets.{name}"].items, leaks.asked(f"targets.{name}"), strict=True)
        known = {item.row: key for item, key in whole}
        asked[name] = [known[item.row] for item in material.examples.items]

    def rank(name: str) -> tuple[int, str]:
        examples = materials[name].examples
        return -len(examples.items), examples.fingerprint()

    found = {}
    for name in sorted(materials, key=rank):
        seed, examples = recipe.targets[name].seed, materials[name].examples
        fraction = recipe.select_fraction
        found[name] = splits.split(examples, fraction, seed, asked[name], sides)
    return {name: found[name] for name in recipe.targets if name in found}


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


def _read(recipe: Recipe, family: Family, listener: Listener) -> dict[str, Examples]:
    """The examples of every source, by its place in the recipe; a function brings its own."""
    sources: dict[str, Source] = {f"datasets.{n}": spec for n, spec in recipe.datasets.items()}
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


def _candidate(spec: Dataset, examples: Examples, family: Family) -> Material:
    where = examples.where
    encoding = take_tokens(family.encode(examples.items, where), spec.max_tokens, spec.seed)
    if not any(sequence.num_scored for sequence in encoding.sequences):
        raise DataError(where, "no example has a token to train on")
    return Material(examples, encoding)


def _target_material(spec: AnyTarget, examples: Examples, family: Family) -> Material:
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
    recipe: Recipe, spec: AnyTarget, parts: Both | None, setting: TargetSetting
) -> tuple[Scorer, Scorer]:
    """A target over its select and its report part."""
    if isinstance(spec, PythonTarget):
        examples, scorer = _of_function(spec, setting)
        select, report = splits.split(examples, recipe.select_fraction, spec.seed)
    else:
        assert parts is not None
        select, report = parts

        def scorer(part: Sequence[Example]) -> Scorer:
            return _scorer_of(spec.build(part, setting), part, setting)

    racing = recipe.search.racing is not None
    blocks = _blocks(select, spec.seed, setting.where, scorer) if racing else ()
    return replace(scorer(select), blocks=blocks), scorer(report)


def _scorer_of(target: Target, part: Sequence[Example], setting: TargetSetting) -> Scorer:
    # scores depend on the batches they were computed in, by a rounding
    return Scorer(target, digest(target.address(), setting.batch_tokens), len(part))


def _of_function(
    spec: PythonTarget, setting: TargetSetting
) -> tuple[Examples, Callable[[Sequence[Example]], Scorer]]:
    """A function's target: over rows if it has data, else over its scores of the base."""
    family, where = setting.family, setting.where
    rows, contents = family.rows(spec, where) if spec.has_data else (None, [])
    if rows is None:
        function = load_function(spec.function, where)
        num = len(call(function, family.load(), family.processor, None, where))
        texts = [str(i) for i in range(num)]
    else:
        texts = [repr(each) for each in contents]
    items = tuple(Example(row=i, text=text) for i, text in enumerate(texts))

    def scorer(part: Sequence[Example]) -> Scorer:
        keep = [item.row for item in part]
        some = None if rows is None else [rows[i] for i in keep]
        made_of = None if rows is None else [contents[i] for i in keep]
        target = Function(spec, some, keep, setting, made_of)
        return Scorer(target, target.address(), len(keep))

    return Examples(where, items, len(items)), scorer


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

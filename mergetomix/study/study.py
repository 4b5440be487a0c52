"""The method under test: mixtures fine-tuned for real over several seeds, and every rival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from mergetomix.errors import UserError
from mergetomix.progress import Listener, Silent, duration
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Mixture
from mergetomix.session.finetunes import environment
from mergetomix.session.session import Session, open_session
from mergetomix.stages import pipeline
from mergetomix.statistics.posterior import Array
from mergetomix.study import compare, similarity
from mergetomix.study.truth import World, gather, mixtures_of

CONFIDENCE = 0.9


@dataclass(frozen=True)
class Findings:
    """What a study found: the worlds (one for each target and seed), and what they show.

    `absent` are ways to choose that lack an answer in so many worlds. `budget` is the compute that
    every way to choose may spend, mean over worlds, in forward passes of one token. `warnings` are
    those of the runs behind it.
    """

    worlds: tuple[World, ...]
    standings: tuple[compare.Standing, ...]
    curves: Mapping[str, tuple[Array, Array]]
    ranks: tuple[compare.TargetRanks, ...]
    coverage: tuple[compare.Coverage, ...]
    absent: Mapping[str, int]
    num_draws: int
    budget: float
    environment: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def num_finetunes(self) -> int:
        """Real fine-tunes behind it, experts included."""
        first = self.targets[0]
        return sum(len(world.mixtures) for world in self.worlds if world.target == first)

    @property
    def targets(self) -> list[str]:
        """The targets' names."""
        return list(dict.fromkeys(world.target for world in self.worlds))

    @property
    def seeds(self) -> set[int]:
        """The values of train.seed."""
        return {world.seed for world in self.worlds}

    @property
    def failures(self) -> list[tuple[int, Mixture, str]]:
        """Seed, mixture and reason of every fine-tune that failed."""
        every = ((world.seed, *each) for world in self.worlds for each in world.failures)
        return list(dict.fromkeys(every))


def run(recipe: Recipe, listener: Listener | None = None, *, yes: bool = False) -> Findings:
    """Does the whole study of a recipe, taking from the store what is there.

    Raises UserError, which says what it would cost, if it is larger than `study.max_finetunes` and
    `yes` is false.
    """
    options = recipe.study
    worlds: list[World] = []
    found: Mapping[str, Any] = {}
    warnings: dict[str, None] = {}
    for seed in options.seeds:
        seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
        with open_session(seeded, listener or Silent()) as session:
            mixtures = mixtures_of(session, options.num_mixtures, seed=0)
            if not worlds and not yes:
                check_size(session, mixtures)
            pipeline.train_experts(session)
            similar = similarities(session)
            names, sequences = session.spaces.searched.allowed, session.inputs.sequences
            read = sum(each.num_tokens for name in names for each in sequences(name))
            for world in gather(session, mixtures, [*options.exponents, 1.0], options.weightings):
                near = similar[world.target]
                # the base reads datasets and target to compare hidden states
                num_read = world.eval_tokens + read
                worlds.append(replace(world, similarities=near, embed_tokens=num_read))
            found = environment(session.opened)
            warnings |= dict.fromkeys(session.opened.warnings)
    concluded = conclude(worlds, options.num_draws, found)
    return replace(concluded, warnings=tuple(warnings))


def conclude(worlds: Sequence[World], num_draws: int, environment: Mapping[str, Any]) -> Findings:
    """Returns everything that the worlds show."""
    contests = [compare.contest(world, num_draws) for world in worlds]
    return Findings(
        worlds=tuple(worlds),
        standings=tuple(compare.standings(contests, CONFIDENCE)),
        curves=compare.mean_curves(contests),
        ranks=tuple(compare.target_ranks(worlds)),
        coverage=tuple(compare.coverage(worlds, CONFIDENCE)),
        absent=compare.absent(contests),
        num_draws=num_draws,
        budget=fmean(each.budget for each in contests),
        environment=environment,
    )


def check_size(session: Session, mixtures: Sequence[Mixture]) -> None:
    """Raises UserError if a study is larger than the recipe lets it be without a word.

    The time is measured on one batch.
    """
    from mergetomix.stages import plan

    options, own = session.recipe.study, session.recipe.merge.scale.exponent
    num = len(mixtures) * len(options.seeds)
    if num <= options.max_finetunes:
        return
    (speed, _), num_tokens = plan.measure(session), session.finetunes.num_tokens
    tokens = len(options.seeds) * sum(map(num_tokens, mixtures))
    # select scores in every way, report scores of the proxies, both of the real fine-tunes
    num_ways = len({*options.exponents, own, 1.0})
    num_ways += len({*options.weightings} - {session.recipe.merge.weighting})
    evaluations = num * (num_ways + 3)
    seconds = tokens * speed.train_s_per_token + evaluations * speed.evaluate_s
    size = num * session.inputs.finetune_bytes() / 1e9
    most = f"more than study.max_finetunes ({options.max_finetunes})"
    work = f"{tokens / 1e6:.1f} million tokens of training and {evaluations} evaluations"
    free = f"({session.store.free_bytes() / 1e9:.1f} GB are free)"
    cost = f"{work} of all targets, about {duration(seconds)} and {size:.1f} GB {free}"
    hint = "add --yes, or set study.num_mixtures or study.seeds lower"
    raise UserError(f"this study makes {num} fine-tunes, {most}: {cost}", hint=hint)


def similarities(session: Session) -> dict[str, dict[str, dict[str, float]]]:
    """Returns how near every dataset is, by target and by kind of measure.

    A target without examples of its own has none, and images have no words to compare.
    """
    names, family = session.spaces.searched.allowed, session.inputs.family
    sequences = {name: session.inputs.sequences(name) for name in names}
    texts = {name: trained_on(session, name) for name in names} if family.has_texts else {}
    model = family.load()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for target in session.recipe.targets:
        examples = session.inputs.select_examples(target)
        found[target] = {}
        if not examples:
            continue
        encoded = family.encode(examples, f"targets.{target}").sequences
        found[target]["hidden state"] = similarity.hidden_state(
            family, model, sequences, encoded, session.recipe.batch_tokens
        )
        if family.has_texts:
            wanted = [similarity.text_of(example) for example in examples]
            found[target] |= by_words(session.recipe, texts, wanted)
    return found


def trained_on(session: Session, name: str) -> list[str]:
    """Returns the texts of a dataset that a fine-tune sees."""
    candidate = session.inputs.candidates[name]
    kept = {sequence.example for sequence in candidate.encoding.sequences}
    items = enumerate(candidate.examples.items)
    return [similarity.text_of(item) for i, item in items if i in kept]


def by_words(
    recipe: Recipe, texts: Mapping[str, Sequence[str]], wanted: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns how near the texts of every dataset are to those of a target, by kind of measure."""
    found = {
        "TF-IDF": similarity.tf_idf(texts, wanted),
        "n-grams": similarity.ngram_importance(texts, wanted, seed=recipe.train.seed),
    }
    if (model := recipe.study.embedding_model) is not None:
        found["sentence embedding"] = similarity.sentence_embedding(texts, wanted, model)
    return found

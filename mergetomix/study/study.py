"""The method under test: every mixture fine-tuned for real over several seeds, and every other way to choose beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mergetomix.errors import UserError
from mergetomix.progress import Listener, Silent, duration
from mergetomix.recipe.recipe import Recipe
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

    `absent` are ways to choose that lack an answer in so many worlds. `budget` is the compute that every way to choose may
    spend, mean over worlds, in forward passes of one token.
    """

    worlds: tuple[World, ...]
    standings: tuple[compare.Standing, ...]
    curves: Mapping[str, tuple[Array, Array]]
    faith: tuple[compare.Faith, ...]
    coverage: tuple[compare.Coverage, ...]
    absent: Mapping[str, int]
    num_draws: int
    budget: float
    environment: Mapping[str, Any]

    @property
    def num_finetunes(self) -> int:
        """Real fine-tunes behind it, experts included."""
        return sum(
            len(world.mixtures) for world in self.worlds if world.target == self.worlds[0].target
        )


def run(recipe: Recipe, listener: Listener | None = None, *, yes: bool = False) -> Findings:
    """Does the whole study of a recipe, taking from the store what is there.

    Raises:
        UserError: the study is larger than `study.max_finetunes` and `yes` is false; says what it would cost.
    """
    listener = listener or Silent()
    options = recipe.study
    worlds: list[World] = []
    found: Mapping[str, Any] = {}
    for seed in options.seeds:
        seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
        with open_session(seeded, listener) as session:
            mixtures = mixtures_of(session, options.num_mixtures, seed=0)
            if not worlds and not yes:
                check_size(session, len(mixtures))
            pipeline.train_experts(session)
            similar = similarities(session)
            for world in gather(session, mixtures, [*options.exponents, 1.0]):
                worlds.append(
                    replace(
                        world,
                        similarities=similar[world.target],
                        embed_tokens=embed_tokens(session, world),
                    )
                )
            found = environment(session.opened)
    return conclude(worlds, options.num_draws, found)


def conclude(worlds: Sequence[World], num_draws: int, environment: Mapping[str, Any]) -> Findings:
    """Everything that the worlds show."""
    races = [compare.race(world, num_draws) for world in worlds]
    return Findings(
        worlds=tuple(worlds),
        standings=tuple(compare.standings(races, CONFIDENCE)),
        curves=compare.mean_curves(races),
        faith=tuple(compare.faith(worlds)),
        coverage=tuple(compare.coverage(worlds, CONFIDENCE)),
        absent=compare.absent(races),
        num_draws=num_draws,
        budget=fmean(each.budget for each in races),
        environment=environment,
    )


def check_size(session: Session, num_mixtures: int) -> None:
    """Raises UserError where a study is larger than the recipe lets it be without a word; the time is measured on one batch."""
    options = session.recipe.study
    num = num_mixtures * len(options.seeds)
    if num <= options.max_finetunes:
        return
    from mergetomix.stages import plan

    speed = plan.measure(session)
    tokens = len(options.seeds) * sum(
        session.finetunes.num_tokens(m) for m in mixtures_of(session, options.num_mixtures, seed=0)
    )
    # select scores at every exponent and report scores of the proxies, both parts of the real fine-tunes
    evaluations = num * (len({*options.exponents, session.recipe.merge.scale.exponent, 1.0}) + 3)
    seconds = tokens * speed.train_s_per_token + evaluations * speed.evaluate_s
    message = (
        f"this study makes {num} fine-tunes, more than study.max_finetunes ({options.max_finetunes}):"
        f" {tokens / 1e6:.1f} million tokens of training and {evaluations} evaluations of all targets, about"
        f" {duration(seconds)} and {num * session.inputs.finetune_bytes() / 1e9:.1f} GB"
        f" ({session.store.free_bytes() / 1e9:.1f} GB are free)"
    )
    raise UserError(message, hint="add --yes, or set study.num_mixtures or study.seeds lower")


def trained_on(session: Session, name: str) -> list[str]:
    """The texts of a dataset that a fine-tune sees."""
    candidate = session.inputs.candidates[name]
    kept = {sequence.example for sequence in candidate.encoding.sequences}
    return [
        similarity.text_of(item) for i, item in enumerate(candidate.examples.items) if i in kept
    ]


def similarities(session: Session) -> dict[str, dict[str, dict[str, float]]]:
    """By target and by kind: how near every dataset is. A target without examples of its own has none, and images have no
    words to compare."""
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
            found[target] |= by_words(
                session, texts, [similarity.text_of(example) for example in examples]
            )
    return found


def by_words(
    session: Session, texts: Mapping[str, Sequence[str]], wanted: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By kind: how near the texts of every dataset are to those of a target."""
    found = {
        "TF-IDF": similarity.tf_idf(texts, wanted),
        "n-grams": similarity.ngram_importance(texts, wanted, seed=session.recipe.train.seed),
    }
    if session.recipe.study.embedding_model is not None:
        found["sentence embedding"] = similarity.sentence_embedding(
            texts, wanted, session.recipe.study.embedding_model
        )
    return found


def embed_tokens(session: Session, world: World) -> int:
    """Tokens that the base reads to compare hidden states."""
    return world.eval_tokens + sum(
        s.num_tokens
        for name in session.spaces.searched.allowed
        for s in session.inputs.sequences(name)
    )


def write(study: Findings, recipe: Recipe) -> Path:
    """Writes study.json, study.md and the plots into the run's folder, and gives the folder."""
    from mergetomix.study import document, plots

    folder = Path(recipe.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    document.write(study, folder)
    plots.proxy_against_real(study.worlds, folder / "proxy-real.svg")
    plots.regret_against_compute(study.curves, folder / "regret-compute.svg")
    return folder

"""What a run will train, and whether the recipe, the data and the disk allow it: asked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from mergetomix.errors import RecipeError, StoreError
from mergetomix.mixtures.spaces import Simplex, Space, Subsets, everything
from mergetomix.records import Mixture
from mergetomix.session.session import Session

NUM_CHECKS = 3
"""Checks that a run pays for unless the recipe says otherwise."""


def num_checks(session: Session) -> int:
    """How many checks to pay for. Raises RecipeError where there are fewer mixtures to check than the recipe wants."""
    num, budget = session.spaces.searched.num_plural, session.recipe.verify.budget
    if budget is None:
        return int(min(NUM_CHECKS, num))
    if budget > num:
        message = (
            f"{budget} checks, but the search may choose among {num} mixtures of several datasets"
        )
        raise RecipeError(
            "verify.budget",
            message,
            hint="a mixture of one dataset is its own expert and needs no check",
        )
    return budget


def baselines(session: Session) -> dict[str, Mixture]:
    """The mixtures that the final table compares with, by name."""
    options, space = session.recipe.final, session.spaces.searched
    found = {"all datasets": everything(space)} if "all" in options.baselines else {}
    if "random" in options.baselines:
        drawn = space.sample(options.num_random, session.recipe.train.seed)
        found |= {f"random {i + 1}": mixture for i, mixture in enumerate(drawn)}
    return found


def finetunes(session: Session) -> list[tuple[Mixture, int | None]]:
    """The mixture of every fine-tune of a run, each once, with its seed where that is not train.seed. What is checked and
    chosen is not known before the search: others stand for it."""
    space, checks, seed = session.spaces.searched, num_checks(session), session.recipe.train.seed
    repeats = session.recipe.verify.repeats if checks else 0
    some = stand_ins(space, max(checks, repeats, 1))
    wanted = [Mixture.union([name]) for name in space.allowed]
    wanted += some[: max(checks, int(session.recipe.final.train))]
    wanted += baselines(session).values()
    return [(mixture, None) for mixture in dict.fromkeys(wanted)] + [
        (mixture, seed + 1) for mixture in some[:repeats]
    ]


def stand_ins(space: Space, num: int) -> list[Mixture]:
    """At most `num` mixtures of a space that stand for those that a search will find: of half the datasets, two at least, or
    drawn where there are groups or weights."""
    if isinstance(space, Simplex) or space.groups:
        drawn = space.sample(4 * num, seed=0)
        return sorted(drawn, key=lambda mixture: len(mixture) == 1)[:num]
    least, most = space.bounds
    half = max(least, min(most, max(2, (len(space.allowed) + 1) // 2)))
    halves = Subsets(space.allowed, half, half, space.require)
    return [space.mixture(mixture.datasets) for mixture in islice(halves, num)]


def check_length(session: Session) -> None:
    """Raises RecipeError where training is too short to take a sequence of every dataset that a weighted mixture may have."""
    if session.recipe.search.draws_rows:
        session.finetunes.counts(everything(session.spaces.searched))


def check_space(session: Session, planned: Sequence[tuple[Mixture, int | None]]) -> None:
    """Raises StoreError where the disk has no room for the planned fine-tunes, with their seeds, that the store lacks."""
    given = {name for name, spec in session.recipe.datasets.items() if spec.expert is not None}
    wanted = [(mixture, seed) for mixture, seed in planned if set(mixture.members) - given]
    todo = [mixture for mixture, seed in wanted if session.finetunes.known(mixture, seed) is None]
    needed = session.inputs.finetune_bytes() * len(todo)
    free = session.store.free_bytes()
    if needed > free:
        message = f"{session.store.path} has {free / 1e9:.1f} GB free, and the fine-tunes need about {needed / 1e9:.1f} GB"
        raise StoreError(
            message, hint="free some space, name another store, or train with method: lora"
        )

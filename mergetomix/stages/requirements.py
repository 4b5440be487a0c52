"""What a run will train, and whether the recipe, the data and the disk allow it.

It is asked before anything is trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mergetomix.errors import RecipeError, StoreError
from mergetomix.mixtures.spaces import Simplex, Space, Subsets, everything
from mergetomix.records import Mixture
from mergetomix.session.session import Session

NUM_CHECKS = 3
"""Checks that a run pays for unless the recipe says otherwise."""
MOST_CHECKED = 31
"""Mixtures of several datasets that may all be checked, if that costs no more."""


def num_checks(session: Session) -> int:
    """Returns how many checks to pay for.

    Raises RecipeError if there are fewer mixtures to check than the recipe wants.
    """
    num, budget = session.spaces.searched.num_plural, session.recipe.verify.budget
    if budget is None:
        return int(num if checks_all(session) else min(NUM_CHECKS, num))
    if budget > num:
        choice = f"the search may choose among {num} mixtures of several datasets"
        hint = "a mixture of one dataset is its own expert and needs no check"
        raise RecipeError("verify.budget", f"{budget} checks, but {choice}", hint=hint)
    return budget


def checks_all(session: Session) -> bool:
    """Returns whether fine-tuning on every mixture costs no more than the run's other fine-tunes.

    Then all of them are checked, if the recipe does not say how many.
    """
    space, made = session.spaces.searched, session.finetunes
    is_open = session.recipe.verify.budget is None
    if not is_open or isinstance(space, Simplex) or space.num_plural > MOST_CHECKED:
        return False
    planned = [mixture for mixture, _ in _finetunes(session, min(NUM_CHECKS, space.num_plural))]
    every = [mixture for mixture in space if len(mixture) > 1]
    return sum(map(made.num_tokens, every)) <= sum(
        made.num_tokens(mixture) for mixture in planned if len(mixture) > 1
    )


def baselines(session: Session) -> dict[str, Mixture]:
    """Returns the mixtures that the final table compares with, by name."""
    options, space = session.recipe.final, session.spaces.searched
    found = {"all datasets": everything(space)} if "all" in options.baselines else {}
    if "random" in options.baselines:
        drawn = space.sample(options.num_random, session.recipe.train.seed)
        found |= {f"random {i + 1}": mixture for i, mixture in enumerate(drawn)}
    return found


def finetunes(session: Session) -> list[tuple[Mixture, int | None]]:
    """Returns the mixture of every fine-tune of a run, each once, with its seed.

    The seed is None where it is train.seed. What is checked and chosen is not known before the
    search: others stand for it.
    """
    return _finetunes(session, num_checks(session))


def _finetunes(session: Session, checks: int) -> list[tuple[Mixture, int | None]]:
    recipe, space = session.recipe, session.spaces.searched
    repeats = recipe.verify.repeats if checks else 0
    some = stand_ins(space, max(checks, repeats, 1))
    wanted = [Mixture.union([name]) for name in space.allowed]
    wanted += some[: max(checks, int(recipe.final.train))]
    wanted += baselines(session).values()
    again = [(mixture, recipe.train.seed + 1) for mixture in some[:repeats]]
    return [*((mixture, None) for mixture in dict.fromkeys(wanted)), *again]


def stand_ins(space: Space, num: int) -> list[Mixture]:
    """Returns at most `num` mixtures that stand for those that a search will find.

    They are of half the datasets, two at least, or drawn if there are groups or weights.
    """
    if isinstance(space, Simplex) or space.groups:
        drawn = space.sample(4 * num, seed=0)
        return sorted(drawn, key=lambda mixture: len(mixture) == 1)[:num]
    least, most = space.bounds
    half = max(least, min(most, max(2, (len(space.allowed) + 1) // 2)))
    halves = Subsets(space.allowed, half, half, space.require)
    return [space.mixture(mixture.datasets) for mixture in islice(halves, num)]


def check_length(session: Session) -> None:
    """Raises RecipeError if training is too short to take a sequence of every dataset."""
    if session.recipe.search.draws_rows:
        session.finetunes.counts(everything(session.spaces.searched))


def check_space(
    session: Session, planned: Sequence[tuple[Mixture, int | None]], is_run: bool = True
) -> None:
    """Raises StoreError if the disk has no room for planned fine-tunes that the store lacks.

    A run hands its final model over as well.
    """
    datasets, store = session.recipe.datasets.items(), session.store
    given = {name for name, spec in datasets if spec.expert is not None}
    num = sum(
        bool(set(mixture.members) - given) and session.finetunes.known(mixture, seed) is None
        for mixture, seed in planned
    )
    each, free = session.inputs.finetune_bytes(), store.free_bytes()
    needed = num * each
    if is_run and session.recipe.final.train:  # the run's folder gets a copy of its own
        run_dir = existing(Path(session.recipe.run_dir))
        if run_dir.stat().st_dev == store.path.stat().st_dev:
            needed += each
        elif each > (room := shutil.disk_usage(run_dir).free):
            hint = "free some space, or name another run_dir"
            raise StoreError(
                f"{run_dir} has {size(room)} free, and the final model needs about {size(each)}",
                hint=hint,
            )
    if needed > free:
        wanted = f"the fine-tunes need about {size(needed)}"
        hint = "free some space, name another store, or train with method: lora"
        raise StoreError(f"{store.path} has {size(free)} free, and {wanted}", hint=hint)


def existing(path: Path) -> Path:
    """Returns a folder, or the nearest one above it that is there."""
    return next(each for each in (path, *path.absolute().parents) if each.is_dir())


def lacks_experts(session: Session) -> bool:
    """Returns whether an expert that a mixture may hold is to be trained.

    If the recipe gives all of them, whether anything else is.
    """
    datasets, known = session.recipe.datasets, session.finetunes.known
    own = [name for name in session.spaces.searched.allowed if datasets[name].expert is None]
    if own:
        return any(known(Mixture.union([name])) is None for name in own)
    planned = finetunes(session)
    return any(known(each, seed) is None for each, seed in planned if len(each.members) > 1)


def size(num_bytes: float) -> str:
    """Returns a number of bytes as a person reads it.

    >>> size(3_200_000), size(2.5e9)
    ('3 MB', '2.5 GB')
    """
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"

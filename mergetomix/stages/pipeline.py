"""The stages and `run`: experts, search, checks, final. It reads as the method's algorithm.

What the store holds is not done twice, so every stage can be run alone, and again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mergetomix.errors import TrainingError, UserError
from mergetomix.mixtures.spaces import everything, holds
from mergetomix.records import Finetune, Mixture
from mergetomix.results import Result, Row, Samples, Selection, Verification
from mergetomix.session.finetunes import environment
from mergetomix.session.session import Session
from mergetomix.session.signatures import signatures
from mergetomix.stages.answers import answered
from mergetomix.stages.checks import verify
from mergetomix.stages.costs import cost_of
from mergetomix.stages.decision import Evidence, decide
from mergetomix.stages.final import final_table
from mergetomix.stages.rehearsal import rehearse
from mergetomix.stages.requirements import (
    baselines,
    check_length,
    check_space,
    checks_all,
    finetunes,
    lacks_experts,
    num_checks,
)
from mergetomix.stages.search import first_strategy, objective_of_selection, search_mixtures

NUM_SAMPLES = 3
"""Rows of each dataset that a report shows."""


def run_in(session: Session) -> Result:
    """Does everything: experts, search, checks, the final fine-tune, and the evidence."""
    experts = train_experts(session)
    selection = search_mixtures(session)
    verification = verify_mixtures(session, selection)
    table = finalize(session, selection, verification)
    return result_of(session, experts, selection, verification, table)


def train_experts(session: Session) -> tuple[Finetune, ...]:
    """Returns one expert for each dataset that a mixture may hold, in order of their names.

    Raises as `experts_of`, and UserError for what would stop a later stage: that is said before
    anything is trained.
    """
    num_checks(session)
    first_strategy(session)
    check_length(session)
    check_space(session, finetunes(session))
    if lacks_experts(session):
        rehearse(session)
        session.evaluations.base("select")  # a target that cannot be scored is found here
    found = experts_of(session, session.spaces.searched.allowed)
    session.opened.tell_reused("experts")
    return found


def experts_of(session: Session, names: Sequence[str]) -> tuple[Finetune, ...]:
    """Returns the experts of some datasets, trained where the store lacks them.

    One that fails does not stop the others. Raises TrainingError at the end, naming each that
    failed.
    """
    found: dict[str, Finetune] = {}
    failures: dict[str, str] = {}
    singles = [Mixture.union([name]) for name in names]
    for mixture, expert in session.finetunes.fit_all(singles, "experts"):
        if isinstance(expert, Finetune):
            found[str(mixture)] = expert
            continue
        failures[str(mixture)] = f"expert {mixture}: {expert.message}"
        session.listener.warn(failures[str(mixture)])
    if failures:
        others = "the other experts are in the store; " if found else ""
        hint = f"{others}lower train.learning_rate or look for odd rows in these datasets"
        raise TrainingError("; ".join(failures[name] for name in sorted(failures)), hint=hint)
    return tuple(found[name] for name in names)


def verify_mixtures(session: Session, selection: Selection) -> Verification | None:
    """Returns what a few real fine-tunes say of the pick; None if the recipe wants no checks."""
    budget = num_checks(session)
    if not budget:
        return None
    if checks_all(session):
        session.listener.note(
            "fine-tuning on every mixture costs no more than comparing a few: all are checked"
        )
    objective = objective_of_selection(session, selection)
    others = list(baselines(session).values())
    return verify(session, selection, objective, budget, others)


def finalize(
    session: Session, selection: Selection, verification: Verification | None = None
) -> tuple[Row, ...]:
    """Returns the final table, on the report part that the search never saw.

    Base, experts, proxy, the selected mixture fine-tuned for real, the other mixtures checked, and
    the baselines that the recipe asks for.
    """
    objective = objective_of_selection(session, selection)
    return final_table(session, selection, verification, objective, baselines(session))


def result_of(
    session: Session,
    experts: Sequence[Finetune],
    selection: Selection,
    verification: Verification | None,
    table: Sequence[Row],
) -> Result:
    """Returns everything that a run found, with what it cost and where it ran."""
    path = str(Path(session.recipe.run_dir))
    cost = cost_of(session, experts, selection, verification, table)
    space, objective = session.spaces.searched, objective_of_selection(session, selection)
    evidence = Evidence(
        selection,
        verification,
        table,
        objective,
        partial(holds, space),
        session.finetunes.num_tokens,
        everything(space),
    )
    picked = selection.mixture if verification is None else verification.mixture
    portions = session.finetunes.portions(picked)
    about, complaints = environment(session.opened), session.finetunes.complaints
    warnings = (*session.opened.warnings, *(complaints[name] for name in sorted(complaints)))
    found = tuple(experts), tuple(table)
    final = session.finetunes.known(picked)
    read = signatures(session, [*experts, *([final] if final is not None else [])])
    return Result(
        selection,
        verification,
        *found,
        decide(evidence),
        cost,
        about,
        path,
        warnings,
        portions,
        read,
        {name: samples_of(session, name) for name in session.recipe.datasets},
        answered(session, table),
        dict(sorted(session.finetunes.curves.items())),
    )


def samples_of(session: Session, name: str) -> Samples:
    """Returns the first rows of a dataset as training sees them."""
    family, items = session.inputs.family, session.inputs.candidates[name].examples.items
    shown = (family.shown(item, f"datasets.{name}") for item in items[:NUM_SAMPLES])
    return tuple(tuple(pieces) for pieces in shown)


def mixture_of(
    session: Session, datasets: Sequence[str], weights: Sequence[float] | None
) -> Mixture:
    """Returns the mixture that a user names, whatever the search may hold.

    Raises UserError for an unknown dataset, or weights that make no mixture.
    """
    unknown = sorted(set(datasets) - set(session.recipe.datasets))
    if unknown or not datasets:
        message = f"no dataset is called {unknown[0]!r}" if unknown else "name at least one dataset"
        raise UserError(message, hint=", ".join(session.recipe.datasets))
    if weights is None:
        return session.spaces.union(frozenset(datasets))
    finite = all(math.isfinite(weight) and weight >= 0 for weight in weights)
    if len(weights) != len(datasets) or not finite or sum(weights) <= 0:
        wanted = f"{len(datasets)} datasets need as many weights, none negative, not all zero"
        raise UserError(f"{wanted}; got {list(weights)}")
    return Mixture.union(datasets, dict(zip(datasets, weights, strict=True)))

"""Seconds of the work behind a result."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mergetomix.mixtures.spaces import Simplex
from mergetomix.records import Finetune, Mixture
from mergetomix.results import Cost, Row, Selection, Verification
from mergetomix.session.session import Session
from mergetomix.stages.checks import repeated
from mergetomix.stages.ways import merged_in, ways


def cost_of(
    session: Session,
    experts: Sequence[Finetune],
    selection: Selection,
    verification: Verification | None,
    table: Sequence[Row],
) -> Cost:
    """Returns the seconds of the work behind a result: what earlier runs did counts too."""
    keys = scored_keys(session, selection, verification)
    by_gradients = "gradient" in selection.strategy
    scorers = list(session.inputs.targets("select").values())
    scorers += session.gradients.companions().values() if by_gradients else ()
    addresses = [address for scorer in scorers for address in scorer.addresses]
    merge_s, evaluate_s = session.store.seconds(keys, addresses, "select")
    tried = [trial.mixture for trial in selection.trials]
    seconds = dict.fromkeys(("final", "all", "random"), 0.0)
    for row in table:
        if row.kind in seconds and row.mixture is not None and len(row.mixture) > 1:
            seconds[row.kind] += train_s(session, row.mixture)
    experts_s = sum(expert.train_s for expert in experts)
    per_trial = (evaluate_s + merge_s) / max(1, len(keys))
    return Cost(
        experts_s=experts_s,
        merge_s=merge_s,
        evaluate_s=evaluate_s,
        gradients_s=session.gradients.seconds(tried) if by_gradients else 0.0,
        checks_s=0.0 if verification is None else checks_s(session, verification),
        final_s=seconds["final"],
        baselines_s=seconds["all"] + seconds["random"],
        brute_force_s_estimate=brute_force_s(session, experts_s, per_trial, len(tried)),
        wall_s=time.monotonic() - session.opened.started,
        reused=dict(session.opened.reused),
    )


def train_s(session: Session, mixture: Mixture, seed: int | None = None) -> float:
    """Returns the seconds that a fine-tune took, zero if there is none."""
    record = session.finetunes.known(mixture, seed)
    return record.train_s if record else 0.0


def checks_s(session: Session, verification: Verification) -> float:
    """Returns the seconds of the fine-tunes made for checks alone, without the final model's."""
    recipe, checks = session.recipe, verification.checks
    final = verification.mixture if recipe.final.train else None
    paid = [each.mixture for each in checks if each.origin == "verify" and each.mixture != final]
    again = [each.mixture for each in repeated(checks, recipe.verify.repeats)]
    repeats_s = sum(train_s(session, mixture, recipe.train.seed + 1) for mixture in again)
    return sum(train_s(session, mixture) for mixture in paid) + repeats_s


def scored_keys(
    session: Session, selection: Selection, verification: Verification | None
) -> set[str]:
    """Returns the addresses of all proxies that were scored, and of the base."""
    proxy = session.addresses.proxy
    keys = {proxy(trial.mixture) for trial in (*selection.trials, *selection.stopped)}
    if verification is not None:
        mixtures = [each.mixture for each in verification.predictions]
        keys |= {merged_in(session, each, verification.merging) for each in mixtures}
        checked = [each.mixture for each in verification.checks]
        keys |= {merged_in(session, each, way) for each in checked for way in ways(session)}
    return keys | {session.addresses.base}


def brute_force_s(session: Session, experts_s: float, evaluate_s: float, num_trials: int) -> float:
    """Returns the seconds to fine-tune on every mixture of the space and evaluate each.

    Of weights, on as many mixtures as were tried. A dataset stands in a share of the mixtures, so
    all fine-tunes together see its tokens so many times; with a fixed number of steps every
    fine-tune costs the same.
    """
    space, train = session.spaces.searched, session.recipe.train
    mean_s = experts_s / max(1, len(space.allowed))
    if isinstance(space, Simplex):
        return num_trials * (mean_s + evaluate_s)
    fixed = train.max_steps is not None or train.max_tokens is not None
    counts = space.num_by_size.items()
    return sum(num * (mean_s * (1 if fixed else k) + evaluate_s) for k, num in counts)

"""Seconds of the work behind a result."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mergetomix.mixtures.spaces import Simplex
from mergetomix.records import Finetune, Mixture
from mergetomix.results import Cost, Row, Selection, Verification
from mergetomix.session.session import Session
from mergetomix.stages import checks


def cost_of(
    session: Session,
    experts: Sequence[Finetune],
    selection: Selection,
    verification: Verification | None,
    table: Sequence[Row],
) -> Cost:
    """Seconds of the work behind a result, from the ledger: what earlier runs did counts too."""
    keys = scored_keys(session, selection, verification)
    scorers = [
        *session.inputs.targets("select").values(),
        *(session.gradients.companions().values() if is_by_gradients(selection) else ()),
    ]
    addresses = [address for scorer in scorers for address in scorer.addresses]
    merge_s, evaluate_s = session.store.seconds(keys, addresses, "select")
    seconds = {line.kind: 0.0 for line in table}
    for line in table:
        if (
            line.mixture is not None
            and line.kind in ("final", "all", "random")
            and len(line.mixture) > 1
        ):
            seconds[line.kind] += train_s(session, line.mixture)
    experts_s = sum(expert.train_s for expert in experts)
    per_trial = (evaluate_s + merge_s) / max(1, len(keys))
    return Cost(
        experts_s=experts_s,
        merge_s=merge_s,
        evaluate_s=evaluate_s,
        gradients_s=gradients_s(session, selection),
        checks_s=0.0 if verification is None else checks_s(session, verification),
        final_s=seconds.get("final", 0.0),
        baselines_s=seconds.get("all", 0.0) + seconds.get("random", 0.0),
        brute_force_s_estimate=brute_force_s(session, experts_s, per_trial, len(selection.trials)),
        wall_s=time.monotonic() - session.opened.started,
        reused=dict(session.opened.reused),
    )


def is_by_gradients(selection: Selection) -> bool:
    """Whether a search learnt from derivatives."""
    return "gradient" in selection.strategy


def gradients_s(session: Session, selection: Selection) -> float:
    """Seconds of the derivatives at the mixtures that a search by gradients tried, whichever search asked for them."""
    return (
        session.gradients.seconds([trial.mixture for trial in selection.trials])
        if is_by_gradients(selection)
        else 0.0
    )


def train_s(session: Session, mixture: Mixture, seed: int | None = None) -> float:
    """Seconds that a fine-tune took, zero where there is none."""
    record = session.finetunes.known(mixture, seed)
    return record.train_s if record else 0.0


def checks_s(session: Session, verification: Verification) -> float:
    """Seconds of the fine-tunes made for checks alone: where there is a final model, its own are counted there."""
    paid = [check.mixture for check in verification.checks if check.origin == "verify"]
    again = checks.repeated(verification.checks, session.recipe.verify.repeats)
    repeats_s = sum(
        train_s(session, check.mixture, session.recipe.train.seed + 1) for check in again
    )
    final = verification.mixture if session.recipe.final.train else None
    return sum(train_s(session, mixture) for mixture in paid if mixture != final) + repeats_s


def scored_keys(
    session: Session, selection: Selection, verification: Verification | None
) -> set[str]:
    """The addresses of all proxies that were scored, and of the base."""
    keys = {session.addresses.base} | {
        session.addresses.proxy(trial.mixture) for trial in (*selection.trials, *selection.stopped)
    }
    if verification is not None:
        keys |= {
            session.addresses.proxy(each.mixture, verification.exponent)
            for each in verification.predictions
        }
        exponents = session.recipe.verify.exponents
        keys |= {
            session.addresses.proxy(check.mixture, exponent)
            for check in verification.checks
            for exponent in exponents
        }
    return keys


def brute_force_s(session: Session, experts_s: float, evaluate_s: float, num_trials: int) -> float:
    """Seconds to fine-tune on every mixture of the space and evaluate each; of weights, on as many mixtures as were tried.

    A dataset stands in a share of the mixtures, so all fine-tunes together see its tokens so many times; with a fixed number
    of steps every fine-tune costs the same.
    """
    space = session.spaces.searched
    mean_s = experts_s / max(1, len(space.allowed))
    if isinstance(space, Simplex):
        return num_trials * (mean_s + evaluate_s)
    fixed = (
        session.recipe.train.max_steps is not None or session.recipe.train.max_tokens is not None
    )
    return sum(
        count * (mean_s * (1 if fixed else k) + evaluate_s)
        for k, count in space.num_by_size.items()
    )

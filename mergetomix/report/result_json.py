"""`result.json`: everything a run found, for programs. docs/result.md says what its keys mean.

Here it is made; `report/files.py` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from mergetomix.objectives.objective import gains
from mergetomix.records import Mixture, Scores, Trial
from mergetomix.report import decision as words
from mergetomix.report import target_gains
from mergetomix.results import Effects, Result, Row, Selection, Verification

SCHEMA = 1


def to_dict(result: Result) -> dict[str, Any]:
    """Returns the whole result as plain values."""
    selection, final = result.selection, result.row("final")
    given_up = {
        each.target: {**plain(each, "target"), "less": each.less}
        for each in target_gains.given_up(selection, result.verification)
    }
    numbers = {mixture: place + 1 for place, mixture in enumerate(selection.order)}
    return {
        "schema": SCHEMA,
        "decision": decision(result),
        "selected": plain(result.selected),
        "portions": plain(result.portions),
        "strategy": selection.strategy,
        "objective": objective(selection),
        "trials": [
            {
                **plain(each.mixture),
                "targets": plain(each.scores),
                "objective": each.objective,
                "number": numbers.get(each.mixture),
            }
            for each in selection.trials
        ],
        "stopped": [stopped(each) for each in selection.stopped],
        "evaluations": {
            "made": selection.num_evaluated,
            "without_racing": selection.num_without_racing,
        },
        "front": front(selection),
        "given_up": given_up or None,
        "verification": None if result.verification is None else verification(result.verification),
        "experts": [
            {"dataset": each.dataset, **plain(each, "mixture", "key")} for each in result.experts
        ],
        "final": None
        if final is None
        else {"path": str(Path(result.run_dir) / "final"), **row(final), "shares": shares(result)},
        "baselines": baselines(result),
        "cost": {**plain(result.cost, "reused"), "total_s": result.cost.total_s},
        "environment": dict(result.environment),
        "inputs": dict(result.inputs),
        "answers": plain(result.answers),
        "warnings": list(result.warnings),
    }


def decision(result: Result) -> dict[str, Any]:
    """Returns what to train on, in words and in numbers."""
    found = result.decision
    texts = {"headline": found.headline, "because": words.because(result)}
    return {**texts, **plain(found)}


def objective(selection: Selection) -> dict[str, Any]:
    """Returns what trials are ranked by; if gains are in standard errors, the size of one too."""
    value = selection.objective
    if value is None:
        return {"aim": "gain"}
    units = {"standard_errors": dict(value.units)} if value.units else {}
    return {"aim": value.aim, "weights": dict(value.weights), **units}


def front(selection: Selection) -> dict[str, Any] | None:
    """Returns the trials that no other beats on every target; None if no front was asked for."""
    if selection.objective is None or selection.objective.aim != "pareto":
        return None
    found = target_gains.front_of(selection)
    return {
        "knee": plain(found.members[0].mixture),
        "hypervolume": found.hypervolume,
        "members": [
            {**plain(each.mixture), "gains": gains(each.scores, selection.base)}
            for each in found.members
        ],
    }


def stopped(value: Trial) -> dict[str, Any]:
    """Returns a trial that a race stopped: what it saw, and the objective expected over all."""
    seen = {name: each.num_examples for name, each in value.scores.items()}
    return {**plain(value.mixture), "num_examples": seen, "estimate": value.objective}


def verification(value: Verification) -> dict[str, Any]:
    """Returns the checks, what they predict of every mixture, and how well proxies rank."""
    return {
        "selected": plain(value.mixture),
        "weighting": value.merging.weighting,
        "exponent": value.merging.exponent,
        "stopped": value.stopped,
        "interval": value.confidence,
        "num_repeats": value.num_repeats,
        "checks": [
            {
                **plain(each.mixture),
                "proxy": each.proxy,
                "real": each.real,
                "targets": plain(each.scores),
                "origin": each.origin,
            }
            for each in value.checks
        ],
        "predictions": plain(value.predictions),
        "alternatives": plain(value.alternatives),
        "more_examples": None if value.more_examples is None else plain(value.more_examples),
        "fidelity": {name: _finite(plain(each)) for name, each in value.agreement.items()},
        "failures": [{**plain(failed), "error": why} for failed, why in value.failures],
        "effects": None if value.effects is None else effects(value.effects),
    }


def effects(found: Effects) -> dict[str, Any]:
    """Returns what each dataset adds to every target, and what pairs of them do."""
    return {**plain(found), "harmful": list(found.harmful), "redundant": plain(found.redundant)}


def row(value: Row) -> dict[str, Any]:
    """Returns a model on the report part."""
    known = {} if value.mixture is None else plain(value.mixture)
    found = {**known, "targets": plain(value.scores), "gain": value.gain}
    return (
        found if value.interval is None else {**found, "interval": plain(value.interval, "value")}
    )


def shares(result: Result) -> list[float]:
    """Returns each selected dataset's part of the real fine-tune's sequences; they sum to 1."""
    drawn = {each.dataset: each.num_examples for each in result.portions}
    whole = {each.dataset: each.num_examples for each in result.experts}
    sizes = list(drawn.values()) or [whole[name] for name in result.selected.datasets]
    return [size / sum(sizes) for size in sizes]


def baselines(result: Result) -> dict[str, Any]:
    """Returns what the final model is compared with.

    `best_expert` is the expert that the select part would have chosen.
    """
    firsts = {kind: result.row(kind) for kind in ("base", "proxy", "all")}
    found: dict[str, Any] = {kind: row(each) for kind, each in firsts.items() if each is not None}
    experts = [each for each in result.table if each.kind == "expert"]
    best = result.selection.best_expert.mixture
    found["best_expert"] = next(row(each) for each in experts if each.mixture == best)
    found["experts"] = [row(each) for each in experts]
    if drawn := [row(each) for each in result.table if each.kind == "random"]:
        found["random"] = drawn
    return found


def plain(value: Any, *left_out: str) -> Any:
    """Returns a record as a dict of plain values, without some of its fields.

    Scores become their mean and their number of examples.
    """
    if isinstance(value, Scores):
        return value.as_dict()
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Mixture):
        return {"datasets": list(value.datasets), "weights": list(value.weights)}
    if is_dataclass(value):
        value = {name: each for name, each in vars(value).items() if name not in left_out}
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return value


def _finite(value: Any) -> Any:
    """Returns the same values, with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

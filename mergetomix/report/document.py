"""`result.json`: everything a run found, for programs. Its keys are documented in docs/result.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergetomix.objectives.objective import gains
from mergetomix.records import Finetune, Mixture, Scores, Trial
from mergetomix.report import compromise
from mergetomix.results import Agreement, Result, Row, Selection, Verification

SCHEMA = 1


def to_dict(result: Result) -> dict[str, Any]:
    """The whole result as plain values."""
    final = result.row("final")
    return {
        "schema": SCHEMA,
        "selected": mixture(result.selected),
        "portions": [vars(each) for each in result.portions],
        "strategy": result.selection.strategy,
        "objective": objective(result.selection),
        "trials": [trial(each) for each in result.selection.trials],
        "stopped": [stopped(each) for each in result.selection.stopped],
        "evaluations": {
            "made": result.selection.num_evaluated,
            "without_racing": result.selection.num_without_racing,
        },
        "front": front(result.selection),
        "given_up": given_up(result),
        "verification": None if result.verification is None else verification(result.verification),
        "experts": [expert(each) for each in result.experts],
        "final": None
        if final is None
        else {"path": str(Path(result.run_dir) / "final"), **line(final), "shares": shares(result)},
        "baselines": baselines(result),
        "cost": cost(result),
        "environment": dict(result.environment),
        "warnings": list(result.warnings),
    }


def mixture(value: Mixture) -> dict[str, Any]:
    """Datasets and their weights, in the same order."""
    return {"datasets": list(value.datasets), "weights": list(value.weights)}


def scores(values: Mapping[str, Scores]) -> dict[str, Any]:
    """Each target's mean and its number of examples."""
    return {name: value.as_dict() for name, value in values.items()}


def trial(value: Trial) -> dict[str, Any]:
    """A trial on the select part; the objective is higher where it is better."""
    return {**mixture(value.mixture), "targets": scores(value.scores), "objective": value.objective}


def objective(selection: Selection) -> dict[str, Any]:
    """What trials are ranked by; of `standard_errors` the size of one, by target."""
    value = selection.objective
    if value is None:
        return {"aim": "gain"}
    units = {"standard_errors": dict(value.units)} if value.units else {}
    return {"aim": value.aim, "weights": dict(value.weights), **units}


def front(selection: Selection) -> dict[str, Any] | None:
    """The trials that no other beats on every target, the knee first; null where none was asked for."""
    if selection.objective is None or selection.objective.aim != "pareto":
        return None
    found = compromise.front_of(selection)
    members = [
        {**mixture(each.mixture), "gains": gains(each.scores, selection.base)}
        for each in found.members
    ]
    return {
        "knee": mixture(found.members[0].mixture),
        "hypervolume": found.hypervolume,
        "members": members,
    }


def given_up(result: Result) -> dict[str, Any] | None:
    """What the pick gives up on every target; null where there is one."""
    lines = compromise.given_up(result.selection, result.verification)
    found = {
        each.target: {
            "gain": each.gain,
            "best": each.best,
            "by": mixture(each.by),
            "less": each.less,
        }
        for each in lines
    }
    return found or None


def stopped(value: Trial) -> dict[str, Any]:
    """A trial that a race stopped early: how many examples of each target it saw, and the objective expected over all."""
    seen = {name: each.num_examples for name, each in value.scores.items()}
    return {**mixture(value.mixture), "num_examples": seen, "estimate": value.objective}


def verification(value: Verification) -> dict[str, Any]:
    """The checks, what they predict of every mixture, and how well proxies rank."""
    return {
        "selected": mixture(value.mixture),
        "exponent": value.exponent,
        "stopped": value.stopped,
        "interval": value.confidence,
        "checks": [
            {
                **mixture(each.mixture),
                "proxy": each.proxy,
                "real": each.real,
                "targets": scores(each.scores),
                "origin": each.origin,
            }
            for each in value.checks
        ],
        "predictions": [
            {**vars(each), "mixture": mixture(each.mixture)} for each in value.predictions
        ],
        "alternatives": [
            {**vars(each), "mixture": mixture(each.mixture)} for each in value.alternatives
        ],
        "fidelity": {name: agreement(each) for name, each in value.agreement.items()},
        "failures": [{**mixture(failed), "error": why} for failed, why in value.failures],
    }


def agreement(value: Agreement) -> dict[str, Any]:
    """Statistics with their intervals; null with fewer than five checks, and a number that is not defined is null too."""
    named = value.statistics
    statistics = (
        None
        if named is None
        else {key: None if e is None else finite(vars(e)) for key, e in named.items()}
    )
    plain = {
        key: None if isinstance(each, float) and not math.isfinite(each) else each
        for key, each in vars(value).items()
    }
    return {**plain, "statistics": statistics}


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The same numbers, null for what JSON cannot hold."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def expert(value: Finetune) -> dict[str, Any]:
    """An expert and what it took."""
    return {
        "dataset": value.dataset,
        "num_examples": value.num_examples,
        "num_tokens": value.num_tokens,
        "train_s": value.train_s,
        "path": value.path,
    }


def line(value: Row) -> dict[str, Any]:
    """A model on the report part."""
    plain: dict[str, Any] = {"targets": scores(value.scores), "gain": value.gain}
    return plain if value.mixture is None else {**mixture(value.mixture), **plain}


def shares(result: Result) -> list[float]:
    """What part of the real fine-tune's data each selected dataset is, by training sequences; sums to 1."""
    if result.portions:
        drawn = sum(each.num_examples for each in result.portions)
        return [each.num_examples / drawn for each in result.portions]
    sizes = {each.dataset: each.num_examples for each in result.experts}
    total = sum(sizes[name] for name in result.selected.datasets)
    return [sizes[name] / total for name in result.selected.datasets]


def baselines(result: Result) -> dict[str, Any]:
    """What the final model is compared with. `best_expert` is the expert that the select part would have chosen."""
    found: dict[str, Any] = {}
    experts = [row for row in result.table if row.kind == "expert"]
    for kind in ("base", "proxy", "all"):
        row = result.row(kind)
        if row is not None:
            found[kind] = line(row)
    best = next(row for row in experts if row.mixture == result.selection.best_expert.mixture)
    found["best_expert"] = line(best)
    drawn = [row for row in result.table if row.kind == "random"]
    if drawn:
        found["random"] = [line(row) for row in drawn]
    found["experts"] = [line(row) for row in experts]
    return found


def cost(result: Result) -> dict[str, Any]:
    """Seconds of work, whichever run did it; `wall_s` is this run's alone."""
    value = result.cost
    return {
        "experts_s": value.experts_s,
        "merge_s": value.merge_s,
        "evaluate_s": value.evaluate_s,
        "gradients_s": value.gradients_s,
        "checks_s": value.checks_s,
        "final_s": value.final_s,
        "baselines_s": value.baselines_s,
        "total_s": value.total_s,
        "brute_force_s_estimate": value.brute_force_s_estimate,
        "wall_s": value.wall_s,
    }

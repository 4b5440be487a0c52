"""A study as JSON, with every number, and as a page of Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergetomix.records import Estimate, Mixture
from mergetomix.study.compare import NUM_CHECKS, Faith, Standing
from mergetomix.study.truth import World

if TYPE_CHECKING:
    from mergetomix.study.study import Findings

SCHEMA = 1
RACE = (
    "Compute counts tokens: three for every token trained on, one for every token evaluated. The final fine-tune on a pick is"
    " left out for all, also where it was made on the way or none is needed. Regret: the best mixture's real score minus that"
    " of the pick, on the report part. Normalised: over the mean mixture's regret, so that 0 is the best mixture and 1 a random"
    " pick. Means over targets and seeds, with 90% bootstrap intervals over targets."
)
FAITH = (
    "Spearman correlation with the real fine-tunes over all mixtures, select part, mean over seeds: of the proxies by exponent"
    " of the scale; `mixed`, of those of several datasets (with one dataset proxy and real are the same model); `pooled`, of"
    " the experts pooled by their probabilities instead of merged; `predicted`, of the calibrated prediction, over the mixtures"
    " that were not checked. `possible` is what a perfect proxy would reach, given the noise between seeds."
)


def write(study: Findings, folder: Path) -> None:
    """study.json and study.md."""
    (folder / "study.json").write_text(
        json.dumps(to_dict(study), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    (folder / "study.md").write_text(render(study), encoding="utf-8")


def to_dict(study: Findings) -> dict[str, Any]:
    """Everything as plain values; scores are better when higher."""
    return {
        "schema": SCHEMA,
        "num_finetunes": study.num_finetunes,
        "num_draws": study.num_draws,
        "budget": round(study.budget),
        "absent": dict(study.absent),
        "standings": [_standing(each) for each in study.standings],
        "fidelity": [_plain(vars(each)) for each in study.faith],
        "coverage": [_plain(vars(each)) for each in study.coverage],
        "worlds": [_world(world) for world in study.worlds],
        "environment": dict(study.environment),
    }


def _standing(standing: Standing) -> dict[str, Any]:
    values = _plain(vars(standing))
    values["outcomes"] = [_plain(vars(outcome)) for outcome in standing.outcomes]
    return dict(values)


def read_worlds(path: Path) -> list[World]:
    """The worlds of a written study, numbers rounded as they stand there."""
    return [_world_of(values) for values in json.loads(path.read_text(encoding="utf-8"))["worlds"]]


def _world_of(values: Mapping[str, Any]) -> World:
    arrays = {
        key: np.array(value, dtype=float) for key, value in values.items() if key.endswith("_M")
    }
    return World(
        **{
            **values,
            **arrays,
            "mixtures": tuple(Mixture.union(weights, weights) for weights in values["mixtures"]),
            "proxies": {
                float(exponent): np.array(proxy_M)
                for exponent, proxy_M in values["proxies"].items()
            },
            "failures": tuple(
                (Mixture.union(each["datasets"]), each["error"]) for each in values["failures"]
            ),
        }
    )


def _world(world: World) -> dict[str, Any]:
    return {
        **_plain(vars(world)),
        "mixtures": [mixture.as_dict() for mixture in world.mixtures],
        "failures": [
            {"datasets": list(mixture.datasets), "error": why} for mixture, why in world.failures
        ],
    }


def _plain(value: Any) -> Any:
    """Arrays as lists, estimates as mappings, numbers rounded to what they can tell, null for what JSON cannot hold."""
    if isinstance(value, Estimate):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def render(study: Findings) -> str:
    """The page: who chose best, how well proxies rank, whether the intervals hold."""
    worlds = study.worlds
    seeds, targets = (
        sorted({world.seed for world in worlds}),
        list(dict.fromkeys(world.target for world in worlds)),
    )
    parts = [
        "# Study",
        f"{study.num_finetunes} real fine-tunes: {len(worlds[0].mixtures)} mixtures of {len(worlds[0].datasets)} datasets"
        f" ({', '.join(worlds[0].datasets)}), {len(seeds)} seeds, {len(targets)} targets ({', '.join(targets)}).",
        "## Who chooses best",
        f"At the compute that Merge to Mix spends with {NUM_CHECKS} checks, {study.budget / 1e6:.2f} million on average. "
        + RACE,
        _table(
            ["way to choose", "regret", "normalised regret", "rank of the pick", "compute"],
            [_standing_cells(each) for each in study.standings],
        ),
        "## How well proxies rank",
        FAITH,
        _table(
            _faith_header(worlds[0]),
            [_faith_cells(each, worlds[0]) for each in study.faith] + [_mean_cells(study)],
        ),
        "## Whether the intervals hold",
        "Share of 90% intervals, over mixtures that were not checked, that hold the real score.",
        _table(
            ["checks", "share held", "intervals", "mean width / spread of the reals"],
            [
                [str(c.num_checks), f"{c.share:.3f}", str(c.num_intervals), f"{c.width:.2f}"]
                for c in study.coverage
            ],
        ),
        "![proxy against real](proxy-real.svg)",
        "![regret against compute](regret-compute.svg)",
    ]
    if study.absent:
        lines = [
            f"- {name}: no answer for {num} of {len(worlds)} targets and seeds"
            for name, num in study.absent.items()
        ]
        parts += ["## Not in the table", "\n".join(lines)]
    failed = {(world.seed, *failure): None for world in worlds for failure in world.failures}
    if failed:
        lines = [f"- seed {seed}: {mixture} ({why})" for seed, mixture, why in failed]
        parts += ["## Left out: their training failed", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _standing_cells(standing: Standing) -> list[str]:
    rank = standing.rank.value
    numbers = [
        _interval(standing.regret, 4),
        _interval(standing.normalised, 3),
        f"{rank:.1f}",
        f"{standing.compute:.2f}",
    ]
    return [standing.name, *numbers]


def _interval(value: Estimate, digits: int) -> str:
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _faith_header(world: World) -> list[str]:
    return [
        "target",
        *[f"k^-{e:g}" for e in world.proxies],
        *[f"mixed, k^-{e:g}" for e in world.proxies],
        "pooled",
        *[f"predicted, {num} checks" for num in (0, NUM_CHECKS)],
        "noise sd",
        "possible",
    ]


def _faith_cells(each: Faith, world: World) -> list[str]:
    noise = "" if each.noise_sd is None else f"{each.noise_sd:.4f}"
    possible = "" if each.possible is None else f"{each.possible:.3f}"
    return [each.target, *[f"{value:.3f}" for value in _faith_values(each, world)], noise, possible]


def _faith_values(each: Faith, world: World) -> list[float]:
    """By exponent over all mixtures, then over those of several datasets (nan where there are too few), pooled, predicted."""
    lines = (each.spearman, each.mixed)
    by_exponent = [line.get(exponent, float("nan")) for line in lines for exponent in world.proxies]
    return [*by_exponent, each.pooled, *each.predicted.values()]


def _mean_cells(study: Findings) -> list[str]:
    lines = [_faith_values(each, study.worlds[0]) for each in study.faith]
    means = [f"{value:.3f}" for value in np.mean(np.array(lines), axis=0)]
    possible = [each.possible for each in study.faith if each.possible is not None]
    return ["**mean**", *means, "", f"{np.mean(possible):.3f}" if possible else ""]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

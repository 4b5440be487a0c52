"""A study as JSON, with every number, and as a page of Markdown (`study.md.jinja`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergetomix.quoting import plain
from mergetomix.records import Mixture
from mergetomix.statistics.noise import OnExamples
from mergetomix.study import plots
from mergetomix.study.compare import NUM_CHECKS
from mergetomix.study.rivals import RIVALS
from mergetomix.study.truth import World

if TYPE_CHECKING:
    from mergetomix.study.study import Findings

SCHEMA = 1


def write(study: Findings, folder: Path) -> None:
    """Writes study.json, study.md and the plots into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(study), indent=1, allow_nan=False) + "\n"
    (folder / "study.json").write_text(text, encoding="utf-8")
    (folder / "study.md").write_text(render(study), encoding="utf-8")
    plots.proxy_against_real(study.worlds, folder / "proxy-real.svg")
    plots.regret_against_compute(study.curves, folder / "regret-compute.svg")


def to_dict(study: Findings) -> dict[str, Any]:
    """Returns everything as plain values; scores are better when higher."""
    return {
        "schema": SCHEMA,
        "num_finetunes": study.num_finetunes,
        "num_draws": study.num_draws,
        "budget": round(study.budget),
        "absent": dict(study.absent),
        "standings": _plain(study.standings),
        "fidelity": _plain(study.ranks),
        "coverage": _plain(study.coverage),
        "worlds": [_world(world) for world in study.worlds],
        "environment": dict(study.environment),
        "warnings": list(study.warnings),
    }


def read_worlds(path: Path) -> list[World]:
    """Returns the worlds of a written study, numbers rounded as they stand there."""
    worlds = []
    for values in json.loads(path.read_text(encoding="utf-8"))["worlds"]:
        arrays = {
            key: None if each is None else np.array(each, float)
            for key, each in values.items()
            if key.endswith("_M")
        }
        failures = [(Mixture.union(each["datasets"]), each["error"]) for each in values["failures"]]
        read: dict[str, Any] = {
            "mixtures": tuple(Mixture.union(weights, weights) for weights in values["mixtures"]),
            "proxies": {float(key): np.array(each) for key, each in values["proxies"].items()},
            "failures": tuple(failures),
            "weighted": {key: np.array(each) for key, each in values.get("weighted", {}).items()},
        }
        if (noise := values.get("examples")) is not None:
            root_MR = np.array(noise["root_MR"], float).reshape(len(read["mixtures"]), -1)
            read["examples"] = OnExamples(root_MR, noise["unchecked"], noise["report_ratio"])
        worlds.append(World(**{**values, **arrays, **read}))
    return worlds


def render(study: Findings) -> str:
    """Returns the page: who chose best, how well proxies rank, whether the intervals hold."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    exponents = list(study.worlds[0].proxies)
    ranks = []
    for each in study.ranks:
        by_exponent = [
            line.get(e, math.nan) for line in (each.spearman, each.mixed) for e in exponents
        ]
        numbers = [*by_exponent, *each.weighted.values(), each.pooled, *each.predicted.values()]
        ranks.append((each.target, numbers, each.noise_sd, each.possible))
    means = np.mean([numbers for _, numbers, *_ in ranks], axis=0)
    known = [possible for *_, possible in ranks if possible is not None]
    ranks.append(("**mean**", means.tolist(), None, float(np.mean(known)) if known else None))
    environment = Environment(
        loader=PackageLoader("mergetomix.study", "."),
        autoescape=select_autoescape(),  # of HTML, which the page is not
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    page = environment.get_template("study.md.jinja")
    needs = {rival.name: rival.needs for rival in RIVALS}
    return page.render(
        study=study, first=study.worlds[0], ranks=ranks, num_checks=NUM_CHECKS, needs=needs
    )


def _world(world: World) -> dict[str, Any]:
    failures = [
        {"datasets": list(mixture.datasets), "error": why} for mixture, why in world.failures
    ]
    mixtures = [mixture.as_dict() for mixture in world.mixtures]
    return {**_plain(vars(world)), "mixtures": mixtures, "failures": failures}


def _plain(value: Any) -> Any:
    """Returns lists, mappings, numbers rounded to what they can tell, null for what is not one."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, str | int | None):
        return value
    items = value if isinstance(value, Mapping) else vars(value)
    return {str(key): _plain(each) for key, each in items.items()}

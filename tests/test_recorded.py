"""The figures of the studies are what this code says of the recorded scores."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from mergetomix.study import compare, document, rivals
from mergetomix.study.study import CONFIDENCE

FILES = sorted((Path(__file__).resolve().parents[1] / "studies").glob("*/study*.json"))
SEEDS = {
    "code/study": {1, 2, 3, 4, 5},
    "images/study": {1, 2, 3},
    "text/study": {4, 5, 6},
    "text/study-36000": {1, 2, 3},
}
"""Those that no choice of a setting or of the calibration was made on."""


def name_of(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def test_all_studies_are_recorded() -> None:
    assert {name_of(file) for file in FILES} == set(SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_recorded_figures_follow_from_recorded_scores(file: Path) -> None:
    written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    worlds = document.read_worlds(file)
    assert {world.seed for world in worlds} == SEEDS[name_of(file)]
    regrets = []
    for world in worlds:
        pick = rivals.checked(world, compare.NUM_CHECKS)[-1].pick
        regrets.append(
            float(world.real_report_M.max() - world.real_report_M[pick])
            / float(world.real_report_M.max() - world.real_report_M.mean())
        )
    (ours,) = (each for each in written["standings"] if each["name"] == "Merge to Mix with checks")
    assert fmean(regrets) == pytest.approx(ours["normalised"]["value"], abs=1e-4)
    # scores are recorded to six digits, so that near ones may change places
    for found, recorded in zip(compare.target_ranks(worlds), written["fidelity"], strict=True):
        assert found.target == recorded["target"]
        for name in ("pearson", "spearman", "kendall", "mixed", "top_quarter"):
            values = {float(key): value for key, value in recorded[name].items()}
            assert getattr(found, name) == pytest.approx(values, abs=2e-3), name
        assert found.pooled == pytest.approx(recorded["pooled"], abs=1e-3)
    for covered, recorded in zip(
        compare.coverage(worlds, CONFIDENCE), written["coverage"], strict=True
    ):
        assert covered.share == pytest.approx(recorded["share"], abs=1e-3)

"""A store that the release before the present layout wrote is reused whole: no address changed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from recipes import TIMES, Heard

import mergetomix as m2m
from mergetomix.data import splits
from mergetomix.records import Mixture
from mergetomix.session.session import open_session
from mergetomix.store.store import Store

ARCHIVE = Path(__file__).parent / "fixtures" / "store-0.1.tar.xz"
RUNS = {
    "recipe": "run",  # every kind of target, checks with a repeat and other exponents
    "weights": "run-lora",  # adapters, weights by regression
    "fisher": "run-fisher",  # a statistic of every expert
    "gradient": "run-gradient",  # derivatives, companion losses
    "race": "run-race",  # scores in blocks
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old store, its base, data and recipes."""
    where = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(where, filter="data")
    return where / "fixture"


def plain(folder: Path, run: str) -> Any:
    """What a run found, without what may differ between two runs."""
    text = (folder / run / "result.json").read_text().replace(str(folder), "FOLDER")
    found = {key: value for key, value in json.loads(text).items() if key not in TIMES}
    for each in ("final", "baselines"):
        found.pop(each, None)  # their paths are in the store, whose place may differ
    return found


SEARCHED = ("objective", "trials", "stopped", "evaluations", "front")
"""What a result says of the search; what checks make of it has come to be another posterior."""


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_done_again_and_the_search_finds_the_same(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what several targets ask has come to be on one side of all of them; all else is as it was
    real = splits.split
    monkeypatch.setattr(splits, "split", lambda own, share, seed, *_: real(own, share, seed))
    with Store.peek(folder / "store") as store:
        before = store.counts()
    wanted, heard = plain(folder, RUNS[name]), Heard()
    values = ["verify.budget=0", "final.train=false", "final.baselines=[]", "run_dir=again"]
    recipe = m2m.load_recipe(folder / f"{name}.yaml", [*values, "merge.weighting=equal"])
    m2m.run(recipe, heard)
    with Store.peek(folder / "store") as store:
        assert store.counts() == before
    assert heard.trained() == []
    found = plain(folder, "again")
    for trial in found["trials"]:
        assert trial.pop("number") > 0  # this release says in which order they were tried
    for part in SEARCHED:
        assert_same(found[part], wanted[part], part)
    checks = [] if wanted["verification"] is None else wanted["verification"]["checks"]
    with open_session(recipe, heard) as session:
        for check in checks:
            mixture = Mixture(tuple(check["datasets"]), tuple(check["weights"]))
            record = session.finetunes.known(mixture)
            assert record is not None and not session.evaluations.lacking(record.key, "select")


def assert_same(found: Any, wanted: Any, where: str = "result") -> None:
    """Equal, numbers to the rounding of another order of sums."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert set(found) == set(wanted), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, each in enumerate(wanted):
            assert_same(found[i], each, f"{where}.{i}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True), where
    else:
        assert found == wanted, where

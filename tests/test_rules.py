"""Every method of merging through the bank and the pipeline, and what a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from recipes import recipe_values, write_recipe

import mergetomix as m2m
from mergetomix import merge
from mergetomix.errors import RecipeError
from mergetomix.experts.bank import Bank, Rule
from mergetomix.experts.deltas import params, read_delta
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.records import Mixture
from mergetomix.sections.merge import Merge
from mergetomix.session.session import open_session
from mergetomix.stages import pipeline, search

WHERE = "datasets.x.expert"
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
THINNED = ("ties", "dare", "della", "breadcrumbs")


def recipe_of(folder: Path, **sections: Any) -> m2m.Recipe:
    return m2m.load_recipe(write_recipe(folder, recipe_values(folder) | sections))


def test_the_recipe_has_every_method() -> None:
    choices = Merge.model_fields["method"].annotation.__args__  # type: ignore[union-attr]
    assert set(choices) == set(merge.METHODS)
    for name in merge.METHODS:
        assert Merge(method=name).options == merge.METHODS[name].options  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.5}, "density is not for method: linear, which has no options"),
        (
            {"method": "ties", "gamma": 0.1},
            "gamma is not for method: ties, which has density, strength",
        ),
        (
            {"method": "della", "density": 0.05},
            "density 0.05 -\\+ epsilon / 2 \\(0.1\\) must lie between 0 and 1",
        ),
        (
            {"method": "slerp"},
            "slerp merges at most 2 experts, and mixtures may have 3; set search.max_datasets: 2",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(tmp_path, merge=changes)


@pytest.mark.parametrize("name", merge.METHODS)
def test_the_bank_combines_as_the_method_does(family: CausalLM, tmp_path: Path, name: str) -> None:
    """Full experts beside an adapter, whose delta is zero for some params, a product for others."""
    model = family.load()
    start = {n: p.detach().clone() for n, p in params(model).items()}
    folders = {
        "a": tiny.perturbed(family.base.path, tmp_path / "a", 1),
        "b": tiny.adapter(family.base.path, tmp_path / "b", 2),
    }
    folders["c"] = tiny.perturbed(family.base.path, tmp_path / "c", 3)
    weights = WEIGHTS if name != "slerp" else {"a": 0.6, "b": 0.4}
    deltas = {key: read_delta(family, start, path, WHERE) for key, path in folders.items()}
    generator = torch.Generator().manual_seed(0)
    fishers = {
        key: {n: torch.rand(p.shape, generator=generator) for n, p in start.items()}
        for key in folders
    }
    statistics = fishers if name == "fisher" else {}
    rule = Rule(
        name, merge.METHODS[name].options, {key: f"address of {key}" for key in folders}, statistics
    )
    bank = Bank(model, deltas)
    bank.set({"a": 1.0})
    bank.combine(rule, weights, 1.5)
    changed = 0
    for param, base in start.items():
        dense = [
            deltas[key].dense(param, base)
            if param in deltas[key].names()
            else torch.zeros(base.shape)
            for key in weights
        ]
        known = tuple(statistics[key][param] for key in weights) if statistics else ()
        parts = merge.Parts(
            param,
            base,
            dense,
            list(weights.values()),
            [f"address of {key}" for key in weights],
            known,
        )
        want = base + 1.5 * merge.METHODS[name].combine(parts, **merge.METHODS[name].options)
        torch.testing.assert_close(params(model)[param], want, rtol=0, atol=1e-6)
        changed += not torch.equal(params(model)[param], base)
    assert changed == len(start)
    bank.reset()
    assert all(torch.equal(p, start[n]) for n, p in params(model).items())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store keeps the experts from one test to the next."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.slow
@pytest.mark.parametrize("name", merge.METHODS)
def test_every_method_searches(shared: Path, name: str) -> None:
    method, pairs = {"method": name}, {"max_datasets": 2}
    pair, single = Mixture.union(["a", "b"]), Mixture.union(["a"])
    with open_session(recipe_of(shared, merge=method, search=pairs)) as session:
        pipeline.train_experts(session)
        assert len(search.search_mixtures(session).trials) == 6
        key = session.addresses.proxy(pair)
        assert (key != session.addresses.proxy(pair, 0.5)) == merge.METHODS[name].scaled
        found = session.evaluations.proxy(pair, "select")["t"].values
        if not name.startswith(THINNED):
            finetune = session.finetunes.fit(single, "t")
            real = session.evaluations.real(finetune, "select")["t"].values
            proxy = session.evaluations.proxy(single, "select")["t"].values
            assert proxy == pytest.approx(real, abs=1e-4)
    with open_session(recipe_of(shared, search=pairs)) as session:
        plain = session.evaluations.proxy(pair, "select")["t"].values
        assert (session.addresses.proxy(pair) == key) == (name == "linear") == (found == plain)


@pytest.mark.slow
def test_statistics_are_made_once(tmp_path: Path) -> None:
    stamps = []
    for exponent in (1.0, 0.5):
        with open_session(
            recipe_of(tmp_path, merge={"method": "regmean", "scale": {"exponent": exponent}})
        ) as session:
            pipeline.train_experts(session)
            session.evaluations.proxy(Mixture.union(["a", "b"]), "select")
            files = sorted(session.store.path.glob("artifacts/*/statistic.safetensors"))
            stamps.append([(file, file.stat().st_mtime_ns) for file in files])
    assert len(stamps[0]) == 2 and stamps[0] == stamps[1]

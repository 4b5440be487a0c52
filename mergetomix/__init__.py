"""Merge to Mix: which datasets to fine-tune on, told by merging experts instead of training every mixture.

    import mergetomix as m2m

    result = m2m.run("recipe.yaml")
    print(result.selected.datasets)

Nothing heavy is loaded before a stage runs. `run` does everything; `train_experts`, `search_mixtures` and `finalize` are its
stages; `check` looks before anything is trained; `write_proxy` writes a mixture's merged model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetomix.errors import (
    DataError,
    Fault,
    MergeToMixError,
    ModelError,
    RecipeError,
    StoreError,
    TrainingError,
    UserError,
)
from mergetomix.export.folder import Form
from mergetomix.records import Finetune, Mixture, Scores, Trial
from mergetomix.results import Cost, Result, Row, Selection, Verification

if TYPE_CHECKING:
    from mergetomix.export.write import Written
    from mergetomix.progress import Listener
    from mergetomix.recipe.recipe import Recipe
    from mergetomix.stages.plan import Plan

__version__ = "0.1.0"

__all__ = [
    "Cost",
    "DataError",
    "Fault",
    "Finetune",
    "Form",
    "MergeToMixError",
    "Mixture",
    "ModelError",
    "Plan",
    "Recipe",
    "RecipeError",
    "Result",
    "Row",
    "Scores",
    "Selection",
    "StoreError",
    "TrainingError",
    "Trial",
    "UserError",
    "Verification",
    "Written",
    "__version__",
    "check",
    "finalize",
    "load_recipe",
    "run",
    "search_mixtures",
    "train_experts",
    "verify_mixtures",
    "write_proxy",
]


def __getattr__(name: str) -> Any:
    """`Recipe`, `Plan` and `Written`, whose modules are not loaded before they are asked for."""
    if name == "Recipe":
        from mergetomix.recipe.recipe import Recipe

        return Recipe
    if name == "Plan":
        from mergetomix.stages.plan import Plan

        return Plan
    if name == "Written":
        from mergetomix.export.write import Written

        return Written
    raise AttributeError(f"module 'mergetomix' has no attribute {name!r}")


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()
) -> Recipe:
    """A checked recipe from a file, or from plain values whose relative paths start at the working directory.

    In values, a dataset's or target's `rows` may be a `datasets.Dataset` or a list of mappings, and a target's `function` a
    function.

    Args:
        overrides: `a.b=value` strings, applied to a file's values.

    Raises:
        RecipeError: what is wrong, and where in the recipe.
    """
    from mergetomix.recipe.recipe import load, parse

    return load(recipe, overrides) if isinstance(recipe, str | Path) else parse(recipe)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe, listener: Listener | None = None
) -> Result:
    """Experts, search, final fine-tune and report, reusing whatever the store holds.

    Writes the resolved recipe, `result.json`, `report.md` and the final model into the recipe's `run_dir`.

    Raises:
        UserError: something that the user can mend, before any training.
        Fault: something failed on the way; what was computed is in the store.
    """
    from mergetomix.report import files
    from mergetomix.stages import pipeline

    checked = load_recipe(recipe)
    files.begin(checked)
    result = pipeline.run(checked, listener)
    files.write(result, checked)
    return result


def train_experts(
    recipe: str | Path | Mapping[str, Any] | Recipe, listener: Listener | None = None
) -> tuple[Finetune, ...]:
    """Fine-tune one expert for each dataset; those in the store are reused."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline

    with open_session(load_recipe(recipe), listener) as session:
        return pipeline.train_experts(session)


def search_mixtures(
    recipe: str | Path | Mapping[str, Any] | Recipe, listener: Listener | None = None
) -> Selection:
    """Experts where they are missing, then proxies on the select part of the targets, best first."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline, search

    with open_session(load_recipe(recipe), listener) as session:
        pipeline.train_experts(session)
        return search.search_mixtures(session)


def verify_mixtures(
    recipe: str | Path | Mapping[str, Any] | Recipe, listener: Listener | None = None
) -> tuple[Selection, Verification | None]:
    """Experts and search where they are missing, then a few real fine-tunes; the verification is None where the recipe asks
    for no checks."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline, search

    with open_session(load_recipe(recipe), listener) as session:
        pipeline.train_experts(session)
        selection = search.search_mixtures(session)
        return selection, pipeline.verify_mixtures(session, selection)


def finalize(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    selection: Selection,
    verification: Verification | None = None,
    listener: Listener | None = None,
) -> Result:
    """Fine-tune on a selection (or what its verification picked) for real, score it beside the baselines on the report part,
    and write the report."""
    from mergetomix.report import files
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline

    checked = load_recipe(recipe)
    with open_session(checked, listener) as session:
        experts = pipeline.train_experts(session)
        table = pipeline.finalize(session, selection, verification)
        result = pipeline.result_of(session, experts, selection, verification, table)
    files.write(result, checked)
    return result


def write_proxy(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    datasets: Sequence[str],
    out: str | Path,
    weights: Sequence[float] | None = None,
    listener: Listener | None = None,
    form: Form | None = None,
) -> Written:
    """Write the proxy of a mixture as a folder that `from_pretrained` loads, with its processor, a model card and the recipe.

    The folder appears whole or not at all. Those of its experts that the store lacks are trained first.

    Args:
        datasets: names of the recipe's datasets.
        out: a folder that does not exist or is empty.
        weights: one for each dataset, in their order, of any sum; equal without.
        form: how it is written, see `Form`; the merged model in the base's number type without.

    Raises:
        UserError: a name, a weight, the folder or the form is wrong; said before anything is trained.
    """
    from mergetomix.export import write
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline

    checked, names, folder, chosen = load_recipe(recipe), list(datasets), Path(out), form or Form()
    write.check(checked, names, folder, chosen)
    with open_session(checked, listener) as session:
        return write.write(session, pipeline.mixture_of(session, names, weights), folder, chosen)


def check(
    recipe: str | Path | Mapping[str, Any] | Recipe, listener: Listener | None = None
) -> Plan:
    """Read everything that a run will read and plan it: see `mergetomix.plan.Plan`. Trains nothing."""
    from mergetomix.stages import plan

    return plan.check(load_recipe(recipe), listener)

"""Merge to Mix: which datasets to fine-tune on, told by merging experts.

    import mergetomix as m2m

    result = m2m.run("recipe.yaml")
    print(result.selected.datasets)

Nothing heavy is loaded before a stage runs. `run` does everything; `train_experts`,
`search_mixtures`, `verify_mixtures` and `finalize` are its stages; `check` looks before anything is
trained; `write_proxy` writes a mixture's merged model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
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

    AnyRecipe = str | Path | Mapping[str, Any] | Recipe

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

_LOADED_LATE = {
    "Plan": "mergetomix.stages.plan",
    "Recipe": "mergetomix.recipe.recipe",
    "Written": "mergetomix.export.write",
}


def __getattr__(name: str) -> Any:
    """Returns a class whose module is heavy, and so is not loaded before it is asked for."""
    if name not in _LOADED_LATE:
        raise AttributeError(f"module 'mergetomix' has no attribute {name!r}")
    return getattr(import_module(_LOADED_LATE[name]), name)


def load_recipe(recipe: AnyRecipe, overrides: Sequence[str] = ()) -> Recipe:
    """Returns a checked recipe from a file, or from plain values.

    The relative paths of values start at the working directory; their `rows` may be a
    `datasets.Dataset` or a list of mappings, and a target's `function` a function.

    Args:
        overrides: `a.b=value` strings, applied to a file's values.

    Raises:
        RecipeError: what is wrong, and where in the recipe.
    """
    from mergetomix.recipe.recipe import load, parse

    return load(recipe, overrides) if isinstance(recipe, str | Path) else parse(recipe)


def run(recipe: AnyRecipe, listener: Listener | None = None) -> Result:
    """Makes experts, searches, fine-tunes and reports, reusing whatever the store holds.

    The recipe's `run_dir` then holds `result.json`, `report.md`, the final model and the recipe.

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


def train_experts(recipe: AnyRecipe, listener: Listener | None = None) -> tuple[Finetune, ...]:
    """Fine-tunes one expert for each dataset; those in the store are reused."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline

    with open_session(load_recipe(recipe), listener) as session:
        return pipeline.train_experts(session)


def search_mixtures(recipe: AnyRecipe, listener: Listener | None = None) -> Selection:
    """Ranks proxies on the select part of the targets, after training missing experts."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline, search

    with open_session(load_recipe(recipe), listener) as session:
        pipeline.train_experts(session)
        return search.search_mixtures(session)


def verify_mixtures(
    recipe: AnyRecipe, listener: Listener | None = None
) -> tuple[Selection, Verification | None]:
    """Searches, then makes a few real fine-tunes; None if the recipe asks for no checks."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline, search

    with open_session(load_recipe(recipe), listener) as session:
        pipeline.train_experts(session)
        selection = search.search_mixtures(session)
        return selection, pipeline.verify_mixtures(session, selection)


def finalize(
    recipe: AnyRecipe,
    selection: Selection,
    verification: Verification | None = None,
    listener: Listener | None = None,
) -> Result:
    """Fine-tunes on a selection, or on what its verification picked, and writes the report."""
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
    recipe: AnyRecipe,
    datasets: Sequence[str],
    out: str | Path,
    weights: Sequence[float] | None = None,
    listener: Listener | None = None,
    form: Form | None = None,
) -> Written:
    """Writes a mixture's merged model as a folder that `from_pretrained` loads.

    It holds the processor, a card and the recipe too, and appears whole or not at all. Those of its
    experts that the store lacks are trained first.

    Args:
        datasets: names of the recipe's datasets.
        out: a folder that does not exist or is empty.
        weights: one for each dataset, in their order, of any sum; equal without.
        form: how it is written; the merged model in the base's number type without.

    Raises:
        UserError: a name, a weight, the folder or the form is wrong; said before any training.
    """
    from mergetomix.export import write
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline

    checked, names, folder, chosen = load_recipe(recipe), list(datasets), Path(out), form or Form()
    write.check(checked, names, folder, chosen)
    with open_session(checked, listener) as session:
        return write.write(session, pipeline.mixture_of(session, names, weights), folder, chosen)


def check(recipe: AnyRecipe, listener: Listener | None = None) -> Plan:
    """Reads what a run will read, rehearses it in small and returns its plan; trains no expert."""
    from mergetomix.stages import plan

    return plan.check(load_recipe(recipe), listener)

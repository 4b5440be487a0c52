"""Merge to Mix: which datasets to fine-tune on, told by merging experts.

    import mergetomix as m2m

    result = m2m.run("recipe.yaml")
    print(result.selected.datasets)

Nothing heavy is loaded before a stage runs. `run` does everything; `train_experts`,
`search_mixtures`, `verify_mixtures` and `finalize` are its stages; `check` looks before anything is
trained; `write_proxy` writes a mixture's merged model. `store_contents` says what a store keeps,
`collect_unreached` removes what no recipe reaches.

Functions that take a `listener` show progress and warnings by it. Without one they show bars in a
terminal and in a notebook, and nothing elsewhere; `listener=Silent()` shows nothing anywhere.
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
from mergetomix.progress import Silent
from mergetomix.records import Finetune, Mixture, Scores, Trial
from mergetomix.results import (
    Cost,
    Decision,
    Effects,
    Prediction,
    Result,
    Row,
    Selection,
    Verification,
)
from mergetomix.showing import heard

if TYPE_CHECKING:
    import pandas as pd

    from mergetomix.export.write import Written
    from mergetomix.progress import Listener
    from mergetomix.recipe.recipe import Recipe
    from mergetomix.stages.plan import Plan
    from mergetomix.store.collect import Unreached
    from mergetomix.store.contents import Contents

    AnyRecipe = str | Path | Mapping[str, Any] | Recipe

__version__ = "0.1.0"

__all__ = [
    "Contents",
    "Cost",
    "DataError",
    "Decision",
    "Effects",
    "Fault",
    "Finetune",
    "Form",
    "MergeToMixError",
    "Mixture",
    "ModelError",
    "Plan",
    "Prediction",
    "Recipe",
    "RecipeError",
    "Result",
    "Row",
    "Scores",
    "Selection",
    "Silent",
    "StoreError",
    "TrainingError",
    "Trial",
    "Unreached",
    "UserError",
    "Verification",
    "Written",
    "__version__",
    "check",
    "collect_unreached",
    "compare",
    "explain",
    "finalize",
    "load_recipe",
    "predict",
    "run",
    "search_mixtures",
    "store_contents",
    "train_experts",
    "verify_mixtures",
    "write_proxy",
    "write_report",
]

_LOADED_LATE = {
    "Contents": "mergetomix.store.contents",
    "Plan": "mergetomix.stages.plan",
    "Recipe": "mergetomix.recipe.recipe",
    "Unreached": "mergetomix.store.collect",
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
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline

    checked = load_recipe(recipe)
    files.begin(checked)
    with heard(listener) as hears, open_session(checked, hears) as session:
        result = pipeline.run_in(session)
        files.publish(session, result)
    return result


def train_experts(recipe: AnyRecipe, listener: Listener | None = None) -> tuple[Finetune, ...]:
    """Fine-tunes one expert for each dataset; those in the store are reused."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline

    with heard(listener) as hears, open_session(load_recipe(recipe), hears) as session:
        return pipeline.train_experts(session)


def search_mixtures(recipe: AnyRecipe, listener: Listener | None = None) -> Selection:
    """Ranks proxies on the select part of the targets, after training missing experts."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline, search

    with heard(listener) as hears, open_session(load_recipe(recipe), hears) as session:
        pipeline.train_experts(session)
        return search.search_mixtures(session)


def verify_mixtures(
    recipe: AnyRecipe, listener: Listener | None = None
) -> tuple[Selection, Verification | None]:
    """Searches, then makes a few real fine-tunes; None if the recipe asks for no checks."""
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline, search

    with heard(listener) as hears, open_session(load_recipe(recipe), hears) as session:
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
    with heard(listener) as hears, open_session(checked, hears) as session:
        experts = pipeline.train_experts(session)
        table = pipeline.finalize(session, selection, verification)
        result = pipeline.result_of(session, experts, selection, verification, table)
        files.publish(session, result)
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
    with heard(listener) as hears, open_session(checked, hears, is_run=False) as session:
        return write.write(session, pipeline.mixture_of(session, names, weights), folder, chosen)


def explain(recipe: AnyRecipe, listener: Listener | None = None) -> Effects:
    """Returns what each dataset adds to each target, from what a run has found; trains nothing.

    Raises:
        UserError: an expert is not trained yet.
    """
    from mergetomix.executors.in_process import WithoutTraining
    from mergetomix.session.session import open_session
    from mergetomix.stages import explain as explaining

    checked = load_recipe(recipe)
    with (
        heard(listener) as hears,
        open_session(checked, hears, WithoutTraining, is_run=False) as session,
    ):
        return explaining.explain(session)


def predict(
    recipe: AnyRecipe,
    datasets: Sequence[str],
    weights: Sequence[float] | None = None,
    listener: Listener | None = None,
) -> Prediction:
    """Returns what a fine-tune on a mixture is expected to gain over the base; trains nothing.

    The gain is that on the report part, with its interval. Of a mixture that was not tried the
    proxy is scored first.

    Args:
        datasets: names of the recipe's datasets.
        weights: one for each dataset, in their order, of any sum; equal without.

    Raises:
        UserError: a name or a weight is wrong, or an expert is not trained yet.
    """
    from mergetomix.executors.in_process import WithoutTraining
    from mergetomix.session.session import open_session
    from mergetomix.stages import explain as explaining
    from mergetomix.stages import pipeline

    checked = load_recipe(recipe)
    with (
        heard(listener) as hears,
        open_session(checked, hears, WithoutTraining, is_run=False) as session,
    ):
        return explaining.predict(session, pipeline.mixture_of(session, list(datasets), weights))


def write_report(run_dir: str | Path, listener: Listener | None = None) -> Path:
    """Writes the report of a run anew from its store, and returns its folder; trains nothing.

    Of a run that was not finished it is a report of what there is, and says so.

    Args:
        run_dir: the run's folder, or its recipe.

    Raises:
        UserError: there is no such run.
    """
    from mergetomix.executors.in_process import WithoutTraining
    from mergetomix.report import files, unfinished
    from mergetomix.session.session import open_session
    from mergetomix.stages import pipeline

    path = Path(run_dir)
    checked = load_recipe(path / "recipe.yaml" if path.is_dir() else path)
    with (
        heard(listener) as hears,
        open_session(checked, hears, WithoutTraining, is_run=False) as session,
    ):
        if not (Path(checked.run_dir) / "result.json").is_file():
            return unfinished.write(session)
        result = pipeline.run_in(session)
    files.write(result, checked)
    return Path(checked.run_dir)


def compare(first: str | Path, second: str | Path) -> dict[str, pd.DataFrame]:
    """Returns two finished runs beside each other, as pandas tables by title.

    Raises UserError if a folder holds no finished run.
    """
    from mergetomix.report import compare as comparing
    from mergetomix.results import frame

    found = comparing.compare(Path(first), Path(second))
    return {
        title: frame(dict(zip(header, row, strict=True)) for row in rows)
        for title, (header, *rows) in found.items()
    }


def check(recipe: AnyRecipe, listener: Listener | None = None) -> Plan:
    """Reads what a run will read, rehearses it in small and returns its plan; trains no expert."""
    from mergetomix.stages import plan

    with heard(listener) as hears:
        return plan.check(load_recipe(recipe), hears)


def store_contents(path: str | Path) -> Contents:
    """Returns what a store keeps and how large it is; changes nothing.

    Args:
        path: the store's folder, or its address on shared storage.

    Raises:
        StoreError: there is no store.
    """
    from mergetomix.store import contents

    return contents.survey(path)


def collect_unreached(
    recipes: AnyRecipe | list[AnyRecipe] | tuple[AnyRecipe, ...],
    listener: Listener | None = None,
    dry_run: bool = False,
) -> Unreached:
    """Removes from a store what none of some recipes reaches, and returns what that is.

    A run of any of them trains nothing anew afterwards. What may be reached is kept.

    Args:
        recipes: every recipe whose work is to stay, or the only one; all name the same store.
        dry_run: to remove nothing.

    Raises:
        UserError: the recipes name several stores, or one of them cannot be read.
        StoreError: there is no such store, or another process uses it.
    """
    from mergetomix.stages import reach
    from mergetomix.store import collect

    each = recipes if isinstance(recipes, list | tuple) else [recipes]
    loaded = [load_recipe(recipe) for recipe in each]
    with heard(listener) as hears:
        found = reach.unreached(loaded, hears)
    if not dry_run:
        collect.remove(found)
    return found

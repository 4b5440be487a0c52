"""The recipe: all sections together, read from YAML or plain values and written as YAML.

Paths start at the recipe's folder and are absolute once loaded, so that the resolved recipe runs
from anywhere.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from mergetomix.errors import RecipeError
from mergetomix.merge import METHODS
from mergetomix.recipe.datasets_from import expanded
from mergetomix.recipe.each_task import each_task
from mergetomix.recipe.errors import nearest, readable
from mergetomix.recipe.paths import (
    is_there,
    real,
    resolve_base,
    resolve_source,
    resolve_target,
    under,
    unusable,
)
from mergetomix.recipe.yaml import override, read_values
from mergetomix.sections.base import Base
from mergetomix.sections.executor import ExecutorSection
from mergetomix.sections.images import Images
from mergetomix.sections.merge import Merge
from mergetomix.sections.real_finetunes import Final, StudySection, Verify
from mergetomix.sections.search import Search
from mergetomix.sections.section import Section, Text
from mergetomix.sections.source import SOURCE_DEFAULTS, Dataset, DatasetsFrom
from mergetomix.sections.train import Train
from mergetomix.store.mirror import is_remote
from mergetomix.targets.kinds import AnyTarget
from mergetomix.targets.python import PythonTarget
from mergetomix.trackers.trackers import TrackerName

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME)]


def _base(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


AnyTrackers = Union[TrackerName, Literal["none"], list[TrackerName]]  # noqa: UP007 (pydantic needs it resolvable)


def _listed(value: Any) -> Any:
    return [] if value in (None, "none") else [value] if isinstance(value, str) else value


class Recipe(Section):
    """Everything that a run depends on."""

    family: Literal["causal-lm", "image-classifier"] = "causal-lm"
    """What kind of model is fine-tuned: a language model, or a classifier of images (CLIP and its
    kin, or any with a head)."""
    base: Annotated[Base, BeforeValidator(_base, json_schema_input_type=Union[str, Base])]  # noqa: UP007 (pydantic needs it resolvable)
    """The model to fine-tune: a mapping, or just its folder or hub id."""
    datasets: dict[Name, Dataset] = Field(default={})
    """The candidates, by name; at least two, with those of `datasets_from`."""
    datasets_from: DatasetsFrom | list[DatasetsFrom] | None = None
    """Sources that are several candidates each, by a column; a resolved recipe has them under
    `datasets`."""
    targets: dict[Name, AnyTarget]
    """What the final model should be good at, by name; at least one."""
    images: Images = Images()
    """How images become predictions."""
    train: Train = Train()
    """How every fine-tune is made."""
    merge: Merge = Merge()
    """How experts become a proxy."""
    search: Search = Search()
    """Which mixtures are tried, and how."""
    verify: Verify = Verify()
    """Real fine-tunes that prove the pick."""
    study: StudySection = StudySection()
    """A test of the method, by `mergetomix study`."""
    final: Final = Final()
    """What is fine-tuned for real once a mixture is chosen."""
    select_fraction: float = Field(default=0.5, gt=0, lt=1)
    """Share of each target's examples that the search sees; the rest is for the final table
    alone."""
    leaks: Literal["warn", "drop", "stop"] = "warn"
    """What to do about rows of the datasets that a target holds too, word for word or 13 words in a
    row: say it, leave them out of the datasets, or stop."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `mps`; `executor` says which GPUs."""
    executor: ExecutorSection = ExecutorSection()
    """Who does the work: processes on this machine, or a Ray cluster."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens, padding included, in one forward pass of an evaluation."""
    store: Text = ".mergetomix"
    """Folder of experts, trials and real fine-tunes; runs may share one. Or an address on shared
    storage, such as s3://bucket/prefix, which one process writes at a time."""
    run_dir: Text = "runs/first"
    """Folder for the report, result.json and the final model."""
    report_to: Annotated[
        list[TrackerName],
        BeforeValidator(_listed, json_schema_input_type=AnyTrackers),
    ] = Field(default=[])
    """Trackers that are told of every fine-tune and of the search: their names, or one of them;
    none by default. Each goes where its own environment variables say."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_the_family(cls, raw: Any) -> Any:
        """Fills in what a source need not say: images have an image and a label."""
        defaults = SOURCE_DEFAULTS.get(str(raw.get("family"))) if isinstance(raw, Mapping) else None
        if defaults is None:
            return raw

        def filled(sources: Any) -> Any:
            if not isinstance(sources, Mapping):
                return sources
            return {
                name: {**defaults, **source} if isinstance(source, Mapping) else source
                for name, source in sources.items()
            }

        sections = {key: filled(raw[key]) for key in ("datasets", "targets") if key in raw}
        if isinstance(raw.get("train"), Mapping) and "anchor" in raw["train"]:
            sections["train"] = {**raw["train"], "anchor": filled(raw["train"]["anchor"])}
        return {**raw, **sections}

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        problem = next(problems(self), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def resolved(self, folder: Path) -> Recipe:
        """Returns the recipe with absolute paths; relative ones start at a folder."""
        update: dict[str, Any] = {
            "base": resolve_base(self.base, folder),
            "datasets": {
                name: resolve_source(each, folder) for name, each in self.datasets.items()
            },
            "targets": {name: resolve_target(each, folder) for name, each in self.targets.items()},
            "store": self.store if is_remote(self.store) else real(under(folder, self.store)),
            "run_dir": real(under(folder, self.run_dir)),
        }
        anchor = self.train.anchor
        if anchor is not None:
            dataset = resolve_source(anchor.dataset, folder)
            anchor = anchor.model_copy(update={"dataset": dataset})
            update["train"] = self.train.model_copy(update={"anchor": anchor})
        launch = self.train.launch
        if launch is not None and launch.config_file is not None:
            file = real(under(folder, launch.config_file))
            if not is_there(Path(file)):
                raise RecipeError("train.launch.config_file", f"there is no file {file}")
            section = launch.model_copy(update={"config_file": file})
            train = update.get("train", self.train)
            update["train"] = train.model_copy(update={"launch": section})
        found = self.model_copy(update=update)
        for key, path in found.paths():
            if (why := unusable(path)) is not None:
                raise RecipeError(key, why)
        return found

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yields the paths of a resolved recipe that are no globs, with their keys."""
        every: list[tuple[str, str | None]] = [
            ("base.path", self.base.path),
            ("store", self.store),
            ("run_dir", self.run_dir),
        ]
        kinds: dict[str, Mapping[str, Any]] = {"datasets": self.datasets, "targets": self.targets}
        for kind, sources in kinds.items():
            for name, each in sources.items():
                every += [(f"{kind}.{name}.path", path) for path in getattr(each, "paths", ())]
                every.append((f"{kind}.{name}.expert", getattr(each, "expert", None)))
        for key, path in every:
            if path is not None and Path(path).is_absolute() and not glob.has_magic(path):
                yield key, path


# --- what sections must agree on


def problems(recipe: Recipe) -> Iterator[str]:
    """Yields what is wrong between sections, as `key: what must hold`.

    A later problem may be due to an earlier one.
    """
    yield from _of_launch(recipe)
    if recipe.base.dtype == "bfloat16" and recipe.train.method == "full":
        why = "bfloat16 rounds away the small steps of train.method: full"
        yield f"base.dtype: {why}; use auto, or lora"
    if len(recipe.datasets) < 2:
        yield f"datasets: a choice needs at least two datasets, not {len(recipe.datasets)}"
    if not recipe.targets:
        yield "targets: at least one is needed"
    yield from _of_weights(recipe)
    yield from _of_the_objective(recipe)
    yield from _of_names(recipe)
    yield from _of_the_number_of_datasets(recipe)
    yield from _of_racing(recipe)


def _of_launch(recipe: Recipe) -> Iterator[str]:
    """Yields why a training cannot be one of several processes."""
    launch, size = recipe.train.launch, recipe.train.batch_size
    if launch is None:
        return
    if size % launch.processes:
        pieces = f"must be a multiple of train.launch.processes, which is {launch.processes}"
        yield f"train.batch_size: {pieces}, not {size}"


def _of_weights(recipe: Recipe) -> Iterator[str]:
    """Yields what a search over weights lacks."""
    space, train, weighting = recipe.search.space, recipe.train, recipe.merge.weighting
    if space == "subsets":
        return
    if not train.is_of_fixed_length:
        by_tokens = "with train.max_tokens (its weights are then shares of tokens)"
        by_steps = "train.max_steps (shares of examples)"
        what = "say how much a mixture is trained on"
        yield f"search.space: {space}: {what}, {by_tokens} or {by_steps}"
    if weighting not in ("equal", Merge().weighting):
        where = "is for search.space: subsets, as weights are searched here"
        yield f"merge.weighting: {weighting} {where}"


def _of_the_objective(recipe: Recipe) -> Iterator[str]:
    aim, key = recipe.search.objective, "search.objective"
    weights = {name: section.weight for name, section in recipe.targets.items()}
    if aim == "pareto" and len(weights) < 2:
        why = "with one, the best gain is the whole front"
        yield f"{key}: pareto needs at least two targets; {why}: use gain"
    if aim == "worst" and len(set(weights.values())) > 1:
        given = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        why = f"worst takes the smallest gain, whatever the weights ({given})"
        yield f"{key}: {why}; leave them out, or use gain"


def _of_names(recipe: Recipe) -> Iterator[str]:
    search, known = recipe.search, set(recipe.datasets)
    grouped = [name for group in search.groups for name in group]
    named = {"require": search.require, "forbid": search.forbid, "groups": grouped}
    for key, names in named.items():
        for name in names:
            if name not in known:
                yield f"search.{key}: no dataset is called {name!r}{nearest(name, known)}"
    both = sorted(set(search.require) & set(search.forbid))
    if both:
        yield f"search.require: {', '.join(both)} both required and forbidden"


def _of_the_number_of_datasets(recipe: Recipe) -> Iterator[str]:
    search, method = recipe.search, recipe.merge.method
    allowed = len(recipe.datasets) - len(set(search.forbid))
    most = allowed if search.max_datasets is None else min(search.max_datasets, allowed)
    least = max(search.min_datasets, len(set(search.require)))
    if search.strategy == "gradient" and method != "linear":
        needed = "gradient needs merge.method: linear"
        yield f"search.strategy: {needed}, not {method}; use greedy"
    limit = METHODS[method].max_experts
    if limit is not None and most > limit:
        why = f"{method} merges at most {limit} experts, and mixtures may have {most}"
        yield f"merge.method: {why}; set search.max_datasets: {limit}"
    if least > most:
        yield _of_contradiction(recipe, least, most, allowed)


def _of_contradiction(recipe: Recipe, least: int, most: int, allowed: int) -> str:
    """Returns which bound on the number of datasets leaves no mixture, by its key."""
    search, num = recipe.search, len(recipe.datasets)
    if not allowed:
        return f"search.forbid: it leaves none of {num} datasets"
    if most < allowed:
        required = least != search.min_datasets
        other = f"search.require names {least}" if required else f"search.min_datasets is {least}"
        return f"search.max_datasets: {most}, but {other}"
    forbidden = f", {len(set(search.forbid))} of them forbidden" if search.forbid else ""
    return f"search.min_datasets: {least}, but there are {num} datasets{forbidden}"


def _of_racing(recipe: Recipe) -> Iterator[str]:
    aim, key = recipe.search.objective, "search.racing"
    if recipe.search.racing is None:
        return
    if aim not in ("auto", "gain"):
        why = f"races decide by a weighted mean of gains, not by search.objective: {aim}"
        yield f"{key}: {why}"
    for name, section in recipe.targets.items():
        if isinstance(section, PythonTarget) and not section.has_data:
            why = "is a function without data, which scores all its examples in every call"
            yield f"{key}: targets.{name} {why}; give it data, or leave racing out"


# --- from values and files, and back


def parse(raw: Mapping[str, Any] | Recipe, folder: Path | None = None) -> Recipe:
    """Returns a recipe from plain values, checked, with absolute paths.

    Raises:
        RecipeError: it does not say what to do; names the key.
    """
    folder = folder or Path.cwd()
    if isinstance(raw, Recipe):
        return raw.model_copy(update={"targets": each_task(raw.targets, folder)}).resolved(folder)
    raw = expanded(raw, folder)
    if isinstance(raw.get("targets"), Mapping):
        raw["targets"] = each_task(raw["targets"], folder)
    try:
        return Recipe.model_validate(raw).resolved(folder)
    except ValidationError as error:
        raise readable(error, Recipe) from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file, applies `a.b=value` overrides and checks it.

    Raises:
        RecipeError: the file is missing, is no YAML, or does not say what to do; names the key.
    """
    path = Path(path)
    raw = read_values(path)
    if not isinstance(raw, dict):
        raise RecipeError("", f"{path} must be a mapping with base, datasets and targets")
    for change in overrides:
        override(raw, change)
    return parse(raw, path.resolve().parent)


def dump(recipe: Recipe) -> str:
    """Returns the recipe as YAML; functions, and rows that YAML cannot hold, are named only."""
    values = recipe.model_dump(mode="python")
    anchors = [values["train"]["anchor"]["dataset"]] if recipe.train.anchor is not None else []
    for source in (*values["datasets"].values(), *values["targets"].values(), *anchors):
        if "rows" in source:
            source["rows"] = _writable(source["rows"])
        for key in ("function", "map"):
            function = source.get(key)
            if callable(function):
                name = getattr(function, "__qualname__", type(function).__name__)
                source[key] = f"<{name} given from Python>"
    # unless it is escaped, PyYAML takes U+0085 for the end of a line
    is_readable = "\\x85" not in repr(values)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=is_readable, width=120)


def _writable(rows: Any) -> Any:
    if rows is None:
        return None
    if isinstance(rows, list | tuple):
        with suppress(yaml.representer.RepresenterError):
            yaml.safe_dump(rows)
            return rows
    return f"<{len(rows) if hasattr(rows, '__len__') else 'some'} rows given from Python>"

"""The recipe: one frozen pydantic model per section, text under every field; YAML in, `--set` overrides on top.

Paths are relative to the recipe's folder and absolute once loaded, so that the resolved recipe runs from anywhere.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from mergetomix.errors import RecipeError
from mergetomix.merge import METHODS
from mergetomix.recipe.errors import nearest, readable
from mergetomix.recipe.yaml import override, read_values
from mergetomix.sections.base import Base
from mergetomix.sections.final import Final
from mergetomix.sections.images import Images
from mergetomix.sections.merge import Merge
from mergetomix.sections.search import Search
from mergetomix.sections.section import Section, Text
from mergetomix.sections.source import SOURCE_DEFAULTS, Dataset, Source
from mergetomix.sections.study import StudySection
from mergetomix.sections.train import Train
from mergetomix.sections.verify import Verify
from mergetomix.targets.kinds import AnyTarget

DATA_SUFFIXES = (
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".npz",
    ".txt",
    ".md",
    ".rst",
    ".py",
)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


S = TypeVar("S", bound=Source)


def _base(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class Recipe(Section):
    """Everything that a run depends on."""

    family: Literal["causal-lm", "image-classifier"] = "causal-lm"
    """What kind of model is fine-tuned: a language model, or a classifier of images (CLIP and its kin, or any with a head)."""
    base: Annotated[Base, BeforeValidator(_base, json_schema_input_type=Union[str, Base])]  # noqa: UP007 (a runtime union of a class and str reads the same; pydantic needs it resolvable)
    """The model to fine-tune: a mapping, or just its folder or hub id."""
    datasets: dict[Name, Dataset]
    """The candidates, by name; at least two."""
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
    """Share of each target's examples that the search sees; the rest is for the final table alone."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `mps`. Choose among several GPUs with CUDA_VISIBLE_DEVICES."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens, padding included, in one forward pass of an evaluation."""
    store: Text = ".mergetomix"
    """Folder of experts, trials and real fine-tunes; runs may share one."""
    run_dir: Text = "runs/first"
    """Folder for the report, result.json and the final model's link."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_family(cls, raw: Any) -> Any:
        """What a source need not say: images have an image and a label."""
        if not isinstance(raw, Mapping) or raw.get("family") not in SOURCE_DEFAULTS:
            return raw
        defaults, changed = SOURCE_DEFAULTS[raw["family"]], dict(raw)
        for section in ("datasets", "targets"):
            if isinstance(raw.get(section), Mapping):
                changed[section] = {
                    name: {**defaults, **source} if isinstance(source, Mapping) else source
                    for name, source in raw[section].items()
                }
        train = raw.get("train")
        anchor = train.get("anchor") if isinstance(train, Mapping) else None
        if (
            isinstance(train, Mapping)
            and isinstance(anchor, Mapping)
            and isinstance(anchor.get("dataset"), Mapping)
        ):
            changed["train"] = {
                **train,
                "anchor": {**anchor, "dataset": {**defaults, **anchor["dataset"]}},
            }
        return changed

    @model_validator(mode="after")
    def _keeps_small_updates(self) -> Recipe:
        if self.base.dtype == "bfloat16" and self.train.method == "full":
            raise ValueError(
                "base.dtype: bfloat16 rounds away the small steps of train.method: full; use auto, or lora"
            )
        return self

    @model_validator(mode="after")
    def _enough(self) -> Recipe:
        if len(self.datasets) < 2:
            raise ValueError(
                f"datasets: a choice needs at least two datasets, not {len(self.datasets)}"
            )
        if not self.targets:
            raise ValueError("targets: at least one is needed")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Recipe:
        """What a search over weights needs beside its section."""
        search, train = self.search, self.train
        if search.space == "subsets":
            return self
        if train.max_tokens is None and train.max_steps is None:
            message = "say how much a mixture is trained on, with train.max_tokens (its weights are then shares of tokens)"
            raise ValueError(
                f"search.space: {search.space}: {message} or train.max_steps (shares of examples)"
            )
        if self.merge.weighting != "equal":
            raise ValueError(
                f"merge.weighting: {self.merge.weighting} is for search.space: subsets, as weights are searched here"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Recipe:
        aim, weights = (
            self.search.objective,
            {name: spec.weight for name, spec in self.targets.items()},
        )
        if aim == "pareto" and len(weights) < 2:
            message = "pareto needs at least two targets; with one, the best gain is the whole front: use gain"
            raise ValueError(f"search.objective: {message}")
        if aim == "worst" and len(set(weights.values())) > 1:
            given = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            message = f"worst takes the smallest gain, whatever the weights ({given}); leave them out, or use gain"
            raise ValueError(f"search.objective: {message}")
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> Recipe:
        names, search = set(self.datasets), self.search
        grouped = [name for group in search.groups for name in group]
        for key, some in {
            "require": search.require,
            "forbid": search.forbid,
            "groups": grouped,
        }.items():
            for name in some:
                if name not in names:
                    raise ValueError(
                        f"search.{key}: no dataset is called {name!r}{nearest(name, names)}"
                    )
        both = set(search.require) & set(search.forbid)
        if both:
            raise ValueError(f"search: {', '.join(sorted(both))} both required and forbidden")
        allowed = len(names) - len(set(search.forbid))
        most = allowed if search.max_datasets is None else min(search.max_datasets, allowed)
        least = max(search.min_datasets, len(set(search.require)))
        if search.strategy == "gradient" and self.merge.method != "linear":
            raise ValueError(
                f"search.strategy: gradient needs merge.method: linear, not {self.merge.method}; use greedy"
            )
        limit = METHODS[self.merge.method].max_experts
        if limit is not None and most > limit:
            message = f"merge.method: {self.merge.method} merges at most {limit} experts, and mixtures may have {most}"
            raise ValueError(f"{message}; set search.max_datasets: {limit}")
        if least > most:
            raise ValueError(f"search: no mixture has at least {least} and at most {most} datasets")
        return self

    @model_validator(mode="after")
    def _can_race(self) -> Recipe:
        if self.search.racing is None:
            return self
        aim = self.search.objective
        if aim != "gain":
            raise ValueError(
                f"search.racing: races decide by a weighted mean of gains, not by search.objective: {aim}"
            )
        for name, spec in self.targets.items():
            if spec.score == "python" and spec.path is None and spec.rows is None:
                message = f"targets.{name} is a function without data, which scores all its examples in every call"
                raise ValueError(f"search.racing: {message}; give it data, or leave racing out")
        return self

    def resolved(self, folder: Path) -> Recipe:
        """The same recipe with every path absolute, `folder` being where relative ones start."""
        data = {name: _resolve_source(source, folder) for name, source in self.datasets.items()}
        targets = {name: _resolve_source(source, folder) for name, source in self.targets.items()}
        base = self.base.model_copy(update={"path": resolve_model_path(self.base.path, folder)})
        train = self.train
        if train.anchor is not None:
            anchor = train.anchor.model_copy(
                update={"dataset": _resolve_source(train.anchor.dataset, folder)}
            )
            train = train.model_copy(update={"anchor": anchor})
        places = {
            key: str(_under(folder, getattr(self, key)).resolve()) for key in ("store", "run_dir")
        }
        return self.model_copy(
            update={"base": base, "datasets": data, "targets": targets, "train": train, **places}
        )


def parse(raw: Mapping[str, Any] | Recipe, folder: Path | None = None) -> Recipe:
    """A recipe from plain values, checked, with absolute paths. Raises RecipeError, which names the key."""
    folder = folder or Path.cwd()
    if isinstance(raw, Recipe):
        return raw.resolved(folder)
    try:
        return Recipe.model_validate(dict(raw)).resolved(folder)
    except ValidationError as error:
        raise readable(error, Recipe) from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `a.b=value` overrides and check it.

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
    """The recipe as YAML. Functions, and rows that YAML cannot hold, are named, not written."""
    values = recipe.model_dump(mode="python")
    for section in ("datasets", "targets"):
        for source in values[section].values():
            source["rows"] = _writable(source["rows"])
            if callable(source.get("function")):
                name = getattr(
                    source["function"], "__qualname__", type(source["function"]).__name__
                )
                source["function"] = f"<{name} given from Python>"
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def _writable(rows: Any) -> Any:
    if rows is None:
        return None
    if isinstance(rows, list | tuple):
        with suppress(yaml.representer.RepresenterError):
            yaml.safe_dump(rows)
            return rows
    return f"<{len(rows) if hasattr(rows, '__len__') else 'some'} rows given from Python>"


def resolve_model_path(path: str, folder: Path) -> str:
    """An absolute path where `path` is a folder or is written as one; else the hub id as it stands."""
    local = _under(folder, path).resolve()
    written_as_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    return str(local) if local.exists() or written_as_path else path


def resolve_data_path(path: str, folder: Path) -> str:
    """An absolute path or glob where `path` is local or is written so; else the hub id as it stands."""
    local = _under(folder, path)
    stem = path.removesuffix(".gz").lower()
    written_as_path = (
        path.startswith((".", "/", "~")) or path.count("/") > 1 or stem.endswith(DATA_SUFFIXES)
    )
    return str(local) if written_as_path or glob.has_magic(path) or local.exists() else path


def _under(folder: Path, path: str) -> Path:
    # Path.expanduser raises for an unknown user; this leaves ~name as it stands
    return folder / os.path.expanduser(path)  # noqa: PTH111


def _resolve_source(source: S, folder: Path) -> S:
    update: dict[str, Any] = {}
    if source.path is not None:
        update["path"] = resolve_data_path(source.path, folder)
    if isinstance(source, Dataset) and source.expert is not None:
        update["expert"] = str(_under(folder, source.expert).resolve())
    function = getattr(source, "function", None)
    if isinstance(function, str):
        file, _, name = function.rpartition(":")
        beside = file.replace(".", "/") + ".py"  # a module beside the recipe need not be installed
        if not file.endswith(".py") and _under(folder, beside).is_file():
            file = beside
        if file.endswith(".py"):
            update["function"] = f"{_under(folder, file).resolve()}:{name}"
    return source.model_copy(update=update)

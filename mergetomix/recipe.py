"""The recipe: one frozen pydantic model per section, text under every field; YAML in, `--set` overrides on top.

Paths are relative to the recipe's folder and absolute once loaded, so that the resolved recipe runs from anywhere.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mergetomix.errors import RecipeError
from mergetomix.merge import METHODS
from mergetomix.problems import nearest, readable
from mergetomix.sections import (
    Augment,
    Base,
    Final,
    Images,
    Lora,
    Merge,
    Search,
    Section,
    Seed,
    Study,
    Text,
    Verify,
)
from mergetomix.values import override, read_values

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".npz", ".txt", ".md", ".rst", ".py")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


SOURCE_DEFAULTS: Mapping[str, Mapping[str, str]] = {"image-classifier": {"image": "image", "label": "label"}}
"""What a source of a family has unless it says otherwise."""


class Source(Section):
    """Where rows come from and how a row becomes an example: `prompt` and `completion`, `messages`, or `text`."""

    path: Text | None = None
    """A file, glob or folder (jsonl, json, csv, tsv, parquet, each also .gz; plain text), or a hub id."""
    rows: Any = None
    """The rows themselves, instead of a path: a list of mappings, or a `datasets.Dataset` from Python."""
    name: str | None = None
    """Configuration of a hub dataset, such as `main`."""
    split: str = "train"
    """Split of a hub dataset or of a folder that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    prompt: str | None = None
    """The prompt: a column, or a format string over columns such as `"Q: {question}\\nA:"`. Not trained on."""
    completion: str | None = None
    """What the model should answer: a column or a format string. The loss is taken here alone."""
    messages: str | None = None
    """A column of chat messages (`role`, `content`), rendered by the tokenizer's chat template."""
    text: str | bool | None = None
    """`true`: every file is one document. A string: the column (or format string) that holds the text."""
    image: str | None = None
    """The column of images: names of files, encoded bytes, arrays, or an Image of `datasets`. For family: image-classifier,
    where it is `image` unless given."""
    label: str | None = None
    """The column of labels: names of classes, or numbers that count `classes` from 0. `label` unless given; the
    folders' names where a folder holds one for each class."""
    classes: list[Text] | None = None
    """The names of the classes in order; null takes them from the source: its folders, its ClassLabel, or the labels."""
    templates: list[Text] = Field(default=["a photo of a {}."])
    """For a text head: what a text says of a class, {} being its name; several are averaged."""
    lines_per_example: int | None = Field(default=None, ge=1)
    """With `text: true`: cut every document into examples of so many lines; null keeps it whole. A target of few long documents
    needs it: what is compared is examples."""
    max_examples: int | None = Field(default=None, ge=1)
    """Take at most so many rows, drawn by the seed."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Take at most so many tokens after encoding, drawn by the seed in whole sequences."""
    seed: Seed = 0
    """Seed of the draws above and of a target's split."""

    @model_validator(mode="after")
    def _one_mapping(self) -> Source:
        kinds = [k for k in ("completion", "messages", "text", "label") if getattr(self, k) not in (None, False)]
        if len(kinds) > 1:
            raise ValueError(f"give one of completion, messages, text, label, not {' and '.join(kinds)}")
        if not kinds and not self._needs_no_mapping():
            raise ValueError(
                "say how a row becomes an example: prompt and completion, messages, text (or family: image-classifier)"
            )
        if self.prompt is not None and "completion" not in kinds and not self._needs_no_mapping():
            raise ValueError("prompt needs a completion beside it")
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"templates: {template!r} must hold {{}}, where the class's name goes")
        if self.lines_per_example is not None and not self.files:
            raise ValueError("lines_per_example cuts documents, so it needs text: true")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if self.path is not None and self.rows is not None:
            raise ValueError("give path or rows, not both")
        if self.path is None and self.rows is None and not self._needs_no_mapping():
            raise ValueError("give a path")
        return self

    def _needs_no_mapping(self) -> bool:
        return False

    @property
    def files(self) -> bool:
        """Whether every file is one document."""
        return self.text is True


class Dataset(Source):
    """A candidate: data that one may fine-tune on."""

    expert: Text | None = None
    """A folder with an expert already trained on this dataset from the same base (safetensors): used instead of training."""


class Target(Source):
    """What the final model should be good at: examples and a way to score them."""

    split: str = "test"
    """Split of a hub dataset or of a folder that has several."""
    score: Literal["loss", "accuracy", "choice", "generate", "python"] = "loss"
    """`loss`: nats per token of the completion or text, or per image. `accuracy`: is an image's class the likeliest.
    `choice`: is the right option the likeliest. `generate`: greedy answer, then `metric`. `python`: your `function`."""
    weight: float = Field(default=1.0, gt=0)
    """How much this target counts beside the others."""
    options: str | list[str] | None = None
    """For `choice`: the options shared by all examples, or the column that lists an example's own. The right one is the
    completion."""
    head: Text | None = None
    """For images.head: own: the dataset whose head scores this target; null takes the only one with the same classes."""
    option_format: str = "{option}"
    """For `choice`: how an option is written after the prompt, such as `" {option}"`."""
    normalize: bool = True
    """For `choice`: divide an option's log-likelihood by its length in bytes before comparing; false compares raw sums."""
    metric: Literal["exact", "number", "regex", "function"] = "exact"
    """For `generate`: `exact` (equal after trimming), `number` (the last number is equal), `regex` (`pattern` finds the
    answer), `function` (your own)."""
    pattern: str | None = None
    """For `metric: regex`: the first group (or the whole match) must equal the completion after trimming."""
    function: str | Callable[..., Any] | None = None
    """For `python` and `metric: function`: `module:function` or `file.py:function`, or a function from Python."""
    max_new_tokens: int = Field(default=64, ge=1)
    """For `generate`: stop after so many tokens."""
    stop: list[str] = Field(default=["\n"])
    """For `generate`: the answer ends before the first of these strings; an empty list ends it at the end token alone."""

    @model_validator(mode="after")
    def _complete(self) -> Target:
        if self.score == "choice" and self.options is None:
            raise ValueError("score: choice needs options")
        answered = bool(self.prompt and self.completion) or (self.score == "generate" and bool(self.messages))
        if self.score in ("choice", "generate") and not answered:
            raise ValueError(f"score: {self.score} needs prompt and completion")
        if self.score == "generate" and self.metric == "regex" and self.pattern is None:
            raise ValueError("metric: regex needs a pattern")
        needs_function = self.score == "python" or (self.score == "generate" and self.metric == "function")
        if needs_function and self.function is None:
            raise ValueError("name a function, such as scoring.py:my_function")
        return self

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(r".+:\w+", value, re.DOTALL):
            raise ValueError(f"must be module:function or file.py:function, not {value!r}")
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return value

    def _needs_no_mapping(self) -> bool:
        return self.score == "python"


class Anchor(Section):
    """General data mixed into every fine-tune, experts and real ones alike: it keeps them near each other."""

    dataset: Dataset
    """Where the general data comes from, as for a candidate."""
    share: float = Field(gt=0, lt=1)
    """Share of a fine-tune's sequences that are general data: 0.5 adds as many as there are of its own."""


class Train(Section):
    """How every fine-tune is made: experts, checks and the final model alike."""

    method: Literal["lora", "full"] = "lora"
    """`lora` trains small adapters; `full` trains every weight."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the data, unless max_steps or max_tokens is set."""
    max_steps: int | None = Field(default=None, ge=1)
    """A fixed number of optimizer steps for every fine-tune."""
    max_tokens: int | None = Field(default=None, ge=1)
    """A fixed number of tokens for every fine-tune, rounded to whole steps."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences per forward pass."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimizer step: the effective batch is batch_size times this."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    packing: bool = False
    """Lay a batch's sequences end to end instead of padding them; each attends to itself alone, so the loss is the same.
    Saves time on a GPU with flash attention."""
    max_length: int = Field(default=1024, ge=8)
    """Longest sequence in tokens; the model's own limit holds where it is lower. Longer texts are cut into several sequences;
    longer prompts lose their beginning."""
    seed: Seed = 0
    """Seed of the data order, the adapters' start and dropout, the same for every fine-tune."""
    anchor: Anchor | None = None
    """General data in every fine-tune."""
    augment: Augment | None = None
    """For images: random changes of the training images; null is none."""
    lora: Lora = Lora()
    """Settings of method: lora."""


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
    targets: dict[Name, Target]
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
    study: Study = Study()
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
        if isinstance(train, Mapping) and isinstance(anchor, Mapping) and isinstance(anchor.get("dataset"), Mapping):
            changed["train"] = {**train, "anchor": {**anchor, "dataset": {**defaults, **anchor["dataset"]}}}
        return changed

    @model_validator(mode="after")
    def _keeps_small_updates(self) -> Recipe:
        if self.base.dtype == "bfloat16" and self.train.method == "full":
            raise ValueError("base.dtype: bfloat16 rounds away the small steps of train.method: full; use auto, or lora")
        return self

    @model_validator(mode="after")
    def _enough(self) -> Recipe:
        if len(self.datasets) < 2:
            raise ValueError(f"datasets: a choice needs at least two datasets, not {len(self.datasets)}")
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
            raise ValueError(f"search.space: {search.space}: {message} or train.max_steps (shares of examples)")
        if self.merge.weighting != "equal":
            raise ValueError(
                f"merge.weighting: {self.merge.weighting} is for search.space: subsets, as weights are searched here"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Recipe:
        aim, weights = self.search.objective, {name: spec.weight for name, spec in self.targets.items()}
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
        for key, some in {"require": search.require, "forbid": search.forbid, "groups": grouped}.items():
            for name in some:
                if name not in names:
                    raise ValueError(f"search.{key}: no dataset is called {name!r}{nearest(name, names)}")
        both = set(search.require) & set(search.forbid)
        if both:
            raise ValueError(f"search: {', '.join(sorted(both))} both required and forbidden")
        allowed = len(names) - len(set(search.forbid))
        most = allowed if search.max_datasets is None else min(search.max_datasets, allowed)
        least = max(search.min_datasets, len(set(search.require)))
        if search.strategy == "gradient" and self.merge.method != "linear":
            raise ValueError(f"search.strategy: gradient needs merge.method: linear, not {self.merge.method}; use greedy")
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
            raise ValueError(f"search.racing: races decide by a weighted mean of gains, not by search.objective: {aim}")
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
            anchor = train.anchor.model_copy(update={"dataset": _resolve_source(train.anchor.dataset, folder)})
            train = train.model_copy(update={"anchor": anchor})
        places = {key: str(_under(folder, getattr(self, key)).resolve()) for key in ("store", "run_dir")}
        return self.model_copy(update={"base": base, "datasets": data, "targets": targets, "train": train, **places})


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
                name = getattr(source["function"], "__qualname__", type(source["function"]).__name__)
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
    written_as_path = path.startswith((".", "/", "~")) or path.count("/") > 1 or stem.endswith(DATA_SUFFIXES)
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

"""The recipe's sections that name no data: one frozen pydantic model each, with text under every field."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from mergetomix.merge import METHODS, OPTIONS, defaults

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy, which draws, takes for a seed."""


BUDGET = re.compile(r"\d+(\.\d+)? (examples|minutes)")


class Section(BaseModel):
    """A frozen part of the recipe that knows its keys."""

    # Defaults are validated too: `epochs: 1` and no epochs at all are then the same value, and the same address.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1, and YAML takes yes and on for true
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and not {bool, Any} & {wanted, *get_args(wanted)}:
            raise ValueError(f"must not be {str(value).lower()}; YAML takes yes, no, on and off for it, so quote a text")
        return value


class Base(Section):
    """The model that every fine-tune starts from."""

    path: Text
    """A folder, or the id of a model on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; null is its main branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the weights: `auto` is bfloat16 for LoRA on a GPU that has it, else float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""


class Lora(Section):
    """Settings of the low-rank adapters (PEFT)."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32, gt=0)
    """The adapter's product is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input during training."""
    target_modules: str | list[str] = "all-linear"
    """Which linear layers get an adapter."""


class Augment(Section):
    """Random changes of training images, another one every time an image is seen. All off by default."""

    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a mirror image, left for right."""
    shift: float = Field(default=0.0, ge=0, lt=1)
    """Most shift each way, as a share of the image's side."""
    zoom: float = Field(default=0.0, ge=0, lt=1)
    """Most change of size either way: 0.1 is from 0.9 to 1.1."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Most rotation either way, in degrees."""


class Images(Section):
    """For family: image-classifier."""

    head: Literal["auto", "text", "shared", "own"] = "auto"
    """`text`: a frozen head from the classes' names, by the text encoder of a CLIP model. `shared`: one head for all, which is
    trained and merged as the rest; all sources must have the same classes. `own`: for each dataset a frozen head of its own, a
    logistic regression on the base's features; only the rest is trained and merged. `auto`: text for CLIP, else shared."""
    broken: Literal["stop", "skip"] = "stop"
    """What to do with an image that does not decode."""
    num_workers: int | None = Field(default=None, ge=0)
    """Processes that decode images for training; null is none where all images fit in memory, else one less than there are
    processors, four at most; always none where processes are not forked (macOS, Windows)."""
    memory_gib: float = Field(default=4.0, ge=0)
    """Memory for images that are ready for the model; what does not fit is decoded again each time."""


class Scale(Section):
    """How far a merge of k experts goes."""

    exponent: float = Field(default=1.0, ge=0, le=2)
    """scale(k) = k ** -exponent. 1 averages the deltas, as in the paper; lower goes farther."""


class Merge(Section):
    """How experts become a proxy."""

    method: Literal[
        "linear",
        "task_arithmetic",
        "ties",
        "dare_linear",
        "dare_ties",
        "della_linear",
        "della",
        "breadcrumbs",
        "breadcrumbs_ties",
        "slerp",
        "multislerp",
        "fisher",
        "regmean",
    ] = "linear"
    """`linear` is theta_0 + k * scale(k) * the weighted mean of deltas. docs/methods.md has the others, and how they do as
    proxies."""
    scale: Scale = Scale()
    """How far a merge of k experts goes."""
    weighting: Literal["equal", "size", "tokens"] = "equal"
    """`equal` weighs the experts of a subset alike; `size` by their number of training sequences; `tokens` by their number of
    tokens on which the loss is taken."""
    density: float | None = Field(default=None, gt=0, le=1)
    """For ties, dare, della, breadcrumbs: share of each delta's values that is kept; null is 0.2 for ties, 0.5 for dare and
    della, 0.1 for breadcrumbs."""
    epsilon: float | None = Field(default=None, ge=0, le=1)
    """For della: how much likelier the largest value is kept than the smallest; null is 0.2."""
    gamma: float | None = Field(default=None, ge=0, lt=1)
    """For breadcrumbs: share of each delta's largest values that is dropped; null is 0.01."""
    offdiagonal: float | None = Field(default=None, ge=0, le=1)
    """For regmean: factor on the inputs' Gram matrices off their diagonals; null is 0.9."""
    strength: float | None = Field(default=None, gt=0)
    """For all but linear, slerp, multislerp, fisher, regmean: factor on the merged delta; null is 1."""
    seed: Seed | None = None
    """For dare and della: seed of what is dropped; null is 0."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory for experts and their sum, beside the model, where the model lies. What does not fit is read from the disk each
    time; null takes half of what is free."""

    @property
    def options(self) -> dict[str, float]:
        """The hyper-parameters of the method, those not given as it has them."""
        known = {name: getattr(self, name) for name in METHODS[self.method].options}
        return defaults(self.method) | {name: value for name, value in known.items() if value is not None}

    @model_validator(mode="after")
    def _fits_its_method(self) -> Merge:
        heeded = METHODS[self.method].options
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in heeded:
                raise ValueError(f"{name} is not for method: {self.method}, which has {', '.join(heeded) or 'no options'}")
        if "epsilon" in heeded:
            density, half = self.options["density"], self.options["epsilon"] / 2
            if not 0 < density - half <= density + half <= 1:
                raise ValueError(f"density {density:g} -+ epsilon / 2 ({half:g}) must lie between 0 and 1")
        return self


class Search(Section):
    """Which mixtures are tried, and how."""

    strategy: Literal["auto", "exhaustive", "greedy", "gradient", "regression", "optuna"] = "auto"
    """`exhaustive` tries every subset, `greedy` adds and drops datasets, `gradient` learns how losses change with the weights
    and tries what should be best, `regression` predicts values from those of random mixtures, `optuna` leaves the choice to
    one of Optuna's samplers and keeps its trials in the run's folder (optuna.db). `auto` tries all of up to 255 subsets;
    beyond, it is `gradient` where the merge is linear and every target a loss, or has right answers whose loss can stand for
    its score; else exhaustive up to 4,095 subsets, then greedy, and regression for weights."""
    regressor: Literal["auto", "lightgbm", "log_linear", "gp"] = "auto"
    """For `regression`: boosted trees, a log-linear law, or a Gaussian process; `auto` is what predicts the trials best."""
    sampler: Literal["auto", "tpe", "gp", "cmaes", "nsga2", "nsga3"] = "auto"
    """For `optuna`: its sampler; `auto` goes by the number of targets of a front."""
    objective: Literal["gain", "standard_errors", "worst", "pareto"] = "gain"
    """What of several targets is best. `gain`: the weighted mean of the gains over the base. `standard_errors`: the same with
    each gain in standard errors of its target, so that a target of few or noisy examples does not rule. `worst`: the smallest
    gain, whatever the weights. `pareto`: all mixtures that no other beats on every target, and of these the knee, the nearest
    to the best gain of each."""
    budget: int | str | None = None
    """Most forward passes over the targets: a trial costs one, a trial with its gradient three. Or `20000 examples`, which are
    scored as many times, or `30 minutes`. Null is what the strategy thinks right."""
    space: Literal["subsets", "weights", "both"] = "subsets"
    """What is searched. `subsets`: which datasets, each mixture standing for the union of their data. `weights`: shares of the
    data, zero for some; a fine-tune's rows are then drawn by them, its length being train.max_tokens (shares of tokens) or
    train.max_steps (shares of examples). `both`: the subset first, in equal shares, then its weights."""
    groups: list[list[str]] = []
    """Datasets that go together: a mixture holds all of a group or none. Not for space: weights."""
    min_share: float = Field(default=0.01, ge=0, le=1)
    """For weights: the smallest weight of a dataset that is in a mixture."""
    max_repeats: float | None = Field(default=None, gt=0)
    """For weights: how often a fine-tune may see a dataset, which caps its weight at max_repeats * its size / the length of
    training; null does not cap."""
    min_datasets: int = Field(default=1, ge=1)
    """Fewest datasets in a mixture."""
    max_datasets: int | None = Field(default=None, ge=1)
    """Most datasets in a mixture; null is all of them."""
    require: list[str] = []
    """Datasets that every mixture must hold."""
    forbid: list[str] = []
    """Datasets that no mixture may hold."""
    racing: float | None = Field(default=None, gt=0, lt=0.5)
    """Trials start on a few of each target's select examples and go on only while they may still be the best: the probability
    that the mixture that would have been the best is stopped early, such as 0.05; null evaluates every trial on all examples.
    It holds where changes are near normal or foreseen by the trials before, and fails for rare large gains (docs/log.md). Needs
    at least 24 select examples of each target, and about 100 to save much. A trial that was stopped counts as whole in the
    budget, and is none of those that checks choose among."""

    @field_validator("budget")
    @classmethod
    def _is_a_budget(cls, value: Any) -> Any:
        counts = (
            BUDGET.fullmatch(value) and float(value.split()[0]) > 0 if isinstance(value, str) else value is None or value > 0
        )
        if not counts:
            raise ValueError(f"must be a number of forward passes, or such as '20000 examples' or '30 minutes', not {value!r}")
        return value

    @model_validator(mode="after")
    def _fits_its_space(self) -> Search:
        if self.space == "weights" and self.groups:
            raise ValueError("groups are of subsets: set space: subsets, or both")
        if self.space == "weights" and self.strategy in ("exhaustive", "greedy"):
            raise ValueError(f"strategy: {self.strategy} tries subsets, not weights; set space: both, or strategy: auto")
        for key, strategy in {"regressor": "regression", "sampler": "optuna"}.items():
            if getattr(self, key) != "auto" and self.strategy not in (strategy, "auto"):
                raise ValueError(f"{key} is for strategy: {strategy}, not {self.strategy}")
        if self.space == "subsets" and self.max_repeats is not None:
            raise ValueError("max_repeats is of weights: set space: weights, or both")
        return self


class Verify(Section):
    """A few mixtures fine-tuned for real, to know how far the proxies can be trusted and to choose by that."""

    budget: int | None = Field(default=None, ge=0)
    """Most fine-tunes to make for checks; 0 chooses by proxy alone, null is 3, or as many as there are mixtures to check."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Checks end early once the pick's probability of being the best mixture is over this."""
    interval: float = Field(default=0.9, gt=0, lt=1)
    """Coverage of the intervals that are reported."""
    repeats: int = Field(default=2, ge=0)
    """How many of the best checked mixtures to fine-tune again with another seed, beside the budget: they show the noise
    between seeds. From one alone it comes out too large, as what a seed gives to all mixtures alike cannot be told from it."""
    exponents: list[Annotated[float, Field(ge=0, le=2)]] = [0.5, 0.75, 1.0]
    """Exponents of the scale to choose from by the checks, beside merge.scale.exponent; an empty list keeps that one."""
    max_rescored: int = Field(default=256, ge=1)
    """Most proxies to score again when the checks ask for another exponent: the best ones."""


class Study(Section):
    """A test of the method itself: every mixture fine-tuned for real, and other ways to choose beside it."""

    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1)
    """Values of train.seed; everything is done once with each."""
    num_mixtures: int | None = Field(default=None, ge=5)
    """How many mixtures to fine-tune on, the single datasets among them; null is all."""
    max_finetunes: int = Field(default=100, ge=1)
    """Larger studies start with --yes only."""
    exponents: list[Annotated[float, Field(ge=0, le=2)]] = [0.5, 0.75, 1.0]
    """Exponents of the scale to score the proxies at; 1, the paper's, is always among them."""
    num_draws: int = Field(default=10, ge=1)
    """How often a way to choose that draws at random is repeated."""
    embedding_model: str | None = None
    """A sentence-transformers model, to choose datasets by its embeddings; null leaves that way out."""


class Final(Section):
    """What is fine-tuned for real once a mixture is chosen."""

    train: bool = True
    """Fine-tune the base on the selected mixture."""
    baselines: list[Literal["all", "random"]] = ["all", "random"]
    """Real fine-tunes to compare with: on all datasets, and on random mixtures."""
    num_random: int = Field(default=3, ge=1)
    """How many random mixtures, drawn by train.seed from those that the search may choose."""

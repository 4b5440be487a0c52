"""Which mixtures are tried, and how."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mergetomix.sections.section import Section

BUDGET = re.compile(r"(?=.*[1-9])\d+(\.\d+)? (examples|minutes)")


class Search(Section):
    """Which mixtures are tried, and how."""

    strategy: Literal["auto", "exhaustive", "greedy", "gradient", "regression", "optuna"] = "auto"
    """`exhaustive` tries every subset, `greedy` adds and drops datasets, `gradient` learns how
    losses change with the weights and tries what should be best, `regression` predicts values from
    those of random mixtures, `optuna` leaves the choice to one of Optuna's samplers and keeps its
    trials in the run's folder (optuna.db). `auto` tries all of up to 255 subsets; beyond, it is
    `gradient` where the merge is linear and every target a loss, or has right answers whose loss
    can stand for its score; else exhaustive up to 4,095 subsets, then greedy, and regression for
    weights."""
    regressor: Literal["auto", "lightgbm", "log_linear", "gp"] = "auto"
    """For `regression`: boosted trees, a log-linear law, or a Gaussian process; `auto` is what
    predicts the trials best."""
    sampler: Literal["auto", "tpe", "gp", "cmaes", "nsga2", "nsga3"] = "auto"
    """For `optuna`: its sampler; `auto` goes by the number of targets of a front."""
    objective: Literal["auto", "gain", "standard_errors", "worst", "pareto"] = "auto"
    """What of several targets is best. `auto`: standard_errors where the scores of some target are
    no fractions, such as a function's in tokens; else gain. `gain`: the weighted mean of the gains
    over the base.
    `standard_errors`: the same with each gain in standard errors of its target, so that a target of
    few or noisy examples does not rule. `worst`: the smallest gain, whatever the weights. `pareto`:
    all mixtures that no other beats on every target, and of these the knee, the nearest to the best
    gain of each."""
    budget: int | str | None = None
    """Most forward passes over the targets: a trial costs one, a trial with its gradient three. Or
    `20000 examples`, which are scored as many times, or `30 minutes`. Null is what the strategy
    thinks right."""
    space: Literal["subsets", "weights", "both"] = "subsets"
    """What is searched. `subsets`: which datasets, each mixture standing for the union of their
    data. `weights`: shares of the data, zero for some; a fine-tune's rows are then drawn by them,
    its length being train.max_tokens (shares of tokens) or train.max_steps (shares of examples).
    `both`: the subset first, in equal shares, then its weights."""
    groups: list[list[str]] = Field(default=[])
    """Datasets that go together: a mixture holds all of a group or none. Not for space: weights."""
    min_share: float = Field(default=0.01, ge=0, le=1)
    """For weights: the smallest weight of a dataset that is in a mixture."""
    max_repeats: float | None = Field(default=None, gt=0)
    """For weights: how often a fine-tune may see a dataset, which caps its weight at max_repeats *
    its size / the length of training; null does not cap."""
    min_datasets: int = Field(default=1, ge=1)
    """Fewest datasets in a mixture."""
    max_datasets: int | None = Field(default=None, ge=1)
    """Most datasets in a mixture; null is all of them."""
    require: list[str] = Field(default=[])
    """Datasets that every mixture must hold."""
    forbid: list[str] = Field(default=[])
    """Datasets that no mixture may hold."""
    racing: float | None = Field(default=None, gt=0, lt=0.5)
    """Trials start on a few of each target's select examples and go on only while they may still be
    the best: the probability that the mixture that would have been the best is stopped early, such
    as 0.05; null evaluates every trial on all examples. It holds where changes are near normal or
    foreseen by the trials before, and fails for rare large gains (docs/log.md). Needs at least 24
    select examples of each target, and about 100 to save much. A trial that was stopped counts as
    whole in the budget, and is none of those that checks choose among."""

    @property
    def draws_rows(self) -> bool:
        """Whether a mixture's rows are drawn by its weights; else a fine-tune is on the union."""
        return self.space != "subsets"

    @field_validator("budget")
    @classmethod
    def _is_a_budget(cls, value: int | str | None) -> int | str | None:
        text = value if isinstance(value, str) else f"{value} examples"
        if value is not None and not BUDGET.fullmatch(text):
            known = "a number of forward passes, or such as '20000 examples' or '30 minutes'"
            raise ValueError(f"must be {known}, not {value!r}")
        return value

    @model_validator(mode="after")
    def _fits_its_space(self) -> Search:
        if self.space == "weights" and self.groups:
            raise ValueError("groups are of subsets: set space: subsets, or both")
        if self.space == "weights" and self.strategy in ("exhaustive", "greedy"):
            message = f"strategy: {self.strategy} tries subsets, not weights"
            raise ValueError(f"{message}; set space: both, or strategy: auto")
        for key, strategy in {"regressor": "regression", "sampler": "optuna"}.items():
            if getattr(self, key) != "auto" and self.strategy not in (strategy, "auto"):
                raise ValueError(f"{key} is for strategy: {strategy}, not {self.strategy}")
        if self.space == "subsets" and self.max_repeats is not None:
            raise ValueError("max_repeats is of weights: set space: weights, or both")
        return self

"""How experts become a proxy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mergetomix.merge import METHODS, OPTIONS
from mergetomix.records import Weighting
from mergetomix.sections.section import Section, Seed


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
    """`linear` is theta_0 + k * scale(k) * the weighted mean of deltas. docs/methods.md has the
    others, and how they do as proxies."""
    scale: Scale = Scale()
    """How far a merge of k experts goes."""
    weighting: Weighting = "sqrt_tokens"
    """`tokens` weighs the experts of a subset by their number of tokens on which the loss is taken,
    `sqrt_tokens` by the root of that, `size` by their number of training sequences; `equal` weighs
    them alike, as the paper does, and as it is where weights are searched."""
    density: float | None = Field(default=None, gt=0, le=1)
    """For ties, dare, della, breadcrumbs: share of each delta's values that is kept; null is 0.2
    for ties, 0.5 for dare and della, 0.1 for breadcrumbs."""
    epsilon: float | None = Field(default=None, ge=0, le=1)
    """For della: how much likelier the largest value is kept than the smallest; null is 0.2."""
    gamma: float | None = Field(default=None, ge=0, lt=1)
    """For breadcrumbs: share of each delta's largest values that is dropped; null is 0.01."""
    offdiagonal: float | None = Field(default=None, ge=0, le=1)
    """For regmean: factor on the inputs' Gram matrices off their diagonals; null is 0.9."""
    strength: float | None = Field(default=None, gt=0)
    """For all but linear, slerp, multislerp, fisher, regmean: factor on the merged delta; null is
    1."""
    seed: Seed | None = None
    """For dare and della: seed of what is dropped; null is 0."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory for experts and their sum, beside the model, where the model lies. What does not fit
    is read from the disk each time; null takes half of what is free."""

    @property
    def options(self) -> dict[str, float]:
        """The hyper-parameters of the method; those not given are its own defaults."""
        given = self.model_dump(include=set(METHODS[self.method].options), exclude_none=True)
        return METHODS[self.method].options | given

    @model_validator(mode="after")
    def _fits_its_method(self) -> Merge:
        heeded = METHODS[self.method].options
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in heeded:
                known = ", ".join(heeded) or "no options"
                raise ValueError(f"{name} is not for method: {self.method}, which has {known}")
        if "epsilon" in heeded:
            density, half = self.options["density"], self.options["epsilon"] / 2
            if not 0 < density - half <= density + half <= 1:
                numbers = f"density {density:g} -+ epsilon / 2 ({half:g})"
                raise ValueError(f"{numbers} must lie between 0 and 1")
        return self

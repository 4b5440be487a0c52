"""The real fine-tunes beside the experts: checks of the proxies, the final model, a study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mergetomix.records import Weighting
from mergetomix.sections.section import Section, Seed

Exponent = Annotated[float, Field(ge=0, le=2)]


class Verify(Section):
    """A few mixtures fine-tuned for real.

    They say how far the proxies can be trusted, and the choice goes by them.
    """

    budget: int | None = Field(default=None, ge=0)
    """Most fine-tunes to make for checks; 0 chooses by proxy alone, null is 3, or as many as there
    are mixtures to check."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Checks end early once the pick's probability of being the best mixture is over this."""
    interval: float = Field(default=0.9, gt=0, lt=1)
    """Coverage of the intervals that are reported."""
    repeats: int = Field(default=2, ge=0)
    """How many of the best checked mixtures to fine-tune again with another seed, beside the
    budget: they show the noise between seeds."""
    exponents: list[Exponent] = Field(default=[0.5, 0.75, 1.0])
    """Exponents of the scale to choose from by the checks, beside merge.scale.exponent; an empty
    list keeps that one."""
    weightings: list[Weighting] = Field(default=["equal", "sqrt_tokens", "tokens"])
    """Weights of experts to choose from by the checks, beside merge.weighting; an empty list keeps
    that one. Where weights are searched there is nothing to choose."""
    max_rescored: int = Field(default=256, ge=1)
    """Most proxies to score again when the checks ask for another exponent or other weights: the
    best ones."""


class Final(Section):
    """What is fine-tuned for real once a mixture is chosen."""

    train: bool = True
    """Fine-tune the base on the selected mixture."""
    baselines: list[Literal["all", "random"]] = Field(default=["all", "random"])
    """Real fine-tunes to compare with: on all datasets, and on random mixtures."""
    num_random: int = Field(default=3, ge=1)
    """How many random mixtures, drawn by train.seed from those that the search may choose."""


class StudySection(Section):
    """A test of the method: every mixture fine-tuned for real, and other ways to choose."""

    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1)
    """Values of train.seed; everything is done once with each."""
    num_mixtures: int | None = Field(default=None, ge=5)
    """How many mixtures to fine-tune on, the single datasets among them; null is all."""
    max_finetunes: int = Field(default=100, ge=1)
    """Larger studies start with --yes only."""
    exponents: list[Exponent] = Field(default=[0.5, 0.75, 1.0])
    """Exponents of the scale to score the proxies at; 1, the paper's, is always among them."""
    weightings: list[Weighting] = Field(default=["equal", "sqrt_tokens", "tokens"])
    """Weights of the experts to merge by, beside merge.weighting; other ones are scored at the
    recipe's exponent."""
    num_draws: int = Field(default=10, ge=1)
    """How often a way to choose that draws at random is repeated."""
    embedding_model: str | None = None
    """A sentence-transformers model, to choose datasets by its embeddings; null leaves that way
    out."""

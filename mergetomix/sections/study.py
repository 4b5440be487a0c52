"""A test of the method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mergetomix.sections.section import Section, Seed


class StudySection(Section):
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

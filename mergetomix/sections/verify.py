"""Real fine-tunes that prove the pick."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mergetomix.sections.section import Section


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

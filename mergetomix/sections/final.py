"""What is fine-tuned for real once a mixture is chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mergetomix.sections.section import Section


class Final(Section):
    """What is fine-tuned for real once a mixture is chosen."""

    train: bool = True
    """Fine-tune the base on the selected mixture."""
    baselines: list[Literal["all", "random"]] = ["all", "random"]
    """Real fine-tunes to compare with: on all datasets, and on random mixtures."""
    num_random: int = Field(default=3, ge=1)
    """How many random mixtures, drawn by train.seed from those that the search may choose."""

"""What every target has: examples, and how much it counts. Each kind adds its own in `targets/`."""

from __future__ import annotations

from pydantic import Field

from mergetomix.sections.section import Text
from mergetomix.sections.source import Source


class TargetSection(Source):
    """What the final model should be good at: examples and a way to score them."""

    split: str = "test"
    """Split of a hub dataset or of a folder that has several."""
    score: str = "loss"
    """How a model is scored."""
    weight: float = Field(default=1.0, gt=0)
    """How much this target counts beside the others."""

    @property
    def has_data(self) -> bool:
        """Whether it names examples: a path, or the rows themselves."""
        return self.path is not None or self.rows is not None


class WithHead(TargetSection):
    """A target that may be scored through the frozen head of a dataset."""

    head: Text | None = None
    """For images.head: own: the dataset whose head scores this target; null takes the only one with
    the same classes."""


class WithOptions(TargetSection):
    """A target whose examples have options, of which the completion is the right one."""

    options: str | list[str] | None = None
    """The options shared by all examples, or the column that lists an example's own. The right one
    is the completion."""
    option_format: str = "{option}"
    """How an option is written after the prompt, such as `" {option}"`."""

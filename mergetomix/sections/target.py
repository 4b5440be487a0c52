"""What every target has, and what those over rows have. Each kind adds its own in `targets/`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from mergetomix.records import Kind
from mergetomix.sections.section import Section, Seed, Text
from mergetomix.sections.source import Source

HIGHER = "a score (higher is better)"


class TargetBase(Section):
    """What the final model should be good at, whatever its examples come from."""

    score: str = "loss"
    """How a model is scored."""
    weight: float = Field(default=1.0, gt=0)
    """How much this target counts beside the others."""
    seed: Seed = 0
    """Seed of the split into what the search sees and what the report is on."""

    def described(self, kind: Kind, unit: str) -> str:
        """Returns what the numbers of the target are, in half a sentence.

        Args:
            kind: of its scores.
            unit: of a loss, such as `nats per token`.
        """
        return f"a loss in {unit} (lower is better)" if kind == "loss" else HIGHER


class TargetSection(Source, TargetBase):
    """A target over the rows of a source."""

    default_split: ClassVar[str] = "test"
    last_word: bool = False
    """Of a `text`: only its last word is scored, as in LAMBADA."""
    shots: int = Field(default=0, ge=0, le=100)
    """Show so many other examples with their answers before each prompt, drawn by `seed`, never the
    row itself."""
    shots_from: Text | None = None
    """Where these are taken from: another split of the same source, or a path; null takes the
    target's own rows."""
    shot_separator: str = "\n\n"
    """What stands between them."""

    @model_validator(mode="after")
    def _fits_its_examples(self) -> TargetSection:
        if self.last_word and (self.text is None or self.files):
            raise ValueError("last_word needs a text that a row holds")
        if self.shots and not (self.completion or self.answer or self.map):
            raise ValueError("shots needs prompt and completion, or an answer")
        if self.shots_from is not None and not self.shots:
            raise ValueError("shots_from needs shots")
        return self

    @property
    def has_data(self) -> bool:
        """Whether it names examples: a path, or the rows themselves."""
        return self.path is not None or self.rows is not None


class WithHead(TargetSection):
    """A target that may be scored through the frozen head of a dataset."""

    head: Text | None = None
    """For images.head: own: the dataset whose head scores this target; null takes the only one with
    the same classes."""

"""Is the right class the likeliest?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mergetomix.data.examples import Example
from mergetomix.models.encoding import content
from mergetomix.models.images.classifier import ImageClassifier
from mergetomix.records import Scores
from mergetomix.store.address import digest
from mergetomix.targets.target import TargetSetting


class Accuracy:
    """One for each example whose own class is the likeliest, else zero. The first of equals counts."""

    def __init__(self, examples: Sequence[Example], setting: TargetSetting) -> None:
        self.family = cast("ImageClassifier", setting.family)
        self.sequences = self.family.encode(examples, setting.where).sequences
        self.num_tokens = sum(sequence.num_tokens for sequence in self.sequences)
        self.batches = self.family.batches(self.sequences, setting.batch_tokens)

    def address(self) -> str:
        """Images, labels and what is compared."""
        return digest("accuracy", content(self.sequences))

    def score(self, model: Any) -> Scores:
        """Values are 1.0 or 0.0."""
        values = tuple(float(right) for right in self.family.right(model, self.batches))
        return Scores("score", values, (1.0,) * len(values))

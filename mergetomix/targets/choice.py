"""Score questions by whether the right one of several options is the likeliest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from mergetomix.data.examples import Example
from mergetomix.errors import DataError
from mergetomix.models.encoding import content
from mergetomix.models.family import ScoresOptions
from mergetomix.records import Scores
from mergetomix.sections.target import TargetSection
from mergetomix.store.address import digest
from mergetomix.stretches import WHOLE, Stretch
from mergetomix.targets.target import TargetKind, TargetSetting, equal_scores


class ChoiceTarget(TargetSection, TargetKind):
    """A question with options, one of which is right."""

    needs: ClassVar[type[Any]] = ScoresOptions

    score: Literal["choice"]
    """`choice`: whether the right option is the likeliest."""
    normalize: bool | Literal["characters"] = True
    """Divide an option's log-likelihood by its length in bytes, as it is written, before comparing;
    `characters` divides by its length in characters without white space around it; false compares
    raw sums."""

    @model_validator(mode="after")
    def _complete(self) -> ChoiceTarget:
        if self.map is not None:
            return self
        if self.chosen is not None:
            if self.rejected is None:
                raise ValueError("score: choice needs a rejected beside chosen")
            return self
        if self.options is None and self.answer is None:
            raise ValueError("score: choice needs options, or chosen and rejected")
        if not (self.prompt and (self.completion or self.answer)):
            raise ValueError("score: choice needs prompt and completion, or an answer")
        return self

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Choice:
        """Returns the target over some of its examples."""
        return Choice(self, examples, setting)


class Choice:
    """One for each example whose right option is the likeliest after the prompt, else zero.

    Options are compared by the sum of their tokens' log-likelihoods, or, with `normalize`, by that
    sum divided by the option's length. In the LM Evaluation Harness `acc` compares the sums,
    `acc_norm` divides by characters, and `acc_bytes` by bytes, both without the space before an
    option, which counts here among the bytes. The first of equals counts. nan stands for an example
    with an option whose loss is not finite.
    """

    num_cut = 0

    def __init__(
        self, section: ChoiceTarget, examples: Sequence[Example], setting: TargetSetting
    ) -> None:
        if not isinstance(setting.family, ScoresOptions):
            raise setting.unable("choice")
        self.family = setting.family
        self.normalize = section.normalize
        key = f"{setting.where}.options"
        for example in examples:
            if example.completion not in example.options:
                raise DataError(key, f"row {example.row} (counting from 0) has no options")
        # of two alike the first is the likeliest, as it is the right one
        self.right = [example.options.index(example.completion) for example in examples]
        by_characters = section.normalize == "characters"
        self.lengths = [
            [len(each.strip()) if by_characters else len(each.encode()) for each in example.options]
            for example in examples
        ]
        self.questions = [
            self.family.question(each, i, setting.where) for i, each in enumerate(examples)
        ]
        self.num_tokens = sum(question.num_tokens for question in self.questions)
        self.asked = self.family.asked(self.questions, setting.batch_tokens)

    def address(self) -> str:
        """Returns the address of tokens, the right options, and how they are compared."""
        # which lengths they are, the lengths say
        compared = self.right, self.lengths, bool(self.normalize)
        return digest("choice", content(self.questions), *compared)

    def read(self, model: Any, stretch: Stretch = WHOLE) -> dict[int, float]:
        """Returns the losses of the options in a stretch of batches."""
        return self.asked.read(model, stretch)

    def scores_of(self, found: Mapping[int, float]) -> Scores:
        """Returns 1.0 or 0.0 for each example, nan where a loss is not finite."""
        values = []
        several = self.asked.by_question(found)
        for right, lengths, losses in zip(self.right, self.lengths, several, strict=True):
            divisors = lengths if self.normalize else [1] * len(lengths)
            costs = [loss / each for loss, each in zip(losses, divisors, strict=True)]
            is_right = float(costs.index(min(costs)) == right)
            values.append(is_right if all(map(math.isfinite, costs)) else math.nan)
        return equal_scores(values)

    def score(self, model: Any) -> Scores:
        """Returns 1.0 or 0.0 for each example, nan where a loss is not finite."""
        return self.scores_of(self.read(model))

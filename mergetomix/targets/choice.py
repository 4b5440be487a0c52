"""Is the right option the likeliest?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mergetomix.data.examples import Example
from mergetomix.errors import DataError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.questions import Question
from mergetomix.models.encoding import content
from mergetomix.records import Scores
from mergetomix.sections.target import TargetSection as Spec
from mergetomix.store.address import digest
from mergetomix.targets.target import TargetSetting


class Choice:
    """One for each example whose right option is the likeliest after the prompt, else zero.

    Options are compared by the sum of their tokens' log-likelihoods, or, with `normalize`, by that sum divided by the
    option's length in bytes (as in the LM Evaluation Harness's `acc` and `acc_norm`). The first of equals counts.
    """

    def __init__(self, spec: Spec, examples: Sequence[Example], setting: TargetSetting) -> None:
        self.family, self.normalize = cast("CausalLM", setting.family), spec.normalize
        self.right = [example.options.index(example.completion) for example in examples]
        self.lengths = [[len(option.encode()) for option in example.options] for example in examples]
        self.questions = [self._encode(example, i, setting.where) for i, example in enumerate(examples)]
        self.num_tokens = sum(question.num_tokens for question in self.questions)
        self.asked = self.family.asked(self.questions, setting.batch_tokens)

    def _encode(self, example: Example, index: int, where: str) -> Question:
        """Prompt and options. A prompt too long loses its beginning, as much of it as the longest option needs: all options
        of an example are compared behind one prompt."""
        options = [self.family.tokens(option)[: self.family.max_length - 1] for option in example.options]
        for option, ids in zip(example.options, options, strict=True):
            if not ids:
                raise DataError(f"{where}.options", f"the option {option!r} of row {example.row} has no tokens")
        room = self.family.max_length - max(map(len, options))
        prompt = self.family.shorten(self.family.prompt_ids(example, where), room)
        return Question(tuple(prompt), tuple(map(tuple, options)), index)

    def address(self) -> str:
        """Tokens, the right options, and how they are compared."""
        return digest("choice", content(self.questions), self.right, self.lengths, self.normalize)

    def score(self, model: Any) -> Scores:
        """Values are 1.0 or 0.0."""
        values = []
        options = zip(self.right, self.lengths, self.family.option_losses(model, self.asked), strict=True)
        for right, lengths, losses in options:
            costs = [loss / (length if self.normalize else 1) for loss, length in zip(losses, lengths, strict=True)]
            values.append(float(costs.index(min(costs)) == right))
        return Scores("score", tuple(values), (1.0,) * len(values))

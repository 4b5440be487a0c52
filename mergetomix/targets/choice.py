"""Is the right option the likeliest?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mergetomix.data import Example
from mergetomix.errors import DataError
from mergetomix.families import content
from mergetomix.families.causal_lm import IGNORE, CausalLM, Encoded
from mergetomix.recipe import Target as Spec
from mergetomix.records import Scores
from mergetomix.store import digest
from mergetomix.targets import Setting


class Choice:
    """One for each example whose right option is the likeliest after the prompt, else zero.

    Options are compared by the sum of their tokens' log-likelihoods, or, with `normalize`, by that sum divided by the
    option's length in bytes (as in the LM Evaluation Harness's `acc` and `acc_norm`). The first of equals counts.
    """

    def __init__(self, spec: Spec, examples: Sequence[Example], setting: Setting) -> None:
        self.family, self.normalize = cast("CausalLM", setting.family), spec.normalize
        self.right = [example.options.index(example.completion) for example in examples]
        self.lengths = [[len(option.encode()) for option in example.options] for example in examples]
        self.sequences = [
            sequence for i, example in enumerate(examples) for sequence in self._encode(example, i, setting.where)
        ]
        self.num_tokens = sum(sequence.num_tokens for sequence in self.sequences)
        self.batches = self.family.batches(self.sequences, setting.batch_tokens)

    def _encode(self, example: Example, index: int, where: str) -> list[Encoded]:
        """The prompt followed by each option; a prompt too long loses its beginning."""
        prompt = self.family.prompt_ids(example, where)
        sequences = []
        for option in example.options:
            answer = self.family.tokens(option)[: self.family.max_length - 1]
            if not answer:
                raise DataError(f"{where}.options", f"the option {option!r} of row {example.row} has no tokens")
            kept = self.family.shorten(prompt, self.family.max_length - len(answer))
            sequences.append(Encoded((*kept, *answer), (IGNORE,) * len(kept) + tuple(answer), index))
        return sequences

    def address(self) -> str:
        """Tokens, the right options, and how they are compared."""
        return digest("choice", content(self.sequences), self.right, self.lengths, self.normalize)

    def score(self, model: Any) -> Scores:
        """Values are 1.0 or 0.0."""
        losses = iter(self.family.negative_log_likelihoods(model, self.batches))
        values = []
        for right, lengths in zip(self.right, self.lengths, strict=True):
            costs = [next(losses) / (length if self.normalize else 1) for length in lengths]
            values.append(float(costs.index(min(costs)) == right))
        return Scores("score", tuple(values), (1.0,) * len(values))

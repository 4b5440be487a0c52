"""Greedy answers, compared with the right ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, cast

from mergetomix.data.examples import Example
from mergetomix.errors import DataError
from mergetomix.models.causal_lm.generation import Generation
from mergetomix.models.causal_lm.model import CausalLM, last_reply
from mergetomix.records import Scores
from mergetomix.sections.target import TargetSection as Spec
from mergetomix.store.address import digest
from mergetomix.targets.python import asked, checked, load_function, source_of
from mergetomix.targets.target import TargetSetting

# A minus behind a digit or letter is a hyphen or a difference; commas count where they part thousands.
NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<!\w)-)?\.\d+", re.ASCII)


class Generate:
    """The metric of each example's greedy answer: one for right and zero for wrong, or what the user's function says."""

    def __init__(self, spec: Spec, examples: Sequence[Example], setting: TargetSetting) -> None:
        self.family, self.spec = cast("CausalLM", setting.family), spec
        self.where = setting.where
        self.answers = [answer_of(example) for example in examples]
        limit = self.family.limit
        if limit is not None and spec.max_new_tokens >= limit:
            message = f"must be under the model's limit of {limit} tokens, so that a prompt fits; got {spec.max_new_tokens}"
            raise DataError(f"{setting.where}.max_new_tokens", message)
        self.prompts = [self.family.prompt_ids(example, setting.where, spec.max_new_tokens) for example in examples]
        room = self.family.room(spec.max_new_tokens)
        self.num_cut = sum(len(self.family.prompt_ids(example, setting.where)) > room for example in examples)
        self.settings = Generation(spec.max_new_tokens, tuple(spec.stop), setting.batch_tokens)
        # an answer's length is not known before; its limit stands for it
        self.num_tokens = sum(len(prompt) + spec.max_new_tokens for prompt in self.prompts)
        self.metric = pick_metric(spec, setting.where)

    def address(self) -> str:
        """Prompts, right answers, the metric and how the answer ends."""
        settings = (self.spec.metric, self.spec.pattern, self.spec.max_new_tokens, self.spec.stop)
        return digest("generate", self.prompts, self.answers, settings, source_of(self.spec.function))

    def score(self, model: Any) -> Scores:
        """One value an example; all weights are one."""
        outputs = self.family.generate(model, self.prompts, self.settings)
        pairs = zip(outputs, self.answers, strict=True)
        values = asked(lambda: [self.metric(output, answer) for output, answer in pairs], self.where)
        return Scores("score", checked(values, len(self.answers), self.where), (1.0,) * len(values))


def answer_of(example: Example) -> str:
    """The right answer: the completion, or the assistant's last turn."""
    return example.messages[last_reply(example)][1] if example.messages else example.completion


def pick_metric(spec: Spec, where: str) -> Callable[[str, str], float]:
    """The function (output, right answer) -> value of a target's section."""
    if spec.metric == "number":
        return number
    if spec.metric == "regex":
        pattern = re.compile(spec.pattern or "")
        return lambda output, answer: matches(pattern, output, answer)
    if spec.metric == "function":
        return load_function(spec.function, where)
    return exact


def exact(output: str, answer: str) -> float:
    """1.0 where output and answer are equal after trimming white space."""
    return float(output.strip() == answer.strip())


def last_number(text: str) -> Decimal | None:
    """The last number in a text, thousands separators taken out; None where there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def number(output: str, answer: str) -> float:
    """1.0 where the last numbers of output and answer are equal; an answer without a number is never met."""
    wanted = last_number(answer)
    return float(wanted is not None and last_number(output) == wanted)


def matches(pattern: re.Pattern[str], output: str, answer: str) -> float:
    """1.0 where the pattern's first group (or whole match) in the output equals the answer after trimming."""
    found = pattern.search(output)
    if found is None:
        return 0.0
    return exact(found.group(1 if pattern.groups else 0) or "", answer)

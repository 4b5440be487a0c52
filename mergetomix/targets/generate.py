"""Greedy answers, compared with the right ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mergetomix.data.examples import Example, last_reply
from mergetomix.errors import DataError
from mergetomix.models.causal_lm.generation import Generation
from mergetomix.models.family import GeneratesText
from mergetomix.records import Scores
from mergetomix.store.address import digest
from mergetomix.targets.function import (
    asked,
    checked,
    load_function,
    names_a_function,
    source_of,
)
from mergetomix.targets.target import TargetKind, TargetSetting, unable

# A minus behind a digit or letter is a hyphen or a difference; commas count where they part
# thousands.
NUMBER = re.compile(
    r"(?:(?<!\w)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<!\w)-)?\.\d+", re.ASCII
)


class GenerateTarget(TargetKind):
    """A prompt whose greedy answer is compared with the right one."""

    needs: ClassVar[type[Any]] = GeneratesText

    score: Literal["generate"]
    """`generate`: the greedy answer, then `metric`."""
    metric: Literal["exact", "number", "regex", "function"] = "exact"
    """`exact` (equal after trimming), `number` (the last number is equal), `regex` (`pattern` finds
    the answer), `function` (your own)."""
    pattern: str | None = None
    """For `metric: regex`: the first group (or the whole match) must equal the completion after
    trimming."""
    function: str | Callable[..., Any] | None = None
    """For `metric: function`: `module:function` or `file.py:function`, or a function from Python."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Stop after so many tokens."""
    stop: list[str] = Field(default=["\n"])
    """The answer ends before the first of these strings; an empty list ends it at the end token
    alone."""

    @model_validator(mode="after")
    def _complete(self) -> GenerateTarget:
        if not ((self.prompt and self.completion) or self.messages):
            raise ValueError("score: generate needs prompt and completion")
        if self.metric == "regex" and self.pattern is None:
            raise ValueError("metric: regex needs a pattern")
        if self.metric == "function" and self.function is None:
            raise ValueError("name a function, such as scoring.py:my_function")
        return self

    _function = field_validator("function")(names_a_function)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return value

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Generate:
        """Returns the target over some of its examples."""
        return Generate(self, examples, setting)


class Generate:
    """The metric of each example's greedy answer: one for right and zero for wrong.

    Or what the user's function says.
    """

    def __init__(
        self, section: GenerateTarget, examples: Sequence[Example], setting: TargetSetting
    ) -> None:
        if not isinstance(setting.family, GeneratesText):
            raise unable(setting, "generate")
        self.family = setting.family
        self.section, self.where = section, setting.where
        self.answers = [answer_of(example) for example in examples]
        limit, num_new = self.family.limit, section.max_new_tokens
        if limit is not None and num_new >= limit:
            message = (
                f"must be under the model's limit of {limit} tokens, so that a prompt fits;"
                f" got {num_new}"
            )
            raise DataError(f"{setting.where}.max_new_tokens", message)
        self.prompts = [self.family.prompt_ids(each, setting.where, num_new) for each in examples]
        room = self.family.room(num_new)
        whole = (self.family.prompt_ids(example, setting.where) for example in examples)
        self.num_cut = sum(len(prompt) > room for prompt in whole)
        self.settings = Generation(num_new, tuple(section.stop), setting.batch_tokens)
        # an answer's length is not known before; its limit stands for it
        self.num_tokens = sum(len(prompt) + num_new for prompt in self.prompts)
        self.metric = pick_metric(section, setting.where)

    def address(self) -> str:
        """Returns the address of prompts, right answers, the metric and how the answer ends."""
        own = self.section
        settings = (own.metric, own.pattern, own.max_new_tokens, own.stop)
        return digest("generate", self.prompts, self.answers, settings, source_of(own.function))

    def score(self, model: Any) -> Scores:
        """Returns one value an example; all weights are one."""
        outputs = self.family.generate(model, self.prompts, self.settings)
        pairs = list(zip(outputs, self.answers, strict=True))
        values = asked(
            lambda: [self.metric(output, answer) for output, answer in pairs], self.where
        )
        return Scores("score", checked(values, len(pairs), self.where), (1.0,) * len(pairs))


def answer_of(example: Example) -> str:
    """The right answer: the completion, or the assistant's last turn."""
    return example.messages[last_reply(example)][1] if example.messages else example.completion


def pick_metric(spec: GenerateTarget, where: str) -> Callable[[str, str], float]:
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

"""Score greedy answers by comparing them with the right ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mergetomix.bounds import Exceeded, limited
from mergetomix.data.examples import Example, last_reply
from mergetomix.errors import DataError
from mergetomix.models.causal_lm.generation import Generation
from mergetomix.models.family import GeneratesText
from mergetomix.records import Scores
from mergetomix.sections.section import Text
from mergetomix.store.address import digest
from mergetomix.targets.function import UserFunction, checked, load_function, source_of, users_code
from mergetomix.targets.numbers import last_number
from mergetomix.targets.target import TargetKind, TargetSetting, equal_scores


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
    function: UserFunction = None
    """For `metric: function`: `module:function` or `file.py:function`, or a function from
    Python."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Stop after so many tokens."""
    stop: list[Text] = Field(default=["\n"])
    """The answer ends before the first of these strings, counted from where it begins; an empty
    list ends it at the end token alone."""
    generation: Literal["greedy", "model"] = "greedy"
    """`greedy` answers whatever the base's generation config holds (a repetition penalty would
    change `18888888`); `model` goes by that config, and by `seed` if it draws."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            with limited():
                re.compile(value or "")
        except (re.error, Exceeded, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _complete(self) -> GenerateTarget:
        if not ((self.prompt and self.completion) or self.messages):
            raise ValueError("score: generate needs prompt and completion")
        if self.metric == "regex" and self.pattern is None:
            raise ValueError("metric: regex needs a pattern")
        if self.metric == "function" and self.function is None:
            raise ValueError("name a function, such as scoring.py:my_function")
        return self

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Generate:
        """Returns the target over some of its examples."""
        return Generate(self, examples, setting)


class Generate:
    """The metric of each example's greedy answer: 1 or 0, or what the user's function says."""

    def __init__(
        self, section: GenerateTarget, examples: Sequence[Example], setting: TargetSetting
    ) -> None:
        if not isinstance(setting.family, GeneratesText):
            raise setting.unable("generate")
        self.family, self.section, self.where = setting.family, section, setting.where
        self.answers = [answer_of(example) for example in examples]
        self.rows = [example.row for example in examples]
        limit, num_new = self.family.limit, section.max_new_tokens
        if limit is not None and num_new >= limit:
            rule = f"must be under the model's limit of {limit} tokens, so that a prompt fits"
            raise DataError(f"{self.where}.max_new_tokens", f"{rule}; got {num_new}")
        self.prompts = [self.family.prompt_ids(each, self.where, num_new) for each in examples]
        room = self.family.room(num_new)
        whole = (self.family.prompt_ids(example, self.where) for example in examples)
        self.num_cut = sum(len(prompt) > room for prompt in whole)
        self.is_own = section.generation == "model"
        self.end_mark = self.family.end_mark if any(each.messages for each in examples) else ""
        stop = (*section.stop, *([self.end_mark] if self.end_mark else []))
        self.settings = Generation(num_new, stop, setting.batch_tokens, self.is_own, section.seed)
        self.may_straddle = any(
            may_straddle(stop, each) for stop in section.stop for each in examples
        )
        self.remark = ""
        # an answer's length is not known before; its limit stands for it
        self.num_tokens = sum(len(prompt) + num_new for prompt in self.prompts)
        self.metric = pick_metric(section, self.where)

    def address(self) -> str:
        """Returns the address of prompts, right answers, the metric and how the answer ends."""
        own = self.section
        settings = (own.metric, own.pattern, own.max_new_tokens, own.stop)
        # answers that earlier releases gave too are kept under the address that they gave them
        changed = [
            *(["number", 2] if own.metric == "number" else []),
            *(["model", own.seed] if self.is_own else []),
            *(["greedy"] if not self.is_own and self.family.penalties else []),
            *(["stop behind the prompt"] if self.may_straddle else []),
            *([self.end_mark] if self.end_mark else []),
        ]
        source = source_of(own.function)
        return digest("generate", self.prompts, self.answers, settings, source, *changed)

    def _met(self, place: int, output: str) -> float:
        """Returns what the metric says of one output; a pattern of the user's has its time."""
        if self.section.metric != "regex":
            return self.metric(output, self.answers[place])
        try:
            with limited():
                return self.metric(output, self.answers[place])
        except Exceeded as error:
            message = f"{self.section.pattern!r} {error} on the answer {output[:40]!r}"
            problem = f"{message} to row {self.rows[place]}"
            raise DataError(f"{self.where}.pattern", problem) from None

    def score(self, model: Any) -> Scores:
        """Returns one value an example; all weights are one.

        It is nan where the model's logits are not finite. `remark` then says how many answers were
        empty.
        """
        outputs = self.family.generate(model, self.prompts, self.settings)
        num_empty = sum(output is not None and not output.strip() for output in outputs)
        several = f"{num_empty} of {len(outputs)} answers were empty"
        self.remark = f"{self.where}: {several}" if num_empty else ""
        given = [output or "" for output in outputs]
        if self.section.metric == "function":
            with users_code(self.where):
                values = list(checked(list(map(self.metric, given, self.answers)), self.where))
        else:
            values = [self._met(*each) for each in enumerate(given)]
        broken = (output is None for output in outputs)
        return equal_scores(
            [math.nan if bad else value for bad, value in zip(broken, values, strict=True)]
        )


def may_straddle(stop: str, example: Example) -> bool:
    """Returns whether a prompt may end in the beginning of a stop string."""
    if example.messages:
        return len(stop) > 1  # how a chat ends is up to its template
    return any(example.prompt.endswith(stop[:length]) for length in range(1, len(stop)))


def answer_of(example: Example) -> str:
    """Returns the right answer: the completion, or the assistant's last turn."""
    return example.messages[last_reply(example)][1] if example.messages else example.completion


def pick_metric(section: GenerateTarget, where: str) -> Callable[[str, str], float]:
    """Returns the function of an output and the right answer that a target's section names."""
    if section.metric == "function":
        return load_function(section.function, where)
    if section.metric == "regex":
        pattern = re.compile(section.pattern or "")
        return lambda output, answer: matches(pattern, output, answer)
    return number if section.metric == "number" else exact


def exact(output: str, answer: str) -> float:
    r"""Returns 1.0 if output and answer are equal after trimming white space, else 0.0.

    >>> exact(" three\n", "three"), exact("Three", "three")
    (1.0, 0.0)
    """
    return float(output.strip() == answer.strip())


def number(output: str, answer: str) -> float:
    """Returns 1.0 if the last numbers of output and answer are equal, else 0.0.

    An answer without a number is never met.

    >>> number("so 1,234.50.", "#### 1234.5"), number("none", "none")
    (1.0, 0.0)
    """
    wanted = last_number(answer)
    return float(wanted is not None and last_number(output) == wanted)


def matches(pattern: re.Pattern[str], output: str, answer: str) -> float:
    r"""Returns 1.0 if what the pattern finds in the output equals the answer after trimming.

    That is the first group of its first match, or the whole match of a pattern without groups.

    >>> matches(re.compile(r"is (\w+)"), "it is three, is four", "three")
    1.0
    """
    found = pattern.search(output)
    if found is None:
        return 0.0
    return exact(found.group(1 if pattern.groups else 0) or "", answer)

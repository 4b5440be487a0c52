"""What the final model should be good at."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mergetomix.sections.section import Text
from mergetomix.sections.source import Source


class TargetSection(Source):
    """What the final model should be good at: examples and a way to score them."""

    split: str = "test"
    """Split of a hub dataset or of a folder that has several."""
    score: Literal["loss", "accuracy", "choice", "generate", "python"] = "loss"
    """`loss`: nats per token of the completion or text, or per image. `accuracy`: is an image's class the likeliest.
    `choice`: is the right option the likeliest. `generate`: greedy answer, then `metric`. `python`: your `function`."""
    weight: float = Field(default=1.0, gt=0)
    """How much this target counts beside the others."""
    options: str | list[str] | None = None
    """For `choice`: the options shared by all examples, or the column that lists an example's own. The right one is the
    completion."""
    head: Text | None = None
    """For images.head: own: the dataset whose head scores this target; null takes the only one with the same classes."""
    option_format: str = "{option}"
    """For `choice`: how an option is written after the prompt, such as `" {option}"`."""
    normalize: bool = True
    """For `choice`: divide an option's log-likelihood by its length in bytes before comparing; false compares raw sums."""
    metric: Literal["exact", "number", "regex", "function"] = "exact"
    """For `generate`: `exact` (equal after trimming), `number` (the last number is equal), `regex` (`pattern` finds the
    answer), `function` (your own)."""
    pattern: str | None = None
    """For `metric: regex`: the first group (or the whole match) must equal the completion after trimming."""
    function: str | Callable[..., Any] | None = None
    """For `python` and `metric: function`: `module:function` or `file.py:function`, or a function from Python."""
    max_new_tokens: int = Field(default=64, ge=1)
    """For `generate`: stop after so many tokens."""
    stop: list[str] = Field(default=["\n"])
    """For `generate`: the answer ends before the first of these strings; an empty list ends it at the end token alone."""

    @model_validator(mode="after")
    def _complete(self) -> TargetSection:
        if self.score == "choice" and self.options is None:
            raise ValueError("score: choice needs options")
        answered = bool(self.prompt and self.completion) or (self.score == "generate" and bool(self.messages))
        if self.score in ("choice", "generate") and not answered:
            raise ValueError(f"score: {self.score} needs prompt and completion")
        if self.score == "generate" and self.metric == "regex" and self.pattern is None:
            raise ValueError("metric: regex needs a pattern")
        needs_function = self.score == "python" or (self.score == "generate" and self.metric == "function")
        if needs_function and self.function is None:
            raise ValueError("name a function, such as scoring.py:my_function")
        return self

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(r".+:\w+", value, re.DOTALL):
            raise ValueError(f"must be module:function or file.py:function, not {value!r}")
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return value

    def _needs_no_mapping(self) -> bool:
        return self.score == "python"

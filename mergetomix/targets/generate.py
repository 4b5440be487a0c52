"""Score greedy answers by comparing them with the right ones."""

from __future__ import annotations

import inspect
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mergetomix.bounds import Exceeded, limited
from mergetomix.data.examples import Example, last_reply
from mergetomix.data.reading import plain_content
from mergetomix.errors import DataError
from mergetomix.models.causal_lm.generation import Continuation, Generation
from mergetomix.models.family import GeneratesText
from mergetomix.records import Scores
from mergetomix.sections.section import Text
from mergetomix.sections.target import TargetSection
from mergetomix.sections.user_function import UserFunction, load_function
from mergetomix.store.address import digest
from mergetomix.stretches import WHOLE, Stretch
from mergetomix.targets.function import checked, source_of, users_code
from mergetomix.targets.numbers import last_number
from mergetomix.targets.target import TargetKind, TargetSetting, about_answers, equal_scores


class GenerateTarget(TargetSection, TargetKind):
    """A prompt whose greedy answer is compared with the right one."""

    needs: ClassVar[type[Any]] = GeneratesText

    score: Literal["generate"]
    """`generate`: the greedy answer, then `metric`."""
    metric: Literal["exact", "words", "f1", "number", "regex", "function"] = "exact"
    """`exact` (equal after trimming), `words` (equal but for case, punctuation and articles), `f1`
    (the words that both have; these two are SQuAD's), `number` (the last number is equal, or the
    one in `\\boxed{}`), `regex` (what `pattern` finds is equal), `function` (your own). Of several
    right answers the best one counts."""
    pattern: str | None = None
    """For `metric: regex`: its first group (or whole match) in the answer must equal that in the
    completion, or the completion itself where it finds nothing there, after trimming."""
    function: UserFunction = None
    """For `metric: function`: `module:function` or `file.py:function`, or a function from Python,
    of the output and the right answer, and of the row if it takes a third."""
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
        is_pair = self.prompt and (self.completion or self.answer)
        if not (is_pair or self.messages or self.map):
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
        self.answers = [answers_of(example) for example in examples]
        self.columns = [example.columns or {} for example in examples]
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
        self.takes_rows = section.metric == "function" and num_taken(self.metric) > 2

    def address(self) -> str:
        """Returns the address of prompts, right answers, the metric and how the answer ends."""
        own = self.section
        settings = (own.metric, own.pattern, own.max_new_tokens, own.stop)
        # answers that earlier releases gave too are kept under the address that they gave them
        changed = [
            *(["number", 3] if own.metric == "number" else []),
            *(["regex", 2] if own.metric == "regex" else []),
            *(["model", own.seed] if self.is_own else []),
            *(["greedy"] if not self.is_own and self.family.penalties else []),
            *(["stop behind the prompt"] if self.may_straddle else []),
            *([self.end_mark] if self.end_mark else []),
        ]
        changed += [["rows", list(map(plain_content, self.columns))]] if self.takes_rows else []
        source = source_of(own.function)
        # one right answer stands as earlier releases wrote it
        answers = [each[0] if len(each) == 1 else list(each) for each in self.answers]
        return digest("generate", self.prompts, answers, settings, source, *changed)

    def _met(self, place: int, output: str) -> float:
        """Returns the best that the metric says of one output beside each right answer.

        A pattern of the user's has its time.
        """
        try:
            with limited():
                return max(self.metric(output, answer) for answer in self.answers[place])
        except Exceeded as error:
            message = f"{self.section.pattern!r} {error} on the answer {output[:40]!r}"
            problem = f"{message} to row {self.rows[place]}"
            raise DataError(f"{self.where}.pattern", problem) from None

    def _by_the_user(self, place: int, output: str) -> Any:
        """Returns the best that the user's function says of one output."""
        more = (dict(self.columns[place]),) if self.takes_rows else ()
        return max(self.metric(output, answer, *more) for answer in self.answers[place])

    def read(self, model: Any, stretch: Stretch = WHOLE) -> dict[int, Continuation | None]:
        """Returns a model's answers to the prompts in a stretch of batches."""
        return self.family.continued(model, self.prompts, self.settings, stretch)

    def scores_of(self, found: Mapping[int, Continuation | None]) -> Scores:
        """Returns one value an example; all weights are one.

        It is nan where the model's logits are not finite. `remark` then says how many answers were
        empty, and how many were cut.
        """
        outputs = [found[place] for place in range(len(self.prompts))]
        bound = f"max_new_tokens: {self.settings.max_new_tokens}"
        self.remark = about_answers(outputs, bound)
        given = [output or "" for output in outputs]
        if self.section.metric == "function":
            with users_code(self.where):
                said = [self._by_the_user(*each) for each in enumerate(given)]
                values = list(checked(said, self.where))
        else:
            values = [self._met(*each) for each in enumerate(given)]
        broken = (output is None for output in outputs)
        return equal_scores(
            [math.nan if bad else value for bad, value in zip(broken, values, strict=True)]
        )

    def score(self, model: Any) -> Scores:
        """Returns one value an example, see `scores_of`."""
        return self.scores_of(self.read(model))


def may_straddle(stop: str, example: Example) -> bool:
    """Returns whether a prompt may end in the beginning of a stop string."""
    if example.messages:
        return len(stop) > 1  # how a chat ends is up to its template
    return any(example.prompt.endswith(stop[:length]) for length in range(1, len(stop)))


def answers_of(example: Example) -> tuple[str, ...]:
    """Returns the right answers: the completions, or the assistant's last turn."""
    if example.answers:
        return example.answers
    last = example.messages[last_reply(example)][1] if example.messages else example.completion
    return (last,)


def num_taken(function: Callable[..., Any]) -> int:
    """Returns how many arguments a function takes by their place; 2 where that cannot be told."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # one that has a default is the function's own to set
    return sum(each.kind in by_place and each.default is each.empty for each in given)


def pick_metric(section: GenerateTarget, where: str) -> Callable[..., float]:
    """Returns the function of an output and the right answer that a target's section names."""
    if section.metric == "function":
        return load_function(section.function, where)
    if section.metric == "regex":
        pattern = re.compile(section.pattern or "")
        return lambda output, answer: matches(pattern, output, answer)
    return {"number": number, "words": same_words, "f1": f1, "exact": exact}[section.metric]


def exact(output: str, answer: str) -> float:
    r"""Returns 1.0 if output and answer are equal after trimming white space, else 0.0.

    >>> exact(" three\n", "three"), exact("Three", "three")
    (1.0, 0.0)
    """
    return float(output.strip() == answer.strip())


def plain_words(text: str) -> list[str]:
    """Returns a text's words in lower case, without punctuation and articles.

    That is how SQuAD compares answers (arXiv 1606.05250).

    >>> plain_words("The cat's (old) hat.")
    ['cats', 'old', 'hat']
    """
    bare = "".join(each for each in text.lower() if each not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def same_words(output: str, answer: str) -> float:
    """Returns 1.0 if output and answer have the same words in their order, else 0.0.

    >>> same_words("the Eiffel tower!", "Eiffel Tower"), same_words("Paris", "Rome")
    (1.0, 0.0)
    """
    return float(plain_words(output) == plain_words(answer))


def f1(output: str, answer: str) -> float:
    """Returns the harmonic mean of the shares of words that output and answer have in common.

    >>> f1("in the city of Paris", "Paris"), f1("Rome", "Paris")
    (0.4, 0.0)
    """
    given, wanted = plain_words(output), plain_words(answer)
    if not given or not wanted:
        return float(given == wanted)
    num_shared = (Counter(given) & Counter(wanted)).total()
    return 2 * num_shared / (len(given) + len(wanted))


def number(output: str, answer: str) -> float:
    r"""Returns 1.0 if the numbers that output and answer come to are equal, else 0.0.

    That is the last number in the last `\boxed{}`, or the last of all. An answer without a number
    is never met.

    >>> number("so 1,234.50.", "#### 1234.5"), number("none", "none")
    (1.0, 0.0)
    >>> number(r"so \boxed{3}, as 4 was too many", "3.0")
    1.0
    """
    wanted = last_number(boxed(answer))
    return float(wanted is not None and last_number(boxed(output)) == wanted)


def boxed(text: str) -> str:
    r"""Returns what stands in the last `\boxed{}` of a text, the text itself if nothing does.

    >>> boxed(r"\boxed{\frac{1}{2}} or so")
    '\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return text
    start, depth = start + len("\\boxed{"), 1
    for place, letter in enumerate(text[start:], start=start):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return text[start:place]
    return text


def matches(pattern: re.Pattern[str], output: str, answer: str) -> float:
    r"""Returns 1.0 if the pattern finds the same in output and answer, after trimming.

    That is the first group of its first match, or the whole match of a pattern without groups; an
    answer in which it finds nothing is what it is.

    >>> matches(re.compile(r"is (\w+)"), "it is three, is four", "three")
    1.0
    >>> matches(re.compile(r"#### (.*)"), "as 1 + 1 is two\n#### 2", "that is #### 2")
    1.0
    """
    given, wanted = found_by(pattern, output), found_by(pattern, answer)
    return 0.0 if given is None else exact(given, answer if wanted is None else wanted)


def found_by(pattern: re.Pattern[str], text: str) -> str | None:
    """Returns the first group of a pattern's first match, or the whole of it; None without one."""
    found = pattern.search(text)
    return None if found is None else found.group(1 if pattern.groups else 0) or ""

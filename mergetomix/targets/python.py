"""Score by a function of the user's, which gets the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from mergetomix.data.examples import Example, Examples
from mergetomix.errors import DataError
from mergetomix.records import Scores
from mergetomix.sections.target import WithHead
from mergetomix.sections.user_function import UserFunction, load_function
from mergetomix.store.address import digest
from mergetomix.targets.function import call, source_of
from mergetomix.targets.target import TargetKind, TargetSetting, equal_scores


class PythonTarget(WithHead, TargetKind):
    """Your own function, which gets the model and returns one score for every example."""

    needs: ClassVar[type[Any]] = object
    needs_mapping: ClassVar[bool] = False

    score: Literal["python"]
    """`python`: your `function`."""
    function: UserFunction = None
    """`module:function` or `file.py:function`, or a function from Python."""

    @model_validator(mode="after")
    def _complete(self) -> PythonTarget:
        if self.function is None:
            raise ValueError("name a function, such as scoring.py:my_function")
        return self

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Function:
        """Returns the target over a function's own examples, `row` being the place of each."""
        return Function(self, None, [example.row for example in examples], setting)

    def open(self, setting: TargetSetting) -> FunctionExamples:
        """Returns the rows of a function with data, or as many examples as one without knows."""
        return FunctionExamples(self, setting)


class FunctionExamples:
    """What a function's target is over: rows if it has data, else the scores of a model.

    There are as many of these as the function gives of the base.
    """

    has_texts = False

    def __init__(self, section: PythonTarget, setting: TargetSetting) -> None:
        self._section, self._setting = section, setting
        family, where = setting.family, setting.where
        self._rows, self._contents = None, list[Any]()
        if section.has_data:
            self._rows, self._contents = family.rows(section, where)
            texts = [repr(each) for each in self._contents]
            self.whole_only = ""
        else:
            function = load_function(section.function, where)
            num = len(call(function, family.load(), family.processor, None, where))
            texts = [str(i) for i in range(num)]
            self.whole_only = "it is a function without data, which scores all in every call"
        items = tuple(Example(row=i, text=text) for i, text in enumerate(texts))
        self.examples = Examples(where, items, len(items))

    def over(self, part: Sequence[Example], most_new_tokens: int | None = None) -> Function:
        """Returns the target over some of the examples."""
        keep = [item.row for item in part]
        if self._rows is None:
            return Function(self._section, None, keep, self._setting)
        rows, contents = ([each[i] for i in keep] for each in (self._rows, self._contents))
        return Function(self._section, rows, keep, self._setting, contents)

    def answered(self, part: Sequence[Example]) -> Sequence[Example]:
        """Returns the rows with their answers, where the section says how they become examples."""
        spec = self._section
        if not spec.has_data or not (spec.completion or spec.messages or spec.text):
            return ()
        found = self._setting.family.read(spec, self._setting.where)
        if len(found.items) < len(self.examples.items):  # bad rows are left out: others are there
            return ()
        return [found.items[item.row] for item in part]


class Function:
    """Scores that `function(model, processor)` gives, or `function(model, processor, rows)`.

    The processor is the tokenizer of a language model, the image processor of a classifier. A
    function with `rows` gives a score for each of them, whose `contents` are plain values for the
    address. One without gives a score for every example it knows, the same number each time, and
    `keep` says which of them belong to this part.
    """

    num_cut = num_tokens = 0

    def __init__(
        self,
        section: PythonTarget,
        rows: Sequence[Mapping[str, Any]] | None,
        keep: Sequence[int],
        setting: TargetSetting,
        contents: Sequence[Any] | None = None,
    ) -> None:
        self.function = load_function(section.function, setting.where)
        self.source = source_of(section.function)
        self.processor, self.where = setting.family.processor, setting.where
        self.rows, self.keep, self.contents = rows, list(keep), contents

    def address(self) -> str:
        """Returns the address of the function's source and the rows it gets."""
        contents = None if self.contents is None else list(self.contents)
        return digest("python", self.source, contents, self.keep)

    def score(self, model: Any) -> Scores:
        """Returns one value an example, higher is better; all weights are one."""
        key = f"{self.where}.function"
        values = call(self.function, model, self.processor, self.rows, self.where)
        if self.rows is None:
            if len(values) <= max(self.keep):
                message = f"the function returned {len(values)} scores, fewer than the first time"
                raise DataError(key, message)
            values = tuple(values[i] for i in self.keep)
        elif len(values) != len(self.rows):
            raise DataError(key, f"{len(values)} scores for {len(self.rows)} rows")
        return equal_scores(values)

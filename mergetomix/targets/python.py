"""A user's own function as a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from mergetomix.data.examples import Example
from mergetomix.data.reading import plain_content
from mergetomix.errors import DataError
from mergetomix.records import Scores
from mergetomix.sections.target import WithHead
from mergetomix.store.address import digest
from mergetomix.targets.function import call, load_function, names_a_function, source_of
from mergetomix.targets.target import Target, TargetKind, TargetSetting


class PythonTarget(WithHead, TargetKind):
    """Your own function, which gets the model and returns one score for every example."""

    needs: ClassVar[type[Any]] = object

    score: Literal["python"]
    """`python`: your `function`."""
    function: str | Callable[..., Any] | None = None
    """`module:function` or `file.py:function`, or a function from Python."""

    @model_validator(mode="after")
    def _complete(self) -> PythonTarget:
        if self.function is None:
            raise ValueError("name a function, such as scoring.py:my_function")
        return self

    _function = field_validator("function")(names_a_function)

    def _needs_no_mapping(self) -> bool:
        return True

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Target:
        """Returns the target over a function's own examples, `row` being the place of each."""
        return Function(self, None, [example.row for example in examples], setting)


class Function:
    """Scores given by `function(model, processor)`, or `function(model, processor, rows)` where the target has
    data; the processor is the tokenizer of a language model, the image processor of a classifier.

    Without data the function returns a score for every example it knows, the same number each time, and `keep` says which
    of them belong to this part.
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
        self.processor = setting.family.processor
        self.rows, self.keep, self.where = rows, list(keep), setting.where
        self.source = source_of(section.function)
        self.contents = (
            contents
            if contents is not None or rows is None
            else [plain_content(row) for row in rows]
        )

    def address(self) -> str:
        """The function's source and the rows it gets."""
        return digest(
            "python",
            self.source,
            None if self.rows is None else list(self.contents or ()),
            self.keep,
        )

    def score(self, model: Any) -> Scores:
        """One value an example, higher is better; all weights are one."""
        values = call(self.function, model, self.processor, self.rows, self.where)
        if self.rows is None:
            if len(values) <= max(self.keep):
                message = f"the function returned {len(values)} scores, fewer than the first time"
                raise DataError(f"{self.where}.function", message)
            values = tuple(values[i] for i in self.keep)
        elif len(values) != len(self.rows):
            raise DataError(
                f"{self.where}.function", f"{len(values)} scores for {len(self.rows)} rows"
            )
        return Scores("score", values, (1.0,) * len(values))

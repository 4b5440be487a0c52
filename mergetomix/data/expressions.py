"""What the recipe says of a row: a column, a place within one, a format string, or a template.

    question                            the column of that name
    answers.text[0]                     a place within a column, by keys and numbers
    "Q: {question}\\nA:"                 a format string over columns and places
    "{% if input %}{{ input }}{% endif %}"    a Jinja template, sandboxed

A key over a list is that key of every item. A string that holds `{%`, or `{{` and no field of a
format string, is a template.
"""

from __future__ import annotations

import datetime
import functools
import math
import numbers
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mergetomix.bounds import MOST_CHARACTERS, MOST_WIDTH, Exceeded, limited
from mergetomix.data.errors import Place, missing_column
from mergetomix.data.tables import Row
from mergetomix.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Environment

Columns = Sequence[str]
Kind = Literal["column", "place", "format", "template"]
STEP = re.compile(r"\.([\w-]+)|\[([^\[\]]+)\]")
HINT = "on_bad_row: skip passes over such rows"


@dataclass(frozen=True)
class Expression:
    """A string of the recipe that gives a value or a text for every row.

    `where` is its key, for errors.
    """

    where: str
    pattern: str
    kind: Kind
    get: Callable[[Row], Any]

    @classmethod
    def parse(cls, where: str, pattern: str, columns: Columns) -> Expression:
        """Returns what a string of the recipe means for rows of these columns.

        Raises:
            DataError: it means nothing, or names a column that is not there.
        """
        if pattern in columns:
            return cls(where, pattern, "column", lambda row: row[pattern])
        if "{%" not in pattern:
            fields = fields_of(where, pattern)
            for field in fields:
                _check(where, field, columns)
            for name in columns if fields else ():
                if re.search(rf"(?<!\{{)\{{\{{\s*{re.escape(name)}\s*\}}\}}(?!\}})", pattern):
                    problem = f"{{{{ {name} }}}} would be written as it stands, not filled in"
                    hint = f"write {{{name}}}, or {{{{ {fields[0]} }}}} for a template"
                    raise DataError(where, problem, hint=hint)
            if fields:
                return cls(where, pattern, "format", lambda row: filled(pattern, row))
        if "{%" in pattern or "{{" in pattern:
            return cls(where, pattern, "template", _template(where, pattern, columns))
        if steps_of(pattern, columns) is None:
            raise missing_column(where, pattern, columns)
        return cls(where, pattern, "place", lambda row: reached(pattern, row))

    def value(self, index: int, row: Row) -> Any:
        """Returns what stands there in a row: of a column or place as it is, else a text."""
        try:
            return self.get(row)
        except Exceeded as error:
            reason = str(error)
        except KeyError as error:
            reason = f"there is no {error.args[0]!r}"
        except (ValueError, TypeError, LookupError) as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  # what a template raises is its user's
            reason = _of_template(error)
        raise Place(self.where, index).error(f"{self.pattern!r}: {reason}", hint=HINT) from None

    def of(self, index: int, row: Row) -> str:
        """Returns the text of a row. Raises DataError for a value that is no text or number."""
        return self.text_of(index, self.value(index, row))

    def text_of(self, index: int, value: Any) -> str:
        """Returns a value of a row as text. Raises DataError for one that is no text or number."""
        place = Place(self.where, index)
        try:
            return encodable(place, str(plain(value)))
        except (ValueError, TypeError) as error:
            raise place.error(f"{self.pattern!r}: {error}", hint=HINT) from None

    def filled(self, index: int, row: Row, why: str = "nothing can be learnt from") -> str:
        """Returns the text of a row, which must hold more than white space."""
        return self.not_empty(index, self.of(index, row), why)

    def not_empty(self, index: int, text: str, why: str = "nothing can be learnt from") -> str:
        """Returns a text of a row. Raises DataError for white space alone."""
        if not text.strip():
            problem = f"{self.pattern!r} gives an empty text, which {why}"
            raise Place(self.where, index).error(problem, hint=HINT)
        return text


# --- places within a column


def steps_of(path: str, columns: Columns) -> list[str | int] | None:
    """Returns a path's column, keys and numbers; None if it is no path into one of the columns."""
    name = max((c for c in columns if c and path.startswith(c)), key=len, default=None)
    if name is None:
        return None
    found: list[str | int] = [name]
    rest = path[len(name) :]
    while rest:
        step = STEP.match(rest)
        if step is None:
            return None
        key, within = step[1], (step[2] or "").strip("'\"")
        found.append(key or (int(within) if re.fullmatch(r"-?\d{1,9}", within) else within))
        rest = rest[step.end() :]
    return found


def reached(path: str, row: Row) -> Any:
    """Returns what stands at a place of a row.

    Raises KeyError, IndexError or TypeError where there is no such place.

    >>> reached("a.b[1]", {"a": {"b": [1, 2]}}), reached("a.b", {"a": [{"b": 1}, {"b": 2}]})
    (2, [1, 2])
    """
    name, *steps = steps_of(path, tuple(row)) or [path]
    value = row[str(name)]
    for step in steps:
        value = _step(value, step)
    return value


def _step(value: Any, step: str | int) -> Any:
    if value is None:
        raise ValueError("the value is missing (null)")
    if isinstance(value, Mapping):
        if step not in value and str(step) in value:
            step = str(step)
        return value[step]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"there is no {step!r} in a value of type {type(value).__name__}")
    if isinstance(step, int):
        if not -len(value) <= step < len(value):
            raise IndexError(f"there is no item {step} in a list of {len(value)}")
        return value[step]
    return [_step(item, step) for item in value]


def _check(where: str, field: str, columns: Columns) -> None:
    """Raises DataError for a field of a format string that is no place in a column."""
    if field.strip("!") and steps_of(field, columns) is not None:
        return
    name = re.split(r"[.\[]", field, maxsplit=1)[0]
    if not re.fullmatch(r"[\w -]*", name):
        hint = "write a brace that means itself twice: {{ or }}"
        raise DataError(where, f"{{{field}}} names no column", hint=hint)
    if name in columns:
        raise DataError(where, f"{{{field}}} is no place in the column {name!r}")
    raise missing_column(where, name, columns)


# --- format strings


class _Filler(string.Formatter):
    """`str.format` whose fields are places of a row, and must hold text or numbers."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return plain(reached(field_name, kwargs)), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if any(len(each) > 5 or int(each) > MOST_WIDTH for each in re.findall(r"\d+", format_spec)):
            raise ValueError(f"a width or precision must be at most {MOST_WIDTH:,}")
        return str(super().format_field(value, format_spec))


def filled(pattern: str, row: Row) -> str:
    """Returns a format string filled in from a row. Raises what its fields raise.

    >>> filled("Q: {q} {a[text]}", {"q": "why", "a": {"text": 1}})
    'Q: why 1'
    """
    return _Filler().vformat(pattern, (), row)


def fields_of(where: str, pattern: str) -> list[str]:
    """Returns the fields of a format string, those within format specs included.

    Raises:
        DataError: it is a broken format string.
    """
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        hint = "write a literal brace twice: {{ or }}"
        problem = f"{pattern!r} is a broken format string: {error}"
        raise DataError(where, problem, hint=hint) from None
    found = [(field, spec or "") for _, field, spec, _ in parts if field is not None]
    return [name for field, spec in found for name in (field, *fields_of(where, spec))]


def is_written(pattern: str, columns: Columns) -> bool:
    """Returns whether a text is meant as an expression; a single word must be one."""
    if pattern in columns or "{%" in pattern:
        return True
    if len(pattern.split()) == 1 and "{" not in pattern:
        return True
    try:
        return bool(fields_of("", pattern)) or "{{" in pattern
    except DataError:
        return False  # a brace that means itself


# --- templates


@functools.cache
def sandbox() -> Environment:
    """Returns where templates are run: no attribute that begins with _ is seen, nothing changed."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    found = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_written,
        cache_size=0,
    )
    # what a row becomes must be the same whenever it is read
    del found.filters["random"], found.globals["lipsum"]
    found.tests["none"] = lambda value: value is None or value is null()
    return found


@functools.cache
def null() -> Any:
    """Returns what a template sees of a missing value: false, and no text to be written."""
    from jinja2 import Undefined

    class Null(Undefined):
        def __str__(self) -> str:
            self._fail_with_undefined_error()

        def __eq__(self, other: object) -> bool:
            return other is None or other is self

        __hash__ = Undefined.__hash__

    return Null("the value is missing (null)")


def _seen(row: Row) -> dict[str, Any]:
    """Returns a row as a template sees it: each column by its name, and all of them as `row`."""
    seen = {name: null() if value is None else value for name, value in row.items()}
    return {**seen, "row": seen}


def _written(value: Any) -> Any:
    """Returns a value that a template writes. Raises for null and for lists and mappings."""
    from jinja2 import Undefined

    return value if isinstance(value, Undefined) else plain(value)


def _template(where: str, pattern: str, columns: Columns) -> Callable[[Row], Any]:
    """Returns what writes a template. Raises DataError for one that is broken or names no row's."""
    found, is_short = _parsed(where, pattern, columns)
    for name in columns:
        if re.search(rf"(?<!\{{)\{{{re.escape(name)}\}}(?!\}})", pattern):
            problem = f"{{{name}}} would be written as it stands, as this is a template"
            raise DataError(where, problem, hint=f"write {{{{ {name} }}}}")
    if is_short:
        return lambda row: found.render(_seen(row))

    def rendered(row: Row) -> Any:
        with limited():
            try:
                return found.render(_seen(row))
            except OverflowError as error:  # of a range that the sandbox refuses
                raise ValueError(str(error)) from None

    return rendered


def _parsed(where: str, pattern: str, columns: Columns) -> tuple[Any, bool]:
    """Returns a template, and whether it is sure to end soon: it has no loop, call or product."""
    from jinja2 import TemplateError, meta, nodes

    slow = (nodes.For, nodes.Call, nodes.Filter, nodes.Macro, nodes.Mul, nodes.Pow)
    try:
        with limited():
            tree = sandbox().parse(pattern)
            names = meta.find_undeclared_variables(tree)
            is_short = next(tree.find_all(slow), None) is None
            found = sandbox().from_string(pattern)
    except Exceeded as error:
        raise DataError(where, f"the template {error}") from None
    except TemplateError as error:
        line = getattr(error, "lineno", 1)
        problem = f"{pattern!r} is a broken template: {error} (line {line})"
        raise DataError(where, problem) from None
    except RecursionError:
        raise DataError(where, "the template is nested too deeply") from None
    for name in sorted(names - set(sandbox().globals) - {"row"}):
        if name not in columns:
            raise missing_column(where, name, columns)
    return found, is_short


def condition(where: str, pattern: str, columns: Columns) -> Callable[[int, Row], bool]:
    """Returns what says whether a row meets a Jinja expression, such as `level == "Level 5"`.

    `row` is all columns, for one whose name is no word of Jinja's: `row["my level"]`.

    Raises:
        DataError: it is broken, or names a column that is not there.
    """
    from jinja2 import TemplateError

    _, is_short = _parsed(where, f"{{{{ {pattern} }}}}", columns)
    try:
        found = sandbox().compile_expression(pattern, undefined_to_none=False)
    except TemplateError as error:
        raise DataError(where, f"{pattern!r} is no expression: {error}") from None

    def meets(index: int, row: Row) -> bool:
        try:
            values = _seen(row)
            if is_short:
                return bool(found(**values))
            with limited():
                return bool(found(**values))
        except Exception as error:  # noqa: BLE001  # what an expression raises is its user's
            reason = str(error) if isinstance(error, Exceeded) else _of_template(error)
        raise Place(where, index).error(f"{pattern!r}: {reason}") from None

    return meets


def _of_template(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- values


def plain(value: Any) -> str | numbers.Number | datetime.date | datetime.time:
    """Returns a value that can be written as text. Raises ValueError for null, TypeError else."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("the value is missing (null)")
    if not isinstance(value, str | numbers.Number | datetime.date | datetime.time):
        kind = type(value).__name__
        raise TypeError(f"the value is of type {kind}, but must be text or a number")
    return value


def encodable(place: Place, text: str) -> str:
    """Returns a text.

    Raises DataError for half of a pair of surrogates, which nothing can read, and for a text that
    is too long to.
    """
    if len(text) > MOST_CHARACTERS:
        raise place.error(f"a text of {len(text):,} characters, and {MOST_CHARACTERS:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = text[error.start]
        hint = "the row was cut within a character, or is not UTF-8"
        message = f"a lone surrogate {lone!a} at character {error.start} of {text[:20]!a}..."
        raise place.error(message, hint=hint) from None
    return text

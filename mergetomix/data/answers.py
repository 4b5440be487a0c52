"""Options of a row, and which of them is right, in the ways that public datasets say it."""

from __future__ import annotations

import ast
import json
import numbers
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergetomix.data.errors import Place
from mergetomix.data.expressions import HINT, Columns, Expression, encodable, fields_of
from mergetomix.data.tables import Row
from mergetomix.errors import DataError
from mergetomix.sections.source import Source

TEXTS = ("text", "texts", "choices", "options", "value")
"""Where a mapping or an item of a list keeps the texts of options."""
LABELS = ("label", "labels", "key")
"""Where it keeps what the options are called."""
MEANINGS = {"true": ("true", "yes"), "false": ("false", "no")}
MOST_WRITTEN = 100_000
"""Characters of a list that stands as text."""
LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


@dataclass(frozen=True)
class Choices:
    """The options of one row as they stand in the data, and what they are called, if anything."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()


# --- the options of a row


def options_of(
    source: Source, where: str, columns: Columns
) -> Callable[[int, Row], Choices | None]:
    """Returns the function that gives the options of a row, None for a source without any.

    Raises:
        DataError: the recipe's strings fit no row.
    """
    key, given = f"{where}.options", source.options
    if given is None and source.answer is not None and source.answer_map is not None:
        given = list(dict.fromkeys(source.answer_map.values()))
    if given is None:
        return lambda index, row: None
    if isinstance(given, str):
        place = Expression.parse(key, given, columns)
        return lambda index, row: listed(place.value(index, row), Place(key, index))
    if all(each in columns for each in given):
        hint = f"for what stands in these columns write {{{given[0]}}}, and so on"
        raise DataError(key, f"{', '.join(given)} are columns, and would be the words", hint=hint)
    parts = [_written(key, each, columns) for each in given]
    if all(isinstance(each, str) for each in parts):
        same = Choices(tuple(map(str, parts)))
        _check(same.texts, lambda message: DataError(key, message))
        return lambda index, row: same

    def own(index: int, row: Row) -> Choices:
        texts = [each if isinstance(each, str) else each.of(index, row) for each in parts]
        return listed(texts, Place(key, index))

    return own


def _written(key: str, text: str, columns: Columns) -> str | Expression:
    """Returns one of several options: a format string or template over columns, or a fixed text."""
    if "{" not in text:
        return text
    return Expression.parse(key, text, columns)


def listed(value: Any, place: Place) -> Choices:
    """Returns options from a list of texts, of mappings with a text, or from a mapping.

    A mapping has lists under `text` and `label`, or its keys are what the options are called.
    """
    labels: Iterable[Any] = ()
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _read(value)
    if isinstance(value, Mapping):
        texts = next((value[key] for key in TEXTS if key in value), None)
        labels = next((value[key] for key in LABELS if key in value), ())
        known = {key: text for key, text in value.items() if text is not None}
        if texts is None and all(isinstance(each, str) for each in known.values()):
            labels, texts = list(known), list(known.values())
        elif texts is None and all(isinstance(each, numbers.Number) for each in known.values()):
            texts = list(known)  # each with its mark
        value = texts
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        first = value[0]
        text, label = (next((k for k in keys if k in first), "") for keys in (TEXTS, LABELS))
        labels = [each.get(label) for each in value] if label else ()
        value = [each.get(text) if isinstance(each, Mapping) else each for each in value]
    if not isinstance(value, list | tuple):
        kind = type(value).__name__
        problem = f"options must be a list, or a mapping with a list under text, not {kind}"
        raise place.error(problem)
    _check(value, place.error)
    texts = tuple(encodable(place, str(each)) for each in value)
    names = tuple(map(str, labels if isinstance(labels, list | tuple) else ()))
    return Choices(texts, names if len(names) == len(texts) else ())


def _read(text: str) -> Any:
    """Returns a list that is written as JSON or as Python writes it; else the text."""
    if len(text) > MOST_WRITTEN:
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _check(texts: Sequence[Any], error: Callable[[str], DataError]) -> None:
    """Raises an error for options that are no texts, or all the same."""
    for each in texts:
        if not isinstance(each, str | numbers.Number) or not str(each).strip():
            raise error(f"an option must be a text that is not empty, not {each!r}")
    if len(set(texts)) < 2:
        raise error(f"options must be at least 2 and not all alike, not {list(texts)}")


# --- the right one


@dataclass(frozen=True)
class Answer:
    """Finds the right option of a row by what the recipe calls its `answer`.

    `first` is the number of the first option, which `is_guess` if the rows do not show it; with
    `by_text` a whole number is the text of one.
    """

    expression: Expression
    meanings: Mapping[str, str]
    first: int = 0
    by_text: bool = False
    is_guess: bool = False

    @classmethod
    def of(
        cls, source: Source, where: str, columns: Columns, rows: Iterable[tuple[int, Row]]
    ) -> Answer | None:
        """Returns the answer of a source, None for one without; rows tell what its numbers mean.

        Raises DataError for a column that is not there, and rows that contradict each other.
        """
        if source.answer is None:
            return None
        expression = Expression.parse(f"{where}.answer", source.answer, columns)
        found = cls(expression, source.answer_map or {}, source.answer_from or 0)
        if source.answer_from is not None:
            return found
        return found._numbered(rows, options_of(source, where, columns))

    @property
    def counts_from(self) -> int | None:
        """The number of the first option; None if numbers are texts."""
        return None if self.by_text else self.first

    def _numbered(
        self, rows: Iterable[tuple[int, Row]], options: Callable[[int, Row], Choices | None]
    ) -> Answer:
        """Returns the same with what whole numbers mean.

        Where every one is the text of an option it is that. Else options count from one if no
        answer is 0 and one is as large as there are options; where neither is seen they are taken
        to count from 0.

        Raises DataError where both are seen.
        """
        seen: dict[int, int] = {}
        last, are_texts = None, True
        for index, row in rows:
            try:
                found, value = options(index, row), self._meant(index, row)
            except DataError:
                continue  # a bad row, which is dealt with where it is mapped
            number = None if found is None else _whole(value)
            if found is None or number is None or _labelled(value, found) is not None:
                continue
            seen.setdefault(number, index)
            last = number if number == len(found.texts) else last
            texts = [text.strip() for text in found.texts]
            are_texts &= str(value).strip() in texts or str(number) in texts
        if not seen:
            return self
        if are_texts:
            return replace(self, by_text=True)
        if 0 in seen and last is not None:
            problem = f"0 is among the answers, and so is {last}, the number of options"
            hint = "answer_from: 0 or 1 says from which one they count"
            raise Place(self.expression.where, seen[last]).error(problem, hint=hint)
        if last is not None:
            return replace(self, first=1)
        return replace(self, is_guess=0 not in seen)

    def place(self, index: int, row: Row, options: Choices) -> int:
        """Returns the place of the right option, from zero.

        Raises:
            DataError: there is none, or several are right.
        """
        value = self._meant(index, row)
        found = self._place(value, options)
        if found is not None:
            return found
        problem = f"{value!r} is none of the options {list(options.texts)}"
        if options.labels:
            problem += f", which are called {', '.join(options.labels)}"
        raise Place(self.expression.where, index).error(problem, hint=HINT)

    def _meant(self, index: int, row: Row) -> Any:
        value = self.expression.value(index, row)
        known = next((self.meanings[n] for n in _names_of(value) if n in self.meanings), None)
        if known is None and self.meanings:
            names = ", ".join(self.meanings)
            problem = f"{value!r} is not in answer_map, which has {names}"
            raise Place(self.expression.where, index).error(problem, hint=HINT)
        return value if known is None else known

    def _place(self, value: Any, options: Choices) -> int | None:
        """Returns the place of an option by its label, mark, number, text or letter."""
        if isinstance(value, list | tuple | Mapping):
            return _marked(list(value.values() if isinstance(value, Mapping) else value), options)
        labelled = _labelled(value, options)
        if labelled is not None:
            return labelled
        stripped, written = [text.strip() for text in options.texts], str(value).strip()
        number = _whole(value)
        if number is not None:
            if self.by_text:
                known = [each for each in (written, str(number)) if each in stripped]
                return stripped.index(known[0]) if known else None
            # what is called by numbers is not counted
            is_called = any(label.isdigit() for label in options.labels)
            within = 0 <= number - self.first < len(stripped) and not is_called
            return number - self.first if within else None
        if isinstance(value, bool) or str(value).strip().lower() in MEANINGS:
            return _of_truth(str(value).strip().lower(), stripped)
        if written in stripped:
            return stripped.index(written)
        letter = LETTER.fullmatch(written) if isinstance(value, str) else None
        place = None if letter is None else string.ascii_uppercase.index(letter[1].upper())
        return place if place is not None and place < len(stripped) else None


def _labelled(value: Any, options: Choices) -> int | None:
    """Returns the place of the option that is called by a value."""
    names = [name for name in _names_of(value) if name in options.labels]
    return options.labels.index(names[0]) if names else None


def _of_truth(value: str, texts: Sequence[str]) -> int | None:
    """Returns the place of the option that means true or false; else the second of two is true."""
    words = [text.lower() for text in texts]
    meant = [each for each in MEANINGS[value] if each in words]
    if meant:
        return words.index(meant[0])
    return int(value == "true") if len(words) == 2 else None


def _marked(value: Sequence[Any], options: Choices) -> int | None:
    """Returns the place of the one option that is marked by 1 in a list of zeros and ones."""
    marks = [_whole(each) for each in value]
    if len(marks) == len(options.texts) and marks.count(1) == 1 and set(marks) <= {0, 1}:
        return marks.index(1)
    return None


def _names_of(value: Any) -> list[str]:
    """Returns how a value may be written: as it stands, in lower case, as a whole number."""
    number = None if isinstance(value, bool) else _whole(value)
    own = str(value).strip()
    return list(dict.fromkeys([own, own.lower(), *([] if number is None else [str(number)])]))


def _whole(value: Any) -> int | None:
    """Returns a whole number, also of a text or a float that is one; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}(\.0)?\s*", value):
        return int(float(value))
    if isinstance(value, numbers.Number) and not isinstance(value, bool | complex):
        number = float(value)  # type: ignore[arg-type]  # a Number that is not complex is one
        return int(number) if number.is_integer() else None
    return None


# --- how options are written


def written_options(
    source: Source, where: str
) -> Callable[[int, str, Sequence[str]], tuple[str, ...]]:
    """Returns the function that writes the options of a row behind its prompt.

    Raises:
        DataError: `option_format` holds no option.
    """
    key, pattern = f"{where}.option_format", source.option_format
    if pattern is None:
        return lambda index, prompt, texts: tuple(behind(prompt, text) for text in texts)
    if "option" not in fields_of(key, pattern):
        raise DataError(key, f"{pattern!r} must hold {{option}}")
    written = Expression.parse(key, pattern, ("option",))
    return lambda index, prompt, texts: tuple(written.of(index, {"option": text}) for text in texts)


def behind(prompt: str, text: str) -> str:
    """Returns a text with a space before it where it would else stand right behind a prompt.

    >>> behind("Answer:", "yes"), behind("Answer: ", "yes"), behind("Answer:", "\\nyes")
    (' yes', 'yes', '\\nyes')
    """
    is_apart = not prompt or prompt[-1].isspace() or text[:1].isspace()
    return text if is_apart else f" {text}"

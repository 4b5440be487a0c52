"""Options of a row, and which of them is right, in the ways that public datasets say it."""

from __future__ import annotations

import numbers
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergetomix.data.errors import Place
from mergetomix.data.expressions import Columns, Expression, Row, encodable, fields_of
from mergetomix.errors import DataError
from mergetomix.sections.source import Source

TEXTS = ("text", "texts", "choices", "options")
"""Where a mapping or an item of a list keeps the texts of options."""
LABELS = ("label", "labels", "key")
"""Where it keeps what the options are called."""
MEANINGS = {"true": ("true", "yes"), "false": ("false", "no")}
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
    if isinstance(value, Mapping):
        texts = next((value[key] for key in TEXTS if key in value), None)
        labels = next((value[key] for key in LABELS if key in value), ())
        known = {key: text for key, text in value.items() if text is not None}
        if texts is None and all(isinstance(each, str) for each in known.values()):
            labels, texts = list(known), list(known.values())
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

    `first` is the number of the first option.
    """

    expression: Expression
    meanings: Mapping[str, str]
    first: int = 0

    @classmethod
    def parse(cls, source: Source, where: str, columns: Columns) -> Answer:
        """Returns the answer of a source. Raises DataError for a column that is not there."""
        expression = Expression.parse(f"{where}.answer", source.answer or "", columns)
        return cls(expression, source.answer_map or {}, source.answer_from or 0)

    def numbered(
        self, rows: Iterable[tuple[int, Row]], options: Callable[[int, Row], Choices | None]
    ) -> tuple[Answer, bool]:
        """Returns the answer with the number of the first option, and whether that is a guess.

        Choices count from one where no answer is 0 and one is as large as there are options; where
        neither is seen they are taken to count from 0.
        """
        numbers_seen, is_last = set(), False
        for index, row in rows:
            try:
                found, value = options(index, row), self._meant(index, row)
                if found is None or self._by_name(value, found) is not None:
                    continue
            except DataError:
                continue  # a bad row, which is dealt with where it is mapped
            number = _whole(value)
            if number is not None:
                numbers_seen.add(number)
                is_last |= number == len(found.texts)
        if not numbers_seen or 0 in numbers_seen:
            return self, False
        if is_last:
            return Answer(self.expression, self.meanings, 1), False
        return self, True

    def word(self, index: int, row: Row) -> str:
        """Returns what the answer of a row means, by `answer_map`."""
        value = self._meant(index, row)
        return self.expression.not_empty(index, self.expression.text_of(index, value))

    def place(self, index: int, row: Row, options: Choices) -> int:
        """Returns the place of the right option, from zero.

        Raises:
            DataError: there is none, or several are right.
        """
        value = self._meant(index, row)
        found = self._by_name(value, options)
        if found is not None:
            return found
        number = _whole(value)
        if number is not None and 0 <= number - self.first < len(options.texts):
            return number - self.first
        problem = f"{value!r} is none of the options {list(options.texts)}"
        if options.labels:
            problem += f", which are called {', '.join(options.labels)}"
        raise Place(self.expression.where, index).error(problem)

    def _meant(self, index: int, row: Row) -> Any:
        value = self.expression.value(index, row)
        known = self.meanings.get(_name_of(value))
        if known is None and self.meanings:
            names = ", ".join(self.meanings)
            problem = f"{value!r} is not in answer_map, which has {names}"
            raise Place(self.expression.where, index).error(problem)
        return value if known is None else known

    def _by_name(self, value: Any, options: Choices) -> int | None:
        """Returns the place of an option by its label, text, letter or mark; None for a number."""
        if isinstance(value, list | tuple):
            return _marked(value, options)
        if isinstance(value, bool):
            words = [text.strip().lower() for text in options.texts]
            meant = [each for each in MEANINGS[str(value).lower()] if each in words]
            if meant:
                return words.index(meant[0])
            return int(value) if len(words) == 2 else None
        name = _name_of(value)
        if name in options.labels:
            return options.labels.index(name)
        if not isinstance(value, str):
            return None
        stripped = [text.strip() for text in options.texts]
        if name.strip() in stripped:
            return stripped.index(name.strip())
        letter = LETTER.fullmatch(name.strip())
        if letter is not None:
            number = string.ascii_uppercase.index(letter[1].upper())
            return number if number < len(options.texts) else None
        return None


def _marked(value: Sequence[Any], options: Choices) -> int | None:
    """Returns the place of the one option that is marked by 1 in a list of zeros and ones."""
    marks = [_whole(each) for each in value]
    if len(marks) == len(options.texts) and marks.count(1) == 1 and set(marks) <= {0, 1}:
        return marks.index(1)
    return None


def _name_of(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _whole(value: Any) -> int | None:
    """Returns a whole number, also of a text or a float that is one; None for anything else."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}(\.0)?\s*", value):
        return int(float(value))
    if isinstance(value, numbers.Number) and not isinstance(value, complex):
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

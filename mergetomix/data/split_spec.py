"""Which part of a source is meant: `validation`, `train[:100]`, `train[10%:20%]`, `train+test`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mergetomix.errors import DataError

END = r"-?\d{1,12}%?"
PART = re.compile(rf"\s*(?P<name>[^\[\]+]+?)\s*(?:\[(?P<start>{END})?:(?P<stop>{END})?\])?\s*")


@dataclass(frozen=True)
class Part:
    """A split by its name, and its rows from `start` up to `stop`, as the recipe writes them."""

    name: str
    start: str = ""
    stop: str = ""

    def rows(self, num: int) -> range:
        """Returns the places of the rows that are meant of so many.

        Percentages are rounded to the nearest row, and numbers below zero count from the end.

        >>> Part("train", "10%", "20%").rows(1000), Part("train", "", "-2").rows(5)
        (range(100, 200), range(0, 3))
        """
        start = _place(self.start, num, 0)
        return range(start, max(start, _place(self.stop, num, num)))


def _place(written: str, num: int, default: int) -> int:
    if not written:
        return default
    is_share = written.endswith("%")
    value = int(written.rstrip("%"))
    place = round(value * num / 100) if is_share else value
    return min(num, max(0, place + num if value < 0 else place))


def parts_of(split: str, where: str) -> list[Part]:
    """Returns the parts that a split names, joined by `+`. Raises DataError for anything else."""
    found = []
    for each in split.split("+"):
        part = PART.fullmatch(each)
        if part is None:
            known = "a name, or one with a part of it such as train[:100] or train[10%:20%]"
            raise DataError(f"{where}.split", f"{split!r} is not {known}")
        shares = [part["start"] or "", part["stop"] or ""]
        if any(each.endswith("%") and abs(int(each[:-1])) > 100 for each in shares):
            raise DataError(f"{where}.split", f"{split!r} has more than 100%")
        found.append(Part(part["name"], *shares))
    return found

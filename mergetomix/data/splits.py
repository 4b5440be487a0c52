"""Which rows of a source are taken, and which of a target's examples are for the search and which for the report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from mergetomix.data.examples import Example, Examples, canonical
from mergetomix.errors import DataError
from mergetomix.sections.source import Source


def split(
    examples: Examples, select_fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """A target's examples in two disjoint parts, select and report, each in the order of the rows.

    Distinct contents are ranked by SHA-256(seed, content) and the first `select_fraction` (0 to 1) of the examples are
    selected. So an example's part depends on no other target and not on the order of rows, equal examples stay
    together, and a few rows more move few examples to the other part.

    Raises:
        DataError: fewer than two distinct examples.
    """
    sizes = Counter(canonical(item) for item in examples.items)
    if len(sizes) < 2:
        message = (
            f"splitting into select and report needs at least 2 distinct examples, not {len(sizes)}"
        )
        raise DataError(
            examples.where, message, hint="give the target more rows, or raise max_examples"
        )
    ranked = sorted(sizes, key=lambda content: hashlib.sha256(b"%d:" % seed + content).digest())
    chosen = set(ranked[: _num_selected([sizes[content] for content in ranked], select_fraction)])
    select = tuple(item for item in examples.items if canonical(item) in chosen)
    report = tuple(item for item in examples.items if canonical(item) not in chosen)
    return select, report


def drawn_order(items: Sequence[Example], seed: int) -> list[int]:
    """Places of examples in the order of SHA-256("order", seed, content): one that depends on no example's place, and not on
    which other examples there are. Equal examples stay in their order."""
    keys = [hashlib.sha256(b"order:%d:" % seed + canonical(item)).digest() for item in items]
    return sorted(range(len(items)), key=lambda place: keys[place])


def draw(kept: list[int], source: Source) -> list[int]:
    """The rows to take of those kept, in order: all, or `max_examples` drawn by the source's seed."""
    if source.max_examples is None or source.max_examples >= len(kept):
        return kept
    import numpy as np

    places = np.random.default_rng(source.seed).choice(
        len(kept), size=source.max_examples, replace=False
    )
    return [kept[place] for place in sorted(places.tolist())]


def _num_selected(sizes: list[int], fraction: float) -> int:
    """How many groups to select so that their examples come nearest to the fraction; one at least on each side."""
    goal, taken, groups = round(fraction * sum(sizes)), 0, 0
    for size in sizes:
        if taken + size / 2 > goal:
            break
        taken, groups = taken + size, groups + 1
    return min(max(groups, 1), len(sizes) - 1)

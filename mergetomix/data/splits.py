"""Which rows of a source are taken, and which examples are for the search or for the report."""

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
    """Returns a target's examples in two disjoint parts, select and report, in the order of rows.

    Distinct contents are ranked by SHA-256(seed, content) and the first `select_fraction` (0 to 1)
    of the examples are selected. So an example's part depends on no other target and not on the
    order of rows, equal examples stay together, and a few rows more move few examples to the other
    part.

    Raises:
        DataError: fewer than two distinct examples.
    """
    contents = [canonical(item) for item in examples.items]
    sizes = Counter(contents)
    if len(sizes) < 2:
        rule = "splitting into select and report needs at least 2 distinct examples"
        hint = "give the target more rows, or raise max_examples"
        raise DataError(examples.where, f"{rule}, not {len(sizes)}", hint=hint)
    ranked = sorted(sizes, key=lambda content: hashlib.sha256(b"%d:" % seed + content).digest())
    chosen = set(ranked[: _num_selected([sizes[content] for content in ranked], select_fraction)])
    pairs = list(zip(examples.items, contents, strict=True))
    select = tuple(item for item, content in pairs if content in chosen)
    report = tuple(item for item, content in pairs if content not in chosen)
    return select, report


def _num_selected(sizes: list[int], fraction: float) -> int:
    """Returns how many groups come nearest to the fraction; one at least on each side."""
    goal, taken, groups = round(fraction * sum(sizes)), 0, 0
    for size in sizes:
        if taken + size / 2 > goal:
            break
        taken, groups = taken + size, groups + 1
    return min(max(groups, 1), len(sizes) - 1)


def drawn_order(items: Sequence[Example], seed: int) -> list[int]:
    """Returns places of examples in the order of SHA-256("order", seed, content).

    The order depends on no example's place, and not on which other examples there are. Equal
    examples stay in their order.
    """
    keys = [hashlib.sha256(b"order:%d:" % seed + canonical(item)).digest() for item in items]
    return sorted(range(len(items)), key=lambda place: keys[place])


def draw(kept: list[int], source: Source) -> list[int]:
    """Returns the rows to take of those kept, in order.

    They are all, or `max_examples` drawn by the source's seed without replacement.
    """
    size = source.max_examples
    if size is None or size >= len(kept):
        return kept
    import numpy as np

    places = np.random.default_rng(source.seed).choice(len(kept), size=size, replace=False)
    return [kept[place] for place in sorted(places.tolist())]

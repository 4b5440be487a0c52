"""Which rows of a source are taken, and which examples are for the search or for the report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from mergetomix.data.examples import Example, Examples, canonical
from mergetomix.errors import DataError
from mergetomix.sections.source import Source

Sides = dict[Hashable, bool]
"""Which prompts are on the select side, and which on the report side."""


def split(
    examples: Examples,
    select_fraction: float,
    seed: int,
    asked: Sequence[Hashable] = (),
    sides: Sides | None = None,
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Returns a target's examples in two disjoint parts, select and report, in the order of rows.

    Examples with the same prompt stay together. Such groups are ranked by the least of
    SHA-256(seed, content) of their examples, and the first `select_fraction` (0 to 1) of the
    examples are selected. So an example's part does not depend on the order of rows, and a few rows
    more move few examples to the other part. Another target matters only if it has the same
    prompts: what is in `sides` already stays where it is.

    Args:
        asked: the prompt of every example, whatever says that two are the same; without, equal
            examples alone stay together.
        sides: where the prompts of other targets are; those of this one are added.

    Raises:
        DataError: fewer than two distinct prompts.
    """
    contents = [canonical(item) for item in examples.items]
    keys = list(asked) or list(contents)
    ranks: dict[Hashable, bytes] = {}
    for key, content in zip(keys, contents, strict=True):
        digest = hashlib.sha256(b"%d:" % seed + content).digest()
        ranks[key] = min(digest, ranks.get(key, digest))
    sizes = Counter(keys)
    if len(sizes) < 2:
        rule = "splitting into select and report needs at least 2 distinct examples"
        hint = "give the target more rows, or raise max_examples (limit of a benchmark)"
        raise DataError(examples.where, f"{rule}, not {len(sizes)}", hint=hint)
    sides = {} if sides is None else sides
    goal = round(select_fraction * len(keys))
    known = {key: sides[key] for key in sizes if key in sides}
    chosen = _chosen(sizes, sorted(sizes, key=ranks.__getitem__), goal, known)
    if not 0 < len(chosen) < len(sizes):  # all of them are on one side in another target
        chosen = _chosen(sizes, sorted(sizes, key=ranks.__getitem__), goal, {})
    for key in sizes:
        sides.setdefault(key, key in chosen)
    pairs = list(zip(examples.items, keys, strict=True))
    select = tuple(item for item, key in pairs if key in chosen)
    report = tuple(item for item, key in pairs if key not in chosen)
    return select, report


def _chosen(
    sizes: Mapping[Hashable, int], ranked: Sequence[Hashable], goal: int, known: Sides
) -> set[Hashable]:
    """Returns the groups to select, whose examples come nearest to the goal.

    Those whose side is known stay there; without such, each side has a group at least.
    """
    chosen = {key for key, is_select in known.items() if is_select}
    free = [key for key in ranked if key not in known]
    taken, num = sum(sizes[key] for key in chosen), 0
    for key in free:
        if taken + sizes[key] / 2 > goal:
            break
        taken, num = taken + sizes[key], num + 1
    least = 0 if chosen else 1
    most = len(free) if len(chosen) < len(known) else len(free) - 1
    return chosen | set(free[: max(0, min(max(num, least), most))])


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

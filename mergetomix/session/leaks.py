"""What a recipe's targets and datasets share: said, left out, or an end of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from mergetomix.data.examples import Example, Examples
from mergetomix.data.leaks import COMMON, Affixes, Overlap, Said, overlap, said_by
from mergetomix.errors import DataError
from mergetomix.recipe.recipe import Recipe
from mergetomix.sections.source import Source

LEAST_SHARE = 0.01
"""Repeats of a smaller share are not worth a line."""
MOST = 3
"""Datasets that a line names."""
SHOWN = 60
"""Characters of an example that a line shows."""


class Leaks:
    """What every source says, and what of it stands in another.

    Args:
        recipe: says what to do about a leak.
        read: the examples of every source, by its place in the recipe.
    """

    def __init__(self, recipe: Recipe, read: Mapping[str, Examples]) -> None:
        self._recipe = recipe
        sources: dict[str, Any] = {f"datasets.{n}": each for n, each in recipe.datasets.items()}
        sources |= {f"targets.{name}": each for name, each in recipe.targets.items()}
        self._items = {where: read[where].items for where in sources if where in read}
        self._affixes = {
            where: affixes_of(sources[where]) if isinstance(sources[where], Source) else {}
            for where in self._items
        }
        self._datasets = [where for where in self._items if where.startswith("datasets.")]
        self._targets = [where for where in self._items if where.startswith("targets.")]
        # of datasets, which may be large, nothing is kept
        self._said = {
            where: list(said_by(self._items[where], self._affixes[where]))
            for where in self._targets
        }

    def asked(self, where: str) -> list[Hashable]:
        """Returns what each example of a target asks, so that the same is not on both sides."""
        return [each.whole[0] or each.whole for each in self._said[where]]

    def without_leaks(self, where: str, examples: Examples) -> Examples:
        """Returns a dataset without what any target holds, if the recipe says so.

        Raises DataError if nothing is left.
        """
        if self._recipe.leaks != "drop":
            return examples
        leaked = self._overlap(where, range(len(examples.items)))
        places = {place for each in leaked.values() for place in each.places}
        if not places:
            return examples
        kept = [place for place in range(len(examples.items)) if place not in places]
        if not kept:
            hint = "leaks: warn keeps them, and says so"
            message = "every row is an example of a target, and leaks: drop leaves it out"
            raise DataError(where, message, hint=hint)
        self._items[where] = tuple(examples.items[place] for place in kept)
        note = f"{where}: left out {len(places)} rows that targets hold too (leaks: drop)"
        found = examples.take(kept)
        return Examples(where, found.items, found.num_rows, found.columns, (*found.notes, note))

    def sentences(self, trained: Mapping[str, Iterable[int]]) -> list[str]:
        """Returns what the user should know, a line each.

        Args:
            trained: the places of the examples of each dataset that are trained on.

        Raises:
            DataError: a dataset holds a whole target, or the recipe stops at any leak.
        """
        by_target: dict[str, dict[str, Overlap]] = {}
        keys: dict[str, list[int]] = {}
        for dataset in self._datasets:
            keys[dataset] = []
            for target, found in self._overlap(dataset, trained[dataset], keys[dataset]).items():
                by_target.setdefault(target, {})[dataset] = found
        lines = []
        for target, overlaps in by_target.items():
            lines += [*self._leak(target, overlaps), *self._same_prompts(target, overlaps)]
        return [*lines, *_repeats(keys)]

    def between(
        self, where: str, select: Sequence[Example], report: Sequence[Example]
    ) -> list[str]:
        """Returns a line if the two parts of a target share many words in a row."""
        pairs = zip(self._items[where], self._said[where], strict=True)
        said = {item.row: each for item, each in pairs}
        some, others = ([said[item.row] for item in part] for part in (select, report))
        # what most of a small target's examples hold is how they are asked
        shared = overlap(some, others, min(COMMON, max(2, len(report) // 2))).leaked
        if len(shared) < LEAST_SHARE * len(report):
            return []
        what = f"{len(shared)} of its {len(report)} report examples share many words in a row"
        return [f"{where}: {what} with select examples, so the report is less independent"]

    def _overlap(
        self, dataset: str, places: Iterable[int], keys: list[int] | None = None
    ) -> dict[str, Overlap]:
        """What of every target stands in some examples of a dataset.

        What each of these says is added to `keys`, as a hash.
        """
        kept = list(places)

        def said() -> Iterator[Said]:
            items = (self._items[dataset][place] for place in kept)
            for each in said_by(items, self._affixes[dataset]):
                if keys is not None:
                    keys.append(hash(each.whole))
                yield each

        joined = [each for target in self._targets for each in self._said[target]]
        whole = overlap(said(), joined)
        found, start = {}, 0
        for target in self._targets:
            end = start + len(self._said[target])
            same, runs, prompts = (
                {place - start: kept[at] for place, at in part.items() if start <= place < end}
                for part in (whole.whole, whole.runs, whole.prompts)
            )
            held = frozenset(kept[place] for place in whole.places)
            if same or runs or prompts:
                found[target] = Overlap(same, runs, prompts, held)
            start = end
        return found

    def _leak(self, target: str, overlaps: Mapping[str, Overlap]) -> list[str]:
        """The line of what of a target stands in the datasets, if anything does."""
        num = len(self._said[target])
        leaked = {dataset: found.leaked for dataset, found in overlaps.items() if found.leaked}
        if not leaked:
            return []
        whole = {place for found in overlaps.values() for place in found.whole}
        every = {place for places in leaked.values() for place in places}
        kinds = {
            "are the same but for case, marks and spaces": len(whole),
            "share 13 words in a row": len(every - whole),
        }
        how = " and ".join(f"{count} {what}" for what, count in kinds.items() if count)
        dataset = max(leaked, key=lambda name: len(leaked[name]))
        place, first = next(iter(leaked[dataset].items()))
        rows = self._items[target][place].row, self._items[dataset][first].row
        at = f"row {rows[0]} is row {rows[1]} of {dataset}: {self._shown(target, place)!r}"
        share = f"{len(every)} of its {num} examples ({len(every) / num:.0%})"
        counts = {name: len(places) for name, places in leaked.items()}
        text = f"{share} stand in {_listed(counts)}: {how}; {at}"
        hint = "leaks: drop leaves such rows out of the datasets"
        if self._recipe.leaks == "stop":
            raise DataError(target, text, hint=hint)
        if len(overlaps[dataset].whole) == num:  # words in a row may be a form that all rows have
            heart = "the target would reward learning it by heart"
            raise DataError(target, f"every example is also in {dataset}: {heart}; {at}", hint=hint)
        return [f"{target}: {text}; {hint}"]

    def _same_prompts(self, target: str, overlaps: Mapping[str, Overlap]) -> list[str]:
        """The line of what a target and the datasets ask alike and answer differently."""
        counts = {name: len(found.prompts) for name, found in overlaps.items() if found.prompts}
        if not counts:
            return []
        places = {place for found in overlaps.values() for place in found.prompts}
        asks = f"{len(places)} of its {len(self._said[target])} prompts stand in {_listed(counts)}"
        shown = self._shown(target, min(places))
        return [f"{target}: {asks} with other answers; the first: {shown!r}"]

    def _shown(self, where: str, place: int) -> str:
        item = self._items[where][place]
        text = item.prompt or item.text or (item.messages[0][1] if item.messages else item.label)
        flat = " ".join(text.split())
        return flat if len(flat) <= SHOWN else flat[: SHOWN - 3] + "..."


def _repeats(keys: Mapping[str, Sequence[int]]) -> list[str]:
    """The lines of what stands twice in the datasets, in one or in two of them."""
    lines, distinct = [], {dataset: set(own) for dataset, own in keys.items()}
    for dataset, own in keys.items():
        num = len(own) - len(distinct[dataset])
        if num >= max(1, LEAST_SHARE * len(own)):
            lines.append(f"{dataset}: {num} of its {len(own)} examples repeat an earlier one")
    for one, other in combinations(keys, 2):
        smaller = min(len(distinct[one]), len(distinct[other]))
        num = len(distinct[one] & distinct[other])
        if num == len(distinct[one]) == len(distinct[other]):
            lines.append(f"{one} and {other} hold the same {num} examples: one would do")
        elif num >= max(1, LEAST_SHARE * smaller):
            share = f"{num} examples ({num / smaller:.0%} of the smaller one)"
            lines.append(f"{one} and {other} share {share}")
    return lines


def affixes_of(source: Source) -> dict[str, Affixes]:
    """Returns what a source writes around the columns of its rows."""
    text = source.text if isinstance(source.text, str) else None
    patterns = {"prompt": source.prompt, "completion": source.completion, "text": text}
    return {key: Affixes.of(pattern) for key, pattern in patterns.items()}


def _listed(counts: Mapping[str, int]) -> str:
    """Returns sources with their counts, the largest first; the count of one alone is left out.

    >>> _listed({"datasets.a": 1, "datasets.b": 3})
    'datasets.b (3) and datasets.a (1)'
    """
    if len(counts) == 1:
        return next(iter(counts))
    largest_first = sorted(counts.items(), key=lambda each: -each[1])
    shown = [f"{name} ({count})" for name, count in largest_first[:MOST]]
    if len(largest_first) > MOST:
        shown.append(f"{len(largest_first) - MOST} more")
    return f"{', '.join(shown[:-1])} and {shown[-1]}"

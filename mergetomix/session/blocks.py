"""A target's scores in blocks, as races see them: each kept by itself, and put together where all are there."""

from __future__ import annotations

from collections.abc import Sequence

from mergetomix.records import Part, Scores
from mergetomix.session.inputs import Scorer
from mergetomix.store.store import Store


def kept(store: Store, key: str, scorer: Scorer, part: Part) -> Scores | None:
    """What the store holds of a model's scores on a target: scored at once, or all blocks together; None if any is lacking."""
    whole = store.scores(key, scorer.address, part)
    if whole is not None or not scorer.blocks:
        return whole
    found = [store.scores(key, block.address, part) for block in scorer.blocks]
    known = [scores for scores in found if scores is not None]
    return together(scorer.blocks, known) if len(known) == len(found) else None


def lacking(store: Store, key: str, scorer: Scorer, part: Part) -> list[Scorer]:
    """What is to be scored for a target's scores: the target, or those of its blocks that the store lacks."""
    if not scorer.blocks:
        return [scorer]
    return [block for block in scorer.blocks if store.scores(key, block.address, part) is None]


def together(blocks: Sequence[Scorer], scores: Sequence[Scores]) -> Scores:
    """The scores of blocks in the order of their examples' places."""
    found = sorted(
        (place, value, weight)
        for block, each in zip(blocks, scores, strict=True)
        for place, value, weight in zip(block.places, each.values, each.weights, strict=True)
    )
    return Scores(scores[0].kind, tuple(value for _, value, _ in found), tuple(weight for *_, weight in found))


def cut(block: Scorer, whole: Scores) -> Scores:
    """A block's share of a target's scores."""
    values, weights = (tuple(each[place] for place in block.places) for each in (whole.values, whole.weights))
    return Scores(whole.kind, values, weights)

"""Examples as a model reads them: sequences, and how many examples were too long."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol


class Item(Protocol):
    """What is trained on and scored: the tokens of a text, or the patches of an image."""

    @property
    def example(self) -> int:
        """The place of its example among those that were encoded together."""

    @property
    def num_tokens(self) -> int:
        """Tokens that a model reads; patches of an image, or one if a model makes none."""

    @property
    def num_scored(self) -> int:
        """Predictions that count in the loss."""

    def fingerprint(self) -> bytes:
        """Returns everything that training and scoring depend on."""


@dataclass(frozen=True)
class Encoding:
    """The sequences of some examples, and how many examples were too long.

    `num_cut` examples lost the start of their prompt, `num_split` became several sequences, and
    `num_ended` lost the end of their answer. `num_marked` hold marks of a beginning or an end
    themselves, of `num_straddling` an answer begins within a token of the prompt, and `num_chats`
    are chats. `num_untrained` hold no token that is trained on.
    """

    sequences: tuple[Any, ...]
    num_examples: int
    num_cut: int = 0
    num_split: int = 0
    num_ended: int = 0
    num_marked: int = 0
    num_straddling: int = 0
    num_chats: int = 0
    num_untrained: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens over all sequences."""
        return sum(sequence.num_tokens for sequence in self.sequences)


def take_tokens(encoding: Encoding, max_tokens: int | None, seed: int) -> Encoding:
    """Returns at most `max_tokens` tokens in whole sequences (one at least).

    They are drawn by `seed` and kept in order.
    """
    if max_tokens is None or encoding.num_tokens <= max_tokens:
        return encoding
    order = list(range(len(encoding.sequences)))
    random.Random(seed).shuffle(order)
    totals = accumulate(encoding.sequences[i].num_tokens for i in order)
    kept = [i for i, total in zip(order, totals, strict=True) if total <= max_tokens] or order[:1]
    sequences = tuple(encoding.sequences[i] for i in sorted(kept))
    return replace(encoding, sequences=sequences, num_examples=len({s.example for s in sequences}))


def content(sequences: Sequence[Item]) -> str:
    """Returns the address of some sequences: a SHA-256 in hex."""
    sha = hashlib.sha256()
    for sequence in sequences:
        sha.update(sequence.fingerprint())
    return sha.hexdigest()


def counted(counts: Mapping[str, int], what: str) -> list[str]:
    """Returns one line that says how many of which sources something happens to, or none.

    >>> counted({"a": 2, "b": 0, "c": 1}, "texts are cut")
    ['texts are cut: a 2, c 1']
    """
    some = [f"{name} {count}" for name, count in counts.items() if count]
    return [f"{what}: {', '.join(some)}"] if some else []

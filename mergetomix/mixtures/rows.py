"""A weighted mixture's rows: how many sequences of each dataset make its weights the shares of the data, and which.

The unit of the shares is that of the length of training: of tokens where so many tokens are trained on, of examples where so
many steps are. Legend of shapes: N datasets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["tokens", "examples"]


@dataclass(frozen=True)
class Length:
    """How much every fine-tune is trained on, in tokens or in examples (training sequences)."""

    amount: float
    unit: Unit

    def sizes(
        self, num_sequences: Mapping[str, int], num_tokens: Mapping[str, int]
    ) -> Mapping[str, int]:
        """The datasets' sizes in this unit."""
        return num_tokens if self.unit == "tokens" else num_sequences

    def caps(self, sizes: Mapping[str, int], max_repeats: float) -> dict[str, float]:
        """The largest weight of each dataset that repeats it at most so often: max_repeats * size / amount, at most one."""
        return {name: min(1.0, max_repeats * size / self.amount) for name, size in sizes.items()}


def largest_remainder(quotas_N: Sequence[float], total: int) -> list[int]:
    """Whole numbers near to `quotas_N` of the sum `total`, by Hamilton's method.

    Quotas are scaled to the total. Each is rounded down, and those of the largest remainders, of equals the earlier, get one
    more. Raises ValueError where they are no shares.
    """
    sum_of = math.fsum(quotas_N)
    if not sum_of > 0 or min(quotas_N) < 0 or total < 0:
        raise ValueError(
            f"quotas must be at least zero and not all zero, and the total at least zero: {quotas_N}, {total}"
        )
    scaled = [quota * total / sum_of for quota in quotas_N]
    found = [math.floor(quota + 1e-9) for quota in scaled]
    order = sorted(range(len(scaled)), key=lambda i: (found[i] - scaled[i], i))
    for i in order[: total - sum(found)]:
        found[i] += 1
    return found


def counts(
    weights: Mapping[str, float], mean_tokens: Mapping[str, float], length: Length
) -> dict[str, int]:
    """How many sequences of each dataset a fine-tune takes, by largest remainder; at least one of each.

    In tokens, a dataset's share w of T tokens is w T / (its mean tokens a sequence) sequences.

    Raises:
        ValueError: the training is so short that it has fewer sequences than the mixture datasets.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    quotas = [
        length.amount * weights[name] / (mean_tokens[name] if length.unit == "tokens" else 1.0)
        for name in names
    ]
    total = max(1, round(math.fsum(quotas)))
    if total < len(names):
        raise ValueError(
            f"training takes {total} sequences, fewer than the {len(names)} datasets of the mixture"
        )
    found = largest_remainder(quotas, total)
    while 0 in found:  # a dataset of a mixture is seen
        found[found.index(0)] += 1
        found[found.index(max(found))] -= 1
    return dict(zip(names, found, strict=True))


def rows(num: int, size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """`num` rows of `size`: all of them as often as that goes, then a part drawn without replacement."""
    whole, rest = divmod(num, size)
    return np.concatenate(
        [np.tile(np.arange(size), whole), np.sort(rng.permutation(size)[:rest])]
    ).astype(np.intp)

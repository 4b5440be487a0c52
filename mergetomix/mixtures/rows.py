"""A weighted mixture's rows: how many sequences of each dataset, and which.

They make the mixture's weights the shares of the data, in the unit of the length of training: of
tokens if so many tokens are trained on, of examples if so many steps are. Array names end in their
shape: N datasets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Length:
    """How much every fine-tune is trained on, in tokens or in examples (training sequences)."""

    amount: float
    unit: Literal["tokens", "examples"]

    def caps(
        self,
        num_sequences: Mapping[str, float],
        num_tokens: Mapping[str, float],
        max_repeats: float,
    ) -> dict[str, float]:
        """Returns the largest weight of each dataset that repeats it at most so often.

        It is max_repeats * size / amount, at most one.
        """
        sizes = num_tokens if self.unit == "tokens" else num_sequences
        return {name: min(1.0, max_repeats * size / self.amount) for name, size in sizes.items()}


def largest_remainder(quotas_N: Sequence[float], total: int) -> list[int]:
    """Returns whole numbers near to `quotas_N`, scaled to the sum `total`, by Hamilton's method.

    Each is rounded down, and those of the largest remainders, of equals the earlier, get one more.
    Raises ValueError if the quotas are no shares.

    >>> largest_remainder([0.46, 0.44, 0.1], 3)
    [2, 1, 0]
    """
    sum_of = math.fsum(quotas_N)
    if not sum_of > 0 or min(quotas_N) < 0 or total < 0:
        must = "quotas must be at least zero and not all zero, and the total at least zero"
        raise ValueError(f"{must}: {quotas_N}, {total}")
    scaled = [quota * total / sum_of for quota in quotas_N]
    found = [math.floor(quota + 1e-9) for quota in scaled]
    order = sorted(range(len(scaled)), key=lambda i: (found[i] - scaled[i], i))
    for i in order[: total - sum(found)]:
        found[i] += 1
    return found


def counts(
    weights: Mapping[str, float], mean_tokens: Mapping[str, float], length: Length
) -> dict[str, int]:
    """Returns how many sequences of each dataset a fine-tune takes, at least one of each.

    In tokens, a dataset's share w of T tokens is w T / (its mean tokens a sequence) sequences.
    Raises ValueError if training is so short that it has fewer sequences than the mixture datasets.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    per_sequence = mean_tokens if length.unit == "tokens" else dict.fromkeys(names, 1.0)
    quotas = [length.amount * weights[name] / per_sequence[name] for name in names]
    total, num = max(1, round(math.fsum(quotas))), len(names)
    if total < num:
        few = f"fewer than the {num} datasets of the mixture"
        raise ValueError(f"training takes {total} sequences, {few}")
    found = largest_remainder(quotas, total)
    while 0 in found:  # a dataset of a mixture is seen
        found[found.index(0)] += 1
        found[found.index(max(found))] -= 1
    return dict(zip(names, found, strict=True))


def rows(num: int, size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Returns `num` rows of `size`: all as often as that goes, then a part without replacement."""
    whole, rest = divmod(num, size)
    part = np.sort(rng.permutation(size)[:rest])
    return np.concatenate([np.tile(np.arange(size), whole), part]).astype(np.intp)

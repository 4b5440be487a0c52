"""What a method of merging is given, one param at a time, and what is known of the method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """One param of the base and what each expert of a mixture has of it.

    Args:
        param: the param's name.
        base: its values, of any shape and floating type.
        deltas: expert minus base, float32, of the base's shape, one for each expert.
        weights: the mixture's weights, on the simplex, one for each expert.
        experts: what each expert is, as a text that its content gives: what a random method draws
            for an expert depends on the seed, this text and the param's name alone, never on the
            rest of the mixture.
        statistics: one tensor for each expert: the diagonal Fisher information, of the param's
            shape, or the Gram matrix of the layer's inputs, (in, in); empty if the method needs
            none, or the param has none.
        transposed: whether the param stands as (in, out), as GPT-2 keeps it, and not as (out, in).
    """

    param: str
    base: Tensor
    deltas: Sequence[Tensor]
    weights: Sequence[float]
    experts: Sequence[str]
    statistics: Sequence[Tensor] = ()
    transposed: bool = False


@dataclass(frozen=True)
class Method:
    """One way to merge: params <- base + gain * combine(parts, **options).

    Args:
        combine: gives the merged delta, float32, of the base's shape; it changes none of its
            arguments.
        needs: the statistic that it weighs experts by, `fisher` or `gram`, or None.
        scaled: whether the delta's factor k * scale(k) multiplies the merged delta; else it is 1.
        max_experts: the most experts that it takes, None for any number.
    """

    combine: Callable[..., Tensor]
    needs: str | None = None
    scaled: bool = True
    max_experts: int | None = None

    @property
    def options(self) -> dict[str, float]:
        """The hyper-parameters that it heeds, with the values they have unless they are given."""
        parameters = inspect.signature(self.combine).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

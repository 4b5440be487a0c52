"""The arithmetic of an expert's delta: taken wide, block by block, and on a grid of exact sums.

A delta is an expert's tensor minus the base's, taken in float64 while both are read, so that no
copy of it is kept. Rounded to multiples of a power of two g, sums of deltas are exact while they
stay under 2**53 g, whatever their order (Rump, Ogita and Oishi 2008, "Accurate floating-point
summation", the splitting of section 3). Every product is rounded before it is added: a fused
multiplication, which some processors have and others not, would give other bits. Tensors are flat,
of the shape (elements,).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mergetomix.merge.sums import blocks, exact

if TYPE_CHECKING:
    from torch import Tensor

_SUM_BITS = 51


def grid(largest: float) -> float:
    """Returns what rounds deltas whose sums stay under `largest`, as (delta + grid) - grid.

    It is 1.5 * 2**52 * g with g the 2**-51 of the power of two over `largest`: what it takes from
    a delta is far below the rounding of a float32 result.

    >>> (1 / 3 + grid(1.0)) - grid(1.0) == round(2**51 / 3) / 2**51
    True
    """
    if largest == 0:
        return 0.0
    exponent = max(math.ceil(math.log2(largest)) - _SUM_BITS, -1074 + 52)
    return math.ldexp(1.5, 52 + exponent)


def difference(expert: Tensor, base: Tensor) -> Tensor:
    """Returns expert minus base where the base lies, exact unless their exponents are far apart."""
    return exact(expert.to(base.device)) - exact(base)


def span(expert: Tensor, base: Tensor) -> float:
    """Returns the largest absolute value of expert minus base, not finite if the expert is not."""
    largest = exact(base.new_zeros(()))
    for block in blocks(base):
        largest = largest.maximum(difference(expert[block], base[block]).abs().amax())
    return float(largest)


def dot(gradient: Tensor, expert: Tensor, base: Tensor) -> float:
    """Returns the sum of gradient * (expert - base) over elements, in float64."""
    return math.fsum(
        float((exact(gradient[block]) * difference(expert[block], base[block])).sum())
        for block in blocks(base)
    )

"""Passes over flat tensors, an expert's, the base's and the live one, with sums in float64: where and as fast as they lie.

float32 on the CPU goes through compiled loops, tile by tile on as many threads as torch has; everything else (a GPU, bfloat16)
through torch. Both do the same arithmetic in the same order. Shapes: (elements,) for every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

TILE = 1 << 20
"""Elements of a tensor that one thread works on at once."""
LARGE_TILE = 1 << 25
"""Elements that torch works on at once: few enough for temporaries to be small, many enough to be fast."""
_SUM_BITS = 51


def tiles(num: int, most: int = TILE) -> Iterator[slice]:
    """Slices of at most `most` elements that cover `num`."""
    for start in range(0, num, most):
        yield slice(start, min(start + most, num))


def grid(largest: float) -> float:
    """What rounds deltas so that their sums are exact (see `kernels`), for sums that stay under `largest` in absolute value.

    The grid is 2**-51 of the power of two over `largest`: what it takes from a delta is far below the rounding of a
    float32 result.
    """
    if largest == 0:
        return 0.0
    exponent = max(math.ceil(math.log2(largest)) - _SUM_BITS, -1074 + 52)
    return math.ldexp(1.5, 52 + exponent)


def spread(work: Callable[[Any], None], pieces: Sequence[Any]) -> None:
    """Does every piece of work, on as many threads as torch has."""
    import torch

    num = torch.get_num_threads()
    if min(num, len(pieces)) <= 1:
        for piece in pieces:
            work(piece)
        return
    for _ in _threads(num).map(work, pieces):
        pass


@cache
def _threads(num: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num, "mergetomix")


def is_compiled(*tensors: Tensor) -> bool:
    """Whether the compiled loops take these: float32 in the CPU's memory."""
    import torch

    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def flat(tensor: Tensor) -> Any:
    """A tensor's values in one dimension: in numpy where the compiled loops take them, else in torch. Both share its memory."""
    line = tensor.detach().reshape(-1)
    return line.numpy() if is_compiled(line) else line


def zeros(base: Any, device: Any) -> Any:
    """A sum of nothing, for `base` as `flat` gives it."""
    if isinstance(base, np.ndarray):
        return np.zeros(base.shape, np.float64)
    import torch

    return torch.zeros(base.shape, dtype=torch.float64, device=device)


def step(
    total: Any, expert: Any, base: Any, live: Any, numbers: tuple[float, float, float]
) -> None:
    """total += c * delta, live = base + factor * total, in one pass; `numbers` are c, the grid and the factor."""
    c, rounding, factor = numbers
    if isinstance(base, np.ndarray) and isinstance(live, np.ndarray):
        _kernels().step(total, _plain(expert), base, live, c, rounding, factor)
    else:
        add(total, expert, base, c, rounding)
        finish(total, base, live, factor)


def add(total: Any, expert: Any, base: Any, c: float, rounding: float) -> None:
    """total += c * delta, the delta rounded to the grid."""
    if isinstance(base, np.ndarray):
        _kernels().add(total, _plain(expert), base, c, rounding)
        return
    delta = _tensor(expert).to(total.device).to(total.dtype) - base.to(total.dtype)
    total.add_(delta.add_(rounding).sub_(rounding), alpha=c)


def finish(total: Any, base: Any, live: Any, factor: float) -> None:
    """live = base + factor * total, rounded once."""
    if isinstance(base, np.ndarray) and isinstance(live, np.ndarray):
        _kernels().finish(total, base, live, factor)
        return
    sums, origin, out = _tensor(total), _tensor(base), _tensor(live)
    out.copy_((origin.to(sums.dtype) + factor * sums).to(out.dtype))


def span(expert: Tensor, base: Tensor) -> float:
    """The largest absolute value of expert minus base; not a finite number where the expert holds one that is not."""
    found: list[float] = []
    one, other = expert.detach().reshape(-1), base.detach().reshape(-1)
    if not is_compiled(other):
        for tile in tiles(len(other)):
            wide = one[tile].to(other.device).double() - other[tile].double()
            found.append(float(wide.abs().amax()))
    else:
        expert_values, base_values = flat(one), flat(other)
        spread(
            lambda tile: found.append(
                _kernels().span(_plain(expert_values[tile]), base_values[tile])
            ),
            list(tiles(len(other))),
        )
    return _largest(found)


def _largest(values: Iterable[float]) -> float:
    """The largest of some numbers, zero of none; not a number where one of them is not."""
    largest = 0.0
    for value in values:
        if math.isnan(value):
            return value
        largest = max(largest, value)
    return largest


def dot(gradient: Tensor, expert: Tensor, base: Tensor) -> float:
    """The sum over elements of gradient * (expert - base), in float64."""
    found: list[tuple[int, float]] = []
    if is_compiled(gradient, base):
        slopes, expert_values, base_values = flat(gradient), flat(expert), flat(base)

        def work(tile: slice) -> None:
            found.append(
                (
                    tile.start,
                    _kernels().dot(slopes[tile], _plain(expert_values[tile]), base_values[tile]),
                )
            )

        spread(work, list(tiles(len(base))))
        return math.fsum(value for _, value in sorted(found))
    for tile in tiles(len(base)):
        delta = expert[tile].to(base.device).double() - base[tile].double()
        found.append((tile.start, float((gradient[tile].double() * delta).sum())))
    return math.fsum(value for _, value in found)


def _plain(expert: Any) -> Any:
    """An expert's tile as float32 in numpy: as it lies, or converted where it is stored otherwise."""
    return expert if isinstance(expert, np.ndarray) else expert.float().cpu().contiguous().numpy()


def _tensor(values: Any) -> Tensor:
    import torch

    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


@cache
def _kernels() -> Any:
    """The compiled loops, whose module takes a moment to load."""
    from mergetomix.experts import kernels

    return kernels

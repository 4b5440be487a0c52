"""What a delta loses before it is merged: small values, the largest ones, or some by chance."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mergetomix.merge.parts import Parts

if TYPE_CHECKING:
    from torch import Tensor


def largest(delta: Tensor, density: float) -> Tensor:
    """The share `density` of values that are largest in magnitude (one at least), zero elsewhere (arXiv 2306.01708).

    Values as large as the smallest that is kept are kept too, so the order of values does not matter.
    """
    return between(delta, density, 0.0)


def between(delta: Tensor, density: float, gamma: float) -> Tensor:
    """The share `density` of values (one at least) below the share `gamma` that is largest in magnitude, zero elsewhere
    (arXiv 2312.06795, there with beta = 1 - density - gamma). Where both shares are more than all, gamma gives way.

    Values as large as the smallest or the largest that is kept are kept too.
    """
    num = delta.numel()
    num_kept = max(1, int(density * num))
    if num_kept >= num:
        return delta
    num_small = max(0, num - num_kept - int(gamma * num))
    size = delta.abs()
    low, high = _order_statistics(size.flatten(), (num_small, num_small + num_kept - 1))
    return delta.where((size >= low) & (size <= high), 0)


def _order_statistics(values: Tensor, places: tuple[int, int]) -> tuple[float, float]:
    """The values at two places, from 0, of the sorted ones. numpy's selection takes a quarter of torch's time on a CPU."""
    import numpy as np

    if values.device.type == "cpu":
        found = np.partition(values.numpy(), places)
        return float(found[places[0]]), float(found[places[1]])
    low, high = (values.kthvalue(place + 1).values for place in places)
    return float(low), float(high)


def drop(parts: Parts, place: int, keep: Tensor | float, seed: int) -> Tensor:
    """The delta of the expert at `place`: each value is kept with the probability `keep` and divided by it, else zero, so
    that its expectation is itself (arXiv 2311.03099).

    Args:
        keep: in (0, 1]; one number, or one for each value.
    """
    delta = parts.deltas[place]
    return (delta / keep).where(_uniform(delta, seed, parts.experts[place], parts.param) < keep, 0)


def _uniform(like: Tensor, seed: int, expert: str, param: str) -> Tensor:
    """Uniform numbers in [0, 1), drawn on the CPU so that every device has the same."""
    import torch

    digest = hashlib.sha256("\0".join([str(seed), expert, param]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(like.shape, generator=generator).to(like.device)


def rank_probabilities(delta: Tensor, density: float, epsilon: float, transposed: bool) -> Tensor:
    """The probabilities with which MAGPRUNE keeps values: density + epsilon * (r / (n - 1) - 1/2), r the rank of a value's
    magnitude among the n that lead to the same output, 0 for the smallest (arXiv 2406.11617).

    They lie between density - epsilon/2 and density + epsilon/2, and their mean is density. A param without inputs
    (a bias, a norm) is one group.

    Raises:
        ValueError: a probability would not be in (0, 1].
    """
    import torch

    if density - epsilon / 2 <= 0 or density + epsilon / 2 > 1:
        raise ValueError(f"density -+ epsilon/2 must lie in (0, 1], not {density} -+ {epsilon}/2")
    matrix = _by_output(delta, transposed)
    num = matrix.shape[1]
    steps = (torch.arange(num, device=delta.device) - (num - 1) / 2) / max(1, num - 1)
    order = matrix.abs().argsort(dim=1, stable=True)
    keep = torch.empty_like(matrix).scatter_(
        1, order, (density + epsilon * steps).to(matrix).expand(matrix.shape)
    )
    return keep.T if transposed and delta.ndim > 1 else keep.reshape(delta.shape)


def _by_output(delta: Tensor, transposed: bool) -> Tensor:
    """A view or a copy with a row for each output."""
    if delta.ndim < 2:
        return delta.reshape(1, -1)
    return delta.T if transposed else delta.flatten(1)

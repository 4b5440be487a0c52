"""What a delta loses before it is merged: small values, the largest ones, or some by chance."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mergetomix.merge.parts import Parts

if TYPE_CHECKING:
    from torch import Tensor


def between(delta: Tensor, density: float, gamma: float = 0.0) -> Tensor:
    """Returns the share `density` of values (one at least) below the share `gamma` of the largest.

    The other values are zero. Largeness is that of magnitudes. Without `gamma` this is the trimming
    of TIES (arXiv 2306.01708), with it that of Breadcrumbs (arXiv 2312.06795, there with
    beta = 1 - density - gamma). If both shares are more than all, gamma gives way.

    Values as large as the smallest or the largest that is kept are kept too, so the order of values
    does not matter.
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
    """Returns the values at two places, from 0, of the sorted ones."""
    import numpy as np

    if values.device.type == "cpu":  # numpy's selection takes a quarter of torch's time
        found = np.partition(values.numpy(), places)
        return float(found[places[0]]), float(found[places[1]])
    low, high = (values.kthvalue(place + 1).values for place in places)
    return float(low), float(high)


def drop(parts: Parts, place: int, keep: Tensor | float, seed: int) -> Tensor:
    """Returns the delta of the expert at `place`, some of its values dropped by chance.

    Each value is kept with the probability `keep` and divided by it, else zero, so that its
    expectation is itself (arXiv 2311.03099). The draws are made on the CPU, so that every device
    has the same.

    Args:
        keep: in (0, 1]; one number, or one for each value.
    """
    import torch

    delta = parts.deltas[place]
    text = "\0".join([str(seed), parts.experts[place], parts.param])
    digest = hashlib.sha256(text.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    uniform = torch.rand(delta.shape, generator=generator).to(delta.device)
    return (delta / keep).where(uniform < keep, 0)


def rank_probabilities(delta: Tensor, density: float, epsilon: float, transposed: bool) -> Tensor:
    """Returns the probabilities with which MAGPRUNE keeps values (arXiv 2406.11617).

    They are density + epsilon * (r / (n - 1) - 1/2), r the rank of a value's magnitude among the n
    that lead to the same output, 0 for the smallest: between density - epsilon/2 and
    density + epsilon/2, with the mean density. A param without inputs (a bias, a norm) is one
    group.

    Raises:
        ValueError: a probability would not be in (0, 1].
    """
    import torch

    if density - epsilon / 2 <= 0 or density + epsilon / 2 > 1:
        raise ValueError(f"density -+ epsilon/2 must lie in (0, 1], not {density} -+ {epsilon}/2")
    turned = transposed and delta.ndim == 2
    matrix = delta.T if turned else delta.flatten(1) if delta.ndim > 1 else delta.reshape(1, -1)
    num = matrix.shape[1]
    steps = (torch.arange(num, device=delta.device) - (num - 1) / 2) / max(1, num - 1)
    order = matrix.abs().argsort(dim=1, stable=True)
    values = (density + epsilon * steps).to(matrix).expand(matrix.shape)
    keep = torch.empty_like(matrix).scatter_(1, order, values)
    return keep.T if turned else keep.reshape(delta.shape)

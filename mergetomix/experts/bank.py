"""The experts' deltas, read once, and the live model whose params become any mixture's proxy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mergetomix import merge
from mergetomix.errors import ModelError
from mergetomix.experts import sums
from mergetomix.experts.deltas import FullDelta, LoraDelta, params
from mergetomix.merge.sums import blocks, exact

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

GIB = 2**30
_SHARE_OF_MEMORY = 0.5
_SUM_BYTES = 8


@dataclass(frozen=True)
class Room:
    """What of a bank fits in memory.

    `resident` says whether the full experts' tensors do; otherwise they are pages of their files.
    `running` says whether a sum does that is kept from one mixture to the next; otherwise it is
    made anew, block by block.
    """

    resident: bool
    running: bool


def room(
    deltas: Iterable[FullDelta | LoraDelta], base: Mapping[str, Tensor], memory_bytes: float
) -> Room:
    """Returns what of the full experts fits in `memory_bytes`, beside the model itself.

    Raises:
        ModelError: not even the work on the largest tensor does.
    """
    full = [delta for delta in deltas if isinstance(delta, FullDelta)]
    sizes = {name: base[name].numel() for delta in full for name in delta.names()}
    total = _SUM_BYTES * sum(sizes.values())
    experts = sum(delta.num_bytes for delta in full)
    largest = max(sizes, key=lambda name: sizes[name], default=None)
    if largest is not None and 2 * _SUM_BYTES * sizes[largest] > memory_bytes:
        needed, there = 2 * _SUM_BYTES * sizes[largest] / GIB, memory_bytes / GIB
        raise ModelError(
            "merge.memory_gib",
            f"the tensor {largest} alone needs {needed:.3g} GiB to be merged,"
            f" merge.memory_gib is {there:.3g}",
        )
    return Room(experts + total <= memory_bytes, total <= memory_bytes)


def free_memory_bytes(device: torch.device) -> float:
    """Returns how much of the memory that is free on a device a bank may take unless it is told."""
    import torch

    if device.type == "cuda":
        return _SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]
    import psutil

    return _SHARE_OF_MEMORY * float(psutil.virtual_memory().available)


@dataclass(frozen=True)
class Rule:
    """How experts are combined if not as a weighted sum.

    `experts` says what each is by its content (see `merge.Parts`), `statistics` holds what its
    method needs of each, by dataset and param; `transposed` are the params that stand as (in, out).
    """

    method: str
    options: Mapping[str, float]
    experts: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()


class Bank:
    """Base params and experts' deltas; the live params become those of any mixture.

    live = base + sum_i c_i delta_i, summed in float64 and rounded once. If all c_i are equal the
    sum of the members' deltas is kept: the next mixture costs one pass over each delta that comes
    or goes. Deltas lie on a grid that makes these sums exact, so that it does not matter by which
    way a mixture was reached.

    Args:
        model: a loaded base; its params become the live ones and are changed in place by `set`.
        deltas: one for each expert, by dataset.
        memory_bytes: for experts and sums, beside the model; None takes half of what is free,
            divided by `num_sharers`.
        origin: the base's params as pages of its files, to be used in place of a copy if experts
            are not in memory.
        num_sharers: how many processes share the memory, this one included. If they are several,
            full experts on a CPU are pages of their files, which all of them read.

    Tied params are one storage and are written once; buffers and integer tensors stay the base's.

    Raises:
        ModelError: the memory is too small for the largest tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        deltas: Mapping[str, FullDelta | LoraDelta],
        memory_bytes: float | None = None,
        origin: Mapping[str, Tensor] | None = None,
        num_sharers: int = 1,
    ) -> None:
        import torch

        self.model, self._live = model, params(model)
        device = next(iter(self._live.values())).device
        # MPS has no float64: sums are made beside it
        self.device = torch.device("cpu") if device.type == "mps" else device
        free = free_memory_bytes(device) / num_sharers if memory_bytes is None else memory_bytes
        found = room(deltas.values(), self._live, free)
        is_shared = num_sharers > 1 and device.type == "cpu"
        self.room = replace(found, resident=False) if is_shared else found
        self.deltas = {
            name: each.resident(self.device)
            if isinstance(each, FullDelta) and self.room.resident
            else each
            for name, each in deltas.items()
        }
        touched = sorted(set().union(*(delta.names() for delta in deltas.values())))
        self._base = {name: self._copied(name, origin or {}) for name in touched}
        adapted = set().union(*(d.names() for d in deltas.values() if isinstance(d, LoraDelta)))
        self._adapted = [name for name in touched if name in adapted]
        self._summed = [name for name in touched if name not in adapted]
        self._grids = {name: sums.grid(self._span(name)) for name in self._summed}
        self._totals = {
            name: torch.zeros(self._base[name].numel(), dtype=torch.float64, device=self.device)
            for name in (self._summed if self.room.running else ())
        }
        # of the running sum; None if it was left unfinished
        self._members: frozenset[str] | None = frozenset()

    def set(self, coefficients: Mapping[str, float]) -> None:
        """Live params <- base + sum_i c_i delta_i."""
        chosen = {name: coefficients[name] for name in sorted(coefficients)}
        for name in self._adapted:
            self._fold(name, chosen)
        values = set(chosen.values())
        if self.room.running and len(values) == 1:
            self._move(frozenset(chosen), values.pop())
        else:
            self._sum(chosen)

    def combine(self, rule: Rule, weights: Mapping[str, float], factor: float) -> None:
        """Live params <- base + gain * what a method makes of the deltas, param by param.

        Args:
            weights: on the simplex, by dataset; those of zero do not count.
            factor: of the merged delta, see `merge.delta_factor`.
        """
        chosen = {name: weights[name] for name in sorted(weights) if weights[name] > 0}
        combine = merge.METHODS[rule.method].combine
        for param, base in self._base.items():
            merged = combine(self._parts(rule, param, chosen), **rule.options)
            self._live[param].data.copy_(base.to(merged.dtype) + factor * merged)

    def _parts(self, rule: Rule, param: str, chosen: Mapping[str, float]) -> merge.Parts:
        base = self._base[param]
        known = [rule.statistics.get(name, {}).get(param) for name in chosen]
        there = [each.to(base.device) for each in known if each is not None]
        return merge.Parts(
            param,
            base,
            [self.deltas[name].dense(param, base) for name in chosen],
            list(chosen.values()),
            [rule.experts[name] for name in chosen],
            there if len(there) == len(chosen) else (),
            param in rule.transposed,
        )

    def reset(self) -> None:
        """Live params <- base, to the bit."""
        for name, base in self._base.items():
            self._live[name].data.copy_(base)

    def gradient(self, losses: Iterable[Tensor]) -> tuple[float, dict[str, float]]:
        """Returns the sum of some losses, and its derivative in every expert's coefficient.

        Both are taken at the live params. d loss / d c_i = <d loss / d params, delta_i>: the
        params' gradient costs one backward pass, whatever the number of experts, and every expert
        one product with it.

        Args:
            losses: scalars with their graphs, made one after the other while this runs: each graph
                is freed at once.
        """
        import torch

        asked = {name: param.requires_grad for name, param in self._live.items()}
        for name, param in self._live.items():
            param.requires_grad_(name in self._base)
            param.grad = None
        value = 0.0
        try:
            with torch.enable_grad():
                for loss in losses:
                    loss.backward()
                    value += float(loss.detach())
            along = {name: self._along(delta) for name, delta in sorted(self.deltas.items())}
            return value, along
        finally:
            for name, param in self._live.items():
                param.requires_grad_(asked[name])
                param.grad = None

    def _along(self, delta: FullDelta | LoraDelta) -> float:
        """Returns <gradient, delta> over all params."""
        total = 0.0
        for name in sorted(delta.names()):
            gradient, base = self._live[name].grad, self._base[name]
            if gradient is not None:
                total += delta.dot(name, gradient.to(base.device), base)
        return total

    # --- full experts

    def _move(self, members: frozenset[str], factor: float) -> None:
        """Moves the running sum to other members; live params <- base + factor * sum."""
        before = self._members
        fresh = before is None or len(before ^ members) > len(members)
        start = frozenset() if before is None or fresh else before
        signs = {name: 1.0 if name in members else -1.0 for name in sorted(start ^ members)}
        self._members = None
        for name, total in self._totals.items():
            for block in blocks(total):
                if fresh:
                    total[block] = 0
                self._step(name, block, total[block], signs, factor)
        self._members = members

    def _sum(self, chosen: Mapping[str, float]) -> None:
        """Live params <- base + sum_i c_i delta_i, made anew in the order of the names."""
        for name in self._summed:
            for block in blocks(self._base[name].view(-1)):
                self._step(name, block, None, chosen, 1.0)

    def _step(
        self,
        param: str,
        block: slice,
        total: Tensor | None,
        changes: Mapping[str, float],
        factor: float,
    ) -> None:
        """Adds c_i delta_i to a block of a sum; live block <- base + factor * sum, rounded once."""
        import torch

        base, grid = exact(self._base[param].view(-1)[block]), self._grids[param]
        total = torch.zeros_like(base) if total is None else total
        for name, change in changes.items():
            delta = self.deltas[name]
            if isinstance(delta, FullDelta) and param in delta.tensors:
                each = sums.difference(delta.tensors[param].reshape(-1)[block], base)
                total += each.add_(grid).sub_(grid).mul_(change)
        live = self._live[param].data.view(-1)
        live[block] = total.mul(factor).add_(base).to(live.dtype)

    # --- adapters

    def _fold(self, param: str, chosen: Mapping[str, float]) -> None:
        """Writes a param that adapters change: the sum of their products is one product."""
        import torch

        base = self._base[param]
        changing = {name: delta for name in chosen if param in (delta := self.deltas[name]).names()}
        lora = {name: each for name, each in changing.items() if isinstance(each, LoraDelta)}
        is_wide = len(lora) < len(changing) or base.dtype == torch.float64
        total = base.double() if is_wide else base.float()
        if lora:
            pairs = [each.factors[param] for each in lora.values()]
            factors = [chosen[name] * each.scaling_of(param) for name, each in lora.items()]
            product = merge.lora_product(pairs, factors, total.dtype)
            is_turned = param in next(iter(lora.values())).transposed
            total = total + (product.mT if is_turned else product).to(total)
        for name, full in changing.items():
            if isinstance(full, FullDelta):
                total = total + (full.tensors[param].to(total) - base.to(total)) * chosen[name]
        self._live[param].data.copy_(total)

    # --- laying out

    def _span(self, param: str) -> float:
        """Returns what no sum of the experts' deltas exceeds in absolute value."""
        full = [each for each in self.deltas.values() if isinstance(each, FullDelta)]
        return math.fsum(each.spans.get(param, 0.0) for each in full)

    def _copied(self, name: str, origin: Mapping[str, Tensor]) -> Tensor:
        """Returns the base's own of a param: pages of its file if they are the same, or a copy."""
        import torch

        live, page = self._live[name].data, origin.get(name)
        if not live.is_contiguous():
            live = self._live[name].data = live.contiguous()
        if page is None or self.room.resident or live.device.type != "cpu":
            return live.detach().to(self.device, copy=True)
        is_same = page.dtype == live.dtype and torch.equal(page, live)
        return page if is_same else live.detach().clone()

"""The experts' deltas, read once, and the live model whose params become any mixture's proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergetomix import merge
from mergetomix.errors import ModelError
from mergetomix.experts import sums
from mergetomix.experts.deltas import FullDelta, LoraDelta, params

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

GIB = 2**30
_SHARE_OF_MEMORY = 0.5
_SUM_BYTES = 8


@dataclass(frozen=True)
class Room:
    """What of a bank fits in memory: the full experts' tensors (`resident`; else they are pages of their files), and a sum
    that is kept from one mixture to the next (`running`; else it is made anew, tensor by tensor)."""

    resident: bool
    running: bool


def room(
    deltas: Iterable[FullDelta | LoraDelta], base: Mapping[str, Tensor], memory_bytes: float
) -> Room:
    """What of the full experts fits in `memory_bytes`, beside the model itself.

    Raises:
        ModelError: not even the work on the largest tensor does.
    """
    full = [delta for delta in deltas if isinstance(delta, FullDelta)]
    sizes = {name: base[name].numel() for delta in full for name in delta.names()}
    sums = _SUM_BYTES * sum(sizes.values())
    experts = sum(delta.num_bytes for delta in full)
    largest = max(sizes, key=lambda name: sizes[name], default=None)
    if largest is not None and 2 * _SUM_BYTES * sizes[largest] > memory_bytes:
        needed = (
            f"{2 * _SUM_BYTES * sizes[largest] / GIB:.3g} GiB to be merged, merge.memory_gib is"
        )
        raise ModelError(
            "merge.memory_gib",
            f"the tensor {largest} alone needs {needed} {memory_bytes / GIB:.3g}",
        )
    return Room(experts + sums <= memory_bytes, sums <= memory_bytes)


def free_memory_bytes(device: torch.device) -> float:
    """The share of the memory that is free where a model lies which a bank may take unless it is told."""
    import torch

    if device.type == "cuda":
        return _SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]
    import psutil

    return _SHARE_OF_MEMORY * float(psutil.virtual_memory().available)


@dataclass
class Slot:
    """One param of the live model: `base` is what it was, `total` the running sum of the members' deltas, None where none is
    kept, `experts` the tensors of those who change it, all as `passes.flat` has them. `rounding` is the grid of the deltas."""

    name: str
    param: Tensor
    base: Any
    rounding: float
    experts: Mapping[str, Any]
    total: Any = None

    @property
    def live(self) -> Any:
        """The live values, flat: the param's own memory, which another number type of the model makes anew."""
        return sums.flat(self.param.data)


Piece = list[tuple[Slot, slice]]


@dataclass(frozen=True)
class Rule:
    """How experts are combined where not as a weighted sum.

    `experts` says what each is by its content (see `merge.Parts`), `statistics` holds what its method needs of each, by
    dataset and param; `transposed` are the params that stand as (in, out).
    """

    method: str
    options: Mapping[str, float]
    experts: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()


class Bank:
    """Base params and experts' deltas; the live params become those of any mixture.

    live = base + sum_i c_i delta_i, summed in float64 and rounded once. Where all c_i are equal the sum of the members'
    deltas is kept: the next mixture costs one pass over each delta that comes or goes. Deltas lie on a grid that makes these
    sums exact, so that it does not matter by which way a mixture was reached.

    Args:
        model: a loaded base; its params become the live ones and are changed in place by `set`.
        deltas: one for each expert, by dataset.
        memory_bytes: for experts and sums, beside the model; None takes half of what is free.
        origin: the base's params as pages of its files, to be used in place of a copy where experts are not in memory.

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
    ) -> None:
        self.model = model
        self._live = params(model)
        device = next(iter(self._live.values())).device
        self.device = (
            device if device.type != "mps" else "cpu"
        )  # MPS has no float64: sums are made beside it
        self.room = room(
            deltas.values(),
            self._live,
            free_memory_bytes(device) if memory_bytes is None else memory_bytes,
        )
        self.deltas = {name: self._placed(delta) for name, delta in deltas.items()}
        self._touched = sorted(set().union(*(delta.names() for delta in deltas.values())))
        self._base = {name: self._copied(name, origin or {}) for name in self._touched}
        adapted = set().union(*(d.names() for d in deltas.values() if isinstance(d, LoraDelta)))
        self._adapted = [name for name in self._touched if name in adapted]
        self._slots = [self._slot(name) for name in self._touched if name not in adapted]
        compiled = sums.is_compiled(*(slot.param for slot in self._slots))
        self._pieces = pieces(self._slots, sums.TILE if compiled else sums.LARGE_TILE)
        self._members: frozenset[str] | None = (
            frozenset()
        )  # of the running sum; None where it was left unfinished

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

    def combine(self, rule: Rule, weights: Mapping[str, float], gain: float) -> None:
        """Live params <- base + gain * what a method makes of the deltas, one param after the other.

        Args:
            weights: on the simplex, by dataset; those of zero do not count.
            gain: the factor on the merged delta, see `merge.gain`.
        """
        chosen = {name: weights[name] for name in sorted(weights) if weights[name] > 0}
        combine = merge.METHODS[rule.method].combine
        for param in self._touched:
            base = self._base[param]
            merged = combine(self._parts(rule, param, chosen), **rule.options)
            total = (
                base.to(merged.dtype) + gain * merged
                if gain != 1
                else base.to(merged.dtype) + merged
            )
            self._live[param].data.copy_(total.to(self._live[param].dtype))

    def _parts(self, rule: Rule, param: str, chosen: Mapping[str, float]) -> merge.Parts:
        import torch

        base = self._base[param]
        deltas = [
            delta.dense(param, base)
            if param in delta.names()
            else torch.zeros_like(base, dtype=torch.float32)
            for delta in (self.deltas[name] for name in chosen)
        ]
        known = [rule.statistics.get(name, {}).get(param) for name in chosen]
        statistics = [each.to(base.device) for each in known if each is not None]
        return merge.Parts(
            param,
            base,
            deltas,
            list(chosen.values()),
            [rule.experts[name] for name in chosen],
            statistics if len(statistics) == len(chosen) else (),
            param in rule.transposed,
        )

    def reset(self) -> None:
        """Live params <- base, to the bit."""
        for name in self._touched:
            self._live[name].data.copy_(self._base[name])

    def gradient(self, losses: Iterable[Tensor]) -> tuple[float, dict[str, float]]:
        """The sum of some losses at the live params, and its derivative in every expert's coefficient.

        d loss / d c_i = <d loss / d params, delta_i>: the params' gradient costs one backward pass, whatever the number of
        experts, and every expert one product with it.

        Args:
            losses: scalars with their graphs, made one after the other while this runs: each graph is freed at once.
        """
        import torch

        asked = {name: param.requires_grad for name, param in self._live.items()}
        for name, param in self._live.items():
            param.requires_grad_(name in self._base)
            param.grad = None
        try:
            with torch.enable_grad():
                value = sum(_backward(loss) for loss in losses)
            return float(value), {
                name: self._along(delta) for name, delta in sorted(self.deltas.items())
            }
        finally:
            for name, param in self._live.items():
                param.requires_grad_(asked[name])
                param.grad = None

    def _along(self, delta: FullDelta | LoraDelta) -> float:
        """<gradient, delta> over all params."""
        total = 0.0
        for name in sorted(delta.names()):
            gradient = self._live[name].grad
            if gradient is None:
                continue
            if isinstance(delta, FullDelta):
                base, expert = self._base[name].reshape(-1), delta.tensors[name].reshape(-1)
                total += sums.dot(gradient.reshape(-1).to(base.device), expert, base)
            else:
                b, a = delta.factors[name]
                outer = gradient.T if name in delta.transposed else gradient
                total += delta.scaling * float(
                    ((b.to(outer).T @ outer) * a.to(outer)).sum(dtype=_widest(outer))
                )
        return total

    # --- full experts

    def _move(self, members: frozenset[str], factor: float) -> None:
        """The running sum <- that of other members, live params <- base + factor * sum."""
        before, changes = self._members, [(name, 1.0) for name in sorted(members)]
        fresh = before is None or len(before ^ members) > len(members)
        if before is not None and not fresh:
            changes = [
                (name, 1.0 if name in members else -1.0) for name in sorted(before ^ members)
            ]
        self._members = None
        self._spread(lambda piece: self._shift(piece, changes, factor, fresh))
        self._members = members

    def _spread(self, work: Callable[[Piece], None]) -> None:
        if sums.is_compiled(*(slot.param for slot in self._slots)):
            sums.spread(work, self._pieces)
        else:
            for piece in self._pieces:
                work(piece)

    def _shift(
        self, piece: Piece, changes: Sequence[tuple[str, float]], factor: float, fresh: bool
    ) -> None:
        for slot, tile in piece:
            total, base, live = slot.total[tile], slot.base[tile], slot.live[tile]
            if fresh:
                total[:] = 0
            todo = [(slot.experts[name], c) for name, c in changes if name in slot.experts]
            for expert, c in todo[:-1]:
                sums.add(total, expert[tile], base, c, slot.rounding)
            if todo:
                expert, c = todo[-1]
                sums.step(total, expert[tile], base, live, (c, slot.rounding, factor))
            else:
                sums.finish(total, base, live, factor)

    def _sum(self, chosen: Mapping[str, float]) -> None:
        """Live params <- base + sum_i c_i delta_i, made anew in the order of the names."""
        self._spread(lambda piece: self._sum_piece(piece, chosen))

    def _sum_piece(self, piece: Piece, chosen: Mapping[str, float]) -> None:
        for slot, tile in piece:
            base = slot.base[tile]
            total = sums.zeros(base, self.device)
            for name, c in chosen.items():
                if name in slot.experts:
                    sums.add(total, slot.experts[name][tile], base, c, slot.rounding)
            sums.finish(total, base, slot.live[tile], 1.0)

    # --- adapters

    def _fold(self, name: str, chosen: Mapping[str, float]) -> None:
        """A param that adapters change: the sum of their products is one product, of the sum of their ranks."""
        import torch

        base = self._base[name]
        lora = [(d, c) for d, c in self._changing(name, chosen) if isinstance(d, LoraDelta)]
        full = [(d, c) for d, c in self._changing(name, chosen) if isinstance(d, FullDelta)]
        total = base.double() if full or base.dtype == torch.float64 else base.float()
        if lora:
            product = merge.lora_product(
                [d.factors[name] for d, _ in lora], [c * d.scaling for d, c in lora], total.dtype
            )
            total = total + (product.T if name in lora[0][0].transposed else product).to(total)
        for delta, c in full:
            total = total + c * (delta.tensors[name].to(total) - base.to(total))
        self._live[name].data.copy_(total.to(self._live[name].dtype))

    def _changing(
        self, param: str, chosen: Mapping[str, float]
    ) -> list[tuple[FullDelta | LoraDelta, float]]:
        return [
            (self.deltas[name], c)
            for name, c in chosen.items()
            if param in self.deltas[name].names()
        ]

    # --- laying out

    def _placed(self, delta: FullDelta | LoraDelta) -> FullDelta | LoraDelta:
        if isinstance(delta, FullDelta) and self.room.resident:
            return delta.resident(self.device)
        return delta

    def _copied(self, name: str, origin: Mapping[str, Tensor]) -> Tensor:
        """The base's own of a param: pages of its file where they are the same, else a copy."""
        import torch

        live = self._live[name].data
        page = origin.get(name)
        on_file = (
            page is not None
            and live.device.type == "cpu"
            and page.dtype == live.dtype
            and torch.equal(page, live)
        )
        if on_file and not self.room.resident:
            assert page is not None
            return page
        return live.detach().to(self.device, copy=True)

    def _slot(self, name: str) -> Slot:
        full = {
            key: d
            for key, d in self.deltas.items()
            if isinstance(d, FullDelta) and name in d.tensors
        }
        base, param = sums.flat(self._base[name]), self._live[name]
        if not param.is_contiguous():
            param.data = param.data.contiguous()
        experts = {key: sums.flat(delta.tensors[name]) for key, delta in full.items()}
        rounding = sums.grid(sum(delta.spans[name] for delta in full.values()))
        return Slot(
            name,
            param,
            base,
            rounding,
            experts,
            sums.zeros(base, self.device) if self.room.running else None,
        )


def pieces(slots: Sequence[Slot], most: int) -> list[Piece]:
    """The slots' tiles of at most `most` elements, small ones together: work for one thread at a time."""
    found: list[Piece] = []
    room_left = 0
    for slot in slots:
        for tile in sums.tiles(len(slot.base), most):
            num = tile.stop - tile.start
            if num > room_left:
                found.append([])
                room_left = most
            found[-1].append((slot, tile))
            room_left -= num
    return found


def _backward(loss: Tensor) -> float:
    loss.backward()
    return float(loss.detach())


def _widest(tensor: Tensor) -> Any:
    """The type to sum in: float64 where the device has it."""
    import torch

    return tensor.dtype if tensor.device.type == "mps" else torch.float64

"""All adapters beside an untouched base: what an adapted layer adds is weighed by a small vector instead of being merged.

    y = W x + B diag(r) A x        A, B: all experts' factors stacked, r: each expert's coefficient for each of its ranks

Switching from one mixture to another costs nothing, every sequence of a batch may have a mixture of its own, and the loss is
differentiable in the coefficients. Each token pays for the stacked ranks; a merge pays once for each mixture instead. Which is
cheaper is in benchmarks/README.md.

Shapes: B sequences, N experts, R sum of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergetomix.errors import ModelError
from mergetomix.experts.deltas import LoraDelta

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Stack:
    """The factors of one layer: A (R, in), B (out, R) with each adapter's scaling, and the expert of each rank (R,)."""

    a: Tensor
    b: Tensor
    expert: Tensor


class Beside:
    """A base and adapters that stay apart.

    Args:
        model: the base; it is not changed.
        deltas: one adapter for each expert, by dataset. Coefficients stand in the order of the sorted names.

    Raises:
        ModelError: an expert is a full model.
    """

    def __init__(self, model: nn.Module, deltas: Mapping[str, Any]) -> None:
        self.model = model
        self.names = tuple(sorted(deltas))
        for name in self.names:
            if not isinstance(deltas[name], LoraDelta):
                raise ModelError(f"datasets.{name}.expert", "only adapters can stand beside a base, and this is a full model")
        adapted = sorted(set().union(*(delta.names() for delta in deltas.values())))
        self._stacks = {name.removesuffix(".weight"): self._stack(name, deltas) for name in adapted}

    @contextmanager
    def mixed(self, coefficients: Tensor) -> Iterator[nn.Module]:
        """The model as base + sum_i c_i s_i B_i A_i while this lasts.

        Args:
            coefficients: (N,) for one mixture, (B, N) for one for each sequence of the batch; gradients flow into it.
        """
        with ExitStack() as hooks:
            for module, stack in self._stacks.items():
                r = coefficients[..., stack.expert]
                handle = self.model.get_submodule(module).register_forward_hook(_adding(stack, r))
                hooks.callback(handle.remove)
            yield self.model

    def _stack(self, param: str, deltas: Mapping[str, LoraDelta]) -> Stack:
        import torch

        weight = self.model.get_parameter(param)
        mine = [(i, deltas[name]) for i, name in enumerate(self.names) if param in deltas[name].factors]
        a = torch.cat([delta.factors[param][1] for _, delta in mine]).to(weight)
        b = torch.cat([delta.scaling * delta.factors[param][0].float() for _, delta in mine], dim=1).to(weight)
        expert = [i for i, delta in mine for _ in range(len(delta.factors[param][1]))]
        return Stack(a, b, torch.tensor(expert, device=weight.device))


def _adding(stack: Stack, r: Tensor) -> Any:
    """A hook that adds B diag(r) A x to a layer's output; `r` is (R,) or (B, R)."""

    def hook(_module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = arguments
        weight = r if r.ndim == 1 else r.reshape(len(r), *[1] * (x.ndim - 2), r.shape[-1])
        return output + ((x @ stack.a.T) * weight.to(x)) @ stack.b.T

    return hook

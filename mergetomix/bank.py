"""The experts' deltas, read once, and the live model whose params become any mixture's proxy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergetomix import merge
from mergetomix.errors import ModelError
from mergetomix.families import Family

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "base_model.model."
# What makes a LoRA adapter more than scaling * B A on linear layers, by its key in adapter_config.json.
INEXACT = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
# Ways to start an adapter that change the base's own weights.
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


class Delta(Protocol):
    """An expert's params minus the base's."""

    def names(self) -> set[str]:
        """The params that differ from the base's."""
        ...


@dataclass(frozen=True)
class FullDelta:
    """A delta held as one float32 tensor for each param that changed."""

    tensors: Mapping[str, Tensor]

    def names(self) -> set[str]:
        """The params that changed."""
        return set(self.tensors)


@dataclass(frozen=True)
class LoraDelta:
    """A delta held as factors: scaling * B @ A for each adapted param, with B (out, rank) and A (rank, in).

    `transposed` names the params that the model keeps as (in, out).
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scaling: float
    transposed: frozenset[str] = frozenset()

    def names(self) -> set[str]:
        """The adapted params."""
        return set(self.factors)


class Bank:
    """Base params and experts' deltas in memory.

    Args:
        model: a loaded base; its params become the live ones and are changed in place by `set`.
        deltas: one for each expert, by dataset.

    Tied params are one storage and are written once; buffers and integer tensors stay the base's.
    """

    def __init__(self, model: nn.Module, deltas: Mapping[str, FullDelta | LoraDelta]) -> None:
        self.model = model
        self.deltas = dict(deltas)
        self._live = params(model)
        self._touched = sorted(set().union(*(delta.names() for delta in deltas.values())))
        self._base = {name: self._live[name].detach().clone() for name in self._touched}

    def set(self, coefficients: Mapping[str, float]) -> None:
        """Live params <- base + sum_i c_i delta_i, summed in float32 in the order of the names, rounded once."""
        chosen = [(self.deltas[name], coefficients[name]) for name in sorted(coefficients)]
        for name in self._touched:
            self._live[name].data.copy_(self._merged(name, chosen))

    def reset(self) -> None:
        """Live params <- base, to the bit."""
        for name in self._touched:
            self._live[name].data.copy_(self._base[name])

    def _merged(self, name: str, chosen: list[tuple[FullDelta | LoraDelta, float]]) -> Tensor:
        base = self._base[name]
        full = [(d.tensors[name], c) for d, c in chosen if isinstance(d, FullDelta) and name in d.tensors]
        total = merge.linear(base, [t for t, _ in full], [c for _, c in full])
        adapted = [(d, c) for d, c in chosen if isinstance(d, LoraDelta) and name in d.factors]
        if adapted:
            pairs = [d.factors[name] for d, _ in adapted]
            product = merge.lora_product(pairs, [c * d.scaling for d, c in adapted])
            total += (product.T if name in adapted[0][0].transposed else product).to(total)
        return total


def params(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point params by name, each storage once."""
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


def read_delta(family: Family, base: Mapping[str, Tensor], path: str, where: str) -> FullDelta | LoraDelta:
    """The delta of the expert in folder `path`: a full model or a LoRA adapter, in safetensors.

    Args:
        base: the base's params.
        where: the expert's place in the recipe, for errors.

    Raises:
        ModelError: a tensor is missing, extra or misshapen, or the adapter is of a kind that is no plain product.
    """
    if not Path(path).is_dir():
        raise ModelError(where, f"{path} is not a folder")
    if (Path(path) / "adapter_config.json").exists():
        return _lora(family, base, Path(path), where)
    expert = family.load(path, where)
    deltas = full_delta(base, params(expert), where)
    changed = {name: delta for name, delta in deltas.items() if delta.any()}
    family.check_expert(expert, frozenset(changed), where)
    return FullDelta(changed)


def full_delta(base: Mapping[str, Tensor], expert: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Expert minus base in float32, for every param. Raises ModelError naming the first tensor that does not fit."""
    import torch

    for name in sorted(set(base) ^ set(expert)):
        side = "lacks" if name in base else "has, but the base lacks,"
        raise ModelError(where, f"the expert {side} the tensor {name}")
    deltas = {}
    for name, tensor in base.items():
        if expert[name].shape != tensor.shape:
            shapes = f"{tuple(expert[name].shape)} in the expert, {tuple(tensor.shape)} in the base"
            raise ModelError(where, f"the tensor {name} has the shape {shapes}", hint="experts must come from this base")
        deltas[name] = expert[name].detach().float() - tensor.detach().float()
        if not torch.isfinite(deltas[name]).all():
            raise _not_finite(name, where)
    return deltas


def _lora(family: Family, base: Mapping[str, Tensor], path: Path, where: str) -> LoraDelta:
    from safetensors.torch import load_file

    file = path / "adapter_model.safetensors"
    if not file.exists():
        raise ModelError(where, f"{path} holds no adapter_model.safetensors", hint="only safetensors are read, never pickles")
    with family.errors(str(path), where):
        config = json.loads((path / "adapter_config.json").read_text())
        _refuse_inexact(config, where)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        tensors = load_file(file)
    factors = {name: _on_device(pair, base, name) for name, pair in _pairs(tensors, where).items()}
    for name, pair in factors.items():
        _check_pair(name, pair, base, name in family.transposed, where)
    family.check_expert(None, frozenset(factors), where)
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraDelta(factors, scaling, family.transposed)


def _refuse_inexact(config: Mapping[str, Any], where: str) -> None:
    """Adapters whose delta is not scaling * B A on this very base, with one scaling, are refused by name."""
    if config.get("peft_type") != "LORA":
        raise ModelError(where, f"adapters of type {config.get('peft_type')} cannot be merged exactly; LORA can")
    for key in INEXACT:
        if config.get(key):
            raise ModelError(where, f"an adapter with {key} set cannot be merged exactly")
    if config.get("bias", "none") != "none":
        raise ModelError(where, f"an adapter with bias: {config['bias']} cannot be merged exactly")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(MOVES_BASE):
        hint = "convert it to a plain adapter with PEFT's path_initial_model_for_weight_conversion"
        raise ModelError(where, f"an adapter with init_lora_weights: {start} stands on a changed base", hint=hint)


def _pairs(tensors: Mapping[str, Tensor], where: str) -> dict[str, tuple[Tensor, Tensor]]:
    """(B, A) of every adapted param."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key in sorted(tensors):
        stem, found, side = key.rpartition(".lora_")
        if not found or side not in ("A.weight", "B.weight") or not key.startswith(PREFIX):
            raise ModelError(where, f"the adapter's tensor {key} is no LoRA factor, so it cannot be merged exactly")
        other = f"{stem}.lora_{'B' if side[0] == 'A' else 'A'}.weight"
        if other not in tensors:
            raise ModelError(where, f"the adapter lacks the tensor {other}")
        pairs[f"{stem.removeprefix(PREFIX)}.weight"] = (tensors[f"{stem}.lora_B.weight"], tensors[f"{stem}.lora_A.weight"])
    if not pairs:
        raise ModelError(where, "the adapter holds no tensors")
    return pairs


def _on_device(pair: tuple[Tensor, Tensor], base: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The factors beside the param that they change, so that products are taken there."""
    device = base[name].device if name in base else None
    return pair[0].to(device), pair[1].to(device)


def _check_pair(name: str, pair: tuple[Tensor, Tensor], base: Mapping[str, Tensor], transposed: bool, where: str) -> None:
    import torch

    if name not in base:
        raise ModelError(where, f"the adapter changes {name}, which the base lacks or shares with another tensor")
    b, a = pair
    shape = (b.shape[0], a.shape[1]) if a.ndim == b.ndim == 2 and b.shape[1] == a.shape[0] else None
    wanted = tuple(base[name].shape)[:: -1 if transposed else 1]
    if shape != wanted:
        message = f"the adapter of {name} has the factors B {tuple(b.shape)} and A {tuple(a.shape)}, the base needs {wanted}"
        raise ModelError(where, message, hint="experts must come from this base")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise _not_finite(name, where)


def _not_finite(name: str, where: str) -> ModelError:
    return ModelError(where, f"the tensor {name} of the expert holds values that are not finite")


def nonfinite(model: nn.Module, names: Iterable[str] | None = None) -> str | None:
    """The first param that holds a value that is not finite, or None."""
    import torch

    wanted = params(model)
    return next((n for n in names or wanted if not torch.isfinite(wanted[n]).all()), None)

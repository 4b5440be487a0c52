"""Experts' deltas as they lie on the disk: a full model's own tensors, mapped, or the factors of an adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergetomix import merge
from mergetomix.errors import ModelError
from mergetomix.experts import sums
from mergetomix.models.family import Family

if TYPE_CHECKING:
    import torch
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

    def dense(self, name: str, base: Tensor) -> Tensor:
        """The delta of one param, float32, in the base's shape."""
        ...


@dataclass(frozen=True)
class FullDelta:
    """A delta held as the expert's own tensors, one for each param that changed: it is what they are more than the base's.

    The difference is taken in float64 where it is used, so it is exact, and nothing is kept but what the file holds.

    `spans` are the largest absolute values of the differences. `mapped` says whether the tensors are pages of a file.
    """

    tensors: Mapping[str, Tensor]
    spans: Mapping[str, float]
    mapped: bool = False

    def names(self) -> set[str]:
        """The params that changed."""
        return set(self.tensors)

    def dense(self, name: str, base: Tensor) -> Tensor:
        """Expert minus base, rounded to float32."""
        expert = self.tensors[name]
        return expert.to(base.device).float() - base.float()

    @property
    def num_bytes(self) -> int:
        """What the tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def resident(self, device: torch.device | str) -> FullDelta:
        """The same in the memory of a device."""
        return FullDelta(
            {name: tensor.to(device, copy=True) for name, tensor in self.tensors.items()},
            self.spans,
        )


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

    def dense(self, name: str, base: Tensor) -> Tensor:
        """scaling * B @ A in the base's shape, float32."""
        product = merge.lora_product([self.factors[name]], [self.scaling])
        return product.T if name in self.transposed else product


def params(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point params by name, each storage once."""
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


def nonfinite(model: nn.Module, names: Iterable[str] | None = None) -> str | None:
    """The first param that holds a value that is not finite, or None."""
    import torch

    wanted = params(model)
    return next((n for n in names or wanted if not torch.isfinite(wanted[n]).all()), None)


def read_delta(
    family: Family, base: Mapping[str, Tensor], path: str, where: str, scratch: Path | None = None
) -> FullDelta | LoraDelta:
    """The delta of the expert in folder `path`: a full model or a LoRA adapter, in safetensors.

    A model's tensors stay in its files, mapped. Where its files name them otherwise than the loaded model does, they are
    written to the folder `scratch` and mapped from there; without one they are held in memory.

    Args:
        base: the base's params.
        where: the expert's place in the recipe, for errors.

    Raises:
        ModelError: a tensor is missing, extra, misshapen, not finite or less precise than the base's, or the adapter is of
            a kind that is no plain product.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(where, f"{path} is not a folder")
    family.check_folder(folder, where)
    if (folder / "adapter_config.json").exists():
        return _lora(family, base, folder, where)
    tensors = mapped(family, folder, base, where)
    if tensors is not None:
        delta = compare(base, tensors, where, is_mapped=True)
        family.check_expert(lambda: family.load(path, where), frozenset(delta.tensors), where)
        return delta
    model = family.load(path, where)
    delta = compare(base, params(model), where)
    family.check_expert(lambda: model, frozenset(delta.tensors), where)
    return delta if scratch is None else _spilled(delta, scratch / "expert.safetensors")


def mapped(
    family: Family, folder: Path, base: Mapping[str, Tensor], where: str
) -> dict[str, Tensor] | None:
    """The tensors of a model's safetensors files as they are stored, mapped; None where their names are not the params'.

    Raises:
        ModelError: a file is broken.
    """
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    with family.errors(str(folder), where):
        names = (
            sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if index.exists()
            else ["model.safetensors"]
        )
        if not all((folder / name).is_file() for name in names):
            return None
        found: dict[str, Tensor] = {}
        for name in names:
            with safe_open(folder / name, framework="pt") as file:
                found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping: it has no iterator)
    plain = set(found) == set(base) and all(tensor.is_floating_point() for tensor in found.values())
    return found if plain else None


def _spilled(delta: FullDelta, file: Path) -> FullDelta:
    from safetensors import safe_open
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in delta.tensors.items()}, file
    )
    with safe_open(file, framework="pt") as opened:
        return FullDelta(
            {name: opened.get_tensor(name) for name in delta.tensors}, delta.spans, mapped=True
        )


def compare(
    base: Mapping[str, Tensor], expert: Mapping[str, Tensor], where: str, is_mapped: bool = False
) -> FullDelta:
    """The params of an expert that differ from the base's. Raises ModelError naming the first tensor that does not fit."""
    for name in sorted(set(base) ^ set(expert)):
        side = "lacks" if name in base else "has, but the base lacks,"
        raise ModelError(where, f"the expert {side} the tensor {name}")
    spans = {}
    for name, tensor in base.items():
        if expert[name].shape != tensor.shape:
            shapes = f"{tuple(expert[name].shape)} in the expert, {tuple(tensor.shape)} in the base"
            raise ModelError(
                where,
                f"the tensor {name} has the shape {shapes}",
                hint="experts must come from this base",
            )
        span = sums.span(expert[name], tensor)
        if not math.isfinite(span):
            raise _not_finite(name, where)
        if span:
            spans[name] = span
            _check_precision(name, expert[name], tensor, where)
    return FullDelta({name: expert[name].detach() for name in spans}, spans, is_mapped)


def _check_precision(name: str, expert: Tensor, base: Tensor, where: str) -> None:
    """Raises ModelError where an expert has fewer digits than the base: what differs would be their rounding."""
    import torch

    if torch.finfo(expert.dtype).eps <= torch.finfo(base.dtype).eps or torch.equal(
        base.to(expert.dtype).to(base.dtype), base
    ):
        return  # a base that was stored with as few digits lost none
    kinds = f"{str(expert.dtype).removeprefix('torch.')}, the base's as {str(base.dtype).removeprefix('torch.')}"
    message = f"the expert's tensor {name} stands as {kinds}: what they differ by would be rounding"
    raise ModelError(
        where, message, hint="save the expert in the base's number type, or give it as an adapter"
    )


def _lora(family: Family, base: Mapping[str, Tensor], path: Path, where: str) -> LoraDelta:
    from safetensors.torch import load_file

    file = path / "adapter_model.safetensors"
    if not file.exists():
        raise ModelError(
            where,
            f"{path} holds no adapter_model.safetensors",
            hint="only safetensors are read, never pickles",
        )
    with family.errors(str(path), where):
        config = json.loads((path / "adapter_config.json").read_text())
        _refuse_inexact(config, where)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        _check_scaling(rank, alpha, where)
        tensors = load_file(file)
    factors = {name: _on_device(pair, base, name) for name, pair in _pairs(tensors, where).items()}
    for name, pair in factors.items():
        _check_pair(name, pair, base, name in family.transposed, where)
        if pair[1].shape[0] != rank:
            message = f"the adapter of {name} has the rank {pair[1].shape[0]}, its configuration says r: {rank}"
            raise ModelError(where, message, hint="the scaling follows from r, so both must be one")
    family.check_expert(None, frozenset(factors), where)
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraDelta(factors, scaling, family.transposed)


def _refuse_inexact(config: Mapping[str, Any], where: str) -> None:
    """Adapters whose delta is not scaling * B A on this very base, with one scaling, are refused by name."""
    if config.get("peft_type") != "LORA":
        raise ModelError(
            where, f"adapters of type {config.get('peft_type')} cannot be merged exactly; LORA can"
        )
    for key in INEXACT:
        if config.get(key):
            raise ModelError(where, f"an adapter with {key} set cannot be merged exactly")
    if config.get("bias", "none") != "none":
        raise ModelError(where, f"an adapter with bias: {config['bias']} cannot be merged exactly")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(MOVES_BASE):
        hint = "convert it to a plain adapter with PEFT's path_initial_model_for_weight_conversion"
        raise ModelError(
            where, f"an adapter with init_lora_weights: {start} stands on a changed base", hint=hint
        )


def _check_scaling(rank: int, alpha: float, where: str) -> None:
    if rank < 1 or not math.isfinite(alpha):
        raise ModelError(
            where,
            f"an adapter needs a rank r of at least 1 and a finite lora_alpha, not {rank} and {alpha}",
        )


def _pairs(tensors: Mapping[str, Tensor], where: str) -> dict[str, tuple[Tensor, Tensor]]:
    """(B, A) of every adapted param."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key in sorted(tensors):
        stem, found, side = key.rpartition(".lora_")
        if not found or side not in ("A.weight", "B.weight") or not key.startswith(PREFIX):
            raise ModelError(
                where,
                f"the adapter's tensor {key} is no LoRA factor, so it cannot be merged exactly",
            )
        other = f"{stem}.lora_{'B' if side[0] == 'A' else 'A'}.weight"
        if other not in tensors:
            raise ModelError(where, f"the adapter lacks the tensor {other}")
        pairs[f"{stem.removeprefix(PREFIX)}.weight"] = (
            tensors[f"{stem}.lora_B.weight"],
            tensors[f"{stem}.lora_A.weight"],
        )
    if not pairs:
        raise ModelError(where, "the adapter holds no tensors")
    return pairs


def _on_device(
    pair: tuple[Tensor, Tensor], base: Mapping[str, Tensor], name: str
) -> tuple[Tensor, Tensor]:
    """The factors beside the param that they change, so that products are taken there."""
    device = base[name].device if name in base else None
    return pair[0].to(device), pair[1].to(device)


def _check_pair(
    name: str, pair: tuple[Tensor, Tensor], base: Mapping[str, Tensor], transposed: bool, where: str
) -> None:
    import torch

    if name not in base:
        raise ModelError(
            where, f"the adapter changes {name}, which the base lacks or shares with another tensor"
        )
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

"""Experts' deltas as they lie on the disk: a full model's tensors, mapped, or LoRA factors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkstemp
from typing import TYPE_CHECKING, Any

from mergetomix import merge
from mergetomix.bounds import Exceeded, limited
from mergetomix.errors import ModelError
from mergetomix.experts import sums
from mergetomix.merge.sums import exact
from mergetomix.models.family import Loads

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PREFIX = "base_model.model."
_FROM_THIS_BASE = "experts must come from this base"

INEXACT = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
"""The keys of adapter_config.json that make an adapter more than scaling * B A on linear layers."""

MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Ways to start an adapter that change the base's own weights."""


@dataclass(frozen=True)
class FullDelta:
    """A delta held as the expert's own tensors, one for each param that changed.

    The delta is what they are more than the base's. The difference is taken in float64 where it is
    used, so it is exact, and nothing is kept but what the file holds.

    Args:
        spans: the largest absolute values of the differences.
        mapped: whether the tensors are pages of a file.
    """

    tensors: Mapping[str, Tensor]
    spans: Mapping[str, float]
    mapped: bool = False

    def names(self) -> Set[str]:
        """Returns the params that changed."""
        return self.tensors.keys()

    def dense(self, name: str, base: Tensor) -> Tensor:
        """Returns the delta of one param, rounded to float32; zero if it did not change."""
        expert = self.tensors.get(name, base)
        return expert.to(base.device).float() - base.float()

    def dot(self, name: str, gradient: Tensor, base: Tensor) -> float:
        """Returns the sum of gradient * delta over one param's elements."""
        expert = self.tensors[name].reshape(-1)
        return sums.dot(gradient.to(base.device).reshape(-1), expert, base.reshape(-1))

    @property
    def num_bytes(self) -> int:
        """What the tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def resident(self, device: torch.device) -> FullDelta:
        """Returns the same in the memory of a device."""
        copies = {name: tensor.to(device, copy=True) for name, tensor in self.tensors.items()}
        return FullDelta(copies, self.spans)


@dataclass(frozen=True)
class LoraDelta:
    """A delta held as factors: scaling * B A for each adapted param.

    Args:
        factors: (B, A) with the shapes (out, rank) and (rank, in); of a stack of matrices, such as
            the experts of a layer, (num, out, rank) and (num, rank, in).
        transposed: the params that the model keeps as (in, out).
        scalings: of params whose scaling is another.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scaling: float
    transposed: frozenset[str] = frozenset()
    scalings: Mapping[str, float] = field(default_factory=dict)

    def scaling_of(self, name: str) -> float:
        """Returns the factor on the product of a param's factors."""
        return self.scalings.get(name, self.scaling)

    def names(self) -> Set[str]:
        """Returns the adapted params."""
        return self.factors.keys()

    def dense(self, name: str, base: Tensor) -> Tensor:
        """Returns the delta of one param, float32, in the base's shape; zero if not adapted."""
        if name not in self.factors:
            return base.new_zeros(base.shape).float()
        product = merge.lora_product([self.factors[name]], [self.scaling_of(name)])
        return product.mT if name in self.transposed else product

    def dot(self, name: str, gradient: Tensor, base: Tensor) -> float:
        """Returns the sum of gradient * delta over one param's elements."""
        b, a = self.factors[name]
        outer = gradient.mT if name in self.transposed else gradient
        return self.scaling_of(name) * float(exact((b.to(outer).mT @ outer) * a.to(outer)).sum())


def params(model: nn.Module) -> dict[str, Tensor]:
    """Returns the floating-point params by name, each storage once."""
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


def nonfinite(model: nn.Module) -> str | None:
    """Returns the first param that holds a value that is not finite, or None."""
    return next((name for name, p in params(model).items() if not p.isfinite().all()), None)


def read_delta(
    family: Loads, base: Mapping[str, Tensor], path: str, where: str, scratch: Path | None = None
) -> FullDelta | LoraDelta:
    """Returns the delta of the expert in folder `path`: a full model or a LoRA adapter.

    A model's tensors stay in its files, mapped. If its files name them otherwise than the loaded
    model does, they are written to the folder `scratch` and mapped from there; without one they are
    held in memory.

    Args:
        base: the base's params.
        where: the expert's place in the recipe, for errors.

    Raises:
        ModelError: a tensor is missing, extra, misshapen, not finite or less precise than the
            base's, the adapter is of a kind that is no plain product, or it is no safetensors.
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
    family: Loads, folder: Path, base: Mapping[str, Tensor], where: str
) -> dict[str, Tensor] | None:
    """Returns the tensors of a model's safetensors files as they are stored, mapped.

    Returns None if their names are not the params'.

    Raises:
        ModelError: a file is broken.
    """
    index = folder / "model.safetensors.index.json"
    with family.errors(str(folder), where):
        names = {"model.safetensors"}
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
            if odd := sorted(name for name in names if Path(name).name != name):
                raise ModelError(where, f"{index.name} names a file elsewhere: {odd[0]}")
        if not all((folder / name).is_file() for name in names):
            return None
        found: dict[str, Tensor] = {}
        for name in sorted(names):
            found |= _pages(folder / name)
    plain = set(found) == set(base) and all(tensor.is_floating_point() for tensor in found.values())
    return found if plain else None


def _pages(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, mapped."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping: it has no iterator)


def _spilled(delta: FullDelta, file: Path) -> FullDelta:
    """Returns the same with its tensors in a file, mapped.

    Processes that share the folder share the file of the one that writes it first.
    """
    from safetensors.torch import save_file

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = mkstemp(prefix=file.name, dir=file.parent)
        os.close(handle)
        draft = Path(name)
        tensors = {name: each.detach().cpu().contiguous() for name, each in delta.tensors.items()}
        save_file(tensors, draft)
        try:
            os.link(draft, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            draft.replace(file)
        draft.unlink(missing_ok=True)
    return FullDelta(_pages(file), delta.spans, mapped=True)


def compare(
    base: Mapping[str, Tensor], expert: Mapping[str, Tensor], where: str, is_mapped: bool = False
) -> FullDelta:
    """Returns the params of an expert that differ from the base's.

    Raises:
        ModelError: a tensor does not fit; the first one is named.
    """
    for name in sorted(set(base) ^ set(expert)):
        side = "lacks" if name in base else "has, but the base lacks,"
        raise ModelError(where, f"the expert {side} the tensor {name}")
    spans = {}
    for name, tensor in base.items():
        if expert[name].shape != tensor.shape:
            shapes = f"{tuple(expert[name].shape)} in the expert, {tuple(tensor.shape)} in the base"
            message = f"the tensor {name} has the shape {shapes}"
            raise ModelError(where, message, hint=_FROM_THIS_BASE)
        span = sums.span(expert[name].detach().reshape(-1), tensor.detach().reshape(-1))
        if not math.isfinite(span):
            raise _not_finite(name, where)
        if span:
            spans[name] = span
            _check_precision(name, expert[name], tensor, where)
    return FullDelta({name: expert[name].detach() for name in spans}, spans, is_mapped)


def _check_precision(name: str, expert: Tensor, base: Tensor, where: str) -> None:
    """Raises ModelError if an expert has fewer digits than the base: they differ by rounding."""
    import torch

    if torch.finfo(expert.dtype).eps <= torch.finfo(base.dtype).eps or torch.equal(
        base.to(expert.dtype).to(base.dtype), base
    ):
        return  # a base that was stored with as few digits lost none
    own, bases = (str(each.dtype).removeprefix("torch.") for each in (expert, base))
    message = (
        f"the expert's tensor {name} stands as {own}, the base's as {bases}:"
        " what they differ by would be rounding"
    )
    hint = "save the expert in the base's number type, or give it as an adapter"
    raise ModelError(where, message, hint=hint)


def _not_finite(name: str, where: str) -> ModelError:
    return ModelError(where, f"the tensor {name} of the expert holds values that are not finite")


# --- adapters


def _lora(family: Loads, base: Mapping[str, Tensor], folder: Path, where: str) -> LoraDelta:
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.exists():
        message = f"{folder} holds no adapter_model.safetensors"
        raise ModelError(where, message, hint="only safetensors are read, never pickles")
    with family.errors(str(folder), where):
        config = json.loads((folder / "adapter_config.json").read_text())
        _refuse_inexact(config, where)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        if rank < 1 or not math.isfinite(alpha):
            needed = "an adapter needs a rank r of at least 1 and a finite lora_alpha"
            raise ModelError(where, f"{needed}, not {rank} and {alpha}")
        tensors = load_file(file)
        stacks = family.stacks(config) if config.get("target_parameters") else {}
    factors, scalings = {}, {}
    for name, pair in _pairs(tensors, stacks, base, where).items():
        _check_pair(name, pair, base, name in family.transposed, where)
        key = name if name in stacks.values() else name.removesuffix(".weight")
        own_rank, own_alpha = (
            _by_pattern(config, each, key, where) for each in (("rank", rank), ("alpha", alpha))
        )
        if pair[1].shape[-2] != own_rank:
            message = f"the adapter of {name} has the rank {pair[1].shape[-2]}, its configuration"
            hint = "the scaling follows from r, so both must be one"
            raise ModelError(where, f"{message} says r: {own_rank:g}", hint=hint)
        # beside the param that they change, so that products are taken there
        factors[name] = pair[0].to(base[name].device), pair[1].to(base[name].device)
        scalings[name] = own_alpha / (math.sqrt(own_rank) if config.get("use_rslora") else own_rank)
    family.check_expert(None, frozenset(factors), where)
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    others = {name: each for name, each in scalings.items() if each != scaling}
    return LoraDelta(factors, scaling, family.transposed, others)


def _by_pattern(config: Mapping[str, Any], usual: tuple[str, float], key: str, where: str) -> float:
    """Returns the rank or alpha of one module, which PEFT may have by patterns of names."""
    from peft.utils.other import get_pattern_key

    kind, value = usual
    patterns = config.get(f"{kind}_pattern") or {}
    try:
        with limited():
            return float(patterns.get(get_pattern_key(list(patterns), key), value))
    except (Exceeded, re.error, ValueError, TypeError, AttributeError) as error:
        raise ModelError(where, f"the adapter's {kind}_pattern: {error}") from None


def _refuse_inexact(config: Mapping[str, Any], where: str) -> None:
    """Raises ModelError if the delta is not scaling * B A on this very base, with one scaling."""
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    if kind != "LORA":
        raise ModelError(where, f"adapters of type {kind} cannot be merged exactly; LORA can")
    for key in INEXACT:
        if config.get(key):
            raise ModelError(where, f"an adapter with {key} set cannot be merged exactly")
    if bias != "none":
        raise ModelError(where, f"an adapter with bias: {bias} cannot be merged exactly")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(MOVES_BASE):
        message = f"an adapter with init_lora_weights: {start} stands on a changed base"
        hint = "convert it to a plain adapter with PEFT's path_initial_model_for_weight_conversion"
        raise ModelError(where, message, hint=hint)


def _pairs(
    tensors: Mapping[str, Tensor], stacks: Mapping[str, str], base: Mapping[str, Tensor], where: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns (B, A) of every adapted param; `stacks` are those that are no layer's weight."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key in sorted(tensors):
        stem, found, side = key.rpartition(".lora_")
        if not found or side not in ("A.weight", "B.weight") or not key.startswith(PREFIX):
            message = f"the adapter's tensor {key} is no LoRA factor"
            raise ModelError(where, f"{message}, so it cannot be merged exactly")
        for other in (f"{stem}.lora_B.weight", f"{stem}.lora_A.weight"):
            if other not in tensors:
                raise ModelError(where, f"the adapter lacks the tensor {other}")
        bare = stem.removeprefix(PREFIX)
        pair = tensors[f"{stem}.lora_B.weight"], tensors[f"{stem}.lora_A.weight"]
        name = stacks.get(bare, f"{bare}.weight")
        if bare in stacks and name in base and base[name].ndim > 2:
            num, shapes = len(base[name]), [tuple(each.shape) for each in pair]
            if pair[0].shape[1] % num or pair[1].shape[0] % num:
                message = f"the factors of {name}, B {shapes[0]} and A {shapes[1]}"
                raise ModelError(where, f"{message}, are no factors of {num} matrices")
            pair = merge.stack_of_peft(pair, num)
        pairs[name] = pair
    if not pairs:
        raise ModelError(where, "the adapter holds no tensors")
    return pairs


def _check_pair(
    name: str, pair: tuple[Tensor, Tensor], base: Mapping[str, Tensor], transposed: bool, where: str
) -> None:
    """Raises ModelError if the factors of one param do not fit the base, or are not finite."""
    if name not in base:
        message = f"the adapter changes {name}, which the base lacks or shares with another tensor"
        raise ModelError(where, message)
    b, a = pair
    fit = a.ndim == b.ndim > 1 and (*b.shape[:-2], b.shape[-1]) == a.shape[:-1]
    shape = (*b.shape[:-1], a.shape[-1]) if fit else None
    wanted = tuple(base[name].mT.shape if transposed else base[name].shape)
    if shape != wanted:
        factors = f"the factors B {tuple(b.shape)} and A {tuple(a.shape)}"
        message = f"the adapter of {name} has {factors}, the base needs {wanted}"
        raise ModelError(where, message, hint=_FROM_THIS_BASE)
    if not (a.isfinite().all() and b.isfinite().all()):
        raise _not_finite(name, where)

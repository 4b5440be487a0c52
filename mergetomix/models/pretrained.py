"""What families share: a base that transformers loads, checks and saves, and PEFT adapts."""

from __future__ import annotations

import copy
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mergetomix.bounds import Exceeded, limited
from mergetomix.data import reading
from mergetomix.data.examples import Examples
from mergetomix.data.tables import Row
from mergetomix.devices import see_one_gpu
from mergetomix.errors import ModelError
from mergetomix.models.encoding import Encoding
from mergetomix.sections.base import Base
from mergetomix.sections.source import Source
from mergetomix.sections.train import Lora
from mergetomix.store.address import digest
from mergetomix.store.disk import is_no_space
from mergetomix.store.store import Store, hash_files

if TYPE_CHECKING:
    import torch


TARGETS = "train.lora.target_modules"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the modules of the model that it adapts."""
PLAIN = (
    "r",
    "lora_alpha",
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
)
"""Of adapter_config.json what says which product of two matrices stands where."""
CODE = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "quantization_config",
    "custom_generate",
    "kernel_config",
)
"""Of a model's configuration what chooses code, beside its kind."""


class Pretrained:
    """A base model of transformers.

    `method` is `lora` or `full`: with `dtype: auto`, only LoRA keeps the base in bfloat16. A family
    says what the model must be (`kind`, for errors), which of transformers' classes loads it, and
    which task its adapters have.
    """

    kind: ClassVar[str]
    task: ClassVar[str | None] = None
    auto_class: str
    limits: tuple[str, ...] = ()
    assumed_bf16: bool | None = None
    """What `bf16` says whatever the hardware, for the addresses of what other hardware made."""

    def __init__(self, base: Base, device: str, method: str) -> None:
        self.base = base
        self.device = pick_device(device)
        self.method = method

    # --- what a family may do otherwise

    @property
    def processor(self) -> Any:
        """What turns examples into tensors."""
        raise NotImplementedError

    def prepared(self, model: Any) -> Any:
        """Returns a base that was just loaded as fine-tunes start from it."""
        return model

    def may_lack(self, name: str) -> bool:
        """Returns whether a base may lack a param, since `prepared` makes it."""
        return False

    def small(self, folder: Path, lora: Lora | None, most_bytes: float) -> Self | None:
        """Returns the family with a small base of its configuration, or itself if it is small.

        A small base has random weights and lies in a folder, which is made. None stands for a base
        that no small one can stand for, within so many bytes and with the adapters of the recipe.
        """
        copies = 12 if lora is None else 8
        return self if copies * self.num_saved(None) <= most_bytes else None

    def check_folder(self, folder: Path, where: str) -> None:
        """Raises ModelError if an expert's folder reads its input otherwise than the base."""

    def check_expert(
        self, load: Callable[[], Any] | None, changed: frozenset[str], where: str
    ) -> None:
        """Raises ModelError if an expert changes what no fine-tune does."""

    def settle(self, sources: Mapping[str, Examples]) -> None:
        """Looks at all sources together before any is encoded."""

    def notes(self, encodings: Mapping[str, Encoding]) -> list[str]:
        """Returns what the user should know of how examples became sequences."""
        return []

    def rows(self, source: Source, where: str) -> tuple[list[Row], list[Any]]:
        """Returns rows for a function of the user's, and what each is made of."""
        rows = reading.read_rows(source, where)
        return rows, [reading.plain_content(row) for row in rows]

    # --- the base

    def part(self, kind: str, **how: Any) -> Any:
        """Returns what a class of transformers' reads of the base.

        It is the only folder whose code may run, and only where the recipe says so. Raises
        ModelError if it cannot be read.
        """
        import transformers

        how |= {"revision": self.base.revision or "main", **self._gguf}
        how["trust_remote_code"] = self.base.trust_remote_code
        with self.errors():
            return getattr(transformers, kind).from_pretrained(self.base.path, **how)

    @cached_property
    def _gguf(self) -> dict[str, str]:
        """What tells transformers to read the base from a GGUF file; nothing if it is none.

        Raises ModelError if the file is not in the base's folder.
        """
        name, folder = self.base.gguf_file, Path(self.base.path)
        if name is None:
            return {}
        if folder.is_dir() and not (folder / name).is_file():
            there = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "none"
            message = f"{folder} has no file {name}; its GGUF files: {there}"
            raise ModelError("base.gguf_file", message)
        return {"gguf_file": name}

    @property
    def _unpacked(self) -> dict[str, Any]:
        """What makes plain numbers of a GGUF file's blocks, in the versions that else keep them."""
        import transformers

        kind = getattr(transformers, "GgufConfig", None)
        if self.base.gguf_file is None or kind is None:
            return {}
        return {"quantization_config": kind(dequantize=True)}

    @cached_property
    def config(self) -> Any:
        """The model's configuration. Raises ModelError if there is none."""
        return self.part("AutoConfig")

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16: on a GPU that has it, unless the recipe says float32."""
        import torch

        if self.assumed_bf16 is not None:
            return self.assumed_bf16
        wanted = self.base.dtype != "float32" and self.device == "cuda"
        return wanted and torch.cuda.is_bf16_supported()

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the base's weights."""
        import torch

        frozen = self.method == "lora" and self.bf16
        return torch.bfloat16 if self.base.dtype == "bfloat16" or frozen else torch.float32

    def key(self, store: Store) -> str:
        """Returns the address of the base: a folder's files, or the commit of a hub model."""
        one_file = self.base.gguf_file
        if files := self.files():
            content = hash_files(files, store)
        else:
            content = f"{self.base.path}@{getattr(self.config, '_commit_hash', None)}"
            content += f"/{one_file}" if one_file is not None else ""
        return digest("base", content, str(self.dtype), self.bf16)

    def files(self) -> list[Path]:
        """Returns the files of a base that lies in a folder; none of one on a hub."""
        folder, one_file = Path(self.base.path), self.base.gguf_file
        if not folder.is_dir():
            return []
        if one_file is not None:
            return [folder / one_file]
        kinds = ("safetensors", "json", "bin", "model", "jinja", "txt", "tiktoken", "py")
        return sorted(path for kind in kinds for path in folder.glob(f"*.{kind}"))

    @contextmanager
    def errors(self, path: str | None = None, where: str = "base.path") -> Iterator[None]:
        """Turns whatever loading raises for a broken or absent model into a ModelError.

        A machine that is full is none of the model's faults.
        """
        import torch

        path = path or self.base.path
        try:
            yield
        except (ModelError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if is_no_space(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if Path(path).exists():
                message = f"{path} does not load as {self.kind}: {reason}"
                raise ModelError(where, message) from None
            message = f"{path} is neither a folder nor a hub model that can be reached"
            hint = f"check the name and the network ({reason})"
            raise ModelError(where, message, hint=hint) from None

    def load(self, path: str | None = None, where: str = "base.path") -> Any:
        """Returns the base, or a full fine-tune saved at `path`, on the device, to evaluate.

        Raises ModelError with the place `where` if it does not load, lacks a tensor, or is a
        fine-tune with a tensor too many.
        """
        how = {"output_loading_info": True, "ignore_mismatched_sizes": True, "dtype": self.dtype}
        with quiet():
            if path is None:
                model, info = self.part(self.auto_class, **how, **self._unpacked)
            else:
                model, info = self._read_as_the_base(path, where, how)
        self._check_tensors(info, path, where)
        if path is None and getattr(self.config, "quantization_config", None) is not None:
            forget_packing(model)
        return (self.prepared(model) if path is None else model).to(self.device).eval()

    def _read_as_the_base(self, path: str, where: str, how: Mapping[str, Any]) -> Any:
        """Returns a fine-tune read into the base's classes: code in its folder never runs."""
        with self.errors(path, where):
            values = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ModelError(where, f"{path}/config.json holds no JSON object")
            theirs, ours = values.get("model_type"), self.config.model_type
            if theirs != ours:
                message = f"the model in {path} is of the type {theirs}, and the base {ours}"
                raise ModelError(where, message, hint="experts must come from this base")
            # what would have packages imported, or kernels fetched, is the base's to say
            config = type(self.config).from_dict({k: v for k, v in values.items() if k not in CODE})
            kind, attention = type(self.skeleton()), self.config._attn_implementation
            return kind.from_pretrained(
                path, config=config, use_safetensors=True, attn_implementation=attention, **how
            )

    def _check_tensors(self, info: Any, path: str | None, where: str) -> None:
        """Raises ModelError if transformers reports a tensor as missing, misshapen or left over."""
        named = path or self.base.path
        for name, found, wanted in sorted(info["mismatched_keys"], key=str):
            shapes = f"{tuple(found)}, its configuration wants {tuple(wanted)}"
            raise ModelError(where, f"in {named} the tensor {name} has the shape {shapes}")
        lacking = sorted(info["missing_keys"])
        if path is None:
            lacking = [name for name in lacking if not self.may_lack(name)]
        extra = [] if path is None else sorted(info["unexpected_keys"])
        for names, says in ((lacking, "lacks"), (extra, "has, but its kind of model lacks,")):
            if names:
                message = f"{named} {says} the tensor {names[0]} ({len(names)} in all)"
                raise ModelError(where, message)

    def load_finetune(self, path: str) -> Any:
        """Returns a fine-tune as this package saves it: a full model, or an adapter on the base."""
        if not (Path(path) / "adapter_config.json").exists():
            return self.load(path)
        import torch
        from peft import LoraConfig, PeftModel, get_peft_model

        # of its configuration what a plain adapter needs: others name modules to import
        with self.errors(path), limited(), quiet():
            given = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
            kept = {key: given[key] for key in PLAIN if given.get(key) is not None}
            config = LoraConfig(**kept, task_type=self.task)
            # the patterns of names that PEFT will try, tried within bounds
            with torch.device("meta"):
                get_peft_model(self.skeleton(), copy.deepcopy(config))
        if not (Path(path) / "adapter_model.safetensors").is_file():
            raise ModelError("", f"{path} holds no adapter_model.safetensors")
        with self.errors(path), quiet():
            model = PeftModel.from_pretrained(self.load(), path, config=config)
        return model.to(self.device).eval()

    def save(self, model: Any, folder: Path, max_shard_size: str | None = None) -> None:
        """Writes a model (full or adapter) and its processor for `from_pretrained` to load."""
        options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        with quiet():
            model.save_pretrained(folder, **options)
            self.processor.save_pretrained(folder)

    def lora_config(self, lora: Lora) -> Any:
        """Returns the recipe's section as PEFT's configuration."""
        from peft import LoraConfig

        return LoraConfig(
            task_type=self.task,
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            target_parameters=lora.target_parameters,
        )

    def stacks(self, adapter: Mapping[str, Any]) -> dict[str, str]:
        """Returns the params that an adapter changes and that are no layer's weight.

        They are the tensors of PEFT's `target_parameters`, by how the names of their factors begin
        in the adapter's file: PEFT itself says how it wraps several of one module.

        Args:
            adapter: its configuration, as in adapter_config.json.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        kept = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform")
        chosen = {key: adapter[key] for key in (*kept, "layers_pattern") if adapter.get(key)}
        with torch.device("meta"), limited(), quiet():
            model = get_peft_model(self.skeleton(), LoraConfig(**{"target_modules": [], **chosen}))
        return {name.removeprefix(PREFIX): param for name, param in wrapped(model).items()}

    def adapted(self, model: Any, lora: Lora) -> Any:
        """Returns the base with fresh adapters.

        Raises ModelError if it has no such layers, or PEFT cannot adapt them.
        """
        from peft import get_peft_model

        try:
            config = self.lora_config(lora)
            if isinstance(lora.target_modules, str) and lora.target_modules != "all-linear":
                with limited():  # PEFT matches it with every name
                    for name, _ in model.named_modules():
                        re.fullmatch(lora.target_modules, name)
            return get_peft_model(model, config)
        except (Exceeded, re.error, RecursionError) as error:
            raise ModelError(TARGETS, f"{lora.target_modules!r}: {error}") from None
        except (ValueError, TypeError, LookupError, NotImplementedError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            hint = "name linear layers, or use train.method: full"
            raise ModelError(TARGETS, f"cannot be adapted: {reason}", hint=hint) from None

    def _check_adapters(self, adapted: Any, lora: Lora) -> None:
        """Raises ModelError for an adapter whose delta is no product of two matrices of its own.

        And for a tensor that the recipe names and the base has not.
        """
        shared: dict[int, int] = {}
        modules, stacked = list(adapted.named_modules()), wrapped(adapted)
        for wanted in lora.target_parameters or ():
            if not any(f".{param}".endswith(f".{wanted}") for param in stacked.values()):
                message = f"no tensor that can be adapted by itself is called {wanted!r}"
                raise ModelError("train.lora.target_parameters", message)
        for _, module in modules:
            for each in module.parameters(recurse=False):
                shared[id(each)] = shared.get(id(each), 0) + 1
        for name, module in modules:
            if not getattr(module, "lora_A", None) and not getattr(module, "lora_embedding_A", {}):
                continue
            if name in stacked:
                continue
            layer, weight = name.removeprefix(PREFIX), module.get_base_layer().weight
            why = ""
            if getattr(module, "lora_embedding_A", {}):
                why = "it is an embedding"
            elif weight.dim() != 2:
                why = f"its weight has {weight.dim()} dimensions"
            elif shared[id(weight)] > 1:
                why = "its weight is another layer's, too"
            if why:
                message = f"the adapter of {layer} cannot be merged exactly: {why}"
                raise ModelError(TARGETS, message, hint="leave it out, or use train.method: full")

    def skeleton(self) -> Any:
        """Returns the base as transformers makes it, without weights."""
        import torch
        import transformers

        loader, trust = getattr(transformers, self.auto_class), self.base.trust_remote_code
        with self.errors(), torch.device("meta"), quiet():
            # a copy, as a new head is written into the configuration
            return loader.from_config(copy.deepcopy(self.config), trust_remote_code=trust)

    def num_saved(self, lora: Lora | None) -> int:
        """Returns how many params a saved fine-tune holds: the adapters', or all."""
        import torch

        model = self.prepared(self.skeleton())
        if lora is not None:
            with torch.device("meta"), quiet():
                model = self.adapted(model, lora)
            self._check_adapters(model, lora)
        return sum(p.numel() for p in model.parameters() if lora is None or p.requires_grad)

    @cached_property
    def transposed(self) -> frozenset[str]:
        """The params that stand as (in, out), as GPT-2 keeps them."""
        from transformers.pytorch_utils import Conv1D

        # by their class, as the shape of a square one does not tell
        modules = list(self.skeleton().named_modules())
        layers = {f"{name}.weight" for name, each in modules if isinstance(each, Conv1D)}
        turned = [(name, each) for name, each in modules if getattr(each, "is_transposed", False)]
        stacks = {
            f"{name}.{own}"
            for name, each in turned
            for own, param in each.named_parameters(recurse=False)
            if param.dim() > 2
        }
        return frozenset(layers | stacks)


def wrapped(adapted: Any) -> dict[str, str]:
    """Returns the params that are adapted by themselves, by the names of the modules that do it.

    A module of several such params is wrapped once for each, one wrapper in the other.
    """
    from peft.tuners.lora.layer import ParamWrapper

    found = {}
    for name, module in adapted.named_modules():
        if isinstance(module, ParamWrapper):
            owner = name.removeprefix(PREFIX).replace(".base_layer", "")
            found[name] = f"{owner}.{module.parameter_name}"
    return found


def forget_packing(model: Any) -> None:
    """Makes a plain model of one whose weights were unpacked as it was loaded, as MXFP4's are.

    transformers would write them under the names of the packed ones, and load none of them again. A
    model whose weights stay packed is left as it is.
    """
    is_plain = all(each.is_floating_point() for each in model.parameters())
    if is_plain and not getattr(model, "is_quantized", False):
        model._weight_conversions = None


def pick_device(device: str) -> str:
    """Returns the device to use, `cuda` before `mps` before `cpu` for `auto`.

    Raises ModelError if it is not there. One process uses one GPU: the first visible one, unless
    CUDA_VISIBLE_DEVICES says otherwise.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        hint = "choose among several GPUs with CUDA_VISIBLE_DEVICES"
        raise ModelError("device", f"must be auto, cpu, cuda or mps, not {device!r}", hint=hint)
    if device != "cpu":
        see_one_gpu()
    import torch

    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there = [*(name for name, is_there in kinds.items() if is_there), "cpu"]
    if device == "auto":
        return there[0]
    if device not in there:
        message = f"{device} is not available on this machine"
        raise ModelError("device", message, hint="device: auto takes what there is")
    return device


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back the libraries' warnings, progress bars and advice to people who call them."""
    from transformers.utils import logging as bars

    loggers = list(map(logging.getLogger, ("transformers", "trl", "peft", "accelerate")))
    levels, had_bars = [each.level for each in loggers], bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if had_bars:
            bars.enable_progress_bar()

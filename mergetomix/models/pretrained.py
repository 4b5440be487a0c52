"""What families share: a base that transformers loads, checks and saves, and PEFT adapts."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mergetomix.errors import ModelError
from mergetomix.sections.base import Base
from mergetomix.sections.train import Lora
from mergetomix.store.address import digest
from mergetomix.store.disk import is_no_space
from mergetomix.store.store import Store, hash_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Pretrained(ABC):
    """A base model of transformers.

    Args:
        base: the recipe's section.
        device: `auto`, `cpu`, `cuda` or `mps`.
        method: `lora` or `full`: with `dtype: auto`, only LoRA keeps the base in bfloat16.
    """

    kind: ClassVar[str]
    """What the model must be, in words, for errors."""

    def __init__(self, base: Base, device: str, method: str) -> None:
        self.base = base
        self.device = pick_device(device)
        self.method = method

    @property
    @abstractmethod
    def auto_class(self) -> Any:
        """transformers' class that loads it."""

    @property
    @abstractmethod
    def processor(self) -> Any:
        """What turns examples into tensors."""

    @abstractmethod
    def lora_config(self, lora: Lora) -> Any:
        """The recipe's section as PEFT's configuration."""

    @cached_property
    def config(self) -> Any:
        """The model's configuration. Raises ModelError where there is none."""
        from transformers import AutoConfig

        with self.errors():
            return AutoConfig.from_pretrained(self.base.path, **self._source)

    def errors(
        self, path: str | None = None, where: str = "base.path"
    ) -> AbstractContextManager[None]:
        """Turns what transformers raises for a model that is not there or broken into a ModelError that names it."""
        return model_errors(path or self.base.path, where, self.kind)

    @property
    def _source(self) -> dict[str, Any]:
        return {
            "revision": self.base.revision or "main",
            "trust_remote_code": self.base.trust_remote_code,
        }

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16: on a GPU that has it, unless the recipe says float32."""
        import torch

        return (
            self.base.dtype != "float32"
            and self.device == "cuda"
            and torch.cuda.is_bf16_supported()
        )

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the base's weights."""
        import torch

        frozen = self.method == "lora" and self.bf16
        return torch.bfloat16 if self.base.dtype == "bfloat16" or frozen else torch.float32

    def key(self, store: Store) -> str:
        """The address of the base's content: the files of a folder, the commit of a hub model."""
        folder = Path(self.base.path)
        if folder.is_dir():
            kinds = (
                "*.safetensors",
                "*.json",
                "*.bin",
                "*.model",
                "*.jinja",
                "*.txt",
                "*.tiktoken",
                "*.py",
            )
            files = sorted({path for kind in kinds for path in folder.glob(kind)})
            content = hash_files(files, store)
        else:
            content = f"{self.base.path}@{getattr(self.config, '_commit_hash', None)}"
        return digest("base", content, str(self.dtype), self.bf16)

    def load(self, path: str | None = None, where: str = "base.path") -> PreTrainedModel:
        """The base, or a full fine-tune of it saved at `path`, on the device and in evaluation mode.

        Args:
            where: the model's place in the recipe, for errors.

        Raises:
            ModelError: it does not load, lacks a tensor, or is a fine-tune with a tensor too many.
        """
        # pickles and a fine-tune's own code are never trusted: only what the recipe says of the base
        own = {"use_safetensors": True, "trust_remote_code": self.base.trust_remote_code}
        with self.errors(path, where), quiet():
            loaded: Any = self.auto_class.from_pretrained(
                path or self.base.path,
                dtype=self.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **(self._source if path is None else own),
            )
        model, info = loaded
        lacking = () if path is not None else self.may_lack
        _check_tensors(
            info, path or self.base.path, extra=path is not None, where=where, may_lack=lacking
        )
        if path is None:
            self.prepare(model)
        return cast("PreTrainedModel", model.to(self.device).eval())

    @property
    def may_lack(self) -> tuple[str, ...]:
        """How the names of params begin that a base may lack, since `prepare` makes them."""
        return ()

    @abstractmethod
    def prepare(self, model: PreTrainedModel) -> None:
        """Changes a base that was just loaded: another head, or params that are not trained."""

    def num_trained(self, lora: Lora | None) -> int:
        """How many params a fine-tune trains: all of them, or the adapters' alone. Counted without loading weights."""
        import torch

        model: Any = self._skeleton()
        if lora is not None:
            from peft import get_peft_model

            with torch.device("meta"), quiet():
                model = get_peft_model(model, self.lora_config(lora))
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def _skeleton(self) -> PreTrainedModel:
        """The base without weights."""
        import torch

        with self.errors(), torch.device("meta"), quiet():
            model = self.auto_class.from_config(
                self.config, trust_remote_code=self.base.trust_remote_code
            )
            self.prepare(model)
        return cast("PreTrainedModel", model)

    @cached_property
    def transposed(self) -> frozenset[str]:
        """The params that stand as (in, out), as GPT-2 keeps them. A square one's shape does not tell, its class does."""
        from transformers.pytorch_utils import Conv1D

        return frozenset(
            f"{name}.weight"
            for name, module in self._skeleton().named_modules()
            if isinstance(module, Conv1D)
        )

    def load_finetune(self, path: str) -> Any:
        """A fine-tune as this package saves it: a full model, or an adapter on the base."""
        if not (Path(path) / "adapter_config.json").exists():
            return self.load(path)
        from peft import PeftModel

        with quiet():
            return PeftModel.from_pretrained(self.load(), path).to(self.device).eval()

    def save(self, model: Any, folder: Path, max_shard_size: str | None = None) -> None:
        """Write a model (full or adapter) and its processor as a folder that `from_pretrained` loads."""
        options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        with quiet():
            model.save_pretrained(folder, **options)
            self.processor.save_pretrained(folder)

    def adapted(self, model: Any, lora: Lora) -> Any:
        """The base with fresh adapters."""
        from peft import get_peft_model

        return get_peft_model(model, self.lora_config(lora))

    @abstractmethod
    def check_folder(self, folder: Path, where: str) -> None:
        """Raises ModelError where an expert's folder says that it reads its input otherwise than the base."""

    @abstractmethod
    def check_expert(
        self, load: Callable[[], Any] | None, changed: frozenset[str], where: str
    ) -> None:
        """Raises ModelError where an expert changes what no fine-tune does."""


def pick_device(device: str) -> str:
    """`cuda` before `mps` before `cpu` for `auto`. Raises ModelError where a device asked for is not there.

    One process uses one GPU: the first visible one, unless CUDA_VISIBLE_DEVICES says otherwise.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        hint = "choose among several GPUs with CUDA_VISIBLE_DEVICES"
        raise ModelError("device", f"must be auto, cpu, cuda or mps, not {device!r}", hint=hint)
    if device != "cpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, present in there.items() if present)
    if not there[device]:
        raise ModelError(
            "device",
            f"{device} is not available on this machine",
            hint="device: auto takes what there is",
        )
    return device


def _check_tensors(
    info: Any, path: str, extra: bool, where: str, may_lack: tuple[str, ...]
) -> None:
    """Raises ModelError where transformers' loading report says that a tensor is missing, misshapen or, with `extra`, left
    over."""
    for name, found, wanted in sorted(info["mismatched_keys"], key=str):
        shapes = f"{tuple(found)}, its configuration wants {tuple(wanted)}"
        raise ModelError(where, f"in {path} the tensor {name} has the shape {shapes}")
    for key, says in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has, but its kind of model lacks,"),
    ):
        names = sorted(
            name for name in info[key] if not (key == "missing_keys" and name.startswith(may_lack))
        )
        if names and (extra or key == "missing_keys"):
            raise ModelError(where, f"{path} {says} the tensor {names[0]} ({len(names)} in all)")


@contextmanager
def model_errors(path: str, where: str, kind: str) -> Iterator[None]:
    """Turns what transformers raises for a model that is not there or broken into a ModelError that names it.

    A broken file makes transformers, tokenizers and safetensors raise almost anything, so everything counts but an error
    that is a ModelError already and a machine that is full.
    """
    import torch

    try:
        yield
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_no_space(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if not Path(path).exists():
            message = f"{path} is neither a folder nor a hub model that can be reached"
            raise ModelError(
                where, message, hint=f"check the name and the network ({reason})"
            ) from None
        raise ModelError(where, f"{path} does not load as {kind}: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or warnings of transformers while a model loads: the caller reads the loading report itself."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

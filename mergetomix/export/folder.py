"""A mixture as a folder that `from_pretrained` loads: there whole, or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetomix.errors import UserError
from mergetomix.merge.lora_delta import stack_for_peft
from mergetomix.store.disk import fsync, is_no_space, no_space, settle

if TYPE_CHECKING:
    from mergetomix.export.adapter import Adapter

DTYPES = ("float32", "bfloat16", "float16")
PREFIX = "base_model.model."
_SIZE = re.compile(r"\d+(\.\d+)? ?[KMGT]B", re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """How a mixture is written: as the merged model, or as one LoRA adapter.

    Args:
        adapter: whether as an adapter, which only a sum of LoRA experts is.
        rank: of the adapter, the nearest one of that rank; None keeps all, the sum of the experts'
            ranks.
        dtype: `float32`, `bfloat16` or `float16`; None is the base's for a model, and float32 for
            an adapter.
        max_shard_size: largest file of a model's weights, such as `5GB`; None is as transformers
            has it.

    Raises:
        UserError: something that cannot be, or goes with the other kind only.
    """

    adapter: bool = False
    rank: int | None = None
    dtype: str | None = None
    max_shard_size: str | None = None

    def __post_init__(self) -> None:
        rank, dtype, size = self.rank, self.dtype, self.max_shard_size
        if rank is not None and not self.adapter:
            message = "a rank is an adapter's, and this writes a merged model"
            raise UserError(message, hint="add --adapter")
        if rank is not None and rank < 1:
            raise UserError(f"the rank of an adapter must be at least 1, not {rank}")
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"the number type must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if size is not None and self.adapter:
            message = "an adapter is one file, which is not split"
            raise UserError(message, hint="leave --max-shard-size out")
        if size is not None and not _SIZE.fullmatch(size.strip()):
            message = "a size of files is a number with KB, MB, GB or TB, such as 5GB"
            raise UserError(f"{message}, not {size!r}")


def check_free(out: Path) -> None:
    """Raises UserError if `out` holds something already, or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no empty folder", hint="name a new folder")
    above = next(each for each in out.absolute().parents if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        message = f"{out} cannot be made: {above} is no folder that can be written to"
        raise UserError(message, hint="name another folder")


@contextmanager
def place(out: Path) -> Iterator[Path]:
    """Gives an empty folder to write in, which becomes `out` on a clean exit, else goes.

    Raises:
        UserError: `out` holds something, or the disk is full.
    """
    check_free(out)
    final = out.resolve()
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        settle(partial)
        check_free(out)
        partial.replace(final)  # an empty folder gives way
        fsync(final.parent)
    except Exception as error:
        if not is_no_space(error):
            raise
        raise no_space(out, shutil.disk_usage(final.parent).free) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that PEFT loads, with `save_pretrained` as a model has it.

    Args:
        modules: the names of all the base's modules.
        config: what of PEFT's configuration does not follow from the adapter: the base, its task.
        transposed: the params that the base keeps as (in, out).
        stacks: the params that are no layer's weight, by the names that PEFT gives their adapters.
    """

    adapter: Adapter
    modules: Collection[str]
    config: Mapping[str, Any]
    transposed: frozenset[str] = frozenset()
    stacks: Mapping[str, str] = field(default_factory=dict)

    def save_pretrained(self, folder: Path) -> None:
        """Writes the adapter with one rank and scaling 1: alpha is the rank."""
        from peft import LoraConfig
        from safetensors.torch import save_file

        factors, rank = self.adapter.factors, self.adapter.rank
        stems = {param: stem for stem, param in self.stacks.items()}
        names = [name.removesuffix(".weight") for name in sorted(factors) if name not in stems]
        tensors = {}
        for name, own in sorted(factors.items()):
            stem = stems.get(name, name.removesuffix(".weight"))
            pair = stack_for_peft(own) if own[0].ndim > 2 else own
            for side, factor in zip("BA", pair, strict=True):
                tensors[f"{PREFIX}{stem}.lora_{side}.weight"] = factor.contiguous().cpu()
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=target_modules(names, self.modules),
            target_parameters=sorted(stems) or None,
            fan_in_fan_out=bool(names)
            and all(f"{name}.weight" in self.transposed for name in names),
            inference_mode=True,
            **self.config,
        )
        config.save_pretrained(str(folder))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def target_modules(adapted: Collection[str], modules: Collection[str]) -> list[str]:
    """Returns names that PEFT finds these modules by, and no others.

    A name is its last part, such as `q_proj`, if every module with it is adapted, or the full name.

    >>> target_modules(["a.q", "b.q", "a.k"], ["a.q", "b.q", "a.k", "b.k"])
    ['a.k', 'q']
    """
    others = {name.rpartition(".")[2] for name in set(modules) - set(adapted)}
    lasts = {name: name.rpartition(".")[2] for name in adapted}
    return sorted({name if last in others else last for name, last in lasts.items()})

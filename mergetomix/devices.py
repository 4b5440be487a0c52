"""The GPUs that this process may use, as they were when it began."""

from __future__ import annotations

import os
from functools import cache


@cache
def visible_gpus() -> tuple[str, ...]:
    """Returns what CUDA_VISIBLE_DEVICES calls the GPUs that are there for this process.

    A process that computes itself sees one of them from then on (`see_one_gpu`), so this remembers
    what there was. It asks the driver, and takes no memory on a GPU.
    """
    import torch

    num = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [each.strip() for each in given.split(",")] if given else list(map(str, range(num)))
    return tuple(names[:num])


def see_one_gpu() -> None:
    """Has this process see one GPU, unless the user says which: trainers use all that they see."""
    visible_gpus()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

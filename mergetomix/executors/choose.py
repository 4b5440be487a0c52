"""The executor that a recipe asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mergetomix.devices import visible_gpus
from mergetomix.errors import RecipeError
from mergetomix.executors.in_process import InProcess
from mergetomix.executors.local import LocalWorkers, Slot
from mergetomix.executors.messages import Opens
from mergetomix.executors.states import Busy
from mergetomix.executors.work import CarryOut, Executor
from mergetomix.progress import Listener
from mergetomix.sections.executor import ExecutorSection


@dataclass(frozen=True)
class Surroundings:
    """What an executor needs beside the recipe's section.

    `opens` gives what workers open, if so many share a machine's memory for models, and `device` is
    what they compute on (`cuda`, `cpu`, `mps`). `scratch` gives a folder for what they share, and
    `logs` is that of what they print; `listener` hears what they say, and `busy` what they do. A
    training is of `per_training` processes, a GPU each; if they are several, each of them calls
    `joins` once all know one another. `shares_disk` says whether all workers must see the store's
    folder.
    """

    opens: Callable[[int], Opens]
    device: str
    scratch: Callable[[], Path]
    logs: Path
    listener: Listener
    busy: Busy
    per_training: int = 1
    joins: Callable[[], None] | None = None
    shares_disk: bool = True


def chosen(section: ExecutorSection, around: Surroundings) -> Callable[[CarryOut], Executor]:
    """Returns what makes the executor of a recipe's section, given what works in this process.

    Raises:
        RecipeError: the machine has no such devices.
    """
    if section.kind == "ray":
        from mergetomix.executors.ray_cluster import RayWorkers, Site

        on_gpu = around.device == "cuda"
        seen = str(around.scratch()) if around.shares_disk else None
        own, num = section.gpus_per_training, around.per_training
        if on_gpu and own is not None and own > 1 and own != num:
            message = f"{own:g} GPUs for a training of {num} processes, a GPU each"
            raise RecipeError("executor.gpus_per_training", message, hint="see train.launch")
        if on_gpu and section.gpus_per_training is None:
            section = section.model_copy(update={"gpus_per_training": around.per_training})
        site = Site(seen, on_gpu, num, around.joins)
        return lambda _: RayWorkers(section, around.opens, site, around.listener, around.busy)
    places = local_places(section, around.device)
    if around.device == "cuda" and len(places) < around.per_training:
        message = f"{around.per_training} processes, and there are {len(places)} GPUs to use"
        raise RecipeError("train.launch.processes", message, hint="see executor.devices")
    if len(places) == 1 and "CUDA_VISIBLE_DEVICES" not in places[0].environment:
        if section.threads is not None:
            import torch

            torch.set_num_threads(section.threads)
        return InProcess
    opens = around.opens(1 if around.device == "cuda" else len(places))
    each = min(around.per_training, len(places))
    return lambda _: LocalWorkers(opens, places, around.logs, around.listener, around.busy, each)


def local_places(section: ExecutorSection, device: str) -> list[Slot]:
    """Returns what each process of this machine computes on; one place is the run's own process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device != "cuda":
        if section.devices != "auto":
            why = f"names GPUs, and models are on the {device}"
            raise RecipeError("executor.devices", why, hint="use workers, or device: cuda")
        num = section.workers or 1
        return _places([device] * num, section.threads, cores or 1)
    visible = visible_gpus()
    chosen = list(range(len(visible))) if section.devices == "auto" else section.devices
    if max(chosen, default=0) >= len(visible):
        there = ", ".join(map(str, range(len(visible)))) or "none"
        message = f"there is no GPU {max(chosen)}: this process sees {there}"
        raise RecipeError("executor.devices", message, hint="see CUDA_VISIBLE_DEVICES")
    if section.workers is not None and section.workers > len(chosen):
        message = f"{section.workers} processes for {len(chosen)} GPUs; each has one of its own"
        raise RecipeError("executor.workers", message, hint="leave it out")
    chosen = chosen[: section.workers]
    if len(chosen) == 1 and len(visible) == 1:
        return [Slot("GPU 0", {}, section.threads)]
    names = [visible[number] for number in chosen]
    found = _places([f"GPU {name}" for name in names], section.threads, cores or 1)
    return [
        Slot(each.name, {**each.environment, "CUDA_VISIBLE_DEVICES": name}, each.threads)
        for each, name in zip(found, names, strict=True)
    ]


def _places(names: list[str], threads: int | None, cores: int) -> list[Slot]:
    """Places that share the cores."""
    each = threads or max(1, cores // len(names))
    number = {"OMP_NUM_THREADS": str(each), "MKL_NUM_THREADS": str(each)}
    return [Slot(name, number, each) for name in names]

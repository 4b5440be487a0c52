"""mergekit's side of the comparisons.

It runs in mergekit's own environment and imports nothing of mergetomix.

    python peer_mergekit.py time BASE EXPERT... [--runs 5] [--method linear] [--threads N]
    python peer_mergekit.py merge JOBS.json INPUTS.safetensors RESULTS.safetensors

`time` prints JSON on stdout. For each run, in seconds: `memory_plan` and `memory_execute`, a merge
of all tensors into the params of a model that is there, as mergekit's evolution does it, from
tensors that were read before; and `disk`, its `run_merge` into an empty folder. The first run of
each kind warms up and is not counted. Weights are equal. `num_values` says how many values were
written.

`merge` merges tensors. A job of JOBS.json is {"name", "method", "parameters", "inputs", "base",
"params", "num_seeds"}: `inputs` are the prefixes of the tensors in INPUTS, `base` one of them or
null, `params` the rest of their names. Parameters are mergekit's own; one that differs between
inputs is an object by input. RESULTS holds "<job>.<param>", with an axis of seeds in front if
`num_seeds` is given.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache, ReturnTensor
from mergekit.merge import run_merge
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors.torch import load_file, save_file

OPTIONS = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)


def configuration(method: str, base: str, experts: list[str]) -> MergeConfiguration:
    """A merge of experts with equal weights, which add up to one: a linear one has no base."""
    models = [{"model": expert, "parameters": {"weight": 1 / len(experts)}} for expert in experts]
    values = {"merge_method": method, "models": models}
    return MergeConfiguration.model_validate(
        values if method == "linear" else {**values, "base_model": base}
    )


def hold_tensors(config: MergeConfiguration) -> None:
    """Read all tensors of all models, once: from here on a loader hands out what is in memory."""
    cache = LoaderCache()
    cache.setup(options=OPTIONS)
    for model in config.referenced_models():
        lazy = cache.get(model)
        tensors = {name: lazy.get_tensor(name).clone() for name in lazy.index.tensor_paths}
        cache.loaders[model] = held(lazy.index, tensors)


def held(index: Any, tensors: dict[str, torch.Tensor]) -> Any:
    def get_tensor(key: str, device: str = "cpu", **_: Any) -> torch.Tensor:
        return tensors[key].to(device)

    return SimpleNamespace(index=index, get_tensor=get_tensor, flush=lambda: None)


def in_memory(config: MergeConfiguration) -> Callable[[], tuple[float, float, int]]:
    """A function that merges into live params.

    It returns seconds to plan, seconds to execute and copy, and the number of values copied.
    """
    hold_tensors(config)
    architecture = get_architecture_info(config, OPTIONS)
    model_config = config.referenced_models()[0].config()
    live: dict[str, torch.Tensor] = {}

    def merge() -> tuple[float, float, int]:
        started = time.monotonic()
        executor = Executor(
            plan_in_memory(MergePlanner(config, architecture, OPTIONS, model_config))
        )
        planned = time.monotonic()
        for task, value in executor.run(quiet=True):
            live.setdefault(task.weight_info.name, torch.empty_like(value)).copy_(value)
        return (
            planned - started,
            time.monotonic() - planned,
            sum(tensor.numel() for tensor in live.values()),
        )

    return merge


def plan_in_memory(planner: MergePlanner) -> list[ReturnTensor]:
    """What the planner's method of that name returns.

    In 0.1.5 it raises TypeError: its tasks are Task[Optional[Tensor]], and ReturnTensor's check of
    its field, which is left out here, takes Task[Tensor] alone.
    """
    planner._plan()
    return [
        ReturnTensor.model_construct(
            weight_info=weight,
            tensor_task=task,
            dtype=weight.force_dtype or planner.config.out_dtype,
        )
        for weight, task in planner._tensors
    ]


def to_disk(config: MergeConfiguration) -> float:
    """Seconds of a merge from disk to disk."""
    LoaderCache().loaders.clear()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        run_merge(config, str(Path(folder) / "merged"), OPTIONS)
        return time.monotonic() - started


def time_merges(given: argparse.Namespace) -> None:
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    config = configuration(given.method, given.base, given.experts)
    disk = [to_disk(config) for _ in range(given.runs + 1)][1:]
    merge = in_memory(config)
    memory = [merge() for _ in range(given.runs + 1)][1:]
    found = {
        "tool": f"mergekit {importlib.metadata.version('mergekit')}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "method": given.method,
        "num_experts": len(given.experts),
        "num_values": memory[0][2],
        "memory_plan": [plan for plan, _, _ in memory],
        "memory_execute": [execute for _, execute, _ in memory],
        "disk": disk,
    }
    print(json.dumps(found))


def merge_tensors(given: argparse.Namespace) -> None:
    inputs, results = load_file(given.inputs), {}
    for job in json.loads(given.jobs.read_text()):
        for param in job["params"]:
            results[f"{job['name']}.{param}"] = merged(job, param, inputs)
    save_file(results, given.results)


def merged(job: dict[str, Any], param: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """One param, merged by mergekit's method; with a first axis of seeds if those are asked for."""
    names = job["inputs"]
    place = None if job["base"] is None else names.index(job["base"])
    tensors = [inputs[f"{name}.{param}"] for name in names]
    method = registry.get(job["method"])

    def once(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        copies = [tensor.clone() for tensor in tensors]  # some methods change what they are given
        group = TensorGroup.from_tensors(copies, ids=names, base_index=place, name=param)
        return method([group], parameters=job["parameters"])[0].contiguous()

    if job.get("num_seeds") is None:
        return once(0)
    return torch.stack([once(seed) for seed in range(job["num_seeds"])])


def main() -> None:
    parser = argparse.ArgumentParser(description="mergekit's side of the comparisons")
    commands = parser.add_subparsers(required=True)
    timing = commands.add_parser("time", help="time merges of models in folders")
    timing.add_argument("base")
    timing.add_argument("experts", nargs="+")
    timing.add_argument("--runs", type=int, default=5)
    timing.add_argument("--method", choices=("linear", "task_arithmetic"), default="linear")
    timing.add_argument("--threads", type=int, default=None)
    timing.set_defaults(run=time_merges)
    merging = commands.add_parser("merge", help="merge tensors of a file")
    for name in ("jobs", "inputs", "results"):
        merging.add_argument(name, type=Path)
    merging.set_defaults(run=merge_tensors)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()

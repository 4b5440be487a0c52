"""One training on several processes, a GPU each: `python -m mergetomix.launch JOB`, by accelerate.

Or on processes that something else started and made known to one another, such as Ray Train: each
calls `join` and then `take_part`.

The order of the data, the steps and the loss are those of one process with the same batch: every
step's batch is cut into as many pieces as there are processes. What is left over at the end of an
epoch is filled up with rows that are not trained on, where accelerate would repeat the first ones.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergetomix import training
from mergetomix.curves import StepLog
from mergetomix.errors import Fault, MergeToMixError, RecipeError, TrainingError
from mergetomix.experts.deltas import nonfinite
from mergetomix.models.encoding import Item
from mergetomix.models.family import Family
from mergetomix.sections.train import Launch, Train

LOOK_EVERY_S = 0.2
JOB, STEPS, LOG = "job.pkl", "steps", "log"
"""The files of a job's folder: what to do, a line for each step done, what was printed. Beside them
each process writes what came of it."""


@dataclass(frozen=True)
class Job:
    """A training for several processes.

    `leader` is the process that waits for it, and `since` when that began.
    """

    family: Family
    sequences: Sequence[Item]
    settings: Train
    out: Path
    leader: int
    since: float


# --- in the process that waits


def finetune(
    family: Family,
    sequences: Sequence[Item],
    settings: Train,
    out: Path,
    on_step: Callable[[StepLog], None],
    devices: Sequence[str],
) -> tuple[int, float]:
    """Fine-tunes as `training.finetune` does, on the processes that `train.launch` asks for.

    Args:
        devices: what CUDA_VISIBLE_DEVICES calls the GPUs to use; none on a CPU.

    Raises:
        TrainingError: the loss or a param is not finite.
        Fault: a process failed otherwise.
    """
    launch = settings.launch
    assert launch is not None
    import psutil

    started, folder = time.monotonic(), out / ".job"
    folder.mkdir(parents=True)
    job = Job(family, sequences, settings, out, os.getpid(), psutil.Process().create_time())
    (folder / JOB).write_bytes(pickle.dumps(job))
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [*command(launch), "-m", "mergetomix.launch", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        wait(process, folder, on_step)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    num_tokens = outcome(process, folder)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return num_tokens, time.monotonic() - started


def command(launch: Launch) -> list[str]:
    """Returns the command that starts the processes, without what they do."""
    found = [sys.executable, "-m", "accelerate.commands.launch"]
    found += ["--num_processes", str(launch.processes)]
    if launch.config_file is not None:
        return [*found, "--config_file", launch.config_file]
    found += ["--num_machines", "1"]
    found += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    if launch.sharding == "ddp":
        # its --cpu would start one process; each says itself what it computes on
        found.append("--multi_gpu")
    else:
        found += ["--use_fsdp", "--fsdp_version", "2"]
        found += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
        found += ["--fsdp_reshard_after_forward", "true"]
        found += ["--fsdp_cpu_ram_efficient_loading", "false"]
    return found


def wait(
    process: subprocess.Popen[bytes], folder: Path, on_step: Callable[[StepLog], None]
) -> None:
    """Waits for the end of a job and tells of its steps."""
    (folder / STEPS).touch()
    with (folder / STEPS).open(encoding="utf-8") as file:
        rest = ""
        while True:
            is_over = process.poll() is not None
            *lines, rest = (rest + file.read()).split("\n")  # the last may not be whole yet
            for line in lines:
                on_step(StepLog(**json.loads(line)))
            if is_over:
                return
            time.sleep(LOOK_EVERY_S)


def outcome(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Returns the tokens of a job that is over. Raises what it raised."""
    said: dict[str, Any] = {}
    for file in sorted(folder.glob("result.*.json")):
        found = json.loads(file.read_text())
        if "message" in found:
            kind = TrainingError if found["kind"] == "TrainingError" else Fault
            raise kind(found["message"], hint=found["hint"])
        said |= found
    if process.returncode or "num_tokens" not in said:
        printed = (folder / LOG).read_text(errors="replace")[-2000:]
        message = f"a training of several processes ended with code {process.returncode}"
        raise Fault(message, hint=f"its last lines are:\n{printed}")
    return int(said["num_tokens"])


# --- in each process of the training


def main() -> None:
    """Trains as one of several processes; the first writes the model and what came of it."""
    folder = Path(sys.argv[1])
    job: Job = pickle.loads((folder / JOB).read_bytes())  # noqa: S301  # of who waits for this
    threading.Thread(target=_end_with, args=(job.leader, job.since), daemon=True).start()
    rank = int(os.environ.get("RANK", "0"))
    if job.family.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"

    def on_step(step: StepLog) -> None:
        if rank == 0:
            with (folder / STEPS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(step)) + "\n")

    try:
        num_tokens, _ = take_part(job.family, job.sequences, job.settings, job.out, on_step)
        said: dict[str, Any] = {"num_tokens": num_tokens}
    except MergeToMixError as error:
        said = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception as error:  # noqa: BLE001  # the process that waits raises it
        traceback.print_exc()
        said = {"kind": "Fault", "message": f"{type(error).__name__}: {error}", "hint": None}
    # a process that fails may be the only one that knows why: the others wait for it, and are ended
    draft = folder / f"draft.{rank}"
    draft.write_text(json.dumps(said))
    draft.replace(folder / f"result.{rank}.json")
    sys.stdout.flush()
    sys.exit("message" in said)


def join(launch: Launch, device: str) -> None:
    """Readies a process that was started by something else to take part in a training.

    The processes must know one another: torch.distributed is initialized, and RANK, WORLD_SIZE and
    LOCAL_RANK are set. Accelerate is told what the recipe says as its own launcher would.

    Raises:
        RecipeError: the configuration file asks for what only that launcher can start.
    """
    from accelerate import PartialState

    for name, value in variables(launch).items():
        os.environ[name] = value
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    PartialState(cpu=device == "cpu")


def variables(launch: Launch) -> dict[str, str]:
    """Returns what accelerate's launcher would tell each process by its environment.

    Raises:
        RecipeError: the configuration file asks for what only that launcher can start.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    # by the same options; accelerate has no public name for the step from them to the variables
    options = [*command(launch)[3:], "-m", "mergetomix.launch"]
    said, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    if said.use_deepspeed or said.tpu or said.use_megatron_lm:
        message = f"{launch.config_file} asks for neither DDP nor FSDP"
        hint = "trainings of a Ray cluster are by DDP or FSDP; use executor.kind: local"
        raise RecipeError("train.launch.config_file", message, hint=hint)
    said.main_process_port = 0
    found = prepare_multi_gpu_env(said)
    own = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
    return {name: value for name, value in found.items() if name.startswith(own)}


def is_joined() -> bool:
    """Whether this process is one of several that know one another."""
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process writes what comes of a training: the first of several, or the only."""
    import torch.distributed

    return not is_joined() or torch.distributed.get_rank() == 0


def take_part(
    family: Family,
    sequences: Sequence[Item],
    settings: Train,
    out: Path,
    on_step: Callable[[StepLog], None],
) -> tuple[int, float]:
    """Fine-tunes as `training.finetune` does, as one of several processes; the first one saves.

    Raises:
        TrainingError: the loss or a param is not finite.
        Fault: the batch cannot be cut into as many pieces as there are processes.
    """
    from accelerate import PartialState

    started = time.monotonic()
    num = PartialState(cpu=family.device == "cpu").num_processes
    if settings.batch_size % num:
        message = f"a batch of {settings.batch_size} cannot be cut into {num} equal pieces"
        raise Fault(message, hint="make train.batch_size a multiple of train.launch.processes")
    schedule = training.plan(len(sequences), sum(s.num_tokens for s in sequences), settings)
    places = order(len(sequences), schedule.num_steps, settings)
    filler = family.untrained()
    rows = [filler if place is None else sequences[place] for place in places]
    arguments = training.arguments(family, settings, schedule, out) | {
        "per_device_train_batch_size": settings.batch_size // num,
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
    }
    trainer = training.trained(family, rows, settings, arguments, on_step, shard_on_cpu)
    save(trainer, family, settings, out)
    num_tokens = sum(sequences[place].num_tokens for place in places if place is not None)
    return num_tokens, time.monotonic() - started


def order(num_rows: int, num_steps: int, settings: Train) -> list[int | None]:
    """Returns the rows of every step as one process takes them, None where a batch is not full.

    An epoch is a permutation drawn by the seed and the number of the epoch, as accelerate draws it.
    """
    import torch

    per_step = settings.batch_size * settings.gradient_accumulation
    found: list[int | None] = []
    epoch = 0
    while len(found) < num_steps * per_step:
        generator = torch.Generator().manual_seed(settings.seed + epoch)
        found += torch.randperm(num_rows, generator=generator).tolist()
        found += [None] * (-len(found) % per_step)
        epoch += 1
    return found[: num_steps * per_step]


def shard_on_cpu(trainer: Any) -> None:
    """Has accelerate shard a model on a CPU, which it does by itself on GPUs alone."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wanted and state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True


def save(trainer: Any, family: Family, settings: Train, out: Path) -> None:
    """Writes the trained model, put together where each process holds a part of it."""
    from torch.distributed.tensor import DTensor

    model, writes = trainer.model, is_first()
    if any(isinstance(each, DTensor) for each in model.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(model, options=whole)
        if writes:
            on, family.device = family.device, "cpu"
            model = family.load()
            family.device = on
            if settings.method == "lora":
                model = family.adapted(model, settings.lora)
            model.load_state_dict(tensors)
    if writes:
        name = nonfinite(model)
        if name is not None:
            raise training.not_finite(f"the tensor {name} is not finite", trainer.state.global_step)
        family.save(model, out)
    trainer.accelerator.wait_for_everyone()


def _end_with(leader: int, since: float) -> None:
    """Ends this process if the one that waits for it is gone."""
    import psutil

    with suppress(psutil.Error):
        while True:
            process = psutil.Process(leader)
            # another may have its number by now, or nobody may have asked how it ended
            if process.create_time() != since or process.status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()

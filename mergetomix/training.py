"""One `finetune` for experts, checks and the final model, on the trainer of the model's family."""

from __future__ import annotations

import gc
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergetomix.errors import TrainingError
from mergetomix.experts.deltas import nonfinite
from mergetomix.models.encoding import Item
from mergetomix.models.family import Family
from mergetomix.sections.train import Train

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Schedule:
    """How many optimizer steps a fine-tune takes."""

    num_steps: int
    warmup_steps: int
    num_tokens: int


def plan(num_sequences: int, num_tokens: int, settings: Train) -> Schedule:
    """The steps of a fine-tune on `num_sequences` sequences of `num_tokens` tokens in all, and the tokens they see.

    `max_steps` goes before `max_tokens`, which goes before `epochs`.
    """
    per_epoch = math.ceil(num_sequences / (settings.batch_size * settings.gradient_accumulation))
    if settings.max_steps is not None:
        steps = settings.max_steps
    elif settings.max_tokens is not None:
        steps = max(1, round(settings.max_tokens * per_epoch / num_tokens))
    else:
        steps = max(1, math.ceil(round(settings.epochs * per_epoch, 6)))  # 1.1 * 10 is 11 and a bit
    # a step of the warm-up is lost to a run of few steps, and all of a run of one: its rate would be zero
    warmup = min(round(settings.warmup_ratio * steps), steps - 1)
    return Schedule(steps, warmup, round(num_tokens * steps / per_epoch))


def finetune(
    family: Family,
    sequences: Sequence[Item],
    settings: Train,
    out: Path,
    on_step: Callable[[int], None] = lambda _: None,
) -> tuple[int, float]:
    """Fine-tune the base on `sequences` and save the result in the folder `out`, as `from_pretrained` loads it.

    The result is a function of the base, the sequences in their order, and the settings with their seed: nothing else that
    ran in the process before changes a bit of it, on the same machine.

    Args:
        on_step: called with 1 after every optimizer step.

    Returns:
        Tokens trained on, and seconds.

    Raises:
        TrainingError: the loss or a param is not finite; names the step.
    """
    started = time.monotonic()
    try:
        tokens = _trained(family, sequences, settings, out, on_step)
    finally:
        _free()
    return tokens, time.monotonic() - started


def _trained(
    family: Family,
    sequences: Sequence[Item],
    settings: Train,
    out: Path,
    on_step: Callable[[int], None],
) -> int:
    """Train, save, and say how many tokens it took. All that holds the model is local to this function."""
    import torch
    import transformers

    schedule = plan(len(sequences), sum(s.num_tokens for s in sequences), settings)
    with _calm():
        transformers.set_seed(settings.seed)
        trainer = family.trainer(sequences, settings, arguments(family, settings, schedule, out))
        trainer.add_callback(_watch(on_step))
        _drop_printer(trainer)
        try:
            trainer.train()
        except torch.OutOfMemoryError:
            hint = "lower train.batch_size or train.max_length, or set train.gradient_checkpointing: true"
            raise TrainingError(
                f"out of GPU memory at step {trainer.state.global_step + 1}", hint=hint
            ) from None
    _check_finite(trainer.model, schedule.num_steps)
    family.save(trainer.model, out)
    return int(trainer.state.num_input_tokens_seen)


def _free() -> None:
    """Give a fine-tune's memory back: trainer and model refer to each other in circles, which only the collector ends."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def arguments(family: Family, settings: Train, schedule: Schedule, out: Path) -> dict[str, Any]:
    """The recipe's section as arguments of transformers' Trainer and its kin."""
    return {
        "output_dir": str(out),
        "max_steps": schedule.num_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": SCHEDULES[settings.schedule],
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": family.bf16,
        "use_cpu": family.device == "cpu",
        "dataloader_pin_memory": family.device == "cuda",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _watch(on_step: Callable[[int], None]) -> Any:
    """Counts the steps and stops at the first loss that is not finite."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_step(1)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if logs and not math.isfinite(logs.get("loss", 0.0)):
                _stop(f"the loss is {logs['loss']}", state.global_step)

    return Watch()


def _check_finite(model: Any, step: int) -> None:
    name = nonfinite(model)
    if name is not None:
        _stop(f"the tensor {name} is not finite", step)


def _stop(what: str, step: int) -> None:
    raise TrainingError(
        f"{what} at step {step}", hint="lower train.learning_rate, or look for odd rows in the data"
    )


def _drop_printer(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextmanager
def _calm() -> Iterator[None]:
    """TRL's and transformers' advice to people who set up a trainer by hand is not for the users of this package."""
    names = ("transformers", "trl", "peft", "accelerate")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def num_anchors(num_own: int, share: float) -> int:
    """Sequences of general data beside `num_own` others so that they are the share of all: n share / (1 - share), rounded."""
    return round(num_own * share / (1 - share))


def union(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """The sequences of several datasets, one after the other; training shuffles them by its seed."""
    return [sequence for part in parts for sequence in part]

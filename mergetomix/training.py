"""The one `finetune` for experts, checks and the final model, on the trainer of a family."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mergetomix.curves import OwnRows, StepLog
from mergetomix.errors import TrainingError
from mergetomix.experts.deltas import nonfinite
from mergetomix.models.encoding import Item
from mergetomix.models.family import TakesLosses, Trains
from mergetomix.models.pretrained import quiet
from mergetomix.sections.train import Train

LEAST_SAMPLED, MOST_SAMPLED, SHARE_SAMPLED = 8, 64, 50
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Schedule:
    """How many optimizer steps a fine-tune takes, and how many tokens it sees."""

    num_steps: int
    warmup_steps: int
    num_tokens: int


def plan(num_sequences: int, num_tokens: int, settings: Train) -> Schedule:
    """Returns the schedule of a fine-tune on `num_sequences` sequences of `num_tokens` in all.

    `max_steps` goes before `max_tokens`, which goes before `epochs`.

    >>> plan(100, 1000, Train(batch_size=10, epochs=3, warmup_ratio=0.1))
    Schedule(num_steps=30, warmup_steps=3, num_tokens=3000)
    """
    per_epoch = math.ceil(num_sequences / (settings.batch_size * settings.gradient_accumulation))
    if settings.max_steps is not None:
        steps = settings.max_steps
    elif settings.max_tokens is not None:
        steps = max(1, round(settings.max_tokens * per_epoch / num_tokens))
    else:
        steps = max(1, math.ceil(round(settings.epochs * per_epoch, 6)))  # 1.1 * 10 is 11 and a bit
    # a step of the warm-up is lost to a run of few steps, and all of a run of one: its rate is zero
    warmup = min(round(settings.warmup_ratio * steps), steps - 1)
    return Schedule(steps, warmup, round(num_tokens * steps / per_epoch))


def finetune(
    family: Trains,
    sequences: Sequence[Item],
    settings: Train,
    out: Path,
    on_step: Callable[[StepLog], None] = lambda _: None,
    on_rows: Callable[[OwnRows], None] = lambda _: None,
) -> tuple[int, float]:
    """Fine-tunes the base on `sequences` and saves the result in a folder for `from_pretrained`.

    The result is a function of the base, the sequences in their order, and the settings with their
    seed: nothing else that ran in the process before changes a bit of it, on the same machine.

    Args:
        out: the folder.
        on_step: called after every optimizer step.
        on_rows: called at the end with what became of the loss on some of the sequences; not for
            images.

    Returns:
        Tokens trained on, and seconds.

    Raises:
        TrainingError: the loss or a param is not finite; names the step.
    """
    import torch

    started = time.monotonic()
    try:
        tokens = _trained(family, sequences, settings, out, on_step, on_rows)
    finally:
        gc.collect()  # trainer and model refer to each other in circles, which only this ends
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return tokens, time.monotonic() - started


def _trained(
    family: Trains,
    sequences: Sequence[Item],
    settings: Train,
    out: Path,
    on_step: Callable[[StepLog], None],
    on_rows: Callable[[OwnRows], None],
) -> int:
    """Trains, saves, and returns the tokens seen; all that holds the model is local to this."""
    schedule = plan(len(sequences), sum(s.num_tokens for s in sequences), settings)
    given = arguments(family, settings, schedule, out)
    sample, before = _sample(family, sequences, settings, schedule), list[float]()
    trainer = trained(
        family,
        sequences,
        settings,
        given,
        on_step,
        lambda trainer: before.extend(_losses(family, trainer.model, sample, settings)),
    )
    if sample:
        after = _losses(family, trainer.model, sample, settings)
        on_rows(OwnRows.of(before, after, [each.num_scored for each in sample]))
    name = nonfinite(trainer.model)
    if name is not None:
        raise not_finite(f"the tensor {name} is not finite", schedule.num_steps)
    family.save(trainer.model, out)
    return int(trainer.state.num_input_tokens_seen)


def trained(
    family: Trains,
    sequences: Sequence[Item],
    settings: Train,
    arguments: Mapping[str, Any],
    on_step: Callable[[StepLog], None],
    prepare: Callable[[Any], None] = lambda _: None,
) -> Any:
    """Returns transformers' Trainer once it has trained.

    Args:
        arguments: those of transformers' TrainingArguments.
        on_step: called after every optimizer step.
        prepare: called with the trainer before it trains.

    Raises:
        TrainingError: the loss is not finite, or the memory too small; names the step.
    """
    import torch
    import transformers

    with quiet():
        transformers.set_seed(settings.seed)
        trainer = family.trainer(sequences, settings, arguments)
        prepare(trainer)
        trainer.add_callback(_watch(on_step))
        trainer.remove_callback(transformers.PrinterCallback)
        try:
            trainer.train()
        except torch.OutOfMemoryError:
            lower = "lower train.batch_size or train.max_length"
            hint = f"{lower}, or set train.gradient_checkpointing: true"
            message = f"out of GPU memory at step {trainer.state.global_step + 1}"
            raise TrainingError(message, hint=hint) from None
    return trainer


def _sample(
    family: Trains, sequences: Sequence[Item], settings: Train, schedule: Schedule
) -> list[Item]:
    """Returns some sequences to look at before and after: a fiftieth of the tokens trained on.

    They are 8 to 64. Of images there are none: what a head says depends on all classes together.
    """
    if not isinstance(family, TakesLosses) or not getattr(family, "has_texts", False):
        return []
    rng, found, num_tokens = np.random.default_rng(settings.seed), list[Item](), 0
    for place in rng.permutation(len(sequences))[:MOST_SAMPLED].tolist():
        if len(found) >= LEAST_SAMPLED and num_tokens * SHARE_SAMPLED >= schedule.num_tokens:
            break
        found.append(sequences[place])
        num_tokens += sequences[place].num_tokens
    return found


def _losses(family: Trains, model: Any, sequences: Sequence[Item], settings: Train) -> list[float]:
    """Returns the loss of each sequence, summed over what is scored, as many at once as trained."""
    import torch

    if not sequences:
        return []
    assert isinstance(family, TakesLosses)
    found: list[float] = []
    model.eval()  # the trainer turns training on for itself
    with torch.no_grad():
        for first in range(0, len(sequences), settings.batch_size):
            part = sequences[first : first + settings.batch_size]
            batches = family.batches(part, 10**9)
            places = [place for rows in family.rows_of(batches) for place in rows]
            values = [loss for batch in batches for loss in family.losses(model, batch).tolist()]
            found += [loss for _, loss in sorted(zip(places, values, strict=True))]
    return found


def arguments(family: Trains, settings: Train, schedule: Schedule, out: Path) -> dict[str, Any]:
    """Returns the recipe's section as arguments of transformers' Trainer and its kin."""
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


def _watch(on_step: Callable[[StepLog], None]) -> Any:
    """Returns a callback that tells of every step and stops at the first loss that is not finite.

    The loss is logged after every step; what the trainer says at the end has none.
    """
    from transformers import TrainerCallback

    started = time.monotonic()

    class Watch(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if not logs or "loss" not in logs:
                return
            loss, number = float(logs["loss"]), int(state.global_step)
            if not math.isfinite(loss):
                raise not_finite(f"the loss is {loss}", number)
            rate, norm = float(logs["learning_rate"]), float(logs.get("grad_norm") or 0.0)
            seen = int(state.num_input_tokens_seen)
            on_step(StepLog(number, loss, rate, norm, seen, time.monotonic() - started))

    return Watch()


def not_finite(what: str, step: int) -> TrainingError:
    """Returns the error of a training whose numbers are lost."""
    hint = "lower train.learning_rate, or look for odd rows in the data"
    return TrainingError(f"{what} at step {step}", hint=hint)


def num_anchors(num_own: int, share: float) -> int:
    """Returns how many sequences of general data beside `num_own` others are the share of all.

    It is n share / (1 - share), rounded.

    >>> num_anchors(30, 0.25)
    10
    """
    return round(num_own * share / (1 - share))


def union(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """Returns the sequences of several datasets, one after the other; training shuffles them."""
    return list(chain.from_iterable(parts))

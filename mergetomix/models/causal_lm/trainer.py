"""Fine-tuning of causal language models, on TRL's SFTTrainer and PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.sequences import Encoded
from mergetomix.sections.train import Train

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTTrainer

PLAIN_LOGITS = 2**26
"""Logits of a batch (256 MiB in float32) up to which they are computed all at once."""


def trainer(
    family: CausalLM, sequences: Sequence[Encoded], settings: Train, arguments: Mapping[str, Any]
) -> SFTTrainer:
    """The trainer of the base on these sequences. Its model keeps the base's setting of the cache."""
    from trl import SFTConfig

    config = SFTConfig(
        **arguments,
        padding_free=settings.packing,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="non_padding",
    )
    if config.n_gpu > 1:
        # TRL refuses to train in one process that sees several GPUs; the model is on the first and stays there.
        config._n_gpu = 1
    model = family.load()
    restore = _restore(model.config, model.config.use_cache)
    return _class(
        settings.batch_size * family.max_length * model.config.get_text_config().vocab_size
    )(
        model=model,
        args=config,
        train_dataset=_table(sequences),
        processing_class=family.tokenizer,
        peft_config=family.lora_config(settings.lora) if settings.method == "lora" else None,
        callbacks=[restore],
    )


def _restore(config: Any, use_cache: bool) -> Any:
    """Puts the model's setting back after training: the trainer turns the cache off, and a saved model would generate slowly
    ever after."""
    from transformers import TrainerCallback

    class Restore(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            config.use_cache = use_cache

    return Restore()


def _class(num_logits: int) -> type[SFTTrainer]:
    """TRL's trainer. Where a batch's logits fit easily, with the loss of transformers' Trainer, which is the same number: TRL's
    own takes the logits in chunks, and entropy and accuracy beside the loss, which costs a small model a third of its time."""
    from transformers import Trainer
    from trl import SFTTrainer

    class Plain(SFTTrainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    return Plain if num_logits <= PLAIN_LOGITS else SFTTrainer


def _table(sequences: Sequence[Encoded]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [list(s.ids) for s in sequences],
            "labels": [list(s.labels) for s in sequences],
        }
    )

"""Fine-tuning of causal language models, on TRL's SFTTrainer and PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.models.causal_lm.sequences import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import SFTTrainer

PLAIN_LOGITS = 2**26
"""Logits of a batch (256 MiB in float32) up to which they are computed all at once."""


def trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Encoded],
    arguments: Mapping[str, Any],
    adapter: Any,
    max_length: int,
) -> SFTTrainer:
    """Returns the trainer of a model, whose configuration is as it was once training ends.

    `arguments` are those of TRL's SFTConfig, `adapter` is PEFT's configuration of fresh adapters or
    None to train the model itself, and no sequence has more than `max_length` tokens.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig

    # the trainer turns the cache off, which would make a saved model generate slowly ever after,
    # and the logits of a mixture's router on, which scoring cannot take
    text = model.config.get_text_config()
    keys = ("use_cache", "output_router_logits", "router_aux_loss_coef")
    before = [
        (config, key, getattr(config, key))
        for config in {id(each): each for each in (model.config, text)}.values()
        for key in keys
        if hasattr(config, key)
    ]

    class Restore(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for config, key, value in before:
                setattr(config, key, value)

    config = SFTConfig(
        **arguments,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="non_padding",
    )
    if config.n_gpu > 1:
        # TRL refuses to train in one process that sees several GPUs; the model is on the first
        config._n_gpu = 1
    vocabulary = model.config.get_text_config().vocab_size
    num_logits = config.per_device_train_batch_size * max_length * vocabulary
    return _class(plain=num_logits <= PLAIN_LOGITS)(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [list(s.ids) for s in sequences],
                "labels": [list(s.labels) for s in sequences],
            }
        ),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Restore()],
    )


def _class(plain: bool) -> type[SFTTrainer]:
    """Returns TRL's trainer, or one with the loss of transformers' Trainer, the same number.

    TRL's own takes the logits in chunks, and entropy and accuracy beside the loss, which costs a
    small model a third of its time.
    """
    from transformers import Trainer
    from trl import SFTTrainer

    class PlainTrainer(SFTTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return Trainer.compute_loss(self, *args, **kwargs)

    return PlainTrainer if plain else SFTTrainer

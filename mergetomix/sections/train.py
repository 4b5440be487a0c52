"""How every fine-tune is made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mergetomix.sections.section import Section, Seed, Text
from mergetomix.sections.source import Dataset


class Lora(Section):
    """Settings of the low-rank adapters (PEFT)."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32, gt=0)
    """The adapter's product is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input during training."""
    target_modules: str | list[str] = "all-linear"
    """Which linear layers get an adapter."""
    target_parameters: list[str] | None = None
    """Which tensors that are no layer's weight get one too, by the ends of their names: a mixture's
    experts that stand as one tensor, such as `experts.gate_up_proj`. Needs dropout 0."""


class Augment(Section):
    """Random changes of training images, another one every time an image is seen.

    All are off by default.
    """

    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a mirror image, left for right."""
    shift: float = Field(default=0.0, ge=0, lt=1)
    """Most shift each way, as a share of the image's side."""
    zoom: float = Field(default=0.0, ge=0, lt=1)
    """Most change of size either way: 0.1 is from 0.9 to 1.1."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Most rotation either way, in degrees."""


class Anchor(Section):
    """General data mixed into every fine-tune, experts and real ones alike.

    It keeps them near each other.
    """

    dataset: Dataset
    """Where the general data comes from, as for a candidate."""
    share: float = Field(gt=0, lt=1)
    """Share of a fine-tune's sequences that are general data: 0.5 adds as many as there are of its
    own."""


class Launch(Section):
    """One training on several GPUs, for models that need it; accelerate starts its processes."""

    processes: int = Field(ge=2)
    """How many processes, a GPU each; batch_size must be a multiple of it."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp`: each holds the whole model. `fsdp2`: each holds a part of the weights, gradients and
    optimizer."""
    config_file: Text | None = None
    """A configuration of accelerate's (`accelerate config`), which then says all but the number of
    processes, and how they share the model."""

    @model_validator(mode="after")
    def _says_it_once(self) -> Launch:
        if self.config_file is not None and self.sharding != "ddp":
            raise ValueError("sharding is said by config_file: leave one of them out")
        return self


class Train(Section):
    """How every fine-tune is made: experts, checks and the final model alike."""

    method: Literal["lora", "full"] = "lora"
    """`lora` trains small adapters; `full` trains every weight."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the data, unless max_steps or max_tokens is set."""
    max_steps: int | None = Field(default=None, ge=1)
    """A fixed number of optimizer steps for every fine-tune."""
    max_tokens: int | None = Field(default=None, ge=1)
    """A fixed number of tokens for every fine-tune, rounded to whole steps."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences per forward pass."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimizer step: the effective batch is batch_size times this."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    packing: bool = False
    """Lay a batch's sequences end to end instead of padding them; each attends to itself alone, so
    the loss is the same. Saves time on a GPU with flash attention."""
    max_length: int = Field(default=1024, ge=8)
    """Longest sequence in tokens; the model's own limit holds where it is lower. Longer texts are
    cut into several sequences; longer prompts lose their beginning."""
    seed: Seed = 0
    """Seed of the data order, the adapters' start and dropout, the same for every fine-tune."""
    router_aux_loss: float | None = Field(default=None, ge=0)
    """For mixtures of experts: the factor of the loss that spreads tokens over experts; null adds
    none, whatever the base's configuration says."""
    anchor: Anchor | None = None
    """General data in every fine-tune."""
    augment: Augment | None = None
    """For images: random changes of the training images; null is none."""
    launch: Launch | None = None
    """Several processes for each training; null is one."""
    lora: Lora = Lora()
    """Settings of method: lora."""

    @property
    def is_of_fixed_length(self) -> bool:
        """Whether every fine-tune takes as many steps or tokens, whatever there is to train on."""
        return self.max_steps is not None or self.max_tokens is not None

"""Model families: everything that differs between kinds of model lies behind this seam.

Search, merging, verifying and reporting know of a family what `Family` says, and never which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from mergetomix.data.examples import Example, Examples
    from mergetomix.data.tables import Row
    from mergetomix.models.encoding import Encoding
    from mergetomix.sections.source import Source
    from mergetomix.sections.train import Lora, Train
    from mergetomix.store.store import Store


UNITS = {"causal-lm": "nats per token", "image-classifier": "nats per image"}
"""The unit of a loss, by family."""






class Family(Protocol):
    """A base model of one kind, and how its examples become losses.

    `scores` are the kinds of target that it has, `has_texts` says whether examples are texts that can
    be compared by their words.
    """

    name: ClassVar[str]
    scores: ClassVar[frozenset[str]]
    has_texts: ClassVar[bool]
    device: str

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16."""
        ...

    @property
    def config(self) -> Any:
        """transformers' configuration of the base."""
        ...

    @property
    def processor(self) -> Any:
        """What turns examples into tensors: a tokenizer or an image processor."""
        ...

    @property
    def transposed(self) -> frozenset[str]:
        """The params that stand as (in, out)."""
        ...

    @property
    def limits(self) -> tuple[str, ...]:
        """What the user should know of the model's limits, a sentence each."""
        ...

    def read(self, source: Source, where: str) -> Examples:
        """The examples of one source of the recipe."""
        ...

    def rows(self, source: Source, where: str) -> tuple[list[Row], list[Any]]:
        """Rows for a function of the user's, and, as plain values, what each is made of."""
        ...

    def settle(self, sources: Mapping[str, Examples]) -> None:
        """Looks at all sources together, by their place in the recipe, once, before anything is encoded."""
        ...

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Examples as sequences."""
        ...

    def notes(self, encodings: Mapping[str, Encoding]) -> list[str]:
        """What the user should know of how examples became sequences."""
        ...

    def shown(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """The pieces of an example, for a person to read, and whether each is trained on."""
        ...

    def settings(self) -> dict[str, Any]:
        """What a fine-tune depends on beside the recipe's section `train`."""
        ...

    def key(self, store: Store) -> str:
        """The address of the base's content."""
        ...

    def load(self, path: str | None = None, where: str = "base.path") -> Any:
        """The base, or a full fine-tune of it, in evaluation mode on the device."""
        ...

    def errors(self, path: str | None = None, where: str = "base.path") -> AbstractContextManager[None]:
        """Turns what loading raises for a model that is broken into a ModelError that names it."""
        ...

    def load_finetune(self, path: str) -> Any:
        """A fine-tune as this package saves it: a full model, or an adapter on the base."""
        ...

    def adapted(self, model: Any, lora: Lora) -> Any:
        """The base with fresh adapters."""
        ...

    def check_folder(self, folder: Path, where: str) -> None:
        """Raises ModelError where an expert's folder says that it reads its input otherwise than the base."""
        ...

    def check_expert(self, load: Callable[[], Any] | None, changed: frozenset[str], where: str) -> None:
        """Raises ModelError where an expert changes what no fine-tune of this family does.

        Args:
            load: gives the expert's model; None where it is an adapter.
            changed: the params that it changes.
        """
        ...

    def save(self, model: Any, folder: Path, max_shard_size: str | None = None) -> None:
        """Write a model (full or adapter) and its processor as a folder that `from_pretrained` loads.

        Args:
            max_shard_size: largest file of a full model's weights, such as `5GB`; None is as transformers has it.
        """
        ...

    def num_trained(self, lora: Lora | None) -> int:
        """How many params a fine-tune trains."""
        ...

    def num_saved(self, lora: Lora | None) -> int:
        """How many params a saved fine-tune holds."""
        ...

    def batches(self, sequences: Sequence[Any], batch_tokens: int) -> Sequence[Any]:
        """Batches of at most `batch_tokens` tokens each (or one sequence), the same every time."""
        ...

    def losses(self, model: Any, batch: Any) -> Tensor:
        """The sum over scored predictions of -log p, in nats, for every sequence of a batch; float64 on the CPU, shape
        (sequences,). With its graph, where gradients are on."""
        ...

    def negative_log_likelihoods(self, model: Any, batches: Sequence[Any]) -> list[float]:
        """The sum over scored predictions of -log p, in nats, for every sequence in its original order."""
        ...

    def mean_state(self, model: Any, sequences: Sequence[Any], batch_tokens: int) -> Any:
        """The mean of what the model's head reads, over all tokens (or images); float64, shape (hidden,)."""
        ...

    def training_loss(self, model: Any, sequences: Sequence[Any]) -> Any:
        """The loss of one batch with its graph, as training takes it."""
        ...

    def trainer(self, sequences: Sequence[Any], settings: Train, arguments: Mapping[str, Any]) -> Any:
        """transformers' Trainer (or one of its kin) of the base on these sequences; its state counts the tokens seen."""
        ...











"""Model families: everything that differs between kinds of model lies behind this seam.

Search, merging, verifying and reporting know of a family what `Family` says, and never which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from mergetomix.data.examples import Example, Examples
    from mergetomix.data.tables import Row
    from mergetomix.models.causal_lm.generation import Generation
    from mergetomix.models.causal_lm.questions import Asked, Question
    from mergetomix.models.encoding import Encoding
    from mergetomix.sections.source import Source
    from mergetomix.sections.train import Lora, Train
    from mergetomix.store.store import Store


UNITS = {"causal-lm": "nats per token", "image-classifier": "nats per image"}
"""The unit of a loss, by family."""


class Reads(Protocol):
    """Turns sources of the recipe into sequences that the model reads.

    `has_texts` says whether examples are texts that can be compared by their words.
    """

    name: ClassVar[str]
    has_texts: ClassVar[bool]

    @property
    def limits(self) -> tuple[str, ...]:
        """What the user should know of the model's limits, a sentence each."""
        ...

    def read(self, source: Source, where: str) -> Examples:
        """Returns the examples of one source of the recipe."""
        ...

    def rows(self, source: Source, where: str) -> tuple[list[Row], list[Any]]:
        """Returns rows for a function of the user's, and what each is made of, as plain values."""
        ...

    def settle(self, sources: Mapping[str, Examples]) -> None:
        """Looks at all sources together, by their place in the recipe, before any is encoded."""
        ...

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Returns examples as sequences."""
        ...

    def notes(self, encodings: Mapping[str, Encoding]) -> list[str]:
        """Returns what the user should know of how examples became sequences."""
        ...

    def shown(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """Returns the pieces of an example for a person to read, and whether each is trained on."""
        ...


class Loads(Protocol):
    """Loads the base and its fine-tunes, and says which experts fit the base."""

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

    def key(self, store: Store) -> str:
        """Returns the address of the base's content."""
        ...

    def load(self, path: str | None = None, where: str = "base.path") -> Any:
        """Returns the base, or a full fine-tune of it, in evaluation mode on the device."""
        ...

    def load_finetune(self, path: str) -> Any:
        """Returns a fine-tune of this package's: a full model, or an adapter on the base."""
        ...

    def errors(
        self, path: str | None = None, where: str = "base.path"
    ) -> AbstractContextManager[None]:
        """Turns what loading raises for a broken model into a ModelError that names it."""
        ...

    def check_folder(self, folder: Path, where: str) -> None:
        """Raises ModelError where an expert's folder reads its input otherwise than the base."""
        ...

    def check_expert(
        self, load: Callable[[], Any] | None, changed: frozenset[str], where: str
    ) -> None:
        """Raises ModelError where an expert changes what no fine-tune of this family does.

        Args:
            load: gives the expert's model; None where it is an adapter.
            changed: the params that it changes.
        """
        ...


class Trains(Protocol):
    """Fine-tunes the base, and writes what came of it."""

    device: str

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16."""
        ...

    def settings(self) -> dict[str, Any]:
        """Returns what a fine-tune depends on beside the recipe's section `train`."""
        ...

    def trainer(
        self, sequences: Sequence[Any], settings: Train, arguments: Mapping[str, Any]
    ) -> Any:
        """Returns transformers' Trainer (or one of its kin) of the base on these sequences.

        Its state counts the tokens seen.
        """
        ...

    def training_loss(self, model: Any, sequences: Sequence[Any]) -> Any:
        """Returns the loss of one batch with its graph, as training takes it."""
        ...

    def adapted(self, model: Any, lora: Lora) -> Any:
        """Returns the base with fresh adapters."""
        ...

    def save(self, model: Any, folder: Path, max_shard_size: str | None = None) -> None:
        """Writes a model (full or adapter) and its processor for `from_pretrained` to load.

        Args:
            max_shard_size: largest file of a full model's weights, such as `5GB`; None is as
                transformers has it.
        """
        ...

    def num_trained(self, lora: Lora | None) -> int:
        """Returns how many params a fine-tune trains."""
        ...

    def num_saved(self, lora: Lora | None) -> int:
        """Returns how many params a saved fine-tune holds."""
        ...


@runtime_checkable
class TakesLosses(Protocol):
    """Has a loss for every sequence."""

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Returns examples as sequences."""
        ...

    def batches(self, sequences: Sequence[Any], batch_tokens: int) -> Sequence[Any]:
        """Returns batches of at most `batch_tokens` tokens each (or one sequence).

        They are the same every time.
        """
        ...

    def losses(self, model: Any, batch: Any) -> Tensor:
        """Returns the sum over scored predictions of -log p for every sequence of a batch.

        In nats; float64 on the CPU, shape (sequences,), with its graph where gradients are on.
        """
        ...

    def negative_log_likelihoods(self, model: Any, batches: Sequence[Any]) -> list[float]:
        """Returns the same for every sequence of all batches, in the original order."""
        ...


@runtime_checkable
class ClassifiesImages(Protocol):
    """Says of images which class is the likeliest."""

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Returns examples as sequences."""
        ...

    def batches(self, sequences: Sequence[Any], batch_tokens: int) -> Sequence[Any]:
        """Returns batches of at most `batch_tokens` tokens each (or one sequence)."""
        ...

    def right(self, model: Any, batches: Sequence[Any]) -> list[bool]:
        """Returns whether its class is the likeliest, for every image in its original order."""
        ...


class EncodesPrompts(Protocol):
    """Encodes the text before an answer."""

    def prompt_ids(self, example: Example, where: str, num_new: int = 0) -> list[int]:
        """Returns the tokens before the answer, so few that the model has room for `num_new`."""
        ...


@runtime_checkable
class ScoresOptions(EncodesPrompts, Protocol):
    """Scores options behind a prompt."""

    max_length: int

    def tokens(self, text: str) -> list[int]:
        """Returns the token ids of a piece of text, without special tokens."""
        ...

    def shorten(self, prompt: list[int], room: int) -> list[int]:
        """Returns the start token and the last tokens of a prompt, at most `room` in all."""
        ...

    def asked(self, questions: Sequence[Question], batch_tokens: int) -> Asked:
        """Returns questions, ready for models, in batches of at most `batch_tokens` tokens."""
        ...

    def option_losses(self, model: Any, asked: Asked) -> list[list[float]]:
        """Returns the sum over an option's tokens of -log p, in nats, for every option."""
        ...


@runtime_checkable
class GeneratesText(EncodesPrompts, Protocol):
    """Continues prompts; `limit` is the model's longest sequence, None where it has none."""

    limit: int | None

    def room(self, num_new: int) -> int:
        """Returns the longest prompt that leaves the model `num_new` tokens for an answer."""
        ...

    def generate(
        self, model: Any, prompts: Sequence[Sequence[int]], settings: Generation
    ) -> list[str]:
        """Returns greedy continuations as text, each cut before the first of the stop strings."""
        ...


class HasStates(Protocol):
    """Shows what the model's head reads."""

    def mean_state(self, model: Any, sequences: Sequence[Any], batch_tokens: int) -> Any:
        """Returns the mean of what the head reads, over all tokens (or images).

        float64, shape (hidden,).
        """
        ...


class Family(Reads, Loads, Trains, TakesLosses, HasStates, Protocol):
    """A base model of one kind: what every family has. Kinds of target may ask for more."""

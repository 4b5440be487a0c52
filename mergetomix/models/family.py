"""What the rest of the package may ask of a family of models, by protocols of one purpose each.

Search, merging, verifying and reporting know no more of a kind of model than what stands here.
"""

# ruff: noqa: D102  (each protocol says what its members give)

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from mergetomix.stretches import WHOLE, Stretch

if TYPE_CHECKING:
    from torch import Tensor

    from mergetomix.data.examples import Example, Examples
    from mergetomix.data.tables import Row
    from mergetomix.models.causal_lm.generation import Continuation, Generation
    from mergetomix.models.causal_lm.questions import Asked, Question
    from mergetomix.models.encoding import Encoding
    from mergetomix.sections.source import Source
    from mergetomix.sections.train import Lora, Train
    from mergetomix.store.store import Store

UNITS = {"causal-lm": "nats per token", "image-classifier": "nats per image"}
"""The unit of a loss, by family."""


class Encodes(Protocol):
    """Turns examples into sequences, and sequences into batches.

    `where` is the examples' place in the recipe, for errors. Batches have at most `batch_tokens`
    tokens (or one sequence), and are the same every time; `rows_of` says which sequences each of
    all batches holds, by their places.
    """

    def encode(self, examples: Sequence[Example], where: str) -> Encoding: ...
    def batches(self, sequences: Sequence[Any], batch_tokens: int) -> Sequence[Any]: ...
    def rows_of(self, batches: Sequence[Any]) -> Sequence[Sequence[int]]: ...


class Reads(Encodes, Protocol):
    """Turns sources of the recipe into examples that the model can learn from.

    `has_texts` says whether examples can be compared by their words, and `limits` what the user
    should know of the model's limits, a sentence each. `rows` gives rows for a function of the
    user's, and what each is made of, as plain values. `settle` looks at all sources together, by
    their place in the recipe, before any is encoded. `notes` says what the user should know of how
    examples became sequences, and `shown` gives the pieces of an example for a person to read,
    and whether each is trained on.
    """

    name: ClassVar[str]
    has_texts: ClassVar[bool]
    limits: tuple[str, ...]

    def read(self, source: Source, where: str) -> Examples: ...
    def rows(self, source: Source, where: str) -> tuple[list[Row], list[Any]]: ...
    def settle(self, sources: Mapping[str, Examples]) -> None: ...
    def notes(self, encodings: Mapping[str, Encoding]) -> list[str]: ...
    def shown(self, example: Example, where: str) -> list[tuple[str, bool]]: ...


class Loads(Protocol):
    """Loads the base and its fine-tunes, and says which experts fit the base.

    `config` is transformers' configuration, `processor` a tokenizer or an image processor,
    `transposed` the params that stand as (in, out), `files` those of a base in a folder, and `key`
    the address of the base's content.
    `load` gives the base, or a full fine-tune of it, in evaluation mode on the device;
    `load_finetune` a full model or an adapter on the base. `errors` turns what loading raises for
    a broken model into a ModelError that names it. `stacks` says which params an adapter of a
    given configuration changes that are no layer's weight, by the beginning of its tensors' names.

    `small` gives the family with a small base of the same configuration in a folder, itself if it
    is small, or None if no small one can stand for it.

    `check_folder` raises ModelError if an expert's folder reads its input otherwise than the base,
    and `check_expert` if an expert changes params that no fine-tune of this family does; its
    `load` gives the expert's model, and is None if it is an adapter.
    """

    @property
    def config(self) -> Any: ...
    @property
    def processor(self) -> Any: ...
    @property
    def transposed(self) -> frozenset[str]: ...
    def files(self) -> list[Path]: ...
    def key(self, store: Store) -> str: ...
    def load(self, path: str | None = None, where: str = "base.path") -> Any: ...
    def load_finetune(self, path: str) -> Any: ...
    def stacks(self, adapter: Mapping[str, Any]) -> dict[str, str]: ...
    def small(self, folder: Path, lora: Lora | None, most_bytes: float) -> Self | None: ...
    def errors(
        self, path: str | None = None, where: str = "base.path"
    ) -> AbstractContextManager[None]: ...
    def check_folder(self, folder: Path, where: str) -> None: ...
    def check_expert(
        self, load: Callable[[], Any] | None, changed: frozenset[str], where: str
    ) -> None: ...


class Trains(Protocol):
    """Fine-tunes the base, and writes what came of it for `from_pretrained` to load.

    `bf16` says whether it computes in bfloat16, and `settings` what a fine-tune depends on beside
    the recipe's section `train`. `trainer` is one of transformers' for the base, whose state counts
    the tokens seen; `training_loss` is the loss of one batch with its graph, as training takes it;
    `adapted` is the base with fresh adapters, `untrained` a sequence that is not trained on.
    `max_shard_size` is the largest file of a full model's weights, such as `5GB`. `num_saved`
    counts the params of a saved fine-tune.
    """

    device: str

    @property
    def bf16(self) -> bool: ...
    def settings(self) -> dict[str, Any]: ...
    def trainer(
        self, sequences: Sequence[Any], settings: Train, arguments: Mapping[str, Any]
    ) -> Any: ...
    def training_loss(self, model: Any, sequences: Sequence[Any]) -> Any: ...
    def adapted(self, model: Any, lora: Lora) -> Any: ...
    def untrained(self) -> Any: ...
    def save(self, model: Any, folder: Path, max_shard_size: str | None = None) -> None: ...
    def num_saved(self, lora: Lora | None) -> int: ...


@runtime_checkable
class TakesLosses(Encodes, Protocol):
    """Has a loss for every sequence: -log p summed over its scored predictions, in nats.

    `losses` are those of one batch with their graph, float64 on the CPU, shape (sequences,);
    `negative_log_likelihoods` those of some batches in the original order of the sequences.
    """

    def losses(self, model: Any, batch: Any) -> Tensor: ...
    def negative_log_likelihoods(self, model: Any, batches: Sequence[Any]) -> list[float]: ...


@runtime_checkable
class ClassifiesImages(Encodes, Protocol):
    """Says of every image, in the original order, whether its class is the likeliest: 1 or 0.

    nan stands for an image whose logits are not all finite.
    """

    def right(self, model: Any, batches: Sequence[Any]) -> list[float]: ...


class EncodesPrompts(Protocol):
    """Encodes the text before an answer, so short that the model has room for `num_new` tokens."""

    def prompt_ids(self, example: Example, where: str, num_new: int = 0) -> list[int]: ...


@runtime_checkable
class ScoresOptions(Protocol):
    """Scores options behind a prompt by the sum over their tokens of -log p, in nats.

    `question` gives a prompt and its options as tokens, at most as many as the model reads; `asked`
    questions that any model can be asked, in batches of at most `batch_tokens` tokens.
    """

    def question(self, example: Example, index: int, where: str) -> Question: ...
    def asked(self, questions: Sequence[Question], batch_tokens: int) -> Asked: ...


@runtime_checkable
class GeneratesText(EncodesPrompts, Protocol):
    """Continues prompts, each answer cut before the first of the stop strings.

    `continued` gives the answers to a stretch of the batches, by the places of the prompts. An
    answer is None where the model's logits are not finite. `limit` is the model's longest
    sequence, None if it has none; `room` the longest prompt that leaves the model `num_new` tokens
    for an answer. `penalties` are what the base's generation config would change about greedy
    answers, by its keys, and `end_mark` what ends a reply beside the usual end tokens.
    """

    limit: int | None

    @property
    def penalties(self) -> Mapping[str, Any]: ...
    @property
    def end_mark(self) -> str: ...

    def room(self, num_new: int) -> int: ...
    def continued(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        settings: Generation,
        stretch: Stretch = WHOLE,
    ) -> dict[int, Continuation | None]: ...


@runtime_checkable
class AnswersRequests(ScoresOptions, GeneratesText, Protocol):
    """Scores what may follow a prompt, and continues prompts: all that a benchmark asks for."""


class HasStates(Protocol):
    """Has the mean of what the model's head reads over all tokens or images; float64, (hidden,)."""

    def mean_state(self, model: Any, sequences: Sequence[Any], batch_tokens: int) -> Any: ...


class Family(Reads, Loads, Trains, TakesLosses, HasStates, Protocol):
    """A base model of one kind: what every family has. Kinds of target may ask for more."""

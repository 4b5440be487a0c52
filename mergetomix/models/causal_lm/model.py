"""Causal language models: load, encode, the loss of every example, of every option, greedy generation (transformers)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mergetomix.data import reading
from mergetomix.data.examples import Example, Examples, last_reply
from mergetomix.data.tables import Row
from mergetomix.errors import DataError, ModelError
from mergetomix.models.causal_lm.generation import Generation, continuations
from mergetomix.models.causal_lm.questions import Asked, BatchLayout, Question, losses_in_order
from mergetomix.models.causal_lm.scoring import sums, token_losses
from mergetomix.models.causal_lm.sequences import IGNORE, Encoded, TokenBatch, collate, grouped
from mergetomix.models.encoding import Encoding, counted
from mergetomix.models.pretrained import Pretrained
from mergetomix.sections.base import Base
from mergetomix.sections.source import Source
from mergetomix.sections.train import Lora, Train

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class CausalLM(Pretrained):
    """A base model and its tokenizer.

    Args:
        base: the recipe's section.
        device: `auto`, `cpu`, `cuda` or `mps`.
        max_length: longest sequence wanted, in tokens; the model's own limit holds where it is lower.
        method: `lora` or `full`: with `dtype: auto`, only LoRA keeps the base in bfloat16.
    """

    name: ClassVar[str] = "causal-lm"
    kind: ClassVar[str] = "a causal language model"
    has_texts: ClassVar[bool] = True

    def __init__(self, base: Base, device: str, max_length: int, method: str) -> None:
        super().__init__(base, device, method)
        self.wanted_length = max_length
        self.limit: int | None = getattr(
            self.config.get_text_config(), "max_position_embeddings", None
        )
        self.max_length = min(max_length, self.limit or max_length)
        self._known_tokenizers: set[bytes] = set()

    @property
    def auto_class(self) -> Any:
        """transformers' class that loads it."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    @property
    def processor(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self.tokenizer

    @property
    def limits(self) -> tuple[str, ...]:
        """What the user should know of the model's limits."""
        if self.max_length == self.wanted_length:
            return ()
        return (
            f"train.max_length {self.wanted_length} is over the model's limit: {self.max_length} is used",
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a padding token."""
        from transformers import AutoTokenizer

        with self.errors():
            tokenizer = AutoTokenizer.from_pretrained(self.base.path, **self._source)
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "base.path", f"the tokenizer of {self.base.path} has no end-of-text token"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def read(self, source: Source, where: str) -> Examples:
        """The examples of one source: texts, prompts with completions, or chats."""
        return reading.read(source, where)

    def rows(self, source: Source, where: str) -> tuple[list[Row], list[Any]]:
        """Rows as they are, and what each is made of."""
        rows = reading.read_rows(source, where)
        return rows, [reading.plain_content(row) for row in rows]

    def num_saved(self, lora: Lora | None) -> int:
        """What is trained is what is saved."""
        return self.num_trained(lora)

    def settle(self, sources: Mapping[str, Examples]) -> None:
        """Texts need no look at one another."""

    def settings(self) -> dict[str, Any]:
        """Number types and the longest sequence."""
        return {"dtype": str(self.dtype), "bf16": self.bf16, "max_length": self.max_length}

    def prepare(self, model: Any) -> None:
        """A language model is taken as it is."""

    def check_folder(self, folder: Path, where: str) -> None:
        """Raises ModelError where a folder holds a tokenizer with another vocabulary: its ids would be other words."""
        from transformers import AutoTokenizer

        file = folder / "tokenizer.json"
        content = file.read_bytes() if file.exists() else b""
        if not content or content in self._known_tokenizers:
            return
        with self.errors(str(folder), where):
            theirs = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=self.base.trust_remote_code
            ).get_vocab()
        ours = self.tokenizer.get_vocab()
        if theirs != ours:
            token = min(set(theirs.items()) ^ set(ours.items()))[0]
            message = f"its tokenizer is not the base's: {token!r} is {theirs.get(token)} there and {ours.get(token)} here"
            raise ModelError(where, message, hint="experts must come from this base")
        self._known_tokenizers.add(content)

    def check_expert(
        self, load: Callable[[], Any] | None, changed: frozenset[str], where: str
    ) -> None:
        """Every param may change."""

    def lora_config(self, lora: Lora) -> Any:
        """The recipe's section as PEFT's configuration."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank: a fraction is as good
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
        )

    def shown(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """The pieces of an example's text, and whether each is trained on."""
        return self.segments(example, where)

    def notes(self, encodings: Mapping[str, Encoding]) -> list[str]:
        """What the user should know of how rows became sequences: one line for each kind of thing."""
        split = {name: encoding.num_split for name, encoding in encodings.items()}
        cut = {name: encoding.num_cut for name, encoding in encodings.items()}
        ended = {name: encoding.num_ended for name, encoding in encodings.items()}
        return [
            *counted(split, f"texts over {self.max_length} tokens are cut into several sequences"),
            *counted(
                cut, f"examples over {self.max_length} tokens lose the beginning of their prompt"
            ),
            *counted(ended, f"answers that alone are over {self.max_length} tokens lose their end"),
        ]

    def segments(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """The pieces of an example's text, and whether each is trained on."""
        if example.messages:
            return self._chat(example, where)
        if example.text:
            return [(example.text, True)]
        return [(example.prompt, False), (example.completion, True)]

    def _chat(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """Every assistant turn is trained on, with the end mark that the template puts behind it."""
        turns = [{"role": role, "content": content} for role, content in example.messages]
        pieces: list[tuple[str, bool]] = []
        done = ""
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self.render(turns[:i], where, reply=True)
            whole = self.render(turns[: i + 1], where)
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                message = f"the chat template rewrites earlier turns, so a reply's place cannot be found (row {example.row})"
                raise DataError(
                    f"{where}.messages",
                    message,
                    hint="use one reply a row, or prompt and completion",
                )
            pieces += [(prompt[len(done) :], False), (whole[len(prompt) :], True)]
            done = whole
        return pieces

    def render(self, turns: Sequence[dict[str, str]], where: str, reply: bool = False) -> str:
        """Chat turns as text; with `reply`, up to where the assistant's next turn begins."""
        if not self.tokenizer.chat_template:
            message = f"the tokenizer of {self.base.path} has no chat template"
            raise DataError(
                f"{where}.messages",
                message,
                hint="use prompt and completion, or an instruction-tuned base",
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(turns), tokenize=False, add_generation_prompt=reply
                )
            )
        except Exception as error:  # a template may raise anything; the user must see what it said
            raise DataError(
                f"{where}.messages", f"the chat template refused a row: {error}"
            ) from error

    def tokens(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens of the tokenizer's own accord."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def start(self) -> list[int]:
        """What the tokenizer puts before a text: its beginning-of-text token, or nothing."""
        ids = self.tokenizer("")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and ids[:1] == [bos] else []

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Examples as sequences of at most `max_length` tokens.

        A text too long becomes several sequences, each beginning with the last token of the one before, so that every
        token is scored once. A prompt with its completion too long loses the beginning of the prompt, a chat its earliest
        turns; a completion that is too long by itself loses its end.
        """
        sequences: list[Encoded] = []
        num_cut = num_split = num_ended = 0
        segments = [self.segments(example, where) for example in examples]
        pieces = iter(self._pieces([text for parts in segments for text, _ in parts]))
        for i, (example, parts) in enumerate(zip(examples, segments, strict=True)):
            ids, labels = self._join([(next(pieces), scored) for _, scored in parts], example)
            too_long = len(ids) > self.max_length
            if example.text:
                num_split += too_long
                sequences += _windows(ids, labels, self.max_length, i)
            else:
                if too_long:
                    ids, labels = _cut(
                        ids, labels, self.max_length, self._num_start(ids), bool(example.messages)
                    )
                    ended = len(ids) > self.max_length
                    num_ended, num_cut = num_ended + ended, num_cut + (not ended)
                sequences.append(_encoded(ids[: self.max_length], labels[: self.max_length], i))
        return Encoding(tuple(sequences), len(examples), num_cut, num_split, num_ended)

    def _pieces(self, texts: list[str]) -> list[list[int]]:
        """Token ids of many pieces of text, encoded apart: a completion's tokens never depend on its prompt."""
        return (
            list(self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
            if texts
            else []
        )

    def _join(
        self, pieces: Sequence[tuple[list[int], bool]], example: Example
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels of one example; a chat template writes its own start and end marks."""
        chat = bool(example.messages)
        ids = [] if chat else list(self.start)
        if not (ids or chat or example.text or pieces[0][0]):
            ids = self._opened([])
        labels = [IGNORE] * len(ids)
        for piece, scored in pieces:
            ids += piece
            labels += piece if scored else [IGNORE] * len(piece)
        if not chat:
            ids.append(int(self.tokenizer.eos_token_id))
            labels.append(ids[-1])
        return ids, labels

    def _opened(self, prompt: list[int]) -> list[int]:
        """A prompt behind the start token. Where there is neither, the end token stands for the end of what came before:
        the first token of an answer must be predicted from something."""
        return [*self.start, *prompt] or [int(self.tokenizer.eos_token_id)]

    def _num_start(self, ids: Sequence[int]) -> int:
        """How many tokens at the front stay when a prompt is cut: the start token, whoever wrote it."""
        bos = self.tokenizer.bos_token_id
        return int(bos is not None and list(ids[:1]) == [bos])

    def shorten(self, prompt: list[int], room: int) -> list[int]:
        """The start token and the last tokens of a prompt, at most `room` (one or more) in all."""
        keep = self._num_start(prompt)
        return prompt[:keep] + prompt[keep + max(0, len(prompt) - room) :]

    def prompt_ids(self, example: Example, where: str, num_new: int = 0) -> list[int]:
        """The tokens before the answer: at most `max_length`, and so few that the model has room for `num_new` more."""
        if example.messages:
            turns = [
                {"role": role, "content": content}
                for role, content in example.messages[: last_reply(example)]
            ]
            ids = self.tokens(self.render(turns, where, reply=True))
        else:
            ids = self._opened(self.tokens(example.prompt))
        return self.shorten(ids, self.room(num_new))

    def room(self, num_new: int) -> int:
        """The longest prompt that leaves the model `num_new` tokens for an answer."""
        return min(self.max_length, (self.limit or self.max_length + num_new) - num_new)

    def batches(self, sequences: Sequence[Encoded], batch_tokens: int) -> list[TokenBatch]:
        """Padded batches by length, of at most `batch_tokens` tokens each (or one sequence), the same every time."""
        groups = grouped([sequence.num_tokens for sequence in sequences], batch_tokens)
        return [
            collate([sequences[i] for i in group], group, self._pad, self.device)
            for group in groups
        ]

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def losses(self, model: Any, batch: TokenBatch) -> torch.Tensor:
        """The sum over scored tokens of -log p, in nats; float64 on the CPU, shape (sequences,), with its graph."""
        return sums([token_losses(model, batch)], [batch])

    def negative_log_likelihoods(self, model: Any, batches: Sequence[TokenBatch]) -> list[float]:
        """The sum over scored tokens of -log p, in nats, for every sequence in its original order."""
        return losses_in_order(model, batches)

    def asked(self, questions: Sequence[Question], batch_tokens: int) -> Asked:
        """Questions, ready for models, in batches of at most `batch_tokens` tokens each (or one row)."""
        window = getattr(self.config.get_text_config(), "sliding_window", None)
        return Asked(questions, BatchLayout(self._pad, self.device, batch_tokens, window))

    def option_losses(self, model: Any, asked: Asked) -> list[list[float]]:
        """The sum over an option's tokens of -log p after the prompt, in nats, for every option of every question."""
        return asked.losses(model)

    def mean_state(self, model: Any, sequences: Sequence[Encoded], batch_tokens: int) -> Any:
        """The mean over all tokens of what the model's head reads, behind the last norm; float64, shape (hidden,)."""
        import numpy as np
        import torch

        sums, num_tokens = [], 0
        with torch.inference_mode():
            for batch in self.batches(sequences, batch_tokens):
                # the body alone: logits are not needed and would be the largest tensor of all
                body = model.base_model(
                    input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
                )
                states_KD = body.last_hidden_state[batch.mask.bool()]
                sums.append(states_KD.float().sum(dim=0).cpu().double().numpy())
                num_tokens += len(states_KD)
        return np.asarray(np.sum(sums, axis=0) / num_tokens, dtype=np.float64)

    def training_loss(self, model: Any, sequences: Sequence[Encoded]) -> Any:
        """The loss of one batch with its graph."""
        (batch,) = self.batches(sequences, 10**9)
        return model(
            input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels, use_cache=False
        ).loss

    def trainer(
        self, sequences: Sequence[Encoded], settings: Train, arguments: Mapping[str, Any]
    ) -> Any:
        """TRL's SFTTrainer of the base on these sequences."""
        from mergetomix.models.causal_lm.trainer import trainer

        return trainer(self, sequences, settings, arguments)

    def generate(
        self, model: Any, prompts: Sequence[Sequence[int]], settings: Generation
    ) -> list[str]:
        """Greedy continuations as text, each cut before the first of the stop strings."""
        answers: dict[int, str] = {}
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        while order:
            width = len(prompts[order[0]]) + settings.max_new_tokens
            size = max(1, settings.batch_tokens // width)
            group, order = order[:size], order[size:]
            texts = continuations(model, self.tokenizer, [prompts[i] for i in group], settings)
            answers |= dict(zip(group, texts, strict=True))
        return [answers[i] for i in range(len(answers))]


def _windows(ids: list[int], labels: list[int], max_length: int, example: int) -> list[Encoded]:
    starts = range(0, max(1, len(ids) - 1), max_length - 1)
    return [_encoded(ids[s : s + max_length], labels[s : s + max_length], example) for s in starts]


def _encoded(ids: list[int], labels: list[int], example: int) -> Encoded:
    """The first token is never predicted, and a label there would count in a trainer's mean."""
    return Encoded(tuple(ids), (IGNORE, *labels[1:]), example)


def _cut(
    ids: list[int], labels: list[int], max_length: int, num_start: int, chat: bool
) -> tuple[list[int], list[int]]:
    """Ids and labels without the first tokens of a prompt that is too long, the start token kept.

    A chat loses its earliest turns. A prompt ends where its answer begins: what is still too long after that is the answer.
    """
    first = next(i for i, label in enumerate(labels) if label != IGNORE)
    most = len(ids) if chat else max(0, first - max(1, num_start))
    drop = min(len(ids) - max_length, most)
    return ids[:num_start] + ids[num_start + drop :], labels[:num_start] + labels[
        num_start + drop :
    ]

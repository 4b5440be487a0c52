"""Causal language models: load, encode, losses of examples and options, greedy generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mergetomix.data import reading
from mergetomix.data.examples import Example, Examples, last_reply
from mergetomix.errors import DataError, ModelError
from mergetomix.models.causal_lm.generation import Generation, continuations, penalties
from mergetomix.models.causal_lm.questions import Asked, Question
from mergetomix.models.causal_lm.scoring import losses_in_order, sums, token_losses
from mergetomix.models.causal_lm.sequences import IGNORE, BatchLayout, Encoded, TokenBatch
from mergetomix.models.encoding import Encoding, counted
from mergetomix.models.pretrained import Pretrained
from mergetomix.sections.base import Base
from mergetomix.sections.source import Source
from mergetomix.sections.train import Train

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class CausalLM(Pretrained):
    """A base model and its tokenizer.

    `max_length` is the longest sequence wanted, in tokens; the model's own limit holds if lower.
    """

    name: ClassVar[str] = "causal-lm"
    kind: ClassVar[str] = "a causal language model"
    task: ClassVar[str | None] = "CAUSAL_LM"
    auto_class = "AutoModelForCausalLM"
    has_texts: ClassVar[bool] = True

    def __init__(self, base: Base, device: str, max_length: int, method: str) -> None:
        super().__init__(base, device, method)
        text_config = self.config.get_text_config()
        self.limit: int | None = getattr(text_config, "max_position_embeddings", None)
        self.max_length = min(max_length, self.limit or max_length)
        if self.max_length < max_length:
            over = f"train.max_length {max_length} is over the model's limit"
            self.limits = (f"{over}: {self.max_length} is used",)
        self._known_tokenizers: set[bytes] = set()

    # --- the base and its fine-tunes

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a padding token."""
        tokenizer: PreTrainedTokenizerBase = self.part("AutoTokenizer")
        if tokenizer.eos_token_id is None:
            message = f"the tokenizer of {self.base.path} has no end-of-text token"
            raise ModelError("base.path", message)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def processor(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self.tokenizer

    def check_folder(self, folder: Path, where: str) -> None:
        """Raises ModelError if a folder's tokenizer has another vocabulary, so ids mean others."""
        file = folder / "tokenizer.json"
        content = file.read_bytes() if file.exists() else b""
        if not content or content in self._known_tokenizers:
            return
        theirs = self.part("AutoTokenizer", str(folder), where).get_vocab()
        ours = self.tokenizer.get_vocab()
        if theirs != ours:
            token = min(set(theirs.items()) ^ set(ours.items()))[0]
            ids = f"{theirs.get(token)} there and {ours.get(token)} here"
            message = f"its tokenizer is not the base's: {token!r} is {ids}"
            raise ModelError(where, message, hint="experts must come from this base")
        self._known_tokenizers.add(content)

    # --- training

    def settings(self) -> dict[str, Any]:
        """Returns number types and the longest sequence."""
        return {"dtype": str(self.dtype), "bf16": self.bf16, "max_length": self.max_length}

    def trainer(
        self, sequences: Sequence[Encoded], settings: Train, arguments: Mapping[str, Any]
    ) -> Any:
        """Returns TRL's SFTTrainer of the base on these sequences."""
        from mergetomix.models.causal_lm.trainer import trainer

        options = {**arguments, "padding_free": settings.packing}
        adapter = self.lora_config(settings.lora) if settings.method == "lora" else None
        model = self.load()
        return trainer(model, self.tokenizer, sequences, options, adapter, self.max_length)

    def training_loss(self, model: Any, sequences: Sequence[Encoded]) -> Any:
        """Returns the loss of one batch with its graph."""
        (batch,) = self.batches(sequences, 10**9)
        given = {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": batch.labels}
        return model(**given, use_cache=False).loss

    # --- sources

    def read(self, source: Source, where: str) -> Examples:
        """Returns the examples of one source: texts, prompts with completions, or chats."""
        return reading.read(source, where)

    def shown(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """Returns the pieces of an example's text, and whether each is trained on."""
        if example.messages:
            return self._chat(example, where)
        if example.text:
            return [(example.text, True)]
        return [(example.prompt, False), (example.completion, True)]

    def _chat(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """Returns a chat's pieces: every assistant turn is trained on, its end mark included."""
        turns = [{"role": role, "content": content} for role, content in example.messages]
        pieces: list[tuple[str, bool]] = []
        done = ""
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self._rendered(turns[:i], where, reply=True)
            whole = self._rendered(turns[: i + 1], where)
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                rewrites = "the chat template rewrites earlier turns"
                message = f"{rewrites}, so a reply's place cannot be found (row {example.row})"
                hint = "use one reply a row, or prompt and completion"
                raise DataError(f"{where}.messages", message, hint=hint)
            pieces += [(prompt[len(done) :], False), (whole[len(prompt) :], True)]
            done = whole
        return pieces

    def _rendered(self, turns: Sequence[dict[str, str]], where: str, reply: bool = False) -> str:
        """Returns turns as text; with `reply`, up to where the assistant's next turn begins."""
        if not self.tokenizer.chat_template:
            message = f"the tokenizer of {self.base.path} has no chat template"
            hint = "use prompt and completion, or an instruction-tuned base"
            raise DataError(f"{where}.messages", message, hint=hint)
        template = self.tokenizer.apply_chat_template
        try:
            return str(template(list(turns), tokenize=False, add_generation_prompt=reply))
        except Exception as error:  # a template may raise anything; the user must see what it said
            message = f"the chat template refused a row: {error}"
            raise DataError(f"{where}.messages", message) from error

    # --- sequences

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Returns examples as sequences of at most `max_length` tokens.

        A text too long becomes several sequences, each beginning with the last token of the one
        before, so that every token is scored once. A prompt with its completion too long loses the
        beginning of the prompt, a chat its earliest turns; a completion that is too long by itself
        loses its end.
        """
        shown = [self.shown(example, where) for example in examples]
        # encoded apart: a completion's tokens never depend on its prompt
        pieces = iter(self._ids([text for parts in shown for text, _ in parts]))
        sequences: list[Encoded] = []
        num_cut = num_split = num_ended = 0
        for i, (example, parts) in enumerate(zip(examples, shown, strict=True)):
            ids, labels = self._join(example, [(next(pieces), scored) for _, scored in parts])
            starts = range(1)
            if example.text:
                starts = range(0, max(1, len(ids) - 1), self.max_length - 1)
                num_split += len(starts) > 1
            elif len(ids) > self.max_length:
                ids, labels = self._cut(ids, labels, bool(example.messages))
                num_ended += len(ids) > self.max_length
                num_cut += len(ids) <= self.max_length
            for start in starts:
                own, behind = ids[start : start + self.max_length], start + self.max_length
                # the first token is never predicted: a label there would count in a trainer's mean
                hidden = (IGNORE, *labels[start + 1 : behind])
                sequences.append(Encoded(tuple(own), hidden, i))
        return Encoding(tuple(sequences), len(examples), num_cut, num_split, num_ended)

    def notes(self, encodings: Mapping[str, Encoding]) -> list[str]:
        """Returns what the user should know of how rows became sequences, one line a kind."""
        split = {name: encoding.num_split for name, encoding in encodings.items()}
        cut = {name: encoding.num_cut for name, encoding in encodings.items()}
        ended = {name: encoding.num_ended for name, encoding in encodings.items()}
        over = f"over {self.max_length} tokens"
        return [
            *counted(split, f"texts {over} are cut into several sequences"),
            *counted(cut, f"examples {over} lose the beginning of their prompt"),
            *counted(ended, f"answers that alone are {over} lose their end"),
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        plain: Any = {"add_special_tokens": False, "verbose": False}
        return list(self.tokenizer(texts, **plain)["input_ids"]) if texts else []

    def tokens(self, text: str) -> list[int]:
        """Returns token ids of a piece of text, without special tokens."""
        return list(self._ids([text])[0])

    @cached_property
    def start(self) -> list[int]:
        """What the tokenizer puts before a text: its beginning-of-text token, or nothing."""
        ids: list[int] = list(self.tokenizer("")["input_ids"])
        return ids[: self._num_start(ids)]

    def _join(
        self, example: Example, pieces: list[tuple[list[int], bool]]
    ) -> tuple[list[int], list[int]]:
        """Returns ids and labels of one example; a chat template writes its own marks."""
        if example.text:
            pieces = [(self.start, False), *pieces]
        elif not example.messages:
            pieces = [(self._opened(pieces[0][0]), False), *pieces[1:]]
        if not example.messages:
            pieces = [*pieces, ([int(self.tokenizer.eos_token_id)], True)]
        ids = [token for piece, _ in pieces for token in piece]
        labels = [t if scored else IGNORE for piece, scored in pieces for t in piece]
        return ids, labels

    def _cut(self, ids: list[int], labels: list[int], chat: bool) -> tuple[list[int], list[int]]:
        """Returns ids and labels without a prompt's first tokens, or a chat's, its start kept."""
        keep = self._num_start(ids)
        answer = next(i for i, label in enumerate(labels) if label != IGNORE)
        # a prompt ends where its answer begins: what is still too long after that is the answer
        most = len(ids) if chat else max(0, answer - max(1, keep))
        behind = keep + min(len(ids) - self.max_length, most)
        return ids[:keep] + ids[behind:], labels[:keep] + labels[behind:]

    def _num_start(self, ids: Sequence[int]) -> int:
        """Returns how many tokens at the front stay: the start token, whoever wrote it."""
        bos = self.tokenizer.bos_token_id
        return int(bos is not None and list(ids[:1]) == [bos])

    def _opened(self, prompt: list[int]) -> list[int]:
        """Returns a prompt behind the start token, or the end token if there is neither."""
        # an answer's first token must be predicted from something, if only from a text's end
        return [*self.start, *prompt] or [int(self.tokenizer.eos_token_id)]

    def shorten(self, prompt: list[int], room: int) -> list[int]:
        """Returns the start token and the last tokens of a prompt, at most `room` in all."""
        keep = self._num_start(prompt)
        return prompt[:keep] + prompt[keep + max(0, len(prompt) - room) :]

    def room(self, num_new: int) -> int:
        """Returns the longest prompt that leaves the model `num_new` tokens for an answer."""
        return min(self.max_length, (self.limit or self.max_length + num_new) - num_new)

    def prompt_ids(self, example: Example, where: str, num_new: int = 0) -> list[int]:
        """Returns the tokens before the answer, so few that the model has room for `num_new`."""
        if example.messages:
            before = example.messages[: last_reply(example)]
            turns = [{"role": role, "content": content} for role, content in before]
            ids = self.tokens(self._rendered(turns, where, reply=True))
        else:
            ids = self._opened(self.tokens(example.prompt))
        return self.shorten(ids, self.room(num_new))

    # --- losses, options, answers

    def _layout(self, batch_tokens: int) -> BatchLayout:
        window = getattr(self.config.get_text_config(), "sliding_window", None)
        return BatchLayout(int(self.tokenizer.pad_token_id), self.device, batch_tokens, window)

    def batches(self, sequences: Sequence[Encoded], batch_tokens: int) -> list[TokenBatch]:
        """Returns batches by length, of at most `batch_tokens` tokens each or one sequence."""
        return self._layout(batch_tokens).batches(sequences)

    def losses(self, model: Any, batch: TokenBatch) -> torch.Tensor:
        """Returns the sum over scored tokens of -log p, in nats, for each sequence of a batch."""
        return sums([token_losses(model, batch)], [batch])

    def negative_log_likelihoods(self, model: Any, batches: Sequence[TokenBatch]) -> list[float]:
        """Returns the losses of all batches in the original order of the sequences."""
        return losses_in_order(model, batches)

    def asked(self, questions: Sequence[Question], batch_tokens: int) -> Asked:
        """Returns questions, ready for models, in batches of at most `batch_tokens` tokens."""
        return Asked(questions, self._layout(batch_tokens))

    def mean_state(self, model: Any, sequences: Sequence[Encoded], batch_tokens: int) -> Any:
        """Returns the mean over all tokens of what the model's head reads; float64, (hidden,)."""
        import numpy as np
        import torch

        sums, num_tokens = [], 0
        with torch.inference_mode():
            for batch in self.batches(sequences, batch_tokens):
                # the body alone: logits are not needed and would be the largest tensor of all
                given = {"input_ids": batch.ids, "attention_mask": batch.mask}
                body = model.base_model(**given, use_cache=False)
                states_KD = body.last_hidden_state[batch.mask.bool()]
                sums.append(states_KD.float().sum(dim=0).cpu().double().numpy())
                num_tokens += len(states_KD)
        return np.asarray(np.sum(sums, axis=0) / num_tokens, dtype=np.float64)

    @cached_property
    def penalties(self) -> dict[str, Any]:
        """What the base's generation config would change about greedy answers, by its keys."""
        from transformers import GenerationConfig

        revision = self.base.revision or "main"
        try:
            config = GenerationConfig.from_pretrained(self.base.path, revision=revision)
        except OSError:  # the base has no such file
            config = GenerationConfig.from_model_config(self.config)
        return penalties(config)

    def generate(
        self, model: Any, prompts: Sequence[Sequence[int]], settings: Generation
    ) -> list[str | None]:
        """Returns continuations, each cut before the first of the stop strings.

        None stands for one whose logits were not all finite.
        """
        return continuations(model, self.tokenizer, prompts, settings)

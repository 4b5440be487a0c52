"""Causal language models: load, encode, losses of examples and options, greedy generation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mergetomix.data import reading
from mergetomix.data.examples import Example, Examples
from mergetomix.errors import DataError, ModelError
from mergetomix.models.causal_lm.encoding import Labelled, TextEncoder
from mergetomix.models.causal_lm.generation import (
    Continuation,
    Generation,
    continuations,
    penalties,
    repair,
)
from mergetomix.models.causal_lm.packing import keeps_apart
from mergetomix.models.causal_lm.questions import Asked, Question
from mergetomix.models.causal_lm.scoring import (
    losses_in_order,
    quiet_routers,
    sums,
    token_losses,
)
from mergetomix.models.causal_lm.sequences import IGNORE, BatchLayout, Encoded, TokenBatch
from mergetomix.models.causal_lm.small import SMALL, plain_linears, shortened, torch_meta
from mergetomix.models.causal_lm.templates import ChatTemplate, Span, put_template
from mergetomix.models.encoding import Encoding, counted
from mergetomix.models.pretrained import Pretrained, quiet
from mergetomix.sections.base import Base
from mergetomix.sections.source import Source
from mergetomix.sections.train import Lora, Train
from mergetomix.stretches import WHOLE, Stretch

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
        repaired = repair(self.generation_config)
        if repaired:
            left = f"its generation config draws nothing, and {', '.join(repaired)} are left out"
            self.limits += (f"{left}: transformers saves no such config",)
        if self.has_routers and method == "lora":
            layers = ", ".join(sorted({name.rpartition(".")[2] for name in self.linears}))
            says = "all else, such as experts whose weights are one tensor, keeps the base's values"
            also = "unless train.lora.target_parameters or target_modules names it"
            self.limits += (f"all-linear adapts {layers}; {says} {also}",)
        if self.has_other_inputs:
            says = "the base reads more than text: its text part alone is trained"
            self.limits += (f"{says}, the rest keeps the base's values",)
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
        if self.base.chat_template is not None:
            put_template(tokenizer, self.base.chat_template)
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
        from tokenizers import Tokenizer

        with self.errors(str(folder), where):
            theirs = Tokenizer.from_str(content.decode()).get_vocab()
        ours = self.tokenizer.get_vocab()
        if theirs != ours and (whole := self._tokenizer_file()) is not None:
            # transformers adds to a tokenizer what stands in its configuration alone
            ours = Tokenizer.from_file(whole).get_vocab()
        if theirs != ours:
            token = min(set(theirs.items()) ^ set(ours.items()))[0]
            ids = f"{theirs.get(token)} there and {ours.get(token)} here"
            message = f"its tokenizer is not the base's: {token!r} is {ids}"
            raise ModelError(where, message, hint="experts must come from this base")
        self._known_tokenizers.add(content)

    def _tokenizer_file(self) -> str | None:
        """Returns where the base's own vocabulary lies, None if it has none of this kind."""
        from transformers.utils.hub import cached_file

        revision = self.base.revision or "main"
        with suppress(Exception):  # whatever a hub says: then there is none
            found = cached_file(self.base.path, "tokenizer.json", revision=revision)
            return None if found is None else str(found)
        return None

    # --- training

    def settings(self) -> dict[str, Any]:
        """Returns number types, the longest sequence, and how a mixture's routers are trained."""
        found = {"dtype": str(self.dtype), "bf16": self.bf16, "max_length": self.max_length}
        return {**found, **({"routers": "by the recipe alone"} if self.has_routers else {})}

    @property
    def has_routers(self) -> bool:
        """Whether the base is a mixture of experts, whose routers have a loss of their own."""
        return hasattr(self.config.get_text_config(), "output_router_logits")

    def lora_config(self, lora: Lora) -> Any:
        """Returns the recipe's section as PEFT's configuration.

        `all-linear` are the linear layers but the head; of a model that reads images or sounds as
        well, those of its text part. Tensors that fuse the experts of a mixture are no such layers:
        `target_parameters` names them.
        """
        config = super().lora_config(lora)
        if (self.has_routers or self.has_other_inputs) and lora.target_modules == "all-linear":
            config.target_modules = set(self.linears)
        return config

    @property
    def has_other_inputs(self) -> bool:
        """Whether the base reads images or sounds beside text."""
        return self.config.get_text_config() is not self.config

    @cached_property
    def linears(self) -> set[str]:
        """The names of the linear layers that read text, the head left out.

        The last parts of the names, unless a part for images or sounds has such layers, too. Names
        that PEFT takes for those of a mixture's experts, as they were before these stood as one
        tensor, are left out: it would adapt the experts in their place.
        """
        from peft import LoraConfig, get_peft_model

        model = self.skeleton()
        found = plain_linears(model)
        if self.has_other_inputs:
            text = set(model.get_decoder().modules())
            return {name for name, module in found.items() if module in text}
        lasts = {name.rpartition(".")[2] for name in found}
        if not self.has_routers:
            return lasts
        with torch_meta(), quiet():
            adapted = get_peft_model(model, LoraConfig(r=2, target_modules=sorted(lasts)))
        config: Any = adapted.peft_config["default"]
        taken = config.target_modules
        return lasts & set(taken) if isinstance(taken, set | list) else lasts

    def small(self, folder: Path, lora: Lora | None, most_bytes: float) -> Self | None:
        """Returns the family with a small base of its configuration, or itself if it is small.

        A small base has the first layers of each kind, with random weights. It is written to a
        folder, tokenizer and all.

        Args:
            lora: what adapts it; None trains all.
            most_bytes: what a small base and all that is made of it may take.

        Returns:
            None where no small model can stand for the base: its configuration cannot be shortened,
            lacks then what is adapted, or is still too large.
        """
        import torch
        import transformers

        if 4 * self.num_saved(None) <= SMALL:
            return self
        loader, trust = getattr(transformers, self.auto_class), self.base.trust_remote_code

        def build(config: Any, **how: Any) -> Any:
            return loader.from_config(copy.deepcopy(config), trust_remote_code=trust, **how)

        with quiet():
            with torch_meta():
                config = shortened(self.config, build)
            if config is None or self.copies(config, build, lora) > most_bytes:
                return None
            torch.manual_seed(0)
            model = build(config, dtype=self.dtype)
            model.generation_config = copy.deepcopy(self.generation_config)
            self.save(self.prepared(model), folder)
        base = {"path": str(folder), "revision": None, "gguf_file": None}
        section = self.base.model_copy(update=base)
        found = type(self)(section, self.device, self.max_length, self.method)
        try:
            found.num_saved(lora)
        except ModelError:
            return None  # the recipe names layers that were left out
        return found

    def copies(self, config: Any, build: Callable[[Any], Any], lora: Lora | None) -> float:
        """Returns the bytes of all that a rehearsal writes of a model of a configuration."""
        with torch_meta():
            model = build(config)
        num = sum(param.numel() for param in model.parameters())
        # the base, the merge; of full fine-tuning the expert too, and its pages
        return float(num * self.dtype.itemsize * (2 if lora is not None else 4))

    def save(self, model: Any, folder: Path, max_shard_size: str | None = None) -> None:
        """Writes a model and its tokenizer, and what reads images or sounds if the base does."""
        if self.has_other_inputs and self.other_processor is not None:
            with quiet():
                self.other_processor.save_pretrained(folder)
        super().save(model, folder, max_shard_size)

    @cached_property
    def other_processor(self) -> Any:
        """What turns images, sounds and text into tensors; None if the base brings none."""
        import transformers

        how = {"trust_remote_code": self.base.trust_remote_code}
        revision = self.base.revision or "main"
        try:
            with quiet():
                return transformers.AutoProcessor.from_pretrained(
                    self.base.path, revision=revision, **how
                )
        except Exception:  # noqa: BLE001  # a base of texts alone may lack its files, or packages
            return None

    def trainer(
        self, sequences: Sequence[Encoded], settings: Train, arguments: Mapping[str, Any]
    ) -> Any:
        """Returns TRL's SFTTrainer of the base on these sequences."""
        from mergetomix.models.causal_lm.trainer import trainer

        factor = settings.router_aux_loss or 0.0
        routers = {"router_aux_loss_coef": factor} if self.has_routers else {}
        options = {**arguments, "padding_free": settings.packing, **routers}
        adapter = None
        if settings.method == "lora":
            self.num_saved(settings.lora)  # raises for adapters that nothing could merge
            adapter = self.lora_config(settings.lora)
        model = self.load()
        if settings.packing and not keeps_apart(model):
            message = (
                "this model mixes the sequences of a packed row, so their losses would be wrong"
            )
            hint = "packing: false trains on the same batches, padded"
            raise ModelError("train.packing", message, hint=hint)
        return trainer(model, self.tokenizer, sequences, options, adapter, self.max_length)

    def untrained(self) -> Encoded:
        """Returns a sequence that is not trained on."""
        return Encoded((int(self.tokenizer.pad_token_id),), (IGNORE,), 0)

    def training_loss(self, model: Any, sequences: Sequence[Encoded]) -> Any:
        """Returns the loss of one batch with its graph."""
        (batch,) = self.batches(sequences, 10**9)
        given = {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": batch.labels}
        return model(**given, **quiet_routers(model), use_cache=False).loss

    # --- sources

    def read(self, source: Source, where: str) -> Examples:
        """Returns the examples of one source: texts, prompts with completions, or chats.

        With `on_bad_row: skip` the chats that the template refuses are passed over, too.
        """
        found = reading.read(source, where, lambda item: item.messages and self._spans(item, where))
        is_pair = source.completion is not None or source.answer is not None
        is_plain = is_pair and not any(item.messages for item in found.items)
        if is_plain and source.chat is None and self.tokenizer.chat_template:
            plain = "the base has a chat template, and prompt and completion stand without it"
            says = "chat: true renders them, chat: false says that this is meant"
            found = replace(found, notes=(*found.notes, f"{where}: {plain}; {says}"))
        return found

    def shown(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """Returns the pieces of an example's text, and whether each is trained on."""
        text, spans = self._spans(example, where)
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        pieces = [(text[a:b], bool(i % 2)) for i, (a, b) in enumerate(pairwise(edges))]
        return [piece for piece in pieces if piece[0]]

    def _spans(self, example: Example, where: str) -> tuple[str, list[Span]]:
        """Returns an example's text, and where the pieces that are trained on lie in it."""
        if example.messages:
            return self.template.spans(example, where)
        if example.text:
            return example.text, [(0, len(example.text))]
        prompt = example.before + example.prompt
        text = prompt + example.completion
        return text, [(len(prompt), len(text))]

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template."""
        return ChatTemplate(self.tokenizer, self.base.path)

    @cached_property
    def encoder(self) -> TextEncoder:
        """What turns texts into tokens."""
        return TextEncoder(self.tokenizer)

    # --- sequences

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Returns examples as sequences of at most `max_length` tokens.

        A text too long becomes several sequences, each beginning with the last token of the one
        before, so that every token is scored once. A prompt with its completion too long loses the
        beginning of the prompt, a chat its earliest turns; a completion that is too long by itself
        loses its end.
        """
        found = self.encoder.labelled([self._spans(example, where) for example in examples])
        sequences: list[Encoded] = []
        num_cut = num_split = num_ended = 0
        for i, (example, bare) in enumerate(zip(examples, found, strict=True)):
            whole = self._marked(example, bare)
            ids, labels = whole.ids, whole.labels
            self._check_ids(ids, example, where)
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
        pairs = zip(examples, found, strict=True)
        return Encoding(
            tuple(sequences),
            len(examples),
            num_cut,
            num_split,
            num_ended,
            num_marked=sum(each.has_marks and not row.messages for row, each in pairs),
            num_straddling=sum(each.straddles for each in found),
            num_chats=sum(bool(example.messages) for example in examples),
            num_untrained=sum(not each.trains for each in found),
        )

    def notes(self, encodings: Mapping[str, Encoding]) -> list[str]:
        """Returns what the user should know of how rows became sequences, one line a kind."""
        over = f"over {self.max_length} tokens"
        kinds = {
            "num_split": f"texts {over} are cut into several sequences",
            "num_cut": f"examples {over} lose the beginning of their prompt",
            "num_ended": f"answers that alone are {over} lose their end",
            "num_marked": "texts hold the tokenizer's own marks of a beginning or an end, which are"
            " not written twice",
            **self._ends_of_chats(),
            "num_untrained": "examples hold no token that is trained on",
            "num_straddling": "answers begin within a token of their prompt, which is trained on",
        }
        lines = []
        for key, what in kinds.items():
            lines += counted({name: getattr(each, key) for name, each in encodings.items()}, what)
        return lines

    def _ends_of_chats(self) -> dict[str, str]:
        """Returns what the user should know of where replies end, for `notes`."""
        if not self.tokenizer.chat_template:
            return {}
        if self.template.end is None:
            own = "the tokenizer's end token, as the chat template writes no end"
            return {"num_chats": f"chats end with {own}"}
        if self.end_mark:
            other = "which is not the tokenizer's end token: answers end at either"
            return {"num_chats": f"chats end with {self.end_mark}, {other}"}
        return {}

    @cached_property
    def end_mark(self) -> str:
        """What ends a reply beside the end tokens of tokenizer and base; empty if nothing does."""
        mark = self.template.end if self.tokenizer.chat_template else None
        ids = self.tokens(mark or "")
        return "" if mark is None or ids[0] in self._ends_of(self.generation_config) else mark

    def _ends_of(self, config: Any) -> set[int]:
        """Returns the tokenizer's end token, and those of a configuration."""
        ends = getattr(config, "eos_token_id", None)
        own = ends if isinstance(ends, list | tuple) else [] if ends is None else [ends]
        return {*map(int, own), self.encoder.end}

    def prepared(self, model: Any) -> Any:
        """Returns a base whose generation config can be saved, and ends answers as chats end."""
        config = getattr(model, "generation_config", None)
        if config is None:  # a model of the base's own code may not generate
            return model
        repair(config)
        ids = self.tokens(self.end_mark) if self.end_mark else []
        if len(ids) == 1:
            config.eos_token_id = sorted({*self._ends_of(config), *ids})
        return model

    def tokens(self, text: str) -> list[int]:
        """Returns token ids of a piece of text, without special tokens."""
        return self.encoder.ids([text])[0]

    def _marked(self, example: Example, found: Labelled) -> Labelled:
        """Returns one example behind its start token and before its end token.

        A chat template writes its own marks; only where it ends no reply is it helped.
        """
        encoder = self.encoder
        if example.messages:
            return found.ended(encoder.end) if self.template.end is None else found
        start = encoder.start
        front = [] if found.ids[: len(start)] == start else start
        if not example.text and not front and found.labels[:1] != [IGNORE]:
            front = [encoder.end]  # an answer's first token must be predicted from something
        whole = found.behind(front)
        if example.is_open:
            return whole
        return whole if whole.ids[-1:] == [encoder.end] else whole.ended(encoder.end)

    def _check_ids(self, ids: Sequence[int], example: Example, where: str) -> None:
        """Raises ModelError if a token has no row in the model's embedding."""
        rows = self.config.get_text_config().vocab_size
        if max(ids, default=0) >= rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            message = f"the token {token!r} (row {example.row} of {where}) has the id {max(ids)}"
            hint = "the tokenizer is another model's, or tokens were added without resizing"
            raise ModelError("base.path", f"{message}, the embedding {rows} rows", hint=hint)

    def _cut(self, ids: list[int], labels: list[int], chat: bool) -> tuple[list[int], list[int]]:
        """Returns ids and labels without a prompt's first tokens, or a chat's, its start kept."""
        keep = self.encoder.num_start(ids)
        answer = next((i for i, label in enumerate(labels) if label != IGNORE), len(ids))
        # a prompt ends where its answer begins: what is still too long after that is the answer
        most = len(ids) if chat else max(0, answer - max(1, keep))
        behind = keep + min(len(ids) - self.max_length, most)
        return ids[:keep] + ids[behind:], labels[:keep] + labels[behind:]

    def _shorten(self, prompt: list[int], room: int) -> list[int]:
        """Returns the start token and the last tokens of a prompt, at most `room` in all."""
        keep = self.encoder.num_start(prompt)
        return prompt[:keep] + prompt[keep + max(0, len(prompt) - room) :]

    def room(self, num_new: int) -> int:
        """Returns the longest prompt that leaves the model `num_new` tokens for an answer."""
        return min(self.max_length, (self.limit or self.max_length + num_new) - num_new)

    def prompt_ids(self, example: Example, where: str, num_new: int = 0) -> list[int]:
        """Returns the tokens before the answer, so few that the model has room for `num_new`."""
        if example.messages:
            ids = self.tokens(self.template.prompt(example, where))
        else:
            ids = self.encoder.opened(self.tokens(example.before + example.prompt))
        self._check_ids(ids, example, where)
        return self._shorten(ids, self.room(num_new))

    def question(self, example: Example, index: int, where: str) -> Question:
        """Returns a prompt and its options as tokens, each as in the text of both together.

        A prompt that is too long loses its beginning, as much of it as the longest option needs:
        all options of an example are compared behind one prompt. Raises DataError for an option
        without tokens.
        """
        is_chat = bool(example.messages)
        plain = example.before + example.prompt
        prompt = self.template.prompt(example, where) if is_chat else plain
        ids, found = self.encoder.options(prompt, example.options)
        options = tuple(tuple(each[: self.max_length - 1]) for each in found)
        if () in options:
            empty = example.options[options.index(())]
            message = f"the option {empty!r} of row {example.row} has no tokens"
            raise DataError(f"{where}.options", message)
        for each in found:
            self._check_ids([*ids, *each], example, where)
        room = self.max_length - max(map(len, options))
        opened = ids if is_chat else self.encoder.opened(ids)
        return Question(tuple(self._shorten(opened, room)), options, index)

    # --- losses, options, answers

    def _layout(self, batch_tokens: int) -> BatchLayout:
        window = getattr(self.config.get_text_config(), "sliding_window", None)
        return BatchLayout(int(self.tokenizer.pad_token_id), self.device, batch_tokens, window)

    def batches(self, sequences: Sequence[Encoded], batch_tokens: int) -> list[TokenBatch]:
        """Returns batches by length, of at most `batch_tokens` tokens each or one sequence."""
        return self._layout(batch_tokens).batches(sequences)

    def rows_of(self, batches: Sequence[TokenBatch]) -> list[tuple[int, ...]]:
        """Returns which sequences each batch holds."""
        return [batch.rows for batch in batches]

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
    def generation_config(self) -> Any:
        """The base's generation config, transformers' GenerationConfig."""
        from transformers import GenerationConfig

        revision = self.base.revision or "main"
        try:
            return GenerationConfig.from_pretrained(self.base.path, revision=revision)
        except OSError:  # the base has no such file
            return GenerationConfig.from_model_config(self.config)

    @property
    def penalties(self) -> dict[str, Any]:
        """What the base's generation config would change about greedy answers, by its keys."""
        return penalties(self.generation_config)

    def generate(
        self, model: Any, prompts: Sequence[Sequence[int]], settings: Generation
    ) -> list[Continuation | None]:
        """Returns continuations, each cut before the first of the stop strings.

        None stands for one whose logits were not all finite.
        """
        found = self.continued(model, prompts, settings)
        return [found[place] for place in range(len(prompts))]

    def continued(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        settings: Generation,
        stretch: Stretch = WHOLE,
    ) -> dict[int, Continuation | None]:
        """Returns the continuations of a stretch of the batches, by the places of the prompts."""
        return continuations(model, self.tokenizer, prompts, settings, stretch)

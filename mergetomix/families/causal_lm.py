"""Causal language models: load, encode, the loss of every example, greedy generation (transformers)."""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mergetomix.data import Example
from mergetomix.disk import is_no_space
from mergetomix.errors import DataError, ModelError
from mergetomix.recipe import Base, Lora
from mergetomix.store import Store, digest, hash_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORE = -100


@dataclass(frozen=True)
class Encoded:
    """One sequence of tokens. `labels` repeats a token where the loss is taken and holds -100 elsewhere."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    example: int

    @property
    def num_scored(self) -> int:
        """Positions that count in the loss: the first token of a sequence has no context and never does."""
        return sum(label != IGNORE for label in self.labels[1:])


@dataclass(frozen=True)
class Encoding:
    """The sequences of some examples, and how many examples were too long.

    `cut` lost the start of their prompt, `split` became several sequences, `ended` lost the end of their answer.
    """

    sequences: tuple[Encoded, ...]
    num_examples: int
    num_cut: int
    num_split: int
    num_ended: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens over all sequences."""
        return sum(len(sequence.ids) for sequence in self.sequences)


@dataclass(frozen=True)
class Batch:
    """Sequences padded to one length. Shapes: (sequences, tokens); `rows` says which sequence of the whole each is."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    rows: tuple[int, ...]


class CausalLM:
    """A base model and its tokenizer.

    Args:
        base: the recipe's section.
        device: `auto`, `cpu`, `cuda` or `mps`.
        max_length: longest sequence wanted, in tokens; the model's own limit holds where it is lower.
        method: `lora` or `full`: with `dtype: auto`, only LoRA keeps the base in bfloat16.
    """

    def __init__(self, base: Base, device: str, max_length: int, method: str) -> None:
        self.base = base
        self.device = pick_device(device)
        self.method = method
        self.limit: int | None = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(max_length, self.limit or max_length)

    @cached_property
    def config(self) -> Any:
        """The model's configuration. Raises ModelError where there is none."""
        from transformers import AutoConfig

        with model_errors(self.base.path):
            return AutoConfig.from_pretrained(self.base.path, **self._source)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a padding token."""
        from transformers import AutoTokenizer

        with model_errors(self.base.path):
            tokenizer = AutoTokenizer.from_pretrained(self.base.path, **self._source)
        if tokenizer.eos_token_id is None:
            raise ModelError("base.path", f"the tokenizer of {self.base.path} has no end-of-text token")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def _source(self) -> dict[str, Any]:
        return {"revision": self.base.revision or "main", "trust_remote_code": self.base.trust_remote_code}

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16: on a GPU that has it, unless the recipe says float32."""
        import torch

        return self.base.dtype != "float32" and self.device == "cuda" and torch.cuda.is_bf16_supported()

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the base's weights."""
        import torch

        frozen = self.method == "lora" and self.bf16
        return torch.bfloat16 if self.base.dtype == "bfloat16" or frozen else torch.float32

    def key(self, store: Store) -> str:
        """The address of the base's content: the files of a folder, the commit of a hub model."""
        folder = Path(self.base.path)
        if folder.is_dir():
            kinds = ("*.safetensors", "*.json", "*.bin", "*.model", "*.jinja", "*.txt", "*.tiktoken", "*.py")
            files = sorted({path for kind in kinds for path in folder.glob(kind)})
            content = hash_files(files, store)
        else:
            content = f"{self.base.path}@{getattr(self.config, '_commit_hash', None)}"
        return digest("base", content, str(self.dtype), self.bf16)

    def load(self, path: str | None = None, where: str = "base.path") -> PreTrainedModel:
        """The base, or a full fine-tune of it saved at `path`, on the device and in evaluation mode.

        Args:
            where: the model's place in the recipe, for errors.

        Raises:
            ModelError: it does not load, lacks a tensor, or is a fine-tune with a tensor too many.
        """
        import transformers

        # pickles and a fine-tune's own code are never trusted: only what the recipe says of the base
        own = {"use_safetensors": True, "trust_remote_code": self.base.trust_remote_code}
        with model_errors(path or self.base.path, where), quiet():
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path or self.base.path,
                dtype=self.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **(self._source if path is None else own),
            )
        model, info = loaded
        _check_tensors(info, path or self.base.path, extra=path is not None, where=where)
        return cast("PreTrainedModel", model.to(self.device).eval())

    def num_trained(self, lora: Lora | None) -> int:
        """How many params a fine-tune trains: all of them, or the adapters' alone. Counted without loading weights."""
        import torch

        model: Any = self._skeleton()
        if lora is not None:
            from peft import get_peft_model

            with torch.device("meta"), quiet():
                model = get_peft_model(model, lora_config(lora))
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def _skeleton(self) -> PreTrainedModel:
        """The base without weights."""
        import torch
        from transformers import AutoModelForCausalLM

        with model_errors(self.base.path), torch.device("meta"), quiet():
            model = AutoModelForCausalLM.from_config(self.config, trust_remote_code=self.base.trust_remote_code)
        return cast("PreTrainedModel", model)

    @cached_property
    def transposed(self) -> frozenset[str]:
        """The params that stand as (in, out), as GPT-2 keeps them. A square one's shape does not tell, its class does."""
        from transformers.pytorch_utils import Conv1D

        return frozenset(f"{name}.weight" for name, module in self._skeleton().named_modules() if isinstance(module, Conv1D))

    def load_finetune(self, path: str) -> Any:
        """A fine-tune as this package saves it: a full model, or an adapter on the base."""
        if not (Path(path) / "adapter_config.json").exists():
            return self.load(path)
        from peft import PeftModel

        with quiet():
            return PeftModel.from_pretrained(self.load(), path).to(self.device).eval()

    def save(self, model: Any, folder: Path) -> None:
        """Write a model (full or adapter) and the tokenizer as a folder that `from_pretrained` loads."""
        with quiet():
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

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
                raise DataError(f"{where}.messages", message, hint="use one reply a row, or prompt and completion")
            pieces += [(prompt[len(done) :], False), (whole[len(prompt) :], True)]
            done = whole
        return pieces

    def render(self, turns: Sequence[dict[str, str]], where: str, reply: bool = False) -> str:
        """Chat turns as text; with `reply`, up to where the assistant's next turn begins."""
        if not self.tokenizer.chat_template:
            message = f"the tokenizer of {self.base.path} has no chat template"
            raise DataError(f"{where}.messages", message, hint="use prompt and completion, or an instruction-tuned base")
        try:
            return str(self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=reply))
        except Exception as error:  # a template may raise anything; the user must see what it said
            raise DataError(f"{where}.messages", f"the chat template refused a row: {error}") from error

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
                    ids, labels = _cut(ids, labels, self.max_length, self._num_start(ids), bool(example.messages))
                    ended = len(ids) > self.max_length
                    num_ended, num_cut = num_ended + ended, num_cut + (not ended)
                sequences.append(_encoded(ids[: self.max_length], labels[: self.max_length], i))
        return Encoding(tuple(sequences), len(examples), num_cut, num_split, num_ended)

    def _pieces(self, texts: list[str]) -> list[list[int]]:
        """Token ids of many pieces of text, encoded apart: a completion's tokens never depend on its prompt."""
        return list(self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]) if texts else []

    def _join(self, pieces: Sequence[tuple[list[int], bool]], example: Example) -> tuple[list[int], list[int]]:
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
            turns = [{"role": role, "content": content} for role, content in example.messages[: last_reply(example)]]
            ids = self.tokens(self.render(turns, where, reply=True))
        else:
            ids = self._opened(self.tokens(example.prompt))
        return self.shorten(ids, self.room(num_new))

    def room(self, num_new: int) -> int:
        """The longest prompt that leaves the model `num_new` tokens for an answer."""
        return min(self.max_length, (self.limit or self.max_length + num_new) - num_new)

    def batches(self, sequences: Sequence[Encoded], batch_tokens: int) -> list[Batch]:
        """Padded batches by length, of at most `batch_tokens` tokens each (or one sequence), the same every time."""
        order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i].ids), i))
        groups: list[list[int]] = []
        for i in order:
            if groups and (len(groups[-1]) + 1) * len(sequences[groups[-1][0]].ids) <= batch_tokens:
                groups[-1].append(i)
            else:
                groups.append([i])
        return [self._collate([sequences[i] for i in group], tuple(group)) for group in groups]

    def _collate(self, group: Sequence[Encoded], rows: tuple[int, ...]) -> Batch:
        import torch

        width = len(group[0].ids)
        pad = int(self.tokenizer.pad_token_id)
        ids = [list(s.ids) + [pad] * (width - len(s.ids)) for s in group]
        labels = [list(s.labels) + [IGNORE] * (width - len(s.ids)) for s in group]
        mask = [[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in group]
        ids_BT, mask_BT, labels_BT = (torch.tensor(x, device=self.device) for x in (ids, mask, labels))
        return Batch(ids_BT, mask_BT, labels_BT, rows)

    def negative_log_likelihoods(self, model: Any, batches: Sequence[Batch]) -> list[float]:
        """The sum over scored tokens of -log p, in nats, for every sequence in its original order."""
        import torch
        from torch.nn.functional import cross_entropy

        sums: dict[int, float] = {}
        with torch.inference_mode():
            for batch in batches:
                logits_BTV = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, :-1]
                # row by row: a second copy of all logits would take as much memory again
                nll_BT = torch.stack(
                    [
                        cross_entropy(logits_TV.float(), labels_T, ignore_index=IGNORE, reduction="none")
                        for logits_TV, labels_T in zip(logits_BTV, batch.labels[:, 1:], strict=True)
                    ]
                )
                sums |= dict(zip(batch.rows, nll_BT.cpu().double().sum(dim=1).tolist(), strict=True))
        return [sums[i] for i in range(len(sums))]

    def generate(self, model: Any, prompts: Sequence[Sequence[int]], settings: Generation) -> list[str]:
        """Greedy continuations as text, each cut before the first of the stop strings."""
        answers: dict[int, str] = {}
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        while order:
            width = len(prompts[order[0]]) + settings.max_new_tokens
            size = max(1, settings.batch_tokens // width)
            group, order = order[:size], order[size:]
            texts = self._continue(model, [prompts[i] for i in group], settings)
            answers |= dict(zip(group, texts, strict=True))
        return [answers[i] for i in range(len(answers))]

    def _continue(self, model: Any, prompts: Sequence[Sequence[int]], settings: Generation) -> list[str]:
        import torch
        from transformers import GenerationConfig

        tokenizer, width = self.tokenizer, max(len(prompt) for prompt in prompts)
        pad = int(tokenizer.pad_token_id)
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = list(ends) if isinstance(ends, list | tuple) else [ends] if ends is not None else []
        config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted({*ends, int(tokenizer.eos_token_id)}),
            pad_token_id=pad,
            stop_strings=list(settings.stop) or None,
        )
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, tokenizer=tokenizer)
        return [_before(text, settings.stop) for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]


@dataclass(frozen=True)
class Generation:
    """Settings of greedy generation."""

    max_new_tokens: int
    stop: tuple[str, ...]
    batch_tokens: int


def lora_config(lora: Lora) -> Any:
    """The recipe's section as PEFT's configuration."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank: a fraction is as good
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )


def take_tokens(encoding: Encoding, max_tokens: int | None, seed: int) -> Encoding:
    """At most `max_tokens` tokens in whole sequences (one at least), drawn by `seed` and kept in order."""
    if max_tokens is None or encoding.num_tokens <= max_tokens:
        return encoding
    order = list(range(len(encoding.sequences)))
    random.Random(seed).shuffle(order)
    kept: list[int] = []
    total = 0
    for i in order:
        total += len(encoding.sequences[i].ids)
        if kept and total > max_tokens:
            break
        kept.append(i)
    sequences = tuple(encoding.sequences[i] for i in sorted(kept))
    return replace(encoding, sequences=sequences, num_examples=len({s.example for s in sequences}))


def content(sequences: Sequence[Encoded]) -> str:
    """The address of some sequences' tokens and labels."""
    sha = hashlib.sha256()
    for sequence in sequences:
        sha.update(repr((sequence.ids, sequence.labels, sequence.example)).encode())
    return sha.hexdigest()


def pick_device(device: str) -> str:
    """`cuda` before `mps` before `cpu` for `auto`. Raises ModelError where a device asked for is not there.

    One process uses one GPU: the first visible one, unless CUDA_VISIBLE_DEVICES says otherwise.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        hint = "choose among several GPUs with CUDA_VISIBLE_DEVICES"
        raise ModelError("device", f"must be auto, cpu, cuda or mps, not {device!r}", hint=hint)
    if device != "cpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, present in there.items() if present)
    if not there[device]:
        raise ModelError("device", f"{device} is not available on this machine", hint="device: auto takes what there is")
    return device


def _check_tensors(info: Any, path: str, extra: bool, where: str) -> None:
    """Raises ModelError where transformers' loading report says that a tensor is missing, misshapen or, with `extra`, left
    over."""
    for name, found, wanted in sorted(info["mismatched_keys"], key=str):
        shapes = f"{tuple(found)}, its configuration wants {tuple(wanted)}"
        raise ModelError(where, f"in {path} the tensor {name} has the shape {shapes}")
    for key, says in (("missing_keys", "lacks"), ("unexpected_keys", "has, but its kind of model lacks,")):
        names = sorted(info[key])
        if names and (extra or key == "missing_keys"):
            raise ModelError(where, f"{path} {says} the tensor {names[0]} ({len(names)} in all)")


def last_reply(example: Example) -> int:
    """The place of the assistant's last turn among an example's messages."""
    return max(i for i, (role, _) in enumerate(example.messages) if role == "assistant")


@contextmanager
def model_errors(path: str, where: str = "base.path") -> Iterator[None]:
    """Turns what transformers raises for a model that is not there or broken into a ModelError that names it.

    A broken file makes transformers, tokenizers and safetensors raise almost anything, so everything counts but an error
    that is a ModelError already and a machine that is full.
    """
    import torch

    try:
        yield
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_no_space(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if not Path(path).exists():
            message = f"{path} is neither a folder nor a hub model that can be reached"
            raise ModelError(where, message, hint=f"check the name and the network ({reason})") from None
        raise ModelError(where, f"{path} does not load as a causal language model: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or warnings of transformers while a model loads: the caller reads the loading report itself."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _windows(ids: list[int], labels: list[int], max_length: int, example: int) -> list[Encoded]:
    starts = range(0, max(1, len(ids) - 1), max_length - 1)
    return [_encoded(ids[s : s + max_length], labels[s : s + max_length], example) for s in starts]


def _encoded(ids: list[int], labels: list[int], example: int) -> Encoded:
    """The first token is never predicted, and a label there would count in a trainer's mean."""
    return Encoded(tuple(ids), (IGNORE, *labels[1:]), example)


def _cut(ids: list[int], labels: list[int], max_length: int, num_start: int, chat: bool) -> tuple[list[int], list[int]]:
    """Ids and labels without the first tokens of a prompt that is too long, the start token kept.

    A chat loses its earliest turns. A prompt ends where its answer begins: what is still too long after that is the answer.
    """
    first = next(i for i, label in enumerate(labels) if label != IGNORE)
    most = len(ids) if chat else max(0, first - max(1, num_start))
    drop = min(len(ids) - max_length, most)
    return ids[:num_start] + ids[num_start + drop :], labels[:num_start] + labels[num_start + drop :]


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text

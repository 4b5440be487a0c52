"""Tiny real models, built in code: random weights, a byte-level tokenizer, saved like a user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mergetomix.data.examples import Example
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.sections.base import Base

VOCAB, CONTEXT = 300, 96
TEXTS = [
    "the cat sat on the mat and the dog sat on the log",
    "one plus two is three and three plus four is seven",
]
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tokenizer(start: bool, chat: bool) -> Any:
    """Byte-level BPE with `<s>`, `</s>` and `<pad>`; with `start`, it puts `<s>` before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    marks = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if start:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    names = {"pad_token": "<pad>", "eos_token": "</s>", **({"bos_token": "<s>"} if start else {})}
    built = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    if chat:
        built.chat_template = CHAT
    return built


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def gpt2(**changes: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": VOCAB,
        "n_positions": CONTEXT,
    }
    marks = {"bos_token_id": 2, "eos_token_id": 2, "initializer_range": 0.2, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{**settings, **marks, **changes}))


def save(model: Any, folder: Path, start: bool = True, chat: bool = False) -> str:
    model.save_pretrained(folder)
    tokenizer(start, chat).save_pretrained(folder)
    return str(folder)


BASES: dict[str, Callable[[Path], str]] = {
    "llama": lambda folder: save(llama(), folder),
    "chat": lambda folder: save(llama(), folder, chat=True),
    "untied": lambda folder: save(llama(tie_word_embeddings=False), folder, start=False),
    "gpt2": lambda folder: save(gpt2(), folder, start=False),
    "gpt2-untied": lambda folder: save(
        gpt2(n_layer=4, tie_word_embeddings=False), folder, start=False
    ),
}


def open_base(
    path: str,
    max_length: int = CONTEXT,
    method: str = "full",
    dtype: Any = "float32",
    **section: Any,
) -> CausalLM:
    return CausalLM(Base(path=path, dtype=dtype, **section), "cpu", max_length, method)


def perturbed(base: str, out: Path, seed: int, size: float = 0.01) -> str:
    """A full fine-tune as anyone might save it: the base and a little noise."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(size * torch.randn(param.shape, generator=generator))
    model.save_pretrained(out)
    return str(out)


def adapter(base: str, out: Path, seed: int, config: Any = None, **changes: Any) -> str:
    """An adapter with random factors, saved by PEFT itself."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }
    config = config or LoraConfig(**{**settings, **changes})
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_" in name:
                param.copy_(0.1 * torch.randn(param.shape))
    model.save_pretrained(out, save_embedding_layers=False)
    return str(out)


def edit(folder: str | Path, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """Change the tensors of a safetensors file in a folder."""
    (file,) = Path(folder).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return str(folder)


def pairs(*rows: tuple[str, str]) -> list[Example]:
    return [
        Example(i, prompt=prompt, completion=completion)
        for i, (prompt, completion) in enumerate(rows)
    ]


def reference_nll(model: Any, ids: Sequence[int], labels: Sequence[int]) -> float:
    """Sums -log p of labelled tokens, by transformers on one sequence; float64 from logits on."""
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)])).logits[0].double()
    logps = logits.log_softmax(-1)
    return -sum(float(logps[t - 1, ids[t]]) for t in range(1, len(ids)) if labels[t] != -100)

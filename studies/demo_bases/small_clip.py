"""A small CLIP model from nothing: encoders, image processor, tokenizer, and its pre-training.

The demo on images starts from such a model, and so do the study on images and the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARKS = ("<pad>", "<start>", "<unknown>", "<end>")
"""Their places are their ids. The end is not 2, which transformers takes for a mistake of old CLIP
models."""
TEXT_TOKENS = 16
BATCH = 64
PEAK_LR = 2e-3
WARMUP_STEPS = 20


@dataclass(frozen=True)
class Shape:
    """How large a model is.

    `side` and `patch` are in pixels, `width` is of both encoders and of what they share.
    """

    side: int
    patch: int
    width: int = 64
    num_layers: int = 3


def words_of(captions: Sequence[str]) -> list[str]:
    """Returns all words of some captions, in lower case."""
    return sorted({word for text in captions for word in text.lower().replace(".", " .").split()})


def tokenizer_of(words: Sequence[str]) -> Any:
    """Returns a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*MARKS, *words])}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token=MARKS[2]))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single=f"{MARKS[1]} $A {MARKS[3]}", special_tokens=[(MARKS[1], 1), (MARKS[3], 3)]
    )
    names = dict(zip(("pad_token", "bos_token", "unk_token", "eos_token"), MARKS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=TEXT_TOKENS, **names)


def model_of(shape: Shape, vocab_size: int, seed: int = 0) -> Any:
    """Returns a CLIP model with random weights."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    encoder = {
        "hidden_size": shape.width,
        "intermediate_size": 4 * shape.width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": max(1, shape.width // 16),
        "projection_dim": shape.width,
    }
    text = {
        **encoder,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "num_hidden_layers": 2,
        "vocab_size": vocab_size,
        "max_position_embeddings": TEXT_TOKENS,
    }
    vision = {**encoder, "image_size": shape.side, "patch_size": shape.patch, "num_channels": 3}
    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape.width))


def processor_of(side: int) -> Any:
    """Returns the image processor: to `side` x `side` pixels, from -1 to 1."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    half = [0.5] * 3
    size = {"height": side, "width": side}
    return CLIPImageProcessorPil(
        size=size, crop_size=size, image_mean=half, image_std=half, do_center_crop=False
    )


def pretrain(
    images_NHW: NDArray[np.uint8],
    labels: Sequence[int],
    captions: Sequence[str],
    shape: Shape,
    epochs: int,
    out_dir: str | Path,
) -> float:
    """Trains both encoders to tell which caption goes with an image, and saves the model.

    Tokenizer and processor are saved with it. The loss is the cross-entropy over all captions,
    whose logits are the model's own; returns its mean over the last epoch, in nats per image.
    """
    import torch
    from torch.nn.functional import cross_entropy

    tokenizer, processor = tokenizer_of(words_of(captions)), processor_of(shape.side)
    model = model_of(shape, len(tokenizer))
    coloured = [np.stack([image] * 3, axis=2) for image in images_NHW]
    pixels = torch.tensor(processor(images=coloured, return_tensors="np")["pixel_values"])
    wanted = torch.tensor(list(labels))
    texts = tokenizer(list(captions), padding=True, return_tensors="pt")
    texts.pop("token_type_ids", None)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, weight_decay=0.05)
    num_steps = epochs * math.ceil(len(pixels) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        ),
    )
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(len(pixels)).split(BATCH):
            logits_BC = model(pixel_values=pixels[batch], **texts).logits_per_image
            loss = cross_entropy(logits_BC, wanted[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    for part in (model, tokenizer, processor):
        part.save_pretrained(out_dir)
    return float(np.mean(losses))

"""Tiny real models of images, and images in every kind of source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import small_clip as clip
import torch
from numpy.typing import NDArray

from mergetomix.models.images.classifier import ImageClassifier
from mergetomix.sections.base import Base
from mergetomix.sections.images import Images
from mergetomix.sections.source import Dataset
from mergetomix.targets.kinds import KINDS

SIDE, PATCH = 12, 4
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CLASSES = ("red cat", "blue dog", "green cow")
TEMPLATES = ("a photo of a {}.", "one {} alone.")
WHERE = "datasets.x"


def pixels(count: int, seed: int = 0, side: int = SIDE, colours: bool = True) -> NDArray[np.uint8]:
    shape = (count, side, side, 3) if colours else (count, side, side)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def rows(count: int, seed: int = 0, classes: Sequence[str] = CLASSES) -> list[dict[str, Any]]:
    """Images of noise, every class in turn."""
    return [
        {"image": image, "label": classes[i % len(classes)]}
        for i, image in enumerate(pixels(count, seed))
    ]


def source(
    given: Any, classes: Sequence[str] | None = CLASSES, target: bool = False, **changes: Any
) -> Any:
    """A dataset, or a target that is scored by its loss unless `score` says otherwise."""
    fields = {"image": "image", "label": "label", "templates": list(TEMPLATES), **changes}
    place = {"path": str(given)} if isinstance(given, str | Path) else {"rows": given}
    names = {} if classes is None else {"classes": list(classes)}
    score = {"score": "loss", **fields} if target else fields
    return (KINDS[score["score"]] if target else Dataset)(**place, **names, **score)


def save_processor(folder: Path, side: int, **changes: Any) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    half = [0.5] * 3
    size = {"height": side, "width": side}
    ViTImageProcessorPil(
        **{"size": size, "image_mean": half, "image_std": half, **changes}
    ).save_pretrained(folder)


def clip_base(folder: Path) -> str:
    captions = [template.replace("{}", name) for template in TEMPLATES for name in CLASSES]
    tokenizer = clip.tokenizer_of(clip.words_of([*captions, "digit one two"]))
    model = clip.model_of(clip.Shape(SIDE, PATCH, width=32, num_layers=2), len(tokenizer))
    for part in (model, tokenizer, clip.processor_of(SIDE)):
        part.save_pretrained(folder)
    return str(folder)


def siglip_base(folder: Path) -> str:
    from transformers import SiglipConfig, SiglipModel

    tokenizer = clip.tokenizer_of(
        clip.words_of([t.replace("{}", name) for t in TEMPLATES for name in CLASSES])
    )
    encoder = {**ENCODER, "num_hidden_layers": 1}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    text = {
        **encoder,
        **marks,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "projection_size": 32,
    }
    torch.manual_seed(0)
    vision = {**encoder, "image_size": SIDE, "patch_size": PATCH}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_processor(folder, SIDE)
    return str(folder)


def names(classes: Sequence[str]) -> dict[str, Any]:
    places = {name: i for i, name in enumerate(classes)}
    return {"id2label": dict(enumerate(classes)), "label2id": places}


def vit(**changes: Any) -> Any:
    from transformers import ViTConfig

    shape = {"image_size": SIDE, "patch_size": PATCH, "initializer_range": 0.2}
    torch.manual_seed(0)
    return ViTConfig(**shape, **ENCODER, **changes)


def vit_base(folder: Path, classes: Sequence[str] = CLASSES, **changes: Any) -> str:
    from transformers import ViTForImageClassification

    ViTForImageClassification(vit(**names(classes), **changes)).save_pretrained(folder)
    save_processor(folder, SIDE)
    return str(folder)


def bare_base(folder: Path) -> str:
    """A vision transformer without a head."""
    from transformers import ViTModel

    ViTModel(vit()).save_pretrained(folder)
    save_processor(folder, SIDE)
    return str(folder)


def resnet_base(folder: Path, classes: Sequence[str] = CLASSES) -> str:
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    ResNetForImageClassification(ResNetConfig(**shape, **names(classes))).save_pretrained(folder)
    save_processor(folder, SIDE)
    return str(folder)


BASES: dict[str, Callable[[Path], str]] = {
    "clip": clip_base,
    "siglip": siglip_base,
    "vit": vit_base,
    "vit-other": lambda folder: vit_base(folder, ("x", "y", "z", "w")),
    "resnet": resnet_base,
    "bare": bare_base,
}


def open_base(path: str, method: str = "full", **images: Any) -> ImageClassifier:
    return ImageClassifier(Base(path=path), "cpu", Images(**images), method)


def encoded(family: ImageClassifier, count: int, seed: int = 0) -> Sequence[Any]:
    examples = family.read(source(rows(count, seed)), WHERE)
    family.settle({WHERE: examples})
    return family.encode(examples.items, WHERE).sequences

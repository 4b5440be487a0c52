"""Tiny random image classifiers of many kinds, and fine-tuning in a few lines beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_images as tiny
import torch
from torch.nn.functional import cross_entropy

from mergetomix.experts.deltas import params

CLOSE = 2e-5
WIDE = {"image_size": tiny.SIDE, "patch_size": tiny.PATCH, **tiny.ENCODER}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit": {**WIDE, **STILL},
    "dinov2_with_registers": {**WIDE, **STILL, "mlp_ratio": 2},
    "dinov2": {**WIDE, **STILL, "mlp_ratio": 2},
    "beit": {**WIDE, **STILL, "use_relative_position_bias": True, "drop_path_rate": 0.0},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 12},
    "resnet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
        **STILL,
        "drop_path_rate": 0.0,
    },
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 4},
}
ANY_SIZE = {"dinov2", "convnext", "resnet", "regnet"}
RATE = 1e-4


def base_of(name: str, folder: Path, side: int | None = None) -> str:
    from transformers import AutoConfig, AutoModelForImageClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **ARCHITECTURES[name], **tiny.names(tiny.CLASSES))
    model = AutoModelForImageClassification.from_config(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() > 1:
                param.add_(0.1 * torch.randn(param.shape, generator=draw))
    model.eval().save_pretrained(folder)
    tiny.save_processor(folder, side or int(getattr(config, "image_size", tiny.SIDE)))
    return str(folder)


def opened(path: str, side: int = tiny.SIDE, method: str = "full") -> tuple[Any, Any]:
    family = tiny.open_base(path, method=method)
    rows = [
        {"image": image, "label": tiny.CLASSES[i % len(tiny.CLASSES)]}
        for i, image in enumerate(tiny.pixels(6, side=side))
    ]
    examples = family.read(tiny.source(rows), tiny.WHERE)
    family.settle({tiny.WHERE: examples})
    return family, family.encode(examples.items, tiny.WHERE).sequences


def logits_of(model: Any, family: Any, sequences: Any) -> Any:
    pixels = torch.stack([family.pixels.get(each.picture) for each in sequences])
    labels = torch.tensor([each.label for each in sequences])
    return model(pixel_values=pixels).logits.float(), labels


def three_steps(family: Any, sequences: Any) -> Any:
    """Full fine-tuning in ten lines: AdamW, every image in every step."""
    model = family.load()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(3):
        logits, labels = logits_of(model, family, sequences)
        cross_entropy(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return params(model)

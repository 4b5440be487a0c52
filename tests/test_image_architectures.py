"""Tiny random image classifiers of many architectures beside a few lines of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_images as tiny
import torch
from torch.nn.functional import cross_entropy

from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.sections.train import Train
from mergetomix.training import finetune

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


def opened(path: str, side: int = tiny.SIDE) -> tuple[Any, Any]:
    family = tiny.open_base(path)
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_classes_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    family, sequences = opened(base_of(name, tmp_path))
    model = family.load()
    batches = family.batches(sequences, 10**6)
    with torch.no_grad():
        logits, labels = logits_of(model, family, sequences)
        wanted = cross_entropy(logits, labels, reduction="none").tolist()
    found = family.negative_log_likelihoods(model, batches)
    assert found == pytest.approx(wanted, abs=CLOSE)
    assert family.right(model, batches) == (logits.argmax(dim=1) == labels).double().tolist()
    with torch.no_grad():
        next(param for param in model.parameters() if param.dim() > 1).fill_(np.nan)
    assert np.isnan(family.right(model, batches)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_steps_and_a_proxy_of_two(name: str, tmp_path: Path) -> None:
    path = base_of(name, tmp_path / "base")
    family, sequences = opened(path)
    settings = Train(
        method="full",
        batch_size=len(sequences),
        max_steps=3,
        learning_rate=RATE,
        warmup_ratio=0.0,
    )
    for key, own in (("a", sequences), ("b", sequences[:3])):
        finetune(family, own, settings, tmp_path / key)
    expert, other = (params(family.load_finetune(str(tmp_path / key))) for key in ("a", "b"))
    before, model = params(family.load()), family.load()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(3):
        logits, labels = logits_of(model, family, sequences)
        cross_entropy(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    wanted = params(model)
    away = torch.cat([(expert[key] - wanted[key]).abs().flatten() for key in wanted])
    moved = torch.cat([(wanted[key] - before[key]).abs().flatten() for key in wanted])
    # of a gradient that is all rounding AdamW takes the sign, so a few weights may go anywhere
    assert float((away > CLOSE).double().mean()) < 1e-3 and float(away.max()) < 6 * RATE
    assert float((moved > 5 * CLOSE).double().mean()) > 0.3
    live = family.load()
    deltas = {
        key: read_delta(family, params(live), str(tmp_path / key), tiny.WHERE) for key in ("a", "b")
    }
    Bank(live, deltas, GIB).set({"a": 0.5, "b": 0.5})
    for key, value in params(live).items():
        start = before[key].double()
        mean = start + ((expert[key].double() - start) + (other[key].double() - start)) / 2
        assert torch.equal(value, mean.float()), key


@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext", "resnet"])
def test_one_forward_pass_decides_which_sizes_a_model_reads(name: str, tmp_path: Path) -> None:
    """Whatever its configuration says: DINOv2 bends its positions, ConvNeXt has none."""
    path = base_of(name, tmp_path, side=24)
    if name not in ANY_SIZE:
        with pytest.raises(Exception, match="but the model reads"):
            opened(path)
        return
    family, sequences = opened(path)
    model = family.load()
    with torch.no_grad():
        logits, labels = logits_of(model, family, sequences)
        wanted = cross_entropy(logits, labels, reduction="none").tolist()
    batches = family.batches(sequences, 10**6)
    assert family.negative_log_likelihoods(model, batches) == pytest.approx(wanted, abs=CLOSE)

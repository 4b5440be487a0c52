"""Tiny random image classifiers of many architectures beside a few lines of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_images as tiny
import torch
from image_architectures import (
    ANY_SIZE,
    ARCHITECTURES,
    CLOSE,
    RATE,
    base_of,
    logits_of,
    opened,
    three_steps,
)
from torch.nn.functional import cross_entropy

from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.sections.train import Lora, Train
from mergetomix.training import finetune


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
    before, wanted = params(family.load()), three_steps(family, sequences)
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
    written_is(live, family, tmp_path / "merged")


def written_is(live: Any, family: Any, folder: Path) -> None:
    """Checks that a merge that is written is, to the bit, what transformers loads."""
    from transformers import AutoModelForImageClassification

    family.save(live, folder)
    written = AutoModelForImageClassification.from_pretrained(folder)
    for key, value in params(written).items():
        assert torch.equal(value, params(live)[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_is_read_as_its_exact_product(name: str, tmp_path: Path) -> None:
    family, sequences = opened(base_of(name, tmp_path / "base"), method="lora")
    settings = Train(batch_size=6, max_steps=2, learning_rate=1e-2, lora=Lora(rank=2, alpha=4))
    finetune(family, sequences, settings, tmp_path / "a")
    live, batches = family.load(), family.batches(sequences, 10**6)
    plain = family.negative_log_likelihoods(live, batches)
    delta = read_delta(family, params(live), str(tmp_path / "a"), tiny.WHERE)
    Bank(live, {"a": delta}, GIB).set({"a": 1.0})
    found, wanted = (
        family.negative_log_likelihoods(model, batches)
        for model in (live, family.load_finetune(str(tmp_path / "a")))
    )
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found != pytest.approx(plain, abs=1e-3)
    written_is(live, family, tmp_path / "merged")


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

"""Image classifiers are trained, their images changed, and their experts merged or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_images as tiny
import torch
from safetensors.torch import load_file

from mergetomix.errors import ModelError, RecipeError, TrainingError
from mergetomix.experts.bank import Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.merge import coefficients
from mergetomix.models.images.trainer import augmented
from mergetomix.records import Mixture
from mergetomix.sections.train import Augment, Lora, Train
from mergetomix.training import finetune

BaseOf = Callable[[str], str]
KINDS = ("clip", "siglip", "vit", "resnet")


def settings(**changes: Any) -> Train:
    return Train(
        **{"method": "full", "learning_rate": 1e-3, "batch_size": 4, "max_steps": 3, **changes}
    )


@pytest.mark.parametrize(
    ("kind", "method"),
    [*((kind, "full") for kind in KINDS), *((kind, "lora") for kind in KINDS[:3])],
)
def test_the_loss_falls_and_frozen_params_stay(
    image_base: BaseOf, tmp_path: Path, kind: str, method: str
) -> None:
    family = tiny.open_base(image_base(kind), method)
    images = tiny.encoded(family, 12)
    batches = family.batches(images, 64)
    model = family.load()
    before = np.mean(family.negative_log_likelihoods(model, batches))
    finetune(family, images, settings(method=method, max_steps=30, learning_rate=3e-3), tmp_path)
    after = family.load_finetune(str(tmp_path))
    assert np.mean(family.negative_log_likelihoods(after, batches)) < before - 0.05
    core = after.merge_and_unload() if method == "lora" else after
    changed = {name for name, p in params(core).items() if not p.equal(params(model)[name])}
    assert changed and all(family.is_trained(name) for name in changed)
    buffers = dict(model.named_buffers())
    assert all(
        each.equal(buffers[name])
        for name, each in core.named_buffers()
        if name.endswith(("mean", "var"))
    )


def test_own_heads_are_learnt_from_the_base_and_stay(image_base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(image_base("vit-other"), head="own")
    images = tiny.encoded(family, 24)
    (key,) = {image.head for image in images}
    head = family.heads([key])[key]
    before = head.weight.clone()
    finetune(family, images, settings(), tmp_path)
    after = family.load_finetune(str(tmp_path))
    assert head.weight.equal(before)
    same = {
        name
        for name, p in after.named_parameters()
        if p.equal(dict(family.load().named_parameters())[name])
    }
    assert {"classifier.weight", "classifier.bias"} <= same < set(dict(after.named_parameters()))
    kept = load_file(tmp_path / "heads.safetensors")
    assert kept[f"{key}.weight"].equal(head.weight)


def test_a_new_shared_head_is_zero_and_is_trained(image_base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(image_base("vit-other"))
    images = tiny.encoded(family, 12)
    model = family.load()
    assert not params(model)["classifier.weight"].any() and model.config.num_labels == 3
    losses = family.negative_log_likelihoods(model, family.batches(images, 64))
    assert losses == pytest.approx([float(np.log(3))] * 12)
    finetune(family, images, settings(max_steps=6), tmp_path)
    after = family.load_finetune(str(tmp_path))
    assert params(after)["classifier.weight"].any()
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == dict(
        zip("012", sorted(tiny.CLASSES), strict=True)
    )


@pytest.mark.parametrize("head", ["own", "shared"])
def test_a_base_without_a_head_gets_one(image_base: BaseOf, tmp_path: Path, head: str) -> None:
    """The same params at every load: a head of nothing, or one that is not used."""
    family = tiny.open_base(image_base("bare"), head=head)
    images = tiny.encoded(family, 12)
    one, other = params(family.load()), params(family.load())
    assert all(one[name].equal(other[name]) for name in one)
    before = np.mean(family.negative_log_likelihoods(family.load(), family.batches(images, 64)))
    finetune(family, images, settings(max_steps=20), tmp_path)
    delta = read_delta(family, one, str(tmp_path), "datasets.x.expert")
    assert ("classifier.weight" in delta.names()) is (head == "shared")
    after = family.load_finetune(str(tmp_path))
    assert np.mean(family.negative_log_likelihoods(after, family.batches(images, 64))) < before


def test_a_model_without_linear_layers_has_nothing_to_adapt(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("resnet"), "lora", head="own")
    with pytest.raises(RecipeError, match="no linear layer to adapt"):
        family.lora_config(Lora())


@pytest.mark.parametrize(
    ("wanted", "ends"),
    [
        ("all-linear", {"q_proj", "fc1", "visual_projection"}),
        (["q_proj", "fc1"], {"q_proj", "fc1"}),
        (r".*layers\.1\..*(q_proj|fc2)", {"q_proj", "fc2"}),
    ],
)
def test_modules_are_chosen_as_peft_reads_them(
    image_base: BaseOf, wanted: str | list[str], ends: set[str]
) -> None:
    chosen = tiny.open_base(image_base("clip"), "lora").lora_config(Lora(target_modules=wanted))
    found = {name.rpartition(".")[2] for name in chosen.target_modules}
    assert ends <= found and (wanted == "all-linear" or ends == found)
    assert isinstance(wanted, list) or wanted == "all-linear" or len(chosen.target_modules) == 2


def test_only_the_image_side_of_clip_is_trained(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("clip"))
    tiny.encoded(family, 3)
    model = family.load()
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    named = {n for n, _ in model.named_parameters() if "text" in n or n == "logit_scale"}
    assert frozen == named and len(frozen) < len(params(model))
    assert family.num_saved(None) == sum(p.numel() for p in model.parameters())
    targets = family.lora_config(Lora(rank=2)).target_modules
    assert "visual_projection" in targets and not any("text" in name for name in targets)


def test_a_pattern_of_modules_that_is_none_is_named(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("clip"), "lora")
    with pytest.raises(RecipeError, match="no regular expression"):
        family.lora_config(Lora(target_modules="*proj"))


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": Augment(flip=0.5, shift=0.2, rotate=20), "max_steps": 8},
        {"gradient_accumulation": 2},
        {"method": "lora", "lora": Lora(rank=2, dropout=0.3), "max_steps": 8},
    ],
    ids=["augment", "accumulate", "dropout"],
)
def test_training_does_not_depend_on_workers(
    image_base: BaseOf, tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = []
    for num_workers in (0, 1):
        family = tiny.open_base(
            image_base("clip"), changes.get("method", "full"), num_workers=num_workers
        )
        finetune(family, tiny.encoded(family, 10), settings(**changes), tmp_path / str(num_workers))
        (file,) = (tmp_path / str(num_workers)).glob("*model.safetensors")
        found.append(load_file(file))
    assert all(found[0][name].equal(found[1][name]) for name in found[0])


def test_accumulated_batches_are_one_batch(image_base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(image_base("clip"))
    images = tiny.encoded(family, 8)
    finetune(family, images, settings(batch_size=8, max_steps=2), tmp_path / "one")
    finetune(
        family,
        images,
        settings(batch_size=4, gradient_accumulation=2, max_steps=2),
        tmp_path / "two",
    )
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    # a key's bias moves all logits of attention alike: its gradient is rounding that AdamW follows
    assert all(
        torch.allclose(one[name], two[name], atol=2e-5)
        for name in one
        if not name.endswith("k_proj.bias")
    )


def test_datasets_of_different_classes_train_together_each_with_its_head(
    image_base: BaseOf, tmp_path: Path
) -> None:
    """The loss of a mixed batch is the mean of what each image's own head says."""
    family = tiny.open_base(image_base("clip"))
    some = {
        name: family.read(tiny.source(tiny.rows(4, i, classes), classes), f"datasets.{name}")
        for i, (name, classes) in enumerate({"a": tiny.CLASSES, "b": ("one", "two")}.items())
    }
    family.settle({each.where: each for each in some.values()})
    images = [
        image
        for name, each in some.items()
        for image in family.encode(each.items, f"datasets.{name}").sequences
    ]
    model = family.load()
    apart = family.negative_log_likelihoods(model, family.batches(images, 10**6))
    assert family.training_loss(model, images).item() == pytest.approx(np.mean(apart), abs=1e-5)
    num_tokens, _ = finetune(family, images, settings(), tmp_path)
    assert num_tokens == 3 * 4 * images[0].num_tokens == 3 * 4 * (tiny.SIDE // tiny.PATCH) ** 2


def test_a_loss_that_is_not_finite_names_the_step(image_base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(image_base("vit"))
    with pytest.raises(TrainingError, match="step"):
        finetune(
            family,
            tiny.encoded(family, 8),
            settings(learning_rate=1e30, max_steps=5, max_grad_norm=0),
            tmp_path,
        )


# --- augmentation


def test_augmentation_off_changes_nothing() -> None:
    x = torch.rand(3, 3, 6, 8)
    assert torch.allclose(augmented(x, Augment(), torch.Generator().manual_seed(0)), x, atol=1e-5)


def test_a_sure_flip_is_the_mirror_image() -> None:
    x = torch.rand(3, 3, 6, 8)
    assert torch.allclose(
        augmented(x, Augment(flip=1), torch.Generator().manual_seed(0)), x.flip(3), atol=1e-5
    )


def test_a_turn_keeps_what_is_round_and_moves_the_rest() -> None:
    """A disc stays where it is under any rotation; a bar keeps its length and turns."""
    y, x = np.mgrid[-8:9, -8:9]
    disc = torch.tensor((x**2 + y**2 < 25).astype(np.float32))[None, None]
    bar = torch.tensor(((abs(y) < 2) & (abs(x) < 7)).astype(np.float32))[None, None]
    for seed in range(4):
        turned = [
            augmented(each, Augment(rotate=90), torch.Generator().manual_seed(seed))
            for each in (disc, bar)
        ]
        assert float((turned[0] - disc).abs().mean()) < 0.05
        assert float(turned[1].sum()) == pytest.approx(float(bar.sum()), rel=0.1)
    assert any(
        float(
            (augmented(bar, Augment(rotate=90), torch.Generator().manual_seed(s)) - bar)
            .abs()
            .mean()
        )
        > 0.1
        for s in range(4)
    )


def test_draws_differ_between_images_and_are_seeded() -> None:
    x = torch.rand(1, 3, 9, 9).repeat(6, 1, 1, 1)
    one, again, other = (
        augmented(x, Augment(shift=0.3), torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    assert one.equal(again) and not one.equal(other) and not one[0].equal(one[1])


# --- merging


@pytest.mark.parametrize(
    ("kind", "method"), [("clip", "full"), ("clip", "lora"), ("vit", "full"), ("vit", "lora")]
)
def test_a_merge_of_two_is_their_mean(
    image_base: BaseOf, tmp_path: Path, kind: str, method: str
) -> None:
    family = tiny.open_base(image_base(kind), method)
    for seed in (0, 1):
        finetune(
            family, tiny.encoded(family, 8, seed), settings(method=method), tmp_path / str(seed)
        )
    model = family.load()
    deltas = {
        str(seed): read_delta(family, params(model), str(tmp_path / str(seed)), "datasets.x.expert")
        for seed in (0, 1)
    }
    bank = Bank(model, deltas)
    assert all(family.is_trained(name) for delta in deltas.values() for name in delta.names())
    bank.set(coefficients(Mixture.union(["0", "1"]), 1.0))
    experts = [family.load_finetune(str(tmp_path / str(seed))) for seed in (0, 1)]
    cores = [params(each.merge_and_unload() if method == "lora" else each) for each in experts]
    for name, param in params(bank.model).items():
        want = (cores[0][name].double() + cores[1][name].double()) / 2
        assert torch.allclose(param.double(), want, atol=1e-6)


def test_an_expert_that_changes_the_text_encoder_is_refused(
    image_base: BaseOf, tmp_path: Path
) -> None:
    family = tiny.open_base(image_base("clip"))
    model = family.load()
    with torch.no_grad():
        model.text_projection.weight.add_(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"text_projection\.weight"):
        read_delta(family, params(family.load()), str(tmp_path), "datasets.x.expert")


def test_an_expert_with_other_statistics_is_refused(image_base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(image_base("resnet"))
    model = family.load()
    next(each for name, each in model.named_buffers() if name.endswith("running_mean")).add_(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="running_mean"):
        read_delta(family, params(family.load()), str(tmp_path), "datasets.x.expert")


def test_an_expert_whose_head_is_in_another_order_is_refused(
    image_base: BaseOf, tmp_path: Path
) -> None:
    family = tiny.open_base(image_base("vit"))
    tiny.encoded(family, 3)
    other = tiny.vit_base(tmp_path, tiny.CLASSES[::-1])
    with pytest.raises(
        ModelError, match="has the class 'green cow' where the shared head has 'red cat'"
    ):
        read_delta(family, params(family.load()), other, "datasets.x.expert")

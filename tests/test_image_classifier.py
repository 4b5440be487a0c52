"""Image classifiers: each number against a few lines of transformers alone; heads, training, merging, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_images as tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from mergetomix.errors import DataError, ModelError, RecipeError, TrainingError
from mergetomix.experts.bank import Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.merge import coefficients
from mergetomix.models.images.classifier import ImageClassifier
from mergetomix.models.images.heads import probe
from mergetomix.models.images.trainer import augmented
from mergetomix.records import Mixture
from mergetomix.sections.train import Augment, Lora, Train
from mergetomix.targets.kinds import build
from mergetomix.targets.target import TargetSetting
from mergetomix.training import finetune

BaseOf = Callable[[str], str]
KINDS = ("clip", "siglip", "vit", "resnet")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseOf:
    return cache(lambda kind: tiny.BASES[kind](tmp_path_factory.mktemp(kind)))


def settings(**changes: Any) -> Train:
    return Train(
        **{"method": "full", "learning_rate": 1e-3, "batch_size": 4, "max_steps": 3, **changes}
    )


def scored(
    family: ImageClassifier, given: Any, score: str, model: Any = None, batch_tokens: int = 40
) -> Any:
    examples = family.read(given, "targets.t")
    family.settle({"targets.t": examples})
    target = build(
        given.model_copy(update={"score": score}),
        examples.items,
        TargetSetting(family, "targets.t", batch_tokens),
    )
    return target.score(model or family.load())


# --- agreement with transformers alone


def test_clip_agrees_with_transformers_alone(base: BaseOf) -> None:
    """Loss and accuracy of zero-shot classification, written with CLIPModel and its processors."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    rows = tiny.rows(15)
    model, tokenizer = (
        AutoModel.from_pretrained(base("clip")).eval(),
        AutoTokenizer.from_pretrained(base("clip")),
    )
    images = [Image.fromarray(row["image"]) for row in rows]
    pixels = CLIPImageProcessorPil.from_pretrained(base("clip"))(images, return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        rows_of = []
        for name in tiny.CLASSES:
            texts = tokenizer(
                [t.replace("{}", name) for t in tiny.TEMPLATES], padding=True, return_tensors="pt"
            )
            vectors = torch.nn.functional.normalize(
                model.get_text_features(**texts).pooler_output, dim=-1
            ).mean(0)
            rows_of.append(torch.nn.functional.normalize(vectors, dim=-1))
        features = torch.nn.functional.normalize(
            model.get_image_features(pixels).pooler_output, dim=-1
        )
        logits = model.logit_scale.exp() * features @ torch.stack(rows_of).T
    labels = torch.tensor([tiny.CLASSES.index(row["label"]) for row in rows])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    family = tiny.open_base(base("clip"))
    loss = scored(family, tiny.source(rows, target=True), "loss")
    accuracy = scored(family, tiny.source(rows, target=True), "accuracy")
    assert loss.values == pytest.approx(losses.tolist(), abs=1e-5) and loss.weights == (1.0,) * 15
    assert accuracy.values == tuple((logits.argmax(1) == labels).float().tolist())
    assert 0 < accuracy.mean < 1 and loss.kind == "loss" and accuracy.kind == "score"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_one_template_is_the_models_own_logits(base: BaseOf, kind: str) -> None:
    """With one template the logits are those that the whole model gives for images and texts together."""
    family, rows = tiny.open_base(base(kind)), tiny.rows(6)
    given = tiny.source(rows, target=True, templates=["a photo of a {}."])
    loss = scored(family, given, "loss")
    padding: Any = "max_length" if kind == "siglip" else True
    texts = family.tokenizer(
        [f"a photo of a {name}." for name in tiny.CLASSES],
        padding=padding,
        max_length=16,
        return_tensors="pt",
    )
    pixels = family.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = family.load()(pixel_values=pixels, **texts).logits_per_image
    labels = torch.tensor([tiny.CLASSES.index(row["label"]) for row in rows])
    want = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert loss.values == pytest.approx(want.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_shared_head_is_the_models_own(base: BaseOf, kind: str) -> None:
    from transformers import AutoModelForImageClassification

    family, rows = tiny.open_base(base(kind)), tiny.rows(9)
    loss = scored(family, tiny.source(rows, target=True), "loss")
    model = AutoModelForImageClassification.from_pretrained(base(kind)).eval()
    pixels = family.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
    labels = torch.tensor([tiny.CLASSES.index(row["label"]) for row in rows])
    want = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert loss.values == pytest.approx(want.tolist(), abs=1e-5)


def test_classes_in_another_order_are_the_heads_by_name(base: BaseOf) -> None:
    given = [
        tiny.source(tiny.rows(9), classes, target=True)
        for classes in (tiny.CLASSES, tiny.CLASSES[::-1])
    ]
    one, other = (scored(tiny.open_base(base("vit")), each, "loss") for each in given)
    assert one.values == pytest.approx(other.values, abs=1e-6)


def test_grey_images_are_read_by_a_model_of_one_colour(tmp_path: Path) -> None:
    path = tiny.vit_base(tmp_path, num_channels=1)
    tiny.save_processor(tmp_path, tiny.SIDE, image_mean=[0.5], image_std=[0.5])
    family = tiny.open_base(path)
    grey = [{"image": image, "label": "red cat"} for image in tiny.pixels(2, colours=False)]
    assert scored(family, tiny.source(grey, target=True), "loss").num_examples == 2


# --- heads


def test_a_probe_is_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    for num_classes in (2, 3):
        states, labels = draw.normal(size=(60, 5)) * 7, draw.integers(num_classes, size=60)
        head = probe(states, labels.tolist(), num_classes, "cpu")
        scale = float(np.sqrt(np.mean(states**2)))
        want = (
            LogisticRegression(max_iter=1000)
            .fit(states / scale, labels)
            .predict_log_proba(states / scale)
        )
        found = head.logits(torch.tensor(states, dtype=torch.float32)).log_softmax(1)
        assert np.allclose(found.numpy(), want, atol=1e-4)


def test_a_class_without_examples_is_never_predicted() -> None:
    head = probe(np.eye(4), [0, 0, 2, 2], 3, "cpu")
    assert 1 not in head.logits(torch.eye(4)).argmax(1)


def test_own_heads_are_learnt_from_the_base_and_stay(base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(base("vit-other"), head="own")
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


def test_a_target_takes_the_head_of_the_dataset_with_its_classes(base: BaseOf) -> None:
    family = tiny.open_base(base("vit-other"), head="own")
    one, two = tiny.source(tiny.rows(12)), tiny.source(tiny.rows(12, 1, ("p", "q")), ("p", "q"))
    datasets = {"one": family.read(one, "datasets.one"), "two": family.read(two, "datasets.two")}
    target = family.read(
        tiny.source(tiny.rows(4, 2, ("p", "q")), ("p", "q"), target=True), "targets.t"
    )
    family.settle({**{each.where: each for each in datasets.values()}, "targets.t": target})
    (head,) = {image.head for image in family.encode(target.items, "targets.t").sequences}
    assert head == family.encode(datasets["two"].items, "datasets.two").sequences[0].head


@pytest.mark.parametrize(
    ("changes", "message"), [({}, "whose head it takes"), ({"head": "two"}, "other classes")]
)
def test_a_target_whose_head_is_not_known_is_refused(
    base: BaseOf, changes: dict[str, Any], message: str
) -> None:
    family = tiny.open_base(base("vit-other"), head="own")
    datasets = {
        name: family.read(tiny.source(tiny.rows(6, 0, classes), classes), f"datasets.{name}")
        for name, classes in (("one", tiny.CLASSES), ("two", ("p", "q")), ("three", tiny.CLASSES))
    }
    target = family.read(tiny.source(tiny.rows(4), target=True, **changes), "targets.t")
    family.settle({**{each.where: each for each in datasets.values()}, "targets.t": target})
    with pytest.raises(RecipeError, match=message) as caught:
        family.encode(target.items, "targets.t")
    assert caught.value.where == "targets.t.head"


def test_a_new_shared_head_is_zero_and_is_trained(base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(base("vit-other"))
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


def test_a_new_head_is_part_of_the_bases_address(base: BaseOf, tmp_path: Path) -> None:
    from mergetomix.store.store import Store

    store = Store(str(tmp_path))
    keys = []
    for classes in (tiny.CLASSES, ("p", "q"), None):
        family = tiny.open_base(base("vit-other"))
        if classes is not None:
            family.settle(
                {
                    tiny.WHERE: family.read(
                        tiny.source(tiny.rows(4, 0, classes), classes), tiny.WHERE
                    )
                }
            )
        keys.append(family.key(store))
    store.close()
    assert len(set(keys)) == 3


# --- training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_loss_falls_and_frozen_params_stay(
    base: BaseOf, tmp_path: Path, kind: str, method: str
) -> None:
    family = tiny.open_base(base(kind), method)
    images = tiny.encoded(family, 12)
    if (kind, method) == ("resnet", "lora"):
        family = tiny.open_base(base(kind), method, head="own")
        images = tiny.encoded(family, 12)
        with pytest.raises(RecipeError, match="no linear layer to adapt"):
            finetune(family, images, settings(method="lora"), tmp_path)
        return
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


def test_only_the_image_side_of_clip_is_trained(base: BaseOf) -> None:
    family = tiny.open_base(base("clip"))
    tiny.encoded(family, 3)
    whole = sum(p.numel() for p in family.load().parameters())
    text = sum(
        p.numel()
        for name, p in family.load().named_parameters()
        if "text" in name or name == "logit_scale"
    )
    assert family.num_trained(None) == whole - text
    targets = family.lora_config(Lora(rank=2)).target_modules
    assert "visual_projection" in targets and not any("text" in name for name in targets)


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
    base: BaseOf, tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = []
    for num_workers in (0, 1):
        family = tiny.open_base(
            base("clip"), changes.get("method", "full"), num_workers=num_workers
        )
        finetune(family, tiny.encoded(family, 10), settings(**changes), tmp_path / str(num_workers))
        (file,) = (tmp_path / str(num_workers)).glob("*model.safetensors")
        found.append(load_file(file))
    assert all(found[0][name].equal(found[1][name]) for name in found[0])


def test_accumulated_batches_are_one_batch(base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(base("clip"))
    images = tiny.encoded(family, 8)
    finetune(family, images, settings(batch_size=8, max_steps=2), tmp_path / "one")
    finetune(
        family,
        images,
        settings(batch_size=4, gradient_accumulation=2, max_steps=2),
        tmp_path / "two",
    )
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    # a key's bias moves all logits of attention alike, so its gradient is rounding alone, which AdamW makes a step of
    assert all(
        torch.allclose(one[name], two[name], atol=2e-5)
        for name in one
        if not name.endswith("k_proj.bias")
    )


def test_datasets_of_different_classes_train_together_each_with_its_head(
    base: BaseOf, tmp_path: Path
) -> None:
    """The loss of a mixed batch is the mean of what each image's own head says."""
    family = tiny.open_base(base("clip"))
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


def test_a_loss_that_is_not_finite_names_the_step(base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(base("vit"))
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
def test_a_merge_of_two_is_their_mean(base: BaseOf, tmp_path: Path, kind: str, method: str) -> None:
    family = tiny.open_base(base(kind), method)
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


def test_an_expert_that_changes_the_text_encoder_is_refused(base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(base("clip"))
    model = family.load()
    with torch.no_grad():
        model.text_projection.weight.add_(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"text_projection\.weight"):
        read_delta(family, params(family.load()), str(tmp_path), "datasets.x.expert")


def test_an_expert_with_other_statistics_is_refused(base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(base("resnet"))
    model = family.load()
    next(each for name, each in model.named_buffers() if name.endswith("running_mean")).add_(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="running_mean"):
        read_delta(family, params(family.load()), str(tmp_path), "datasets.x.expert")


# --- what does not fit


def test_kinds_of_head_that_a_model_has_not(base: BaseOf) -> None:
    for kind, head in (("vit", "text"), ("clip", "shared"), ("clip", "own")):
        with pytest.raises(RecipeError, match="head can be") as caught:
            tiny.open_base(base(kind), head=head)
        assert caught.value.where == "images.head"


def test_a_shared_head_needs_the_same_classes(base: BaseOf) -> None:
    family = tiny.open_base(base("vit"))
    one = family.read(tiny.source(tiny.rows(4)), "datasets.one")
    two = family.read(tiny.source(tiny.rows(4, 0, ("p", "q")), ("p", "q")), "datasets.two")
    with pytest.raises(DataError, match=r"classes are not those of datasets\.one") as caught:
        family.settle({each.where: each for each in (one, two)})
    assert caught.value.where == "datasets.two.classes"


def test_adapters_cannot_hold_a_new_head(base: BaseOf) -> None:
    family = tiny.open_base(base("vit-other"), "lora")
    examples = family.read(tiny.source(tiny.rows(4)), tiny.WHERE)
    with pytest.raises(RecipeError, match="adapters cannot hold a new one"):
        family.settle({tiny.WHERE: examples})


def test_a_text_head_needs_names(base: BaseOf) -> None:
    family = tiny.open_base(base("clip"))
    numbered = [{"image": image, "label": i % 3} for i, image in enumerate(tiny.pixels(6))]
    examples = family.read(tiny.source(numbered, None), tiny.WHERE)
    with pytest.raises(
        DataError, match="needs the classes' names, but the labels are the numbers 0, 1, 2"
    ) as caught:
        family.settle({tiny.WHERE: examples})
    assert caught.value.where == "datasets.x.classes"


@pytest.mark.parametrize(
    ("side", "message"),
    [(3, "smaller than a patch of 4x4"), (20, "20x20 pixels, but the model reads 12x12")],
)
def test_images_that_nothing_resizes_must_fit(tmp_path: Path, side: int, message: str) -> None:
    path = tiny.vit_base(tmp_path)
    tiny.save_processor(tmp_path, tiny.SIDE, do_resize=False)
    family = tiny.open_base(path)
    given = [{"image": image, "label": "red cat"} for image in tiny.pixels(2, side=side)]
    examples = family.read(tiny.source(given), tiny.WHERE)
    family.settle({tiny.WHERE: examples})
    with pytest.raises(DataError, match=message):
        family.encode(examples.items, tiny.WHERE)


def test_a_processor_of_another_size_is_named(tmp_path: Path) -> None:
    path = tiny.vit_base(tmp_path)
    tiny.save_processor(tmp_path, 2 * tiny.SIDE)
    family = tiny.open_base(path)
    examples = family.read(tiny.source(tiny.rows(3)), tiny.WHERE)
    with pytest.raises(
        ModelError, match=r"makes \(3, 24, 24\) of row 0 .* but the model reads \(3, 12, 12\)"
    ):
        family.settle({tiny.WHERE: examples})


def test_a_language_model_is_no_image_model(tmp_path: Path) -> None:
    import tiny as words

    with pytest.raises(ModelError):
        family = tiny.open_base(words.save(words.llama(), tmp_path))
        family.load()


def test_images_beyond_the_memory_are_decoded_each_time(base: BaseOf) -> None:
    """The same pixels, whatever is kept."""
    found = []
    for memory in (4.0, 0.0):
        family = tiny.open_base(base("clip"), memory_gib=memory)
        images = tiny.encoded(family, 5)
        assert family.pixels.holds([image.picture for image in images]) is (memory > 0)
        found.append(family.pixels.stacked([image.picture for image in images]))
    assert found[0].equal(found[1])


# --- heads and sources that one could take for others


def test_datasets_of_the_same_classes_have_a_head_each(base: BaseOf) -> None:
    family = tiny.open_base(base("vit-other"), head="own")
    read = {
        name: family.read(tiny.source(tiny.rows(9, seed)), f"datasets.{name}")
        for seed, name in enumerate("ab")
    }
    target = family.read(tiny.source(tiny.rows(4, 5), target=True, head="b"), "targets.t")
    family.settle({each.where: each for each in (*read.values(), target)})
    keys = {
        name: family.encode(each.items, each.where).sequences[0].head for name, each in read.items()
    }
    assert keys["a"] != keys["b"] == family.encode(target.items, "targets.t").sequences[0].head
    heads = family.heads(list(keys.values()))
    assert not heads[keys["a"]].weight.equal(heads[keys["b"]].weight)


def test_a_dataset_of_one_class_has_no_head_of_its_own(base: BaseOf) -> None:
    family = tiny.open_base(base("vit-other"), head="own")
    examples = family.read(tiny.source(tiny.rows(5, 0, tiny.CLASSES[:1])), tiny.WHERE)
    with pytest.raises(DataError, match="all examples are of the class 'red cat'"):
        family.settle({tiny.WHERE: examples})


def test_the_order_of_classes_in_a_recipe_changes_no_address(base: BaseOf, tmp_path: Path) -> None:
    from mergetomix.models.encoding import content
    from mergetomix.store.store import Store

    store, found = Store(str(tmp_path)), []
    for classes in (tiny.CLASSES, tiny.CLASSES[::-1]):
        family = tiny.open_base(base("vit-other"))
        examples = family.read(tiny.source(tiny.rows(6), classes), tiny.WHERE)
        family.settle({tiny.WHERE: examples})
        found.append(
            (family.key(store), content(family.encode(examples.items, tiny.WHERE).sequences))
        )
    store.close()
    assert found[0] == found[1]


def test_a_tokenizer_that_does_not_tell_classes_apart_is_named(tmp_path: Path) -> None:
    family = tiny.open_base(tiny.clip_base(tmp_path))
    strange = ("purple whale", "orange crab", "pink bat")  # words that the tokenizer has not
    examples = family.read(tiny.source(tiny.rows(3, 0, strange), strange), tiny.WHERE)
    with pytest.raises(DataError, match="gives 'purple whale' and 'orange crab' the same tokens"):
        family.settle({tiny.WHERE: examples})


def test_an_expert_whose_head_is_in_another_order_is_refused(base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(base("vit"))
    tiny.encoded(family, 3)
    other = tiny.vit_base(tmp_path, tiny.CLASSES[::-1])
    with pytest.raises(
        ModelError, match="has the class 'green cow' where the shared head has 'red cat'"
    ):
        read_delta(family, params(family.load()), other, "datasets.x.expert")


def test_images_of_several_shapes_are_refused_before_training(tmp_path: Path) -> None:
    path = tiny.vit_base(tmp_path)
    tiny.save_processor(tmp_path, tiny.SIDE, size={"shortest_edge": tiny.SIDE})
    family = tiny.open_base(path)
    wide = [{"image": np.zeros((12, 20, 3), np.uint8), "label": "red cat"}]
    examples = family.read(tiny.source([*tiny.rows(3), *wide]), tiny.WHERE)
    with pytest.raises((ModelError, DataError), match=r"row 3 .* \(20x12 pixels\)"):
        family.settle({tiny.WHERE: examples})


def test_a_pattern_of_modules_that_is_none_is_named(base: BaseOf) -> None:
    family = tiny.open_base(base("clip"), "lora")
    with pytest.raises(RecipeError, match="no regular expression"):
        family.lora_config(Lora(target_modules="*proj"))


def test_models_without_patches_count_pixels_in_sixteens(base: BaseOf, tmp_path: Path) -> None:
    assert {image.num_tokens for image in tiny.encoded(tiny.open_base(base("resnet")), 2)} == {1}
    path = tiny.resnet_base(tmp_path)
    tiny.save_processor(tmp_path, 40)
    assert {image.num_tokens for image in tiny.encoded(tiny.open_base(path), 2)} == {9}


def test_a_file_that_goes_after_it_was_read_is_a_fault_that_names_it(
    base: BaseOf, tmp_path: Path
) -> None:
    from mergetomix.errors import Fault

    for name in ("red cat", "blue dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(tiny.pixels(1)[0]).save(tmp_path / name / "x.png")
    family = tiny.open_base(base("vit"), memory_gib=0)
    examples = family.read(tiny.source(tmp_path), tiny.WHERE)
    (tmp_path / "red cat" / "x.png").unlink()
    with pytest.raises(Fault, match=r"red cat/x\.png could be read before and cannot be now"):
        family.pixels.stacked([item.picture for item in examples.items if item.picture is not None])


@pytest.mark.parametrize("head", ["own", "shared"])
def test_a_base_without_a_head_gets_one(base: BaseOf, tmp_path: Path, head: str) -> None:
    """The same params at every load: a head of nothing, or one that is not used."""
    family = tiny.open_base(base("bare"), head=head)
    images = tiny.encoded(family, 12)
    one, other = params(family.load()), params(family.load())
    assert all(one[name].equal(other[name]) for name in one)
    before = np.mean(family.negative_log_likelihoods(family.load(), family.batches(images, 64)))
    finetune(family, images, settings(max_steps=20), tmp_path)
    delta = read_delta(family, one, str(tmp_path), "datasets.x.expert")
    assert ("classifier.weight" in delta.names()) is (head == "shared")
    after = family.load_finetune(str(tmp_path))
    assert np.mean(family.negative_log_likelihoods(after, family.batches(images, 64))) < before

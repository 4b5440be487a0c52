"""Image classifiers: numbers against transformers alone; heads, training, merging, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_images as tiny
import torch
from PIL import Image

from mergetomix.errors import DataError, ModelError, RecipeError
from mergetomix.models.images.classifier import ImageClassifier
from mergetomix.models.images.heads import probe
from mergetomix.targets.target import TargetSetting

BaseOf = Callable[[str], str]
KINDS = ("clip", "siglip", "vit", "resnet")


def scored(family: ImageClassifier, given: Any) -> Any:
    examples = family.read(given, "targets.t")
    family.settle({"targets.t": examples})
    target = given.build(examples.items, TargetSetting(family, "targets.t", batch_tokens=40))
    return target.score(family.load())


def cross_entropy(logits: torch.Tensor, rows: list[dict[str, Any]]) -> list[float]:
    labels = torch.tensor([tiny.CLASSES.index(row["label"]) for row in rows])
    found: list[float] = torch.nn.functional.cross_entropy(
        logits, labels, reduction="none"
    ).tolist()
    return found


# --- agreement with transformers alone


def test_clip_agrees_with_transformers_alone(image_base: BaseOf) -> None:
    """Loss and accuracy of zero-shot classification, written with CLIPModel and its processors."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    rows = tiny.rows(15)
    model, tokenizer = (
        AutoModel.from_pretrained(image_base("clip")).eval(),
        AutoTokenizer.from_pretrained(image_base("clip")),
    )
    images = [Image.fromarray(row["image"]) for row in rows]
    pixels = CLIPImageProcessorPil.from_pretrained(image_base("clip"))(images, return_tensors="pt")[
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
    family = tiny.open_base(image_base("clip"))
    loss = scored(family, tiny.source(rows, target=True))
    accuracy = scored(family, tiny.source(rows, target=True, score="accuracy"))
    assert loss.values == pytest.approx(cross_entropy(logits, rows), abs=1e-5)
    assert loss.weights == (1.0,) * 15
    best = [tiny.CLASSES[place] for place in logits.argmax(1)]
    right = tuple(name == row["label"] for name, row in zip(best, rows, strict=True))
    assert accuracy.values == right
    assert 0 < accuracy.mean < 1 and loss.kind == "loss" and accuracy.kind == "score"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_one_template_is_the_models_own_logits(image_base: BaseOf, kind: str) -> None:
    """With one template the logits are the whole model's for images and texts together."""
    family, rows = tiny.open_base(image_base(kind)), tiny.rows(6)
    given = tiny.source(rows, target=True, templates=["a photo of a {}."])
    loss = scored(family, given)
    # SigLIP was trained on texts padded to the longest
    padding: Any = (
        {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    )
    captions = [f"a photo of a {name}." for name in tiny.CLASSES]
    texts = family.tokenizer(captions, return_tensors="pt", **padding)
    pixels = family.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = family.load()(pixel_values=pixels, **texts).logits_per_image
    assert loss.values == pytest.approx(cross_entropy(logits, rows), abs=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_shared_head_is_the_models_own(image_base: BaseOf, kind: str) -> None:
    from transformers import AutoModelForImageClassification

    family, rows = tiny.open_base(image_base(kind)), tiny.rows(9)
    loss = scored(family, tiny.source(rows, target=True))
    model = AutoModelForImageClassification.from_pretrained(image_base(kind)).eval()
    pixels = family.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
    assert loss.values == pytest.approx(cross_entropy(logits, rows), abs=1e-5)


def test_classes_in_another_order_are_the_heads_by_name(image_base: BaseOf) -> None:
    given = [
        tiny.source(tiny.rows(9), classes, target=True)
        for classes in (tiny.CLASSES, tiny.CLASSES[::-1])
    ]
    one, other = (scored(tiny.open_base(image_base("vit")), each) for each in given)
    assert one.values == pytest.approx(other.values, abs=1e-6)


def test_grey_images_are_read_by_a_model_of_one_colour(tmp_path: Path) -> None:
    path = tiny.vit_base(tmp_path, num_channels=1)
    tiny.save_processor(tmp_path, tiny.SIDE, image_mean=[0.5], image_std=[0.5])
    family = tiny.open_base(path)
    grey = [{"image": image, "label": "red cat"} for image in tiny.pixels(2, colours=False)]
    assert scored(family, tiny.source(grey, target=True)).num_examples == 2


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


def test_a_target_takes_the_head_of_the_dataset_with_its_classes(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("vit-other"), head="own")
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
    image_base: BaseOf, changes: dict[str, Any], message: str
) -> None:
    family = tiny.open_base(image_base("vit-other"), head="own")
    datasets = {
        name: family.read(tiny.source(tiny.rows(6, 0, classes), classes), f"datasets.{name}")
        for name, classes in (("one", tiny.CLASSES), ("two", ("p", "q")), ("three", tiny.CLASSES))
    }
    target = family.read(tiny.source(tiny.rows(4), target=True, **changes), "targets.t")
    family.settle({**{each.where: each for each in datasets.values()}, "targets.t": target})
    with pytest.raises(RecipeError, match=message) as caught:
        family.encode(target.items, "targets.t")
    assert caught.value.where == "targets.t.head"


def test_a_new_head_is_part_of_the_bases_address(image_base: BaseOf, tmp_path: Path) -> None:
    from mergetomix.store.store import Store

    store = Store(str(tmp_path))
    keys = []
    for classes in (tiny.CLASSES, ("p", "q"), None):
        family = tiny.open_base(image_base("vit-other"))
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


# --- what does not fit


def test_kinds_of_head_that_a_model_has_not(image_base: BaseOf) -> None:
    for kind, head in (("vit", "text"), ("clip", "shared"), ("clip", "own")):
        with pytest.raises(RecipeError, match="head can be") as caught:
            tiny.open_base(image_base(kind), head=head)
        assert caught.value.where == "images.head"


def test_a_shared_head_needs_the_same_classes(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("vit"))
    one = family.read(tiny.source(tiny.rows(4)), "datasets.one")
    two = family.read(tiny.source(tiny.rows(4, 0, ("p", "q")), ("p", "q")), "datasets.two")
    with pytest.raises(DataError, match=r"classes are not those of datasets\.one") as caught:
        family.settle({each.where: each for each in (one, two)})
    assert caught.value.where == "datasets.two.classes"


def test_adapters_cannot_hold_a_new_head(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("vit-other"), "lora")
    examples = family.read(tiny.source(tiny.rows(4)), tiny.WHERE)
    with pytest.raises(RecipeError, match="adapters cannot hold a new one"):
        family.settle({tiny.WHERE: examples})


def test_a_text_head_needs_names(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("clip"))
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
    with pytest.raises(DataError, match=message) as caught:
        family.settle({tiny.WHERE: examples})
    assert caught.value.where == "datasets.x.path"


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


def test_images_beyond_the_memory_are_decoded_each_time(image_base: BaseOf) -> None:
    """The same pixels, whatever is kept."""
    found = []
    for memory in (4.0, 0.0):
        family = tiny.open_base(image_base("clip"), memory_gib=memory)
        images = tiny.encoded(family, 5)
        assert family.pixels.holds([image.picture for image in images]) is (memory > 0)
        found.append(family.pixels.stacked([image.picture for image in images]))
    assert found[0].equal(found[1])


# --- heads and sources that one could take for others


def test_datasets_of_the_same_classes_have_a_head_each(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("vit-other"), head="own")
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


def test_a_dataset_of_one_class_has_no_head_of_its_own(image_base: BaseOf) -> None:
    family = tiny.open_base(image_base("vit-other"), head="own")
    examples = family.read(tiny.source(tiny.rows(5, 0, tiny.CLASSES[:1])), tiny.WHERE)
    with pytest.raises(DataError, match="all examples are of the class 'red cat'"):
        family.settle({tiny.WHERE: examples})


def test_the_order_of_classes_in_a_recipe_changes_no_address(
    image_base: BaseOf, tmp_path: Path
) -> None:
    from mergetomix.models.encoding import content
    from mergetomix.store.store import Store

    store, found = Store(str(tmp_path)), []
    for classes in (tiny.CLASSES, tiny.CLASSES[::-1]):
        family = tiny.open_base(image_base("vit-other"))
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


def test_images_of_several_shapes_are_refused_before_training(tmp_path: Path) -> None:
    path = tiny.vit_base(tmp_path)
    tiny.save_processor(tmp_path, tiny.SIDE, size={"shortest_edge": tiny.SIDE})
    family = tiny.open_base(path)
    wide = [{"image": np.zeros((12, 20, 3), np.uint8), "label": "red cat"}]
    examples = family.read(tiny.source([*tiny.rows(3), *wide]), tiny.WHERE)
    with pytest.raises((ModelError, DataError), match=r"row 3 .* \(20x12 pixels\)"):
        family.settle({tiny.WHERE: examples})


def test_models_without_patches_count_pixels_in_sixteens(
    image_base: BaseOf, tmp_path: Path
) -> None:
    assert {
        image.num_tokens for image in tiny.encoded(tiny.open_base(image_base("resnet")), 2)
    } == {1}
    path = tiny.resnet_base(tmp_path)
    tiny.save_processor(tmp_path, 40)
    assert {image.num_tokens for image in tiny.encoded(tiny.open_base(path), 2)} == {9}


def test_a_file_that_goes_after_it_was_read_is_a_fault_that_names_it(
    image_base: BaseOf, tmp_path: Path
) -> None:
    from mergetomix.errors import Fault

    for name in ("red cat", "blue dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(tiny.pixels(1)[0]).save(tmp_path / name / "x.png")
    family = tiny.open_base(image_base("vit"), memory_gib=0)
    examples = family.read(tiny.source(tmp_path), tiny.WHERE)
    (tmp_path / "red cat" / "x.png").unlink()
    with pytest.raises(Fault, match=r"red cat/x\.png could be read before and cannot be now"):
        family.pixels.stacked([item.picture for item in examples.items if item.picture is not None])

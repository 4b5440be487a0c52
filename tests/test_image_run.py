"""The whole method on images: a run and again, its plan, a study, and the demo's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_images as tiny
import yaml

import mergetomix as m2m
from mergetomix import demo
from mergetomix.demo import images
from mergetomix.errors import RecipeError
from mergetomix.study import study


def values(folder: Path) -> dict[str, Any]:
    """Three datasets of noise whose class is its colour, and a target of two kinds of score.

    The third dataset has all labels wrong.
    """
    colours = np.eye(3, dtype=np.uint8) * 200
    draw = np.random.default_rng(0)
    for name, num in {"a": 18, "b": 18, "c": 18, "t": 30}.items():
        y = draw.integers(3, size=num)
        x = (
            draw.integers(56, size=(num, tiny.SIDE, tiny.SIDE, 3)) + colours[y][:, None, None]
        ).astype(np.uint8)
        np.savez(folder / f"{name}.npz", x=x, y=(y + 1) % 3 if name == "c" else y)
    names = {"classes": list(tiny.CLASSES), "templates": list(tiny.TEMPLATES)}
    return {
        "family": "image-classifier",
        "base": tiny.clip_base(folder / "base"),
        "datasets": {name: {"path": f"{name}.npz", **names} for name in "abc"},
        "targets": {
            "loss": {"path": "t.npz", **names},
            "right": {"path": "t.npz", "score": "accuracy", **names},
        },
        "train": {
            "method": "full",
            "learning_rate": 2e-3,
            "batch_size": 6,
            "max_steps": 20,
            "augment": {"shift": 0.1},
        },
        "verify": {"budget": 1, "repeats": 1, "exponents": [1.0]},
        "study": {"seeds": [0], "num_mixtures": 6, "num_draws": 2},
        "final": {"num_random": 1},
        "device": "cpu",
        "store": "store",
        "run_dir": "run",
    }


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values(folder)))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def result(recipe: Path) -> m2m.Result:
    return m2m.run(m2m.load_recipe(recipe))


@pytest.mark.slow
def test_a_run_prefers_the_right_labels_and_does_nothing_twice(
    recipe: Path, result: m2m.Result
) -> None:
    assert "c" not in result.selected.datasets
    final = result.row("final")
    assert final is not None and final.gain > 0 and set(final.scores) == {"loss", "right"}
    assert {value for row in result.table for value in row.scores["right"].values} == {0.0, 1.0}
    again = m2m.run(m2m.load_recipe(recipe))
    assert again.selected == result.selected and again.cost.reused["experts"] == 3
    assert [row.scores for row in again.table] == [row.scores for row in result.table]
    report = (recipe.parent / "run" / "report.md").read_text()
    assert "a loss in nats per image (lower is better)" in report and "nats per token" not in report


@pytest.mark.slow
def test_the_final_model_loads_as_any_clip_model(result: m2m.Result) -> None:
    from transformers import AutoModel, AutoProcessor

    final = result.row("final")
    assert final is not None and final.path is not None
    assert AutoModel.from_pretrained(final.path).config.model_type == "clip"
    assert AutoProcessor.from_pretrained(final.path) is not None


def test_a_merge_is_written_with_its_heads(recipe: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import CLIPModel

    m2m.write_proxy(m2m.load_recipe(recipe), ["a", "b"], tmp_path / "out")
    assert CLIPModel.from_pretrained(tmp_path / "out").num_parameters() > 0
    with safe_open(tmp_path / "out" / "heads.safetensors", "pt") as kept:
        (key,) = kept.metadata()
        assert kept.metadata()[key].split("\n") == list(tiny.CLASSES)
        assert kept.get_tensor(f"{key}.weight").shape == (3, 32)


def test_a_merge_of_images_has_a_card_and_may_be_in_several_files(
    recipe: Path, tmp_path: Path
) -> None:
    from transformers import AutoProcessor, CLIPModel

    m2m.write_proxy(m2m.load_recipe(recipe), ["a", "b"], tmp_path / "whole")
    m2m.write_proxy(
        m2m.load_recipe(recipe),
        ["a", "b"],
        tmp_path / "parts",
        form=m2m.Form(max_shard_size="100KB"),
    )
    assert (tmp_path / "parts" / "model.safetensors.index.json").exists()
    assert (tmp_path / "parts" / "heads.safetensors").exists() and AutoProcessor.from_pretrained(
        tmp_path / "parts"
    )
    one, other = (
        dict(CLIPModel.from_pretrained(tmp_path / name).named_parameters())
        for name in ("whole", "parts")
    )
    assert set(one) == set(other) and all(one[name].equal(other[name]) for name in one)
    front = yaml.safe_load((tmp_path / "parts" / "README.md").read_text().split("---\n")[1])
    assert front["base_model"] == m2m.load_recipe(recipe).base.path


@pytest.mark.slow
def test_an_adapter_of_images_is_the_merge(recipe: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import CLIPModel

    changes = ["train.method=lora", "train.max_steps=3", "train.lora.rank=2", "train.augment=null"]
    lora = m2m.load_recipe(recipe, changes)
    m2m.write_proxy(lora, ["a", "b"], tmp_path / "merged")
    written = m2m.write_proxy(lora, ["a", "b"], tmp_path / "adapter", form=m2m.Form(adapter=True))
    assert written.adapter is not None and written.adapter.rank == 4
    assert all(
        name.startswith(("vision_model.", "visual_projection.")) for name in written.adapter.factors
    )
    assert (tmp_path / "adapter" / "heads.safetensors").exists()
    pixels = torch.rand(2, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(0))
    base = CLIPModel.from_pretrained(lora.base.path)
    with torch.no_grad():
        plain = base.get_image_features(pixel_values=pixels).pooler_output
        want = (
            CLIPModel.from_pretrained(tmp_path / "merged")
            .get_image_features(pixel_values=pixels)
            .pooler_output
        )
        found = (
            PeftModel.from_pretrained(base, tmp_path / "adapter")
            .get_image_features(pixel_values=pixels)
            .pooler_output
        )
    assert (want - plain).abs().max() > 1e-4
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def test_the_plan_counts_patches(recipe: Path) -> None:
    plan = m2m.check(m2m.load_recipe(recipe, ["store=another"]))
    assert [dataset.num_tokens for dataset in plan.datasets] == [18 * 9] * 3
    assert plan.datasets[0].samples[0][0][0].startswith("[image 12x12]")
    assert plan.train_s > 0 and plan.evaluate_s > 0


@pytest.mark.slow
def test_a_study_of_images_has_no_rivals_by_words(recipe: Path) -> None:
    found = study.run(m2m.load_recipe(recipe))
    assert {world.unit for world in found.worlds} == {"nats per image"}
    assert set(found.absent) == {
        "nearest by TF-IDF",
        "nearest by sentence embedding",
        "importance of n-grams (DSIR)",
    }
    assert "nearest by hidden state of the base" in {standing.name for standing in found.standings}


def test_keys_of_the_other_family_are_refused(tmp_path: Path) -> None:
    raw = values(tmp_path)
    raw["datasets"]["a"]["text"] = "label"
    with pytest.raises(
        RecipeError, match="one of completion, answer, messages, text, label"
    ) as caught:
        m2m.load_recipe(put(tmp_path, raw))
    assert caught.value.where == "datasets.a"
    raw = {**values(tmp_path), "family": "causal-lm"}
    with pytest.raises(RecipeError, match="say how a row becomes an example") as caught:
        m2m.load_recipe(put(tmp_path, raw))


def test_images_are_trained_in_one_process(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.launch: is for family: causal-lm"):
        m2m.check(m2m.load_recipe(recipe, ["train.launch.processes=2", "train.batch_size=8"]))


def put(folder: Path, raw: dict[str, Any]) -> Path:
    (folder / "other.yaml").write_text(yaml.safe_dump(raw))
    return folder / "other.yaml"


def test_the_demos_data_are_what_its_recipe_says(tmp_path: Path) -> None:
    path = demo.write("image", tmp_path)
    recipe = m2m.load_recipe(path)
    assert recipe.family == "image-classifier" and set(recipe.datasets) == set(images.DATASETS)
    plan = m2m.check(recipe)
    assert {dataset.num_examples for dataset in plan.datasets} == {160}
    assert sum(target.num_select + target.num_report for target in plan.targets) == 2 * (
        1797 - 1100
    )
    with pytest.raises(m2m.UserError, match="--family must be text or image"):
        demo.write("sound", tmp_path)


def test_no_digit_is_both_learnt_and_asked(tmp_path: Path) -> None:
    demo.write("image", tmp_path)
    seen = {
        name: np.load(tmp_path / "data" / f"{name}.npz")["x"]
        for name in (*images.DATASETS, *images.TARGETS)
    }
    turned = {image.tobytes() for image in seen["turned"]} | {
        image.tobytes() for image in seen["turned_low"]
    }
    assert not turned & {image.tobytes() for image in seen["turned_digits"]}


def test_a_first_recipe_of_images_loads_and_plans(tmp_path: Path) -> None:
    from PIL import Image

    from mergetomix.cli import first_recipe

    np.savez(tmp_path / "a.npz", x=tiny.pixels(12), y=np.arange(12) % 3)
    for i, image in enumerate(tiny.pixels(12, seed=1)):
        place = tmp_path / "b" / str(i % 3) / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    np.savez(tmp_path / "t.npz", x=tiny.pixels(12, seed=2), y=np.arange(12) % 3)
    lines = [f"b/{i % 3}/{i}.png,{i % 3}" for i in range(12)]
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    assert first_recipe.has_images("table.csv", tmp_path)
    base = tiny.vit_base(tmp_path / "base", ("0", "1", "2"))
    looks = first_recipe.Looks()
    for name, path in {"a": "a.npz", "b": "b"}.items():
        looks.datasets[name] = path, first_recipe.looked_at(name, path, tmp_path, False)
    looks.targets["t"] = "t.npz", first_recipe.looked_at("t", "t.npz", tmp_path, True)
    text = first_recipe.recipe(base, looks, has_images=True)
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = m2m.load_recipe(tmp_path / "recipe.yaml")
    assert recipe.family == "image-classifier"
    assert [each.num_examples for each in m2m.check(recipe).datasets] == [12, 12]


def content_of(rows: Any, folder: Path) -> str:
    """The address of a target that is a function over these rows."""
    from mergetomix.progress import Silent
    from mergetomix.recipe.recipe import parse
    from mergetomix.session.inputs import read_inputs

    raw = values(folder)
    names = {"classes": list(tiny.CLASSES), "templates": list(tiny.TEMPLATES)}
    raw["targets"] = {"own": {"rows": rows, "score": "python", "function": brightness, **names}}
    inputs = read_inputs(parse(raw, folder), Silent())
    return inputs.targets("select")["own"].address


def brightness(model: Any, processor: Any, rows: Any) -> list[float]:
    return [float(np.asarray(row["image"]).mean()) for row in rows]


def test_a_function_gets_images_and_its_address_is_their_pixels(tmp_path: Path) -> None:
    given = [
        {"image": tiny.pixels(1, seed, side=40)[0], "label": i % 3}
        for i, seed in enumerate(range(8))
    ]
    changed = [{**row, "image": row["image"].copy()} for row in given]
    for row in changed:
        row["image"][20, 20] = 255 - row["image"][20, 20]
    first = content_of(given, tmp_path)
    assert (
        first == content_of([dict(row) for row in given], tmp_path) != content_of(changed, tmp_path)
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("images", {"broken": "skip"}), ("train", {"augment": {"flip": 0.5}}), ("head", "a")],
)
def test_what_is_for_images_is_refused_for_texts(tmp_path: Path, key: str, value: Any) -> None:
    import tiny as words

    source = {"rows": [{"t": "the cat"}, {"t": "the dog"}, {"t": "a cow"}], "text": "t"}
    target = {**source, "head": value} if key == "head" else source
    raw = {
        "base": words.BASES["llama"](tmp_path / "llama"),
        "datasets": {"a": source, "b": source},
        "targets": {"t": target},
    }
    raw |= {key: value} if key != "head" else {}
    with pytest.raises(RecipeError, match="is for family: image-classifier"):
        m2m.check(
            {
                **raw,
                "device": "cpu",
                "store": str(tmp_path / "store"),
                "run_dir": str(tmp_path / "run"),
            }
        )


def test_general_data_must_have_the_classes_of_a_shared_head(tmp_path: Path) -> None:
    raw = values(tmp_path)
    raw["base"] = tiny.vit_base(tmp_path / "vit")
    np.savez(tmp_path / "general.npz", x=tiny.pixels(6), y=np.arange(6) % 2)
    raw["train"]["anchor"] = {
        "dataset": {"path": "general.npz", "classes": ["p", "q"]},
        "share": 0.5,
    }
    with pytest.raises(m2m.UserError, match="the classes are not those of") as caught:
        m2m.check(m2m.load_recipe(put(tmp_path, raw)))
    assert "general" in str(caught.value) or "train.anchor" in str(caught.value)
    raw["train"]["anchor"]["dataset"]["classes"] = list(tiny.CLASSES)
    assert m2m.check(m2m.load_recipe(put(tmp_path, raw))).num_finetunes > 0

"""The contract of a family, which every one passes: what the stages rely on and never ask whose it is."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_images
import torch

from mergetomix.data.examples import Example
from mergetomix.experts.bank import Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.merge import coefficients
from mergetomix.models.encoding import content, take_tokens
from mergetomix.models.family import Family
from mergetomix.models.opening import open_family
from mergetomix.recipe.recipe import Recipe, parse
from mergetomix.records import Mixture
from mergetomix.sections.train import Train
from mergetomix.store.store import Store
from mergetomix.training import finetune

PACKAGE = Path(__file__).resolve().parents[1] / "mergetomix"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "some",
    "dog",
    "came",
    "by",
    "to",
    "see",
    "it",
]


@dataclass(frozen=True)
class World:
    """A family, some of its examples, and its recipe."""

    family: Family
    examples: Sequence[Example]
    recipe: Recipe

    def encoded(self) -> Sequence[Any]:
        return self.family.encode(self.examples, "datasets.a").sequences


def words(folder: Path, method: str) -> dict[str, Any]:
    rows = [
        {"q": " ".join(WORDS[: 1 + i % 9]), "a": " " + WORDS[i % len(WORDS)]} for i in range(14)
    ]
    source = {"rows": rows, "prompt": "q", "completion": "a"}
    return {
        "base": tiny.BASES["llama"](folder),
        "datasets": {"a": source, "b": source},
        "targets": {"t": source},
    }


def images(kind: str) -> Callable[[Path, str], dict[str, Any]]:
    def values(folder: Path, method: str) -> dict[str, Any]:
        source = {
            "rows": tiny_images.rows(14),
            "classes": list(tiny_images.CLASSES),
            "templates": list(tiny_images.TEMPLATES),
        }
        base = tiny_images.BASES[kind](folder)
        found = {"base": base, "datasets": {"a": source, "b": source}, "targets": {"t": source}}
        return {"family": "image-classifier", **found}

    return values


KINDS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "causal-lm": words,
    "clip": images("clip"),
    "vit": images("vit"),
}


@pytest.fixture(
    params=[(kind, method) for kind in KINDS for method in ("full", "lora")], ids="-".join
)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    kind, method = request.param
    train = {
        "method": method,
        "learning_rate": 1e-2,
        "batch_size": 4,
        "max_steps": 4,
        "max_length": 64,
    }
    raw = {
        **KINDS[kind](tmp_path / "base", method),
        "train": train,
        "device": "cpu",
        "store": str(tmp_path / "store"),
    }
    recipe = parse(raw)
    family = open_family(recipe)
    read = {name: family.read(spec, f"datasets.{name}") for name, spec in recipe.datasets.items()}
    target = family.read(recipe.targets["t"], "targets.t")
    family.settle({each.where: each for each in (*read.values(), target)})
    return World(family, read["a"].items, recipe)


def losses(
    world: World, model: Any, batch_tokens: int = 10**6, places: Sequence[int] | None = None
) -> list[float]:
    sequences = world.encoded()
    chosen = sequences if places is None else [sequences[i] for i in places]
    return world.family.negative_log_likelihoods(model, world.family.batches(chosen, batch_tokens))


def test_the_loss_of_an_example_does_not_depend_on_the_rest_of_its_batch(world: World) -> None:
    model = world.family.load()
    together = losses(world, model)
    assert losses(world, model, batch_tokens=1) == pytest.approx(together, abs=1e-5)
    some = [11, 3, 7]
    assert losses(world, model, places=some) == pytest.approx([together[i] for i in some], abs=1e-5)
    assert len(set(together)) > 3


def test_an_encoded_example_says_what_it_is_of(world: World) -> None:
    """Text comes back from its tokens, an image from its picture, and the order stays."""
    sequences = world.encoded()
    assert [sequence.example for sequence in sequences] == list(range(len(world.examples)))
    for example, sequence in zip(world.examples, sequences, strict=True):
        shown = "".join(text for text, _ in world.family.shown(example, "datasets.a"))
        if example.picture is None:
            kept = [i for i in sequence.ids if i not in world.family.processor.all_special_ids]
            assert (
                world.family.processor.decode(kept) == shown == example.prompt + example.completion
            )
        else:
            classes = list(tiny_images.CLASSES)
            assert classes[sequence.label] == example.label and example.label in shown
            assert sequence.picture.open().tobytes() == example.picture.open().tobytes()
        assert sequence.num_tokens > 0 < sequence.num_scored


def test_fine_tuning_is_deterministic_and_its_seed_counts(world: World, tmp_path: Path) -> None:
    settings = world.recipe.train
    found = []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(number)  # what ran before must not matter
        finetune(
            world.family,
            world.encoded(),
            settings.model_copy(update={"seed": seed}),
            tmp_path / str(number),
        )
        (file,) = (tmp_path / str(number)).glob("*model.safetensors")
        found.append(file.read_bytes())
    assert found[0] == found[1] != found[2]


def test_a_merge_of_one_is_that_one(world: World, tmp_path: Path) -> None:
    finetune(world.family, world.encoded(), world.recipe.train, tmp_path / "expert")
    base = world.family.load()
    before = losses(world, base)
    bank = Bank(
        base,
        {
            "a": read_delta(
                world.family, params(base), str(tmp_path / "expert"), "datasets.a.expert"
            )
        },
    )
    bank.set(coefficients(Mixture(("a",), (1.0,)), 1.0))
    merged = losses(world, bank.model)
    assert merged == pytest.approx(
        losses(world, world.family.load_finetune(str(tmp_path / "expert"))), abs=2e-5
    )
    assert merged != pytest.approx(before, abs=1e-3)
    bank.reset()
    assert losses(world, bank.model) == before


def test_a_trainer_counts_the_tokens_that_it_saw(world: World, tmp_path: Path) -> None:
    sequences = world.encoded()
    epochs = Train(**{**world.recipe.train.model_dump(), "max_steps": None, "epochs": 2})
    num_tokens, _ = finetune(world.family, sequences, epochs, tmp_path)
    assert num_tokens == 2 * sum(sequence.num_tokens for sequence in sequences)


def test_addresses_are_of_content(world: World, tmp_path: Path) -> None:
    sequences = world.encoded()
    assert content(sequences) == content(world.encoded()) != content(sequences[1:])
    store = Store(str(tmp_path / "other"))
    assert world.family.key(store) == open_settled(world).key(store)
    store.close()
    encoding = world.family.encode(world.examples, "datasets.a")
    taken = take_tokens(encoding, encoding.num_tokens // 2, seed=0)
    assert 0 < taken.num_tokens <= encoding.num_tokens // 2
    assert set(taken.sequences) < set(encoding.sequences)


def open_settled(world: World) -> Family:
    family = open_family(world.recipe)
    read = {
        name: family.read(spec, f"datasets.{name}") for name, spec in world.recipe.datasets.items()
    }
    target = family.read(world.recipe.targets["t"], "targets.t")
    family.settle({each.where: each for each in (*read.values(), target)})
    return family


def test_the_training_loss_is_the_mean_of_the_losses(world: World) -> None:
    model = world.family.load()
    some = world.encoded()[:5]
    wanted = sum(losses(world, model, places=range(5))) / sum(
        sequence.num_scored for sequence in some
    )
    assert world.family.training_loss(model, some).item() == pytest.approx(wanted, abs=1e-5)


def test_a_score_that_a_family_has_not_is_named(world: World) -> None:
    from mergetomix.errors import RecipeError
    from mergetomix.progress import Silent
    from mergetomix.session.inputs import read_inputs

    wrong = ({"loss", "accuracy", "generate", "choice"} - world.family.scores).pop()
    targets = {"t": world.recipe.targets["t"].model_copy(update={"score": wrong})}
    with pytest.raises(RecipeError, match="but not") as caught:
        read_inputs(world.recipe.model_copy(update={"targets": targets}), Silent())
    assert caught.value.where == "targets.t.score"


def test_no_module_outside_asks_which_family_it_serves() -> None:
    """No comparison with a family's name outside families/."""
    names = {"causal-lm", "image-classifier"}
    for file in PACKAGE.rglob("*.py"):
        if file.is_relative_to(PACKAGE / "families"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                assert not any(
                    isinstance(each, ast.Constant) and each.value in names for each in sides
                ), (file, node.lineno)
                assert not any(
                    isinstance(each, ast.Attribute) and each.attr == "family" for each in sides
                ), (file, node.lineno)

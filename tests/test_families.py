"""The contract of a family, which every one passes: what stages rely on, whoever it is."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_images
import torch
from safetensors.torch import load_file

from mergetomix.data.examples import Example
from mergetomix.errors import RecipeError
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
from mergetomix.targets.kinds import KINDS, check_score
from mergetomix.training import finetune

PACKAGE = Path(__file__).resolve().parents[1] / "mergetomix"
WORDS = tiny.TEXTS[0].split()


@dataclass(frozen=True)
class World:
    """A family, some of its examples, its recipe, and a fine-tune of it with the tokens it saw."""

    family: Family
    examples: Sequence[Example]
    recipe: Recipe
    expert: str
    num_tokens: int

    def encoded(self) -> Sequence[Any]:
        return self.family.encode(self.examples, "datasets.a").sequences


def words(base: str) -> dict[str, Any]:
    rows = [
        {"q": " ".join(WORDS[: 1 + i % 9]), "a": " " + WORDS[i % len(WORDS)]} for i in range(14)
    ]
    source = {"rows": rows, "prompt": "q", "completion": "a"}
    return {"base": base, "datasets": {"a": source, "b": source}, "targets": {"t": source}}


def images(base: str) -> dict[str, Any]:
    names = {"classes": list(tiny_images.CLASSES), "templates": list(tiny_images.TEMPLATES)}
    source = {"rows": tiny_images.rows(14), **names}
    found = {"base": base, "datasets": {"a": source, "b": source}, "targets": {"t": source}}
    return {"family": "image-classifier", **found}


BASES = {"causal-lm": tiny.BASES["llama"], **{k: tiny_images.BASES[k] for k in ("clip", "vit")}}
WORLDS = [f"{kind} {method}" for kind in BASES for method in ("full", "lora")]


@pytest.fixture(scope="session")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """The world of a kind of model and a method, made once."""

    @cache
    def make(name: str) -> World:
        kind, method = name.split()
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        values = (words if kind == "causal-lm" else images)(BASES[kind](folder / "base"))
        train = {"method": method, "learning_rate": 1e-2, "batch_size": 4, "epochs": 1}
        recipe = parse(
            {
                **values,
                "train": {**train, "max_length": 64},
                "device": "cpu",
                "store": str(folder / "store"),
            }
        )
        family, examples = opened(recipe)
        sequences = family.encode(examples, "datasets.a").sequences
        num_tokens, _ = finetune(family, sequences, recipe.train, folder / "expert")
        return World(family, examples, recipe, str(folder / "expert"), num_tokens)

    return make


def opened(recipe: Recipe) -> tuple[Family, Sequence[Example]]:
    """The family of a recipe, after its look at all sources, and the examples of one dataset."""
    family = open_family(recipe.family, recipe.base, recipe.device, recipe.train, recipe.images)
    read = {name: family.read(spec, f"datasets.{name}") for name, spec in recipe.datasets.items()}
    target = family.read(recipe.targets["t"], "targets.t")
    family.settle({each.where: each for each in (*read.values(), target)})
    return family, read["a"].items


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, world_of: Callable[[str], World]) -> World:
    return world_of(request.param)


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
    def weights(folder: str | Path) -> bytes:
        (file,) = Path(folder).glob("*model.safetensors")
        return file.read_bytes()

    torch.rand(1)  # what ran before must not matter
    finetune(world.family, world.encoded(), world.recipe.train, tmp_path / "again")
    settings = world.recipe.train.model_copy(update={"seed": 1})
    finetune(world.family, world.encoded(), settings, tmp_path / "other")
    assert weights(world.expert) == weights(tmp_path / "again") != weights(tmp_path / "other")


def test_a_merge_of_one_is_that_one(world: World) -> None:
    base = world.family.load()
    before = losses(world, base)
    delta = read_delta(world.family, params(base), world.expert, "datasets.a.expert")
    bank = Bank(base, {"a": delta})
    bank.set(coefficients(Mixture(("a",), (1.0,)), 1.0))
    merged = losses(world, bank.model)
    wanted = losses(world, world.family.load_finetune(world.expert))
    assert merged == pytest.approx(wanted, abs=2e-5)
    assert merged != pytest.approx(before, abs=1e-3)
    bank.reset()
    assert losses(world, bank.model) == before


def test_a_trainer_counts_the_tokens_that_it_saw(world: World, tmp_path: Path) -> None:
    num_tokens = sum(sequence.num_tokens for sequence in world.encoded())
    assert world.num_tokens == num_tokens
    twice = Train(**{**world.recipe.train.model_dump(), "epochs": 2})
    assert finetune(world.family, world.encoded(), twice, tmp_path)[0] == 2 * num_tokens


def test_what_a_fine_tune_saves_is_counted(world: World) -> None:
    lora = world.recipe.train.lora if world.recipe.train.method == "lora" else None
    (file,) = Path(world.expert).glob("*model.safetensors")
    saved = sum(tensor.numel() for tensor in load_file(file).values())
    assert world.family.num_saved(lora) == saved


def test_addresses_are_of_content(world: World, tmp_path: Path) -> None:
    sequences = world.encoded()
    assert content(sequences) == content(world.encoded()) != content(sequences[1:])
    store = Store(str(tmp_path / "other"))
    assert world.family.key(store) == opened(world.recipe)[0].key(store)
    store.close()
    encoding = world.family.encode(world.examples, "datasets.a")
    taken = take_tokens(encoding, encoding.num_tokens // 2, seed=0)
    assert 0 < taken.num_tokens <= encoding.num_tokens // 2
    assert set(taken.sequences) < set(encoding.sequences)


def test_the_training_loss_is_the_mean_of_the_losses(world: World) -> None:
    model = world.family.load()
    some = world.encoded()[:5]
    wanted = sum(losses(world, model, places=range(5))) / sum(
        sequence.num_scored for sequence in some
    )
    assert world.family.training_loss(model, some).item() == pytest.approx(wanted, abs=1e-5)


def test_a_score_that_a_family_has_not_is_named(world: World) -> None:
    can = {score for score, kind in KINDS.items() if isinstance(world.family, kind.needs)}
    texts = world.recipe.family == "causal-lm"
    assert {"loss", "python"} <= can
    assert can & {"accuracy", "choice", "generate"} == (
        {"choice", "generate"} if texts else {"accuracy"}
    )
    for score, kind in KINDS.items():
        section = kind.model_construct(score=score)
        if score in can:
            check_score(world.family, section, "targets.t")
            continue
        with pytest.raises(RecipeError, match=f"but not {score}") as caught:
            check_score(world.family, section, "targets.t")
        assert caught.value.where == "targets.t.score"


def test_no_module_outside_asks_which_family_it_serves() -> None:
    """No comparison with a family's name outside models/."""
    names = {"causal-lm", "image-classifier"}
    files = [f for f in PACKAGE.rglob("*.py") if not f.is_relative_to(PACKAGE / "models")]
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                assert not any(
                    isinstance(each, ast.Constant) and each.value in names for each in sides
                ), (file, node.lineno)
                assert not any(
                    isinstance(each, ast.Attribute) and each.attr == "family" for each in sides
                ), (file, node.lineno)

"""One training on several processes is the training of one: its order, its steps, its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import recipe_values, write_recipe

import mergetomix as m2m
from mergetomix import launch, training
from mergetomix.curves import StepLog
from mergetomix.data.examples import Example
from mergetomix.demo.text import BASE
from mergetomix.errors import RecipeError, TrainingError
from mergetomix.models.family import Family
from mergetomix.models.opening import open_family
from mergetomix.sections.base import Base
from mergetomix.sections.images import Images
from mergetomix.sections.train import Launch, Train

NUM_ROWS = 13


def train_of(**values: Any) -> Train:
    own = {"batch_size": 4, "gradient_accumulation": 2, "epochs": 2, "learning_rate": 1e-3}
    return Train(**{**own, "max_length": 32, "launch": {"processes": 2}, **values})


def family_of(train: Train) -> tuple[Family, Any]:
    family = open_family("causal-lm", Base(path=str(BASE)), "cpu", train, Images())
    examples = [
        Example(i, prompt=f"what is {i} times seven?", completion=f" {i * 7}")
        for i in range(NUM_ROWS)
    ]
    return family, family.encode(examples, "datasets.a").sequences


def params_of(family: Family, folder: Path) -> dict[str, torch.Tensor]:
    return dict(family.load_finetune(str(folder)).named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("method", "sharding"), [("full", "fsdp2"), ("lora", "ddp")])
def test_two_processes_train_the_model_of_one(tmp_path: Path, method: str, sharding: str) -> None:
    """Thirteen rows in steps of eight: every epoch ends with a batch that is not full."""
    train = train_of(method=method, launch={"processes": 2, "sharding": sharding})
    family, sequences = family_of(train)
    one, two = tmp_path / "one", tmp_path / "two"
    alone, steps = list[StepLog](), list[StepLog]()
    one.mkdir()
    two.mkdir()
    num_tokens, _ = training.finetune(family, sequences, train, one, alone.append)
    found, seconds = launch.finetune(family, sequences, train, two, steps.append, ())
    assert found == num_tokens and seconds > 0
    assert [step.number for step in steps] == [step.number for step in alone] == [1, 2, 3, 4]
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in alone], rel=1e-3)
    assert sorted(path.name for path in two.iterdir()) == sorted(
        path.name for path in one.iterdir()
    )
    base = dict(family.load().named_parameters())
    wanted, given_ = params_of(family, one), params_of(family, two)
    assert wanted.keys() == given_.keys()
    for name, param in wanted.items():
        torch.testing.assert_close(given_[name], param, atol=5e-5, rtol=1e-3)
    if method == "full":
        assert any(not torch.equal(base[name], param) for name, param in given_.items())


@pytest.mark.slow
def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    train = train_of(method="full", learning_rate=1e30, epochs=3)
    family, sequences = family_of(train)
    with pytest.raises(TrainingError, match=r"is (nan|not finite|inf)") as raised:
        launch.finetune(family, sequences, train, tmp_path, lambda _: None, ())
    assert "learning_rate" in str(raised.value.hint)


def recorded(num_rows: int, train: Train, num_steps: int) -> list[int]:
    """The rows in the order in which one process's loader gives them."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration
    from torch.utils.data import DataLoader, RandomSampler

    rows = list(range(num_rows))
    configuration = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=train.seed)
    loader = Accelerator(cpu=True, dataloader_config=configuration).prepare(
        DataLoader(rows, batch_size=train.batch_size, sampler=RandomSampler(rows))
    )
    found: list[int] = []
    for epoch in range(num_steps):
        loader.set_epoch(epoch)
        found += [int(row) for batch in loader for row in batch]
    return found


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_order_is_that_of_one_process(rows: int, size: int, times: int, seed: int) -> None:
    train = train_of(batch_size=2 * size, gradient_accumulation=times, seed=seed)
    per_step = 2 * size * times
    steps_an_epoch = -(-rows // per_step)
    found = launch.order(rows, 3 * steps_an_epoch, train)
    assert len(found) == 3 * steps_an_epoch * per_step
    assert [row for row in found if row is not None] == recorded(rows, train, 3)
    epoch = found[: steps_an_epoch * per_step]
    assert epoch[rows:] == [None] * (len(epoch) - rows)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 5}, r"train\.batch_size: must be a multiple of train\.launch\.processes"),
        ({"launch": {"processes": 1}}, r"train\.launch\.processes: .*greater than or equal to 2"),
        ({"launch": {"processes": 2, "sharding": "zero"}}, r"train\.launch\.sharding"),
    ],
)
def test_what_cannot_be_launched_is_said(tmp_path: Path, values: Any, message: str) -> None:
    recipe = recipe_values(tmp_path)
    recipe["train"] |= {"launch": {"processes": 2}, **values}
    with pytest.raises(RecipeError, match=message):
        m2m.load_recipe(write_recipe(tmp_path, recipe))


def test_accelerate_is_told_what_the_recipe_says() -> None:
    plain = launch.command(Launch(processes=4))
    assert plain[plain.index("--num_processes") + 1] == "4" and "--multi_gpu" in plain
    sharded = launch.command(Launch(processes=4, sharding="fsdp2"))
    assert "--use_fsdp" in sharded and sharded[sharded.index("--fsdp_version") + 1] == "2"
    own = launch.command(Launch(processes=4, config_file="mine.yaml"))
    assert own[-2:] == ["--config_file", "mine.yaml"] and "--multi_gpu" not in own

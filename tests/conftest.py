"""What the tests share. The environment is set before anything heavy is imported."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import tiny
import tiny_images
import torch

from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.stages import rehearsal

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


WHOLE_RUNS = {
    f"test_{name}"
    for name in [
        "benchmark_guide",
        "budget",
        "companions",
        "executors",
        "families",
        "gguf",
        "gradient",
        "gradients_of_a_run",
        "harness_run",
        "image_run",
        "image_training",
        "racing",
        "rehearsal",
        "run",
        "search_contract",
        "search_optuna",
        "search_samplers",
        "several_targets",
        "shares",
        "study",
        "verify",
        "write",
    ]
}
"""Files that train models or run whole recipes, and searches many times over."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of whole runs as slow: `make quick` leaves them out."""
    for item in items:
        if item.path.stem in WHOLE_RUNS:
            item.add_marker(pytest.mark.slow)


class Everything(set[str]):
    """A set that holds whatever is asked for."""

    def __contains__(self, _: object) -> bool:
        return True


@pytest.fixture(autouse=True)
def _rehearsals(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets tests of whole runs rehearse them, and no others: it takes half a second each time."""
    if request.path.stem not in WHOLE_RUNS:
        monkeypatch.setattr(rehearsal, "PASSED", Everything())


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Puts what was there before out of the garbage collector's sight, until the module is over.

    Every fine-tune collects garbage, and to look through all that transformers has loaded takes
    longer than to train a tiny model.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def smaller_heap(small_heap: None) -> None:
    """Does the same before every test, as the first ones load most."""
    gc.freeze()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny base by its kind, made once."""
    return cache(lambda kind: tiny.BASES[kind](tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def image_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny base that reads images by its kind, made once."""
    return cache(lambda kind: tiny_images.BASES[kind](tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def family(base: Callable[[str], str]) -> CausalLM:
    """The tied Llama with a start token, trained in full."""
    return tiny.open_base(base("llama"))

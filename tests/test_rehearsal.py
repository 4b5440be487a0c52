"""What would stop a run after all its training stops it before, by a run in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from recipes import Heard, recipe_values

import mergetomix
from mergetomix import training
from mergetomix.errors import ModelError, UserError
from mergetomix.models.causal_lm import model as causal_lm
from mergetomix.recipe.recipe import Recipe, parse
from mergetomix.stages import rehearsal

# a layer that doubles what its weight gives: an adapter beside it is not doubled, a merged one is
DOUBLING = """
class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class OddForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            old = layer.mlp.down_proj
            layer.mlp.down_proj = Doubled(old.in_features, old.out_features, bias=False)
        self.post_init()
"""
# a model that cannot be continued
MUTE = """
class OddForCausalLM(LlamaForCausalLM):
    def generate(self, *args, **kwargs):
        raise NotImplementedError("no cache in this model")
"""
# a model whose param is there in training alone, and so is not where a fine-tune is loaded
GROWING = """
class OddForCausalLM(LlamaForCausalLM):
    def save_pretrained(self, folder, **options):
        self.model.extra = torch.nn.Linear(2, 2)
        super().save_pretrained(folder, **options)
"""
HEAD = "import torch\nfrom transformers import LlamaForCausalLM\n"


@pytest.fixture(autouse=True)
def _nothing_was_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "PASSED", set())


def odd_base(folder: Path, code: str) -> str:
    """A base that brings code of its own."""
    path = tiny.save(tiny.llama(), folder)
    (folder / "modeling_odd.py").write_text(HEAD + code)
    file = folder / "config.json"
    own = {"AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
    config = json.loads(file.read_text()) | {"auto_map": own}
    file.write_text(json.dumps(config))
    return path


def recipe_of(folder: Path, base: str | None = None, **changes: Any) -> Recipe:
    values = recipe_values(folder) | changes
    if base is not None:
        values["base"] = {"path": base, "trust_remote_code": True}
    values |= {"store": str(folder / "store"), "run_dir": str(folder / "run")}
    for name in values["datasets"]:
        values["datasets"][name]["path"] = str(folder / f"{name}.jsonl")
    for target in values["targets"].values():
        if "path" in target:
            target["path"] = str(folder / "t.jsonl")
    return parse(values)


def num_trained(folder: Path) -> int:
    return len(list((folder / "store" / "artifacts").rglob("model.safetensors")))


@pytest.mark.parametrize(
    ("code", "method", "where", "says"),
    [
        (DOUBLING, "lora", "train.method", "an expert cannot be merged exactly: its loss is"),
        (MUTE, "full", "targets.t", "at scoring a merged model: NotImplementedError: no cache"),
        (GROWING, "full", "train", "has, but its kind of model lacks, the tensor model.extra"),
    ],
)
def test_an_odd_base_is_refused_before_anything_is_trained(
    tmp_path: Path, code: str, method: str, where: str, says: str
) -> None:
    target = {"path": "t.jsonl", "prompt": "question", "completion": "answer"}
    recipe = recipe_of(
        tmp_path,
        odd_base(tmp_path / "base", code),
        train={"method": method, "max_length": 64},
        targets={"t": {**target, "score": "generate", "max_new_tokens": 8}},
    )
    for attempt in (mergetomix.check, mergetomix.run):
        with pytest.raises(ModelError) as caught:
            attempt(recipe)
        assert caught.value.where == where
        assert says in caught.value.message
        assert num_trained(tmp_path) == 0
    unchecked = recipe.model_copy(
        update={"base": recipe.base.model_copy(update={"rehearse": False})}
    )
    if code == DOUBLING:
        mergetomix.check(unchecked)


def test_a_function_that_fails_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def score(model, tokenizer, rows):\n    raise RuntimeError('the judge is not there')\n"
    )
    target = {"path": "t.jsonl", "score": "python", "function": str(tmp_path / "judge.py:score")}
    recipe = recipe_of(tmp_path, targets={"t": target})
    with pytest.raises(UserError, match="the judge is not there"):
        mergetomix.train_experts(recipe)
    assert num_trained(tmp_path) == 0


@pytest.mark.parametrize("method", ["linear", "ties", "fisher", "regmean"])
def test_a_rehearsal_takes_one_step_and_is_not_held_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    steps: list[int | None] = []
    real = training.finetune

    def watched(family: Any, sequences: Any, settings: Any, *rest: Any) -> Any:
        steps.append(settings.max_steps)
        return real(family, sequences, settings, *rest)

    monkeypatch.setattr(training, "finetune", watched)
    recipe = recipe_of(tmp_path, merge={"method": method})
    mergetomix.check(recipe)
    assert steps == [1]
    assert num_trained(tmp_path) == 0 and not list((tmp_path / "store").rglob("rehearsal"))
    experts = mergetomix.train_experts(recipe)
    assert len(experts) == 3 and steps == [1, None, None, None]
    # another process knows it from the store
    monkeypatch.setattr(rehearsal, "PASSED", set())
    heard = Heard()
    mergetomix.run(recipe, heard)
    assert "check: a rehearsal in small" not in heard.tasks
    # what it depends on is another rehearsal
    changed = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"weight_decay": 0.1})}
    )
    mergetomix.check(changed, heard)
    assert heard.tasks.count("check: a rehearsal in small") == 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_large_base_is_stood_for_by_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    base = tiny.save(tiny.llama(num_hidden_layers=5), tmp_path / "base", chat=True)
    monkeypatch.setattr(causal_lm, "SMALL", 0)
    family = tiny.open_base(base, method=method)
    family.base = family.base.model_copy(update={"chat_template": "{{ messages[0].content }}"})
    small = family.small(tmp_path / "small")
    assert small.config.num_hidden_layers == 2
    assert small.tokenizer.get_vocab() == family.tokenizer.get_vocab()
    assert small.tokenizer.chat_template == "{{ messages[0].content }}"
    assert small.num_saved(None) < family.num_saved(None)
    assert (small.method, small.max_length) == (method, family.max_length)
    recipe = recipe_of(tmp_path, train={"method": method, "max_length": 64})
    mergetomix.check(recipe)
    assert len(rehearsal.PASSED) == 1

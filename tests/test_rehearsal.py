"""What would stop a run after all its training stops it before, by a run in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import architectures
import pytest
import tiny
from recipes import Heard, recipe_values

import mergetomix
from mergetomix import training
from mergetomix.errors import Fault, ModelError, UserError
from mergetomix.models.causal_lm import model as causal_lm
from mergetomix.models.causal_lm.small import kinds
from mergetomix.recipe.recipe import Recipe, parse
from mergetomix.sections.train import Lora
from mergetomix.session.session import open_session
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
    small = family.small(tmp_path / "small", Lora() if method == "lora" else None, 1e9)
    assert small is not None
    assert small.config.num_hidden_layers == 2
    assert small.tokenizer.get_vocab() == family.tokenizer.get_vocab()
    assert small.tokenizer.chat_template == "{{ messages[0].content }}"
    assert small.num_saved(None) < family.num_saved(None)
    assert (small.method, small.max_length) == (method, family.max_length)
    recipe = recipe_of(tmp_path, train={"method": method, "max_length": 64})
    mergetomix.check(recipe)
    assert len(rehearsal.PASSED) == 1


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "qwen3_moe"])
def test_a_short_one_has_a_layer_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from transformers import AutoConfig

    layers = {"llama": None, "gemma3": None, "lfm2": ["conv"] * 3 + ["full_attention"] * 2}
    own = dict(architectures.ARCHITECTURES[name])
    if name == "gemma3":
        kinds = ["sliding_attention"] * 5 + ["full_attention"]
        own["text_config"] = {**own["text_config"], "num_hidden_layers": 6, "layer_types": kinds}
    elif name == "qwen3_moe":
        own |= {"num_hidden_layers": 5, "mlp_only_layers": [0, 1, 2]}
    else:
        own |= {"num_hidden_layers": 5}
        own |= {"layer_types": layers[name]} if layers[name] else {}
    config = AutoConfig.for_model(name, **own)
    family = tiny.open_base(tiny.save(architectures.build(name, config), tmp_path / "base"))
    monkeypatch.setattr(causal_lm, "SMALL", 0)
    small = family.small(tmp_path / "small", None, 1e9)
    assert small is not None
    num = small.config.get_text_config().num_hidden_layers
    # of kinds with the same params, as of attention with and without a window, two layers do
    assert num == {"llama": 2, "gemma3": 2, "lfm2": 4, "qwen3_moe": 4}[name]
    assert kinds_of(small) == kinds_of(family)


def kinds_of(family: Any) -> Any:
    return kinds(family.skeleton())


@pytest.mark.parametrize("modules", [r".*\.layers\.(3|4)\.self_attn\.q_proj", "named"])
def test_what_no_small_model_can_stand_for_is_not_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: str
) -> None:
    """The recipe adapts layers that a short model has not; a run may well do it."""
    base = tiny.save(tiny.llama(num_hidden_layers=5), tmp_path / "base")
    monkeypatch.setattr(causal_lm, "SMALL", 0)
    wanted = ["layers.4.self_attn.q_proj"] if modules == "named" else modules
    train = {"method": "lora", "max_length": 64, "lora": {"target_modules": wanted}}
    heard = Heard()
    mergetomix.check(recipe_of(tmp_path, base, train=train), heard)
    assert any("the run is not rehearsed: no small model" in line for line in heard.warnings)
    assert not rehearsal.PASSED


def test_a_disk_without_room_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(causal_lm.CausalLM, "save", full)
    heard = Heard()
    mergetomix.check(recipe_of(tmp_path), heard)
    assert any("has too little room for it" in line for line in heard.warnings)


def test_out_of_memory_keeps_its_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    recipe = recipe_of(tmp_path)
    monkeypatch.setattr(causal_lm.CausalLM, "load_finetune", no_memory)
    with pytest.raises(Fault, match="a rehearsal of the run needs more memory") as caught:
        mergetomix.check(recipe)
    assert "lower train.batch_size" in str(caught.value.hint)
    monkeypatch.undo()
    monkeypatch.setattr(rehearsal, "PASSED", set())
    monkeypatch.setattr("transformers.Trainer.training_step", no_memory)
    with pytest.raises(ModelError, match="out of GPU memory at step 1") as refused:
        mergetomix.train_experts(recipe)
    assert "gradient_checkpointing" in str(refused.value.hint)
    assert "base.rehearse: false" in str(refused.value.hint)


def test_a_metric_of_the_users_gets_no_made_up_answers(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def judge(output, answer):\n    assert len(output) > 40\n    return 1.0\n"
    )
    target = {"path": "t.jsonl", "prompt": "question", "completion": "answer"}
    target |= {"score": "generate", "max_new_tokens": 8, "metric": "function"}
    target |= {"function": str(tmp_path / "judge.py:judge")}
    recipe = recipe_of(tmp_path, targets={"t": target})
    with open_session(recipe) as session:
        rehearsal.rehearse(session)
    assert len(rehearsal.PASSED) == 1


def test_nothing_is_rehearsed_where_nothing_is_trained(tmp_path: Path) -> None:
    base = tiny.save(tiny.llama(), tmp_path / "base")
    recipe = recipe_of(
        tmp_path,
        base,
        train={"method": "lora", "max_length": 64},
        verify={"budget": 0},
        final={"train": False, "baselines": []},
    )
    given = {
        name: dataset.model_copy(
            update={"expert": tiny.adapter(base, tmp_path / f"expert {name}", seed)}
        )
        for seed, (name, dataset) in enumerate(recipe.datasets.items())
    }
    mergetomix.run(recipe.model_copy(update={"datasets": given}))
    assert not rehearsal.PASSED

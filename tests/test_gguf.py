"""A base in one GGUF file, as llama.cpp keeps models: read by transformers, trained, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from recipes import recipe_values

import mergetomix
from mergetomix.errors import ModelError, RecipeError
from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.images.classifier import ImageClassifier
from mergetomix.recipe.recipe import parse
from mergetomix.sections.base import Base
from mergetomix.sections.images import Images
from mergetomix.store.store import Store

NAME = "tiny-q8_0.gguf"
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def qwen() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            vocab_size=tiny.VOCAB,
            max_position_embeddings=tiny.CONTEXT,
            initializer_range=0.2,
        )
    )


def save_gguf(model: Any, file: Path) -> None:
    """Matrices in blocks of 8-bit numbers, the rest in float32, a byte-level vocabulary."""
    import gguf

    config, writer = model.config, gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    tokenizer = tiny.tokenizer(start=False, chat=False)
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    words += [f"<unused{i}>" for i in range(tiny.VOCAB - len(words))]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(vocabulary["</s>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
    q8 = gguf.GGMLQuantizationType.Q8_0

    def add(name: str, tensor: torch.Tensor) -> None:
        values = tensor.detach().numpy().astype(np.float32)
        if values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, values)

    state = model.state_dict()
    add("token_embd.weight", state["model.embed_tokens.weight"])
    add("output.weight", state["lm_head.weight"])
    add("output_norm.weight", state["model.norm.weight"])
    for i in range(config.num_hidden_layers):
        for short, long in LAYER.items():
            for end in ("weight", "bias"):
                key = f"model.layers.{i}.{long}.{end}"
                if key in state:
                    add(f"blk.{i}.{short}.{end}", state[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    made = tmp_path_factory.mktemp("gguf")
    save_gguf(qwen(), made / NAME)
    return made


def opened(folder: Path, method: str = "full", name: str = NAME) -> CausalLM:
    base = Base(path=str(folder), gguf_file=name, dtype="float32")
    return CausalLM(base, "cpu", tiny.CONTEXT, method)


def test_the_weights_are_those_of_the_file(folder: Path) -> None:
    found, wanted = params(opened(folder).load()), params(qwen())
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        # a block of 32 numbers is rounded to 127 steps of its largest
        assert float((found[key] - value).abs().max()) <= float(value.abs().max()) / 120, key
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_on_such_a_base(folder: Path, tmp_path: Path, method: str) -> None:
    values = recipe_values(tmp_path)
    for name in ("a", "b", "c"):
        values["datasets"][name]["path"] = str(tmp_path / f"{name}.jsonl")
    values["targets"]["t"]["path"] = str(tmp_path / "t.jsonl")
    values |= {"base": {"path": str(folder), "gguf_file": NAME}}
    values["train"]["method"] = method
    values |= {"store": str(tmp_path / "store"), "run_dir": str(tmp_path / "run")}
    recipe = parse(values)
    result = mergetomix.run(recipe)
    family = opened(folder, method)
    live = family.load()
    before = {key: value.clone() for key, value in params(live).items()}
    deltas = {
        each.mixture.members[0]: read_delta(family, params(live), each.path, "x")
        for each in result.experts
    }
    Bank(live, deltas, GIB).set({"a": 0.5, "b": 0.5})
    for key, value in params(live).items():
        mean = sum(deltas[name].dense(key, before[key]).double() for name in ("a", "b")) / 2
        assert torch.allclose(value.double(), before[key].double() + mean, atol=1e-6), key
    # what is written is a model like any other
    mergetomix.write_proxy(recipe, ["a", "b"], tmp_path / "out")
    written = tiny.open_base(str(tmp_path / "out"))
    assert written.config.model_type == "qwen2"
    for key, value in params(written.load()).items():
        assert torch.allclose(value, params(live)[key], atol=1e-6), key


def test_what_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"base\.gguf_file: .* no file other\.gguf; .*{NAME}"):
        opened(folder, name="other.gguf")
    (tmp_path / NAME).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="does not load as a causal language model"):
        opened(tmp_path)
    base = Base(path=str(folder), gguf_file=NAME)
    with pytest.raises(RecipeError, match=r"base\.gguf_file: is for language models"):
        ImageClassifier(base, "cpu", Images(), "full")


def test_another_file_is_another_base(folder: Path, tmp_path: Path) -> None:
    model = qwen()
    with Store(tmp_path / "store") as store:
        keys = []
        for name in ("same", "doubled"):
            (tmp_path / name).mkdir()
            save_gguf(model, tmp_path / name / NAME)
            keys.append(opened(tmp_path / name).key(store))
            with torch.no_grad():
                model.lm_head.weight.mul_(2)
        assert keys[0] == opened(folder).key(store) != keys[1]

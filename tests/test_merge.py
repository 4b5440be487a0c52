"""The laws of merging: exact sums, exact adapters, and errors that name the tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from mergetomix import merge
from mergetomix.errors import ModelError
from mergetomix.experts.bank import Bank
from mergetomix.experts.deltas import FullDelta, LoraDelta, compare, nonfinite, params, read_delta
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.records import Mixture

WHERE = "datasets.math.expert"
BaseOf = Callable[[str], str]


def noise(model: nn.Module, seed: int, size: float = 0.01) -> FullDelta:
    """An expert a little off the base, float32."""
    generator = torch.Generator().manual_seed(seed)
    start = snapshot(model)
    expert = {
        n: p.float() + size * torch.randn(p.shape, generator=generator) for n, p in start.items()
    }
    return compare(start, expert, WHERE)


def wide(delta: FullDelta, start: Mapping[str, Tensor], name: str) -> Tensor:
    """Expert minus base in float64."""
    return delta.tensors[name].double() - start[name].double()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in params(model).items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def bank_of(family: CausalLM, folders: Mapping[str, str]) -> Bank:
    model = family.load()
    base = snapshot(model)
    return Bank(
        model, {name: read_delta(family, base, path, WHERE) for name, path in folders.items()}
    )


def read(family: CausalLM, path: str) -> Any:
    return read_delta(family, snapshot(family.load()), path, WHERE)


# --- factors


@pytest.mark.parametrize(("exponent", "expected"), [(0, 1.0), (0.5, 0.5), (1, 0.25), (2, 0.0625)])
def test_scale_is_a_power(exponent: float, expected: float) -> None:
    assert merge.scale(4, exponent) == pytest.approx(expected)
    assert merge.scale(1, exponent) == 1.0


@pytest.mark.parametrize("exponent", [0, 0.5, 1])
@pytest.mark.parametrize("sizes", [None, {"a": 1.0, "b": 2.0, "c": 5.0}])
def test_coefficients_sum_to_k_times_scale(exponent: float, sizes: dict[str, float] | None) -> None:
    factors = merge.coefficients(Mixture.union("abc", sizes), exponent)
    shares = sizes or dict.fromkeys("abc", 1.0)
    num = sum(shares.values()) ** 2 / sum(share**2 for share in shares.values())
    assert sum(factors.values()) == pytest.approx(num * merge.scale(num, exponent))
    assert factors["c"] / factors["a"] == pytest.approx(shares["c"] / shares["a"])


@pytest.mark.parametrize("exponent", [0, 0.5, 1])
def test_a_mixture_that_is_nearly_one_dataset_is_nearly_its_expert(exponent: float) -> None:
    factors = merge.coefficients(Mixture(("a", "b"), (0.999, 0.001)), exponent)
    assert factors["a"] == pytest.approx(1, abs=0.003) and factors["b"] < 0.002


def test_equal_weights_have_a_whole_effective_number() -> None:
    for num in range(1, 40):
        mixture = Mixture.union([f"d{i:02}" for i in range(num)])
        factor = num * merge.scale(num, 0.75) * mixture.weights[0]
        assert set(merge.coefficients(mixture, 0.75).values()) == {factor}


def test_equal_coefficients_are_the_papers() -> None:
    for exponent in (0.0, 0.5, 1.0):
        assert merge.coefficients(Mixture.union("abcd"), exponent) == pytest.approx(
            dict.fromkeys("abcd", 4**-exponent)
        )


def test_weights_of_zero_do_not_count() -> None:
    factors = merge.coefficients(Mixture(("a", "b", "c"), (0.5, 0.0, 0.5)), 0.5)
    assert factors == pytest.approx({"a": 2**-0.5, "c": 2**-0.5})


# --- rule 1: sums


def test_bf16_params_are_rounded_once(base: BaseOf) -> None:
    model = tiny.open_base(base("llama"), dtype="bfloat16").load()
    start = snapshot(model)
    assert {p.dtype for p in start.values()} == {torch.bfloat16}
    deltas = {name: noise(model, seed, 0.05) for seed, name in enumerate("abcde")}
    factors = dict.fromkeys("abcde", 0.3)
    Bank(model, deltas).set(factors)
    same, naive_same, count = 0, 0, 0
    for name, param in params(model).items():
        exact = start[name].double() + sum(0.3 * wide(d, start, name) for d in deltas.values())
        naive = start[name].clone()
        for delta in deltas.values():
            naive += (0.3 * wide(delta, start, name)).bfloat16()
        same += int((param == exact.bfloat16()).sum())
        naive_same += int((naive == exact.bfloat16()).sum())
        count += param.numel()
    assert same >= 0.999 * count
    assert naive_same < 0.999 * count


@pytest.mark.parametrize(
    "factors",
    [{"a": 0.2, "b": 0.5, "c": -0.7}, dict.fromkeys("abc", 1 / 3)],
    ids=["uneven", "equal"],
)
def test_float32_sums_are_rounded_correctly(family: CausalLM, factors: dict[str, float]) -> None:
    model = family.load()
    start = snapshot(model)
    deltas = {name: noise(model, seed) for seed, name in enumerate("abc")}
    Bank(model, deltas).set(factors)
    for name, param in params(model).items():
        exact = start[name].double() + sum(
            factors[k] * wide(d, start, name) for k, d in deltas.items()
        )
        assert torch.equal(param, exact.float()), name


def test_identical_experts_merge_to_themselves(family: CausalLM) -> None:
    model = family.load()
    start, delta = snapshot(model), noise(model, 1)
    bank = Bank(model, dict.fromkeys("abc", delta))
    bank.set(merge.coefficients(Mixture.union("abc"), 1))
    for name, param in params(model).items():
        assert torch.equal(param, delta.tensors[name]) and not torch.equal(param, start[name])


def test_order_does_not_matter_to_the_bit(family: CausalLM) -> None:
    model = family.load()
    deltas = {name: noise(model, seed) for seed, name in enumerate("abc")}
    factors = {"a": 0.1, "b": 0.7, "c": 0.3}
    one = Bank(model, deltas)
    one.set(factors)
    first = snapshot(model)
    one.reset()
    Bank(model, dict(reversed(deltas.items()))).set(dict(reversed(factors.items())))
    assert equal(first, snapshot(model))


def test_a_vertex_is_that_expert(family: CausalLM, tmp_path: Path) -> None:
    folders = {
        name: tiny.perturbed(family.base.path, tmp_path / name, seed)
        for seed, name in enumerate("ab")
    }
    bank = bank_of(family, folders)
    expert = snapshot(family.load(folders["b"]))
    for exponent in (0, 0.5, 1):
        bank.set(merge.coefficients(Mixture(("b",), (1.0,)), exponent))
        assert equal(expert, snapshot(bank.model))


def test_reset_restores_the_base_to_the_bit(family: CausalLM, tmp_path: Path) -> None:
    folders = {
        "a": tiny.perturbed(family.base.path, tmp_path / "a", 1),
        "b": tiny.adapter(family.base.path, tmp_path / "b", 2),
    }
    bank = bank_of(family, folders)
    start = snapshot(bank.model)
    bank.set({"a": 0.5, "b": 0.25})
    once = snapshot(bank.model)
    for i in range(50):
        bank.set({"a": math.sin(i), "b": math.cos(i)})
    bank.set({"a": 0.5, "b": 0.25})
    assert equal(once, snapshot(bank.model))
    assert not equal(once, start)
    bank.reset()
    assert equal(start, snapshot(bank.model))


def test_params_that_only_another_expert_changes_go_back(family: CausalLM, tmp_path: Path) -> None:
    path = family.base.path
    folders = {
        "a": tiny.adapter(path, tmp_path / "a", 1, target_modules=["q_proj"]),
        "b": tiny.adapter(path, tmp_path / "b", 2, target_modules=["down_proj"]),
    }
    bank = bank_of(family, folders)
    bank.set({"b": 1.0})
    want = snapshot(bank.model)
    bank.set({"a": 1.0, "b": 0.5})
    bank.set({"b": 1.0})
    assert equal(want, snapshot(bank.model))


def test_tied_params_are_one(family: CausalLM) -> None:
    model = family.load()
    assert "lm_head.weight" not in params(model)
    start, delta = snapshot(model), noise(model, 3)
    Bank(model, {"a": delta}).set({"a": 1.0})
    name = "model.embed_tokens.weight"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.lm_head.weight, delta.tensors[name]) and not torch.equal(
        model.lm_head.weight, start[name]
    )


def test_buffers_and_integer_tensors_stay_the_bases() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.steps = nn.Parameter(torch.arange(3), requires_grad=False)

    net = Net()
    Bank(net, {"a": noise(net, 0, 1.0)}).set({"a": 1.0})
    assert set(params(net)) == {"norm.weight", "norm.bias"}
    assert net.steps.tolist() == [0, 1, 2]
    assert net.norm.running_var is not None and torch.equal(net.norm.running_var, torch.ones(4))
    assert net.norm.num_batches_tracked == 0
    assert not torch.equal(net.norm.weight, torch.ones(4))


# --- full experts that do not fit


def test_missing_extra_misshapen_and_nonfinite_tensors_are_named(family: CausalLM) -> None:
    base = snapshot(family.load())
    name = "model.layers.1.mlp.down_proj.weight"
    lacking = {n: t for n, t in base.items() if n != name}
    bad = base[name].clone()
    bad[0, 0] = math.nan
    broken = [
        lacking,
        base | {name + "2": base[name]},
        base | {name: base[name][:-1]},
        base | {name: bad},
    ]
    for expert, word in zip(broken, ("lacks", "has", "shape", "not finite"), strict=True):
        with pytest.raises(ModelError, match=f"{WHERE}.*{word}") as caught:
            compare(base, expert, WHERE)
        assert name in str(caught.value)
    assert compare(base, base, WHERE).names() == set()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("model.layers.1.mlp.down_proj.weight"),
        lambda t: t.update({"model.layers.1.mlp.extra.weight": torch.ones(2)}),
        lambda t: t.update({"model.layers.1.mlp.down_proj.weight": torch.ones(2, 2)}),
        lambda t: t["model.layers.1.mlp.down_proj.weight"].fill_(math.inf),
    ],
    ids=["missing", "extra", "misshapen", "infinite"],
)
def test_a_broken_expert_folder_names_dataset_and_tensor(
    family: CausalLM, tmp_path: Path, change: Callable[[dict[str, Tensor]], object]
) -> None:
    folder = tiny.edit(tiny.perturbed(family.base.path, tmp_path / "a", 1), change)
    with pytest.raises(ModelError, match=r"^datasets.math.expert: .*model\.layers\.1\.mlp\."):
        read(family, folder)


def test_another_vocabulary_names_the_embedding(family: CausalLM, tmp_path: Path) -> None:
    tiny.llama(vocab_size=tiny.VOCAB + 8).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"model\.embed_tokens\.weight has the shape \(308, 32\).*\(300, 32\)"
    ):
        read(family, str(tmp_path))


def test_a_pickled_expert_is_refused(family: CausalLM, tmp_path: Path) -> None:
    folder = Path(tiny.perturbed(family.base.path, tmp_path / "a", 1))
    torch.save(family.load().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=WHERE):
        read(family, str(folder))


def test_an_expert_must_be_a_folder(family: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere is not a folder"):
        read(family, str(tmp_path / "nowhere"))


def test_nonfinite_names_the_param(family: CausalLM) -> None:
    model = family.load()
    assert nonfinite(model) is None
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = math.inf
    assert nonfinite(model) == "model.layers.1.mlp.up_proj.weight"


# --- rule 2: adapters


def exact_lora(folder: str, base: Mapping[str, Tensor], name: str, transposed: bool) -> Tensor:
    """s B A in float64, read from the files with nothing of this package."""
    from safetensors.torch import load_file

    config = json.loads(Path(folder, "adapter_config.json").read_text())
    tensors = load_file(Path(folder, "adapter_model.safetensors"))
    stem = "base_model.model." + name.removesuffix(".weight")
    if f"{stem}.lora_A.weight" not in tensors:
        return torch.zeros_like(base[name], dtype=torch.float64)
    rank = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    product = tensors[f"{stem}.lora_B.weight"].double() @ tensors[f"{stem}.lora_A.weight"].double()
    return torch.as_tensor(config["lora_alpha"] / rank * (product.T if transposed else product))


def merged_by_peft(base: str, folder: str) -> dict[str, Tensor]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return snapshot(
        PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), folder
        ).merge_and_unload()
    )


def test_adapters_are_summed_as_products(family: CausalLM, tmp_path: Path) -> None:
    path = family.base.path
    folders = {
        "a": tiny.adapter(path, tmp_path / "a", 1),
        "b": tiny.adapter(path, tmp_path / "b", 2, r=2, lora_alpha=3),
        "c": tiny.adapter(
            path, tmp_path / "c", 3, target_modules=["q_proj", "up_proj"], use_rslora=True
        ),
    }
    bank = bank_of(family, folders)
    start = snapshot(bank.model)
    factors = {"a": 0.5, "b": 0.3, "c": 0.2}
    bank.set(factors)
    changed = 0
    for name, param in params(bank.model).items():
        want = start[name].double() + sum(
            c * exact_lora(folders[k], start, name, False) for k, c in factors.items()
        )
        torch.testing.assert_close(param.double(), want, rtol=0, atol=1e-6)
        changed += not torch.equal(param, start[name])
    assert changed == 14


def test_averaging_factors_apart_is_another_model(family: CausalLM, tmp_path: Path) -> None:
    folders = {
        name: tiny.adapter(family.base.path, tmp_path / name, seed)
        for seed, name in enumerate("ab")
    }
    bank = bank_of(family, folders)
    bank.set({"a": 0.5, "b": 0.5})
    name = "model.layers.0.mlp.up_proj.weight"
    (b1, a1), (b2, a2) = (bank.deltas[k].factors[name] for k in "ab")  # type: ignore[union-attr]
    apart = bank._base[name] + 2.0 * ((b1 + b2) / 2) @ ((a1 + a2) / 2)
    assert (params(bank.model)[name] - apart).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["llama", "untied", "gpt2", "gpt2-untied"])
@pytest.mark.parametrize("rslora", [False, True])
def test_one_adapter_is_pefts_own_merge(
    base: BaseOf, tmp_path: Path, kind: str, rslora: bool
) -> None:
    folder = tiny.adapter(base(kind), tmp_path / "a", 5, use_rslora=rslora)
    bank = bank_of(tiny.open_base(base(kind)), {"a": folder})
    bank.set({"a": 1.0})
    want = merged_by_peft(base(kind), folder)
    assert not equal(want, bank._base)
    for name, param in params(bank.model).items():
        torch.testing.assert_close(param, want[name], rtol=0, atol=1e-6)


def test_transposed_and_plain_layers_in_one_adapter(base: BaseOf, tmp_path: Path) -> None:
    """GPT-2's layers stand as (in, out), its head as (out, in); attn.c_proj is square."""
    path = base("gpt2-untied")
    modules = ["attn.c_proj", "c_attn", "lm_head"]
    folders = {
        name: tiny.adapter(path, tmp_path / name, seed, target_modules=modules)
        for seed, name in enumerate("ab")
    }
    family = tiny.open_base(path)
    bank = bank_of(family, folders)
    start = snapshot(bank.model)
    bank.set({"a": 0.4, "b": 0.6})
    assert (
        "transformer.h.3.attn.c_proj.weight" in family.transposed
        and "lm_head.weight" not in family.transposed
    )
    for name, param in params(bank.model).items():
        lora = sum(
            c * exact_lora(folders[k], start, name, name != "lm_head.weight")
            for k, c in (("a", 0.4), ("b", 0.6))
        )
        torch.testing.assert_close(param.double(), start[name].double() + lora, rtol=0, atol=1e-6)
    merged = merged_by_peft(path, folders["a"])
    bank.set({"a": 1.0})
    for name in ("transformer.h.1.attn.c_proj.weight", "lm_head.weight"):
        torch.testing.assert_close(params(bank.model)[name], merged[name], rtol=0, atol=1e-6)


def test_a_square_adapter_alone_is_transposed(base: BaseOf, tmp_path: Path) -> None:
    folder = tiny.adapter(base("gpt2"), tmp_path / "a", 5, target_modules=["attn.c_proj"])
    bank = bank_of(tiny.open_base(base("gpt2")), {"a": folder})
    bank.set({"a": 1.0})
    want, name = merged_by_peft(base("gpt2"), folder), "transformer.h.0.attn.c_proj.weight"
    torch.testing.assert_close(params(bank.model)[name], want[name], rtol=0, atol=1e-6)
    b, a = bank.deltas["a"].factors[name]  # type: ignore[union-attr]
    assert (bank._base[name] + 2.0 * b @ a - want[name]).abs().max() > 1e-2


def test_full_and_adapter_experts_mix(family: CausalLM, tmp_path: Path) -> None:
    path = family.base.path
    folders = {
        "a": tiny.perturbed(path, tmp_path / "a", 1),
        "b": tiny.adapter(path, tmp_path / "b", 2),
    }
    bank = bank_of(family, folders)
    assert isinstance(bank.deltas["a"], FullDelta) and isinstance(bank.deltas["b"], LoraDelta)
    expert = snapshot(family.load(folders["a"]))
    bank.set({"a": 0.5, "b": 0.5})
    for name, param in params(bank.model).items():
        half = 0.5 * exact_lora(folders["b"], bank._base, name, False)
        want = 0.5 * (bank._base[name].double() + expert[name].double()) + half
        torch.testing.assert_close(param.double(), want, rtol=0, atol=1e-6)


# --- adapters that are more than a product


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("use_dora", {"use_dora": True}),
        ("bias: all", {"bias": "all"}),
        ("lora_bias", {"lora_bias": True}),
        ("modules_to_save", {"modules_to_save": ["norm"]}),
        ("trainable_token_indices", {"trainable_token_indices": [5, 6]}),
        ("bias: lora_only", {"bias": "lora_only"}),
        ("layer_replication", {"layer_replication": [[0, 2], [1, 2]]}),
        ("init_lora_weights: pissa", {"init_lora_weights": "pissa"}),
        ("init_lora_weights: olora", {"init_lora_weights": "olora"}),
    ],
)
def test_inexact_adapters_are_refused_by_name(
    family: CausalLM, tmp_path: Path, key: str, changes: dict[str, Any]
) -> None:
    folder = tiny.adapter(family.base.path, tmp_path, 1, **changes)
    with pytest.raises(ModelError, match=f"^{WHERE}: an adapter with {key} "):
        read(family, folder)


def test_other_kinds_of_adapter_are_refused_by_name(family: CausalLM, tmp_path: Path) -> None:
    from peft import IA3Config

    config = IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])
    with pytest.raises(ModelError, match="type IA3"):
        read(family, tiny.adapter(family.base.path, tmp_path, 1, config))


def test_a_pickled_adapter_is_refused(family: CausalLM, tmp_path: Path) -> None:
    folder = Path(tiny.adapter(family.base.path, tmp_path, 1))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors\n.*never pickles"):
        read(family, str(folder))


STEM = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{STEM}.lora_A.weight"), f"lacks the tensor {STEM}.lora_A.weight"),
        (lambda t: t.pop(f"{STEM}.lora_B.weight"), f"lacks the tensor {STEM}.lora_B.weight"),
        (lambda t: t.update({f"{STEM}.gate": torch.ones(1)}), f"{STEM}.gate is no LoRA factor"),
        (
            lambda t: t.update({f"{STEM}.lora_A.weight": torch.ones(4, 33)}),
            "q_proj.weight has the factors .*33",
        ),
        (
            lambda t: t.update({f"{STEM}.lora_A.weight": torch.ones(5, 32)}),
            "q_proj.weight has the factors",
        ),
        (
            lambda t: t[f"{STEM}.lora_B.weight"].fill_(math.nan),
            "q_proj.weight of the expert holds .* not finite",
        ),
        (
            lambda t: t.update({k.replace("s.0", "s.9"): t.pop(k) for k in list(t)}),
            "layers.9.*which the base lacks",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
    ids=["no A", "no B", "extra", "width", "rank", "nan", "layer", "empty"],
)
def test_a_broken_adapter_names_the_tensor(
    family: CausalLM, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    folder = tiny.edit(
        tiny.adapter(family.base.path, tmp_path, 1, target_modules=["q_proj"]), change
    )
    with pytest.raises(ModelError, match=f"^{WHERE}: .*{message}"):
        read(family, folder)

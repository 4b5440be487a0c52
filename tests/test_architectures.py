"""Tiny random models of many architectures beside a few lines of transformers.

Base losses, options, answers, a proxy of two, weights after three steps, full and by LoRA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import (
    ARCHITECTURES,
    CLOSE,
    GROUPED,
    MIXES_PACKED,
    ROWS,
    WITH_STACKS,
    build,
    loss,
    three_steps,
)
from transformers import AutoModelForCausalLM

from mergetomix.data.examples import Example
from mergetomix.errors import ModelError
from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.export.adapter import combine
from mergetomix.export.folder import AdapterFiles
from mergetomix.models.causal_lm.generation import Generation
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.packing import keeps_apart
from mergetomix.sections.train import Lora, Train
from mergetomix.training import finetune

WHERE = "datasets.x"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in made:
            made[name] = tiny.save(build(name), tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_options_and_answers_are_those_of_transformers(bases: Any, name: str) -> None:
    family = tiny.open_base(bases(name))
    model = family.load()
    sequences = family.encode(ROWS, WHERE).sequences
    found = family.negative_log_likelihoods(model, family.batches(sequences, 64))
    with torch.no_grad():
        for sequence, value in zip(sequences, found, strict=True):
            assert value / sequence.num_scored == pytest.approx(
                float(loss(model, [sequence])), abs=CLOSE
            )
    rows = [
        Example(0, prompt=row.prompt, completion=" on", options=(" on a mat", " three"))
        for row in ROWS
    ]
    questions = [family.question(row, i, WHERE) for i, row in enumerate(rows)]
    found_Q = family.asked(questions, 256).losses(model)
    with torch.no_grad():
        for question, values in zip(questions, found_Q, strict=True):
            for option, value in zip(question.alone(), values, strict=True):
                wanted = float(loss(model, [option])) * option.num_scored
                assert value == pytest.approx(wanted, abs=CLOSE * option.num_scored)
    prompts = [family.prompt_ids(row, WHERE) for row in ROWS]
    answers = family.generate(model, prompts, Generation(6, (), 10**6))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + 6 and ids[-1] != family.encoder.end:
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        own = family.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        assert answer == own


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_steps_and_a_proxy_of_two(bases: Any, name: str, tmp_path: Path) -> None:
    base, rate = bases(name), 1e-4
    family = tiny.open_base(base)
    sequences = family.encode(ROWS, WHERE).sequences
    settings = Train(
        method="full",
        batch_size=len(sequences),
        max_steps=3,
        learning_rate=rate,
        warmup_ratio=0.0,
    )
    finetune(family, sequences, settings, tmp_path / "a")
    expert = params(family.load_finetune(str(tmp_path / "a")))
    wanted, before = three_steps(base, sequences, rate), params(family.load())
    away = torch.cat([(expert[key] - wanted[key]).abs().flatten() for key in wanted])
    moved = torch.cat([(wanted[key] - before[key]).abs().flatten() for key in wanted])
    # of a gradient that is all rounding AdamW takes the sign, so a few weights may go anywhere
    assert float((away > CLOSE).double().mean()) < 1e-4 and float(away.max()) < rate
    assert float((moved > 5 * CLOSE).double().mean()) > 0.3
    finetune(family, sequences[:2], settings, tmp_path / "b")
    other = params(family.load_finetune(str(tmp_path / "b")))
    live = family.load()
    deltas = {
        key: read_delta(family, params(live), str(tmp_path / key), WHERE) for key in ("a", "b")
    }
    bank = Bank(live, deltas, GIB)
    bank.set({"a": 0.5, "b": 0.5})
    for key, value in params(live).items():
        mean = (
            before[key].double()
            + ((expert[key].double() - before[key]) + (other[key].double() - before[key])) / 2
        )
        assert torch.equal(value, mean.float()), key
    family.save(live, tmp_path / "merged")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert type(written) is type(live)
    for key, value in params(written).items():
        assert torch.equal(value, params(live)[key]), key
    saved = tiny.open_base(str(tmp_path / "a"))
    assert getattr(saved.config, "output_router_logits", None) == getattr(
        family.config, "output_router_logits", None
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_is_read_as_its_exact_product(bases: Any, name: str, tmp_path: Path) -> None:
    family = tiny.open_base(bases(name), method="lora")
    sequences = family.encode(ROWS, WHERE).sequences
    settings = Train(
        method="lora", batch_size=4, max_steps=2, learning_rate=1e-2, lora=Lora(rank=4, alpha=8)
    )
    if name == "mamba":
        with pytest.raises(ModelError, match=r"train\.lora\.target_modules: cannot be adapted"):
            finetune(family, sequences, settings, tmp_path)
        return
    finetune(family, sequences, settings, tmp_path)
    adapted = family.load_finetune(str(tmp_path))
    live = family.load()
    delta = read_delta(family, params(live), str(tmp_path), WHERE)
    Bank(live, {"a": delta}, GIB).set({"a": 1.0})
    found, wanted = (
        family.negative_log_likelihoods(model, family.batches(sequences, 10**6))
        for model in (live, adapted)
    )
    assert found == pytest.approx(wanted, abs=1e-3)
    plain = family.negative_log_likelihoods(family.load(), family.batches(sequences, 10**6))
    assert found != pytest.approx(plain, abs=1e-2)
    if name == "gemma3":  # the part for images is left alone
        assert not any("vision" in param for param in delta.names())
    family.save(live, tmp_path / "merged")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    again = family.negative_log_likelihoods(written.eval(), family.batches(sequences, 10**6))
    assert again == found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packing_is_refused_where_sequences_mix(bases: Any, name: str, tmp_path: Path) -> None:
    family = tiny.open_base(bases(name))
    assert keeps_apart(family.load()) == (name not in MIXES_PACKED)
    if name == "opt":
        settings = Train(method="full", packing=True, max_steps=1)
        with pytest.raises(ModelError, match=r"train\.packing: this model mixes"):
            finetune(family, family.encode(ROWS, WHERE).sequences, settings, tmp_path)


def test_an_invalid_generation_config_is_repaired(tmp_path: Path) -> None:
    """As Vicuna's and Llama 2's: a temperature beside `do_sample: false`, which cannot be saved."""
    import json

    folder = tiny.save(tiny.llama(), tmp_path / "base")
    file = Path(folder) / "generation_config.json"
    own = json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    file.write_text(json.dumps(own))
    family: CausalLM = tiny.open_base(folder)
    assert "temperature, top_p" in family.limits[0]
    family.save(family.load(), tmp_path / "out")
    assert tiny.open_base(str(tmp_path / "out")).limits == ()


@pytest.mark.parametrize(
    ("modules", "why"),
    [
        (["embed_tokens"], "model.embed_tokens cannot be merged exactly: it is an embedding"),
        (["lm_head"], "lm_head cannot be merged exactly: its weight is another layer's, too"),
        (["no_such_layer"], "cannot be adapted: Target modules"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_before_training(
    bases: Any, tmp_path: Path, modules: list[str], why: str
) -> None:
    family = tiny.open_base(tiny.save(tiny.llama(), tmp_path), method="lora")
    with pytest.raises(ModelError, match=rf"train\.lora\.target_modules: .*{why}"):
        family.num_saved(Lora(target_modules=modules))
    assert family.num_saved(Lora(target_modules=["q_proj"])) > 0


STACKS = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [key for key in ARCHITECTURES if key in WITH_STACKS])
def test_adapters_of_experts_that_stand_as_one_tensor(
    bases: Any, name: str, tmp_path: Path
) -> None:
    """Trained, read, merged, and written as one adapter: exactly what PEFT makes of them."""
    family = tiny.open_base(bases(name), method="lora")
    sequences = family.encode(ROWS, WHERE).sequences
    lora = Lora(rank=4, alpha=8, target_parameters=STACKS)
    plain = Lora(rank=4, alpha=8)
    assert family.num_saved(lora) > family.num_saved(plain)
    with pytest.raises(ModelError, match=r"target_parameters: no tensor .* 'experts\.none'"):
        family.num_saved(lora.model_copy(update={"target_parameters": ["experts.none"]}))
    settings = Train(batch_size=4, max_steps=2, learning_rate=1e-2, lora=lora, warmup_ratio=0.0)
    batches = family.batches(sequences, 10**6)
    live = family.load()
    before = family.negative_log_likelihoods(live, batches)
    deltas, own = {}, {}
    for key, rows in (("a", sequences), ("b", sequences[:2])):
        finetune(family, rows, settings, tmp_path / key)
        deltas[key] = read_delta(family, params(live), str(tmp_path / key), WHERE)
        own[key] = family.negative_log_likelihoods(
            family.load_finetune(str(tmp_path / key)), batches
        )
    stacks = {param for param in deltas["a"].names() if param.endswith(tuple(STACKS))}
    assert len(stacks) == 4
    bank = Bank(live, deltas, GIB)
    for key in deltas:
        bank.set({key: 1.0})
        found = family.negative_log_likelihoods(live, batches)
        assert found == pytest.approx(own[key], abs=1e-3)
        assert found != pytest.approx(before, abs=1e-2)
    # derivatives along such an expert, against a difference so small that no token changes experts
    bank.set({"a": 0.5})
    _, along = bank.gradient(family.losses(live, batch).sum() for batch in batches)
    sides = []
    for step in (0.5 - 5e-4, 0.5 + 5e-4):
        bank.set({"a": step})
        sides.append(sum(family.negative_log_likelihoods(live, batches)))
    assert along["a"] == pytest.approx((sides[1] - sides[0]) / 1e-3, rel=1e-3)
    # a mixture of both as one adapter
    bank.set({"a": 0.5, "b": 0.5})
    wanted = family.negative_log_likelihoods(live, batches)
    terms: dict[str, Any] = {}
    for delta in deltas.values():
        for param, pair in delta.factors.items():
            terms.setdefault(param, []).append((pair, 0.5 * delta.scaling))
    for rank in (None, 3):
        one = combine(terms, rank, torch.float32)
        modules = [module for module, _ in family.load().named_modules()]
        config = {"task_type": "CAUSAL_LM", "base_model_name_or_path": bases(name)}
        found_stacks = family.stacks({"target_parameters": sorted(stacks)})
        files = AdapterFiles(one, modules, config, family.transposed, found_stacks)
        out = tmp_path / f"one{rank}"
        files.save_pretrained(out)
        again = read_delta(family, params(family.load()), str(out), WHERE)
        assert all(pair[0].shape[-1] == one.rank for pair in again.factors.values())
        loaded = family.negative_log_likelihoods(family.load_finetune(str(out)), batches)
        if rank is None:
            assert one.error < 1e-6 and loaded == pytest.approx(wanted, abs=1e-3)
        else:
            assert 1e-4 < one.error < 1 and loaded != pytest.approx(wanted, abs=1e-5)


def test_factors_that_are_none_of_a_stack_are_named(bases: Any, tmp_path: Path) -> None:
    family = tiny.open_base(bases("mixtral"), method="lora")
    lora = Lora(rank=2, alpha=4, target_parameters=STACKS)
    settings = Train(batch_size=4, max_steps=1, lora=lora)
    finetune(family, family.encode(ROWS, WHERE).sequences, settings, tmp_path)

    def cut(tensors: dict[str, Any]) -> None:
        key = next(key for key in tensors if key.endswith("experts.lora_A.weight"))
        tensors[key] = tensors[key][:-1].contiguous()

    tiny.edit(tmp_path, cut)
    with pytest.raises(ModelError, match=r"datasets\.x: .*experts.*are no factors of 4 matrices"):
        read_delta(family, params(family.load()), str(tmp_path), WHERE)


DEEPSEEK = {
    **GROUPED,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}


def test_all_linear_is_no_name_that_peft_takes_for_the_experts(tmp_path: Path) -> None:
    """DeepSeek-V3's dense layers are called as its experts were before they stood as one tensor."""
    from transformers import AutoConfig

    config = AutoConfig.for_model("deepseek_v3", **DEEPSEEK)
    base = tiny.save(build("deepseek_v3", config), tmp_path / "base")
    family = tiny.open_base(base, method="lora")
    assert not family.linears & {"gate_proj", "up_proj", "down_proj"} and family.linears
    assert "all-linear adapts" in family.limits[0] and "gate_proj" not in family.limits[0]
    sequences = family.encode(ROWS, WHERE).sequences
    batches = family.batches(sequences, 10**6)
    for target in ("all-linear", ["q_b_proj", "gate_proj", "up_proj", "down_proj"]):
        settings = Train(
            batch_size=4,
            max_steps=2,
            learning_rate=1e-2,
            lora=Lora(rank=2, alpha=4, target_modules=target),
        )
        out = tmp_path / str(len(target))
        finetune(family, sequences, settings, out)
        live = family.load()
        delta = read_delta(family, params(live), str(out), WHERE)
        Bank(live, {"a": delta}, GIB).set({"a": 1.0})
        found, wanted = (
            family.negative_log_likelihoods(model, batches)
            for model in (live, family.load_finetune(str(out)))
        )
        assert found == pytest.approx(wanted, abs=1e-3)


def test_weights_that_were_unpacked_are_written_under_the_models_own_names(tmp_path: Path) -> None:
    """As MXFP4's of gpt-oss: transformers unpacks them where no kernel reads them."""
    import json

    wide = {**ARCHITECTURES["gpt_oss"], "hidden_size": 32, "intermediate_size": 32}
    from transformers import AutoConfig

    base = tmp_path / "base"
    tiny.save(build("gpt_oss", AutoConfig.for_model("gpt_oss", **wide)), base)

    def pack(tensors: dict[str, Any]) -> None:
        for key in [key for key in tensors if key.endswith(("gate_up_proj", "down_proj"))]:
            num, width, out = tensors.pop(key).shape
            shape = (num, out, width // 32)
            tensors[f"{key}_blocks"] = torch.randint(0, 255, (*shape, 16), dtype=torch.uint8)
            tensors[f"{key}_scales"] = torch.full(shape, 122, dtype=torch.uint8)

    tiny.edit(base, pack)
    file = base / "config.json"
    own = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": own}))
    family = tiny.open_base(str(base))
    model = family.load()
    family.save(model, tmp_path / "out")
    again = tiny.open_base(str(tmp_path / "out")).load()
    assert params(model).keys() == params(again).keys()
    assert all(torch.equal(value, params(again)[key]) for key, value in params(model).items())


def test_what_reads_images_is_written_beside_the_tokenizer(bases: Any, tmp_path: Path) -> None:
    family = tiny.open_base(bases("gemma3"))

    class Processor:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "preprocessor_config.json").write_text("{}")

    tmp_path.joinpath("out").mkdir()
    family.save(family.load(), tmp_path / "plain")
    assert not (tmp_path / "plain" / "preprocessor_config.json").exists()
    family.other_processor = Processor()
    family.save(family.load(), tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    assert (tmp_path / "out" / "tokenizer.json").exists()

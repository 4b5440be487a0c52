"""The one finetune(): the same bits every time, on completions alone, as its settings say."""

from __future__ import annotations

import gc
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tiny
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mergetomix.curves import StepLog
from mergetomix.data.examples import Example
from mergetomix.errors import TrainingError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.sequences import IGNORE, Encoded
from mergetomix.sections.train import Lora, Train
from mergetomix.training import Schedule, arguments, finetune, plan, union

BaseOf = Callable[[str], str]
LORA = Lora(rank=4, alpha=8)


def encode(family: CausalLM, count: int, seed: int = 0) -> Sequence[Encoded]:
    draw, words = random.Random(seed), " ".join(tiny.TEXTS).split()
    rows = [
        (" ".join(draw.choices(words, k=draw.randint(1, 9))), " " + draw.choice(words))
        for _ in range(count)
    ]
    return family.encode(tiny.pairs(*rows), "datasets.x").sequences


def train(**changes: Any) -> Train:
    return Train(
        **{"method": "full", "learning_rate": 1e-3, "lora": LORA, "max_steps": 3, **changes}
    )


def weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*.safetensors")
    return dict(load_file(file))


def trained(
    family: CausalLM, sequences: Sequence[Encoded], out: Path, **changes: Any
) -> dict[str, Tensor]:
    finetune(family, sequences, train(**changes), out)
    return weights(out)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float) -> bool:
    return set(one) == set(other) and all(
        torch.allclose(one[n], other[n], rtol=0, atol=atol) for n in one
    )


def off(one: dict[str, Tensor], other: dict[str, Tensor], atol: float) -> float:
    """The share of values that differ.

    AdamW moves by near the gradient's sign: where it is all but zero (as it is for the bias of
    GPT-2's keys), rounding decides, so a few may.
    """
    assert set(one) == set(other)
    return sum(int(((one[n] - other[n]).abs() > atol).sum()) for n in one) / sum(
        t.numel() for t in one.values()
    )


# --- the same every time


@pytest.mark.parametrize(
    "changes", [{}, {"method": "lora", "lora": Lora(rank=4, dropout=0.3)}], ids=["full", "lora"]
)
def test_training_is_a_function_of_its_arguments(
    family: CausalLM, tmp_path: Path, changes: dict[str, Any]
) -> None:
    ours, theirs = encode(family, 20), encode(family, 11, seed=1)
    first = trained(family, ours, tmp_path / "a", **changes)
    assert same(first, trained(family, ours, tmp_path / "b", **changes))
    torch.rand(5)
    other = trained(family, theirs, tmp_path / "c", **changes)
    assert same(first, trained(family, ours, tmp_path / "d", **changes))
    assert not same(first, other)
    assert not same(first, trained(family, ours, tmp_path / "e", **changes, seed=1))


def test_dropout_is_on_in_training_alone(base: BaseOf, tmp_path: Path) -> None:
    """GPT-2's own dropout: drawn anew by another seed, in one batch whose order does not matter."""
    family = tiny.open_base(base("gpt2"))
    sequences = encode(family, 6)
    one, other = (
        trained(family, sequences, tmp_path / str(s), seed=s, batch_size=6, max_steps=1)
        for s in (0, 1)
    )
    assert not close(one, other, 1e-6)
    assert family.load().training is False


# --- what is saved


def test_a_full_fine_tune_loads_as_any_model(family: CausalLM, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sequences = encode(family, 8)
    saved = trained(family, sequences, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("the cat")["input_ids"]
        == family.tokenizer("the cat")["input_ids"]
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("checkpoint*"))


def test_a_fine_tune_keeps_the_bases_settings(family: CausalLM, tmp_path: Path) -> None:
    """The trainer turns the cache off; saved like that, generation would be slow for ever."""
    trained(family, encode(family, 4), tmp_path)
    old, new = (
        json.loads(Path(p, "config.json").read_text()) for p in (family.base.path, tmp_path)
    )
    assert new.get("use_cache", True) is old.get("use_cache", True) is True
    keys = set(old) - {"_name_or_path", "transformers_version"}
    assert {key: new.get(key) for key in keys} == {key: old[key] for key in keys}


def test_an_adapter_loads_by_peft(family: CausalLM, tmp_path: Path) -> None:
    from peft import PeftModel

    sequences = encode(family, 8)
    saved = trained(family, sequences, tmp_path, method="lora")
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B"} and len(saved) == 28
    assert all(bool(tensor.any()) for tensor in saved.values())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (
        4,
        8,
        family.base.path,
    )
    batches = family.batches(sequences, 10**6)
    ours = family.negative_log_likelihoods(family.load_finetune(str(tmp_path)), batches)
    loaded = PeftModel.from_pretrained(family.load(), tmp_path).eval()
    assert (
        ours
        == family.negative_log_likelihoods(loaded, batches)
        != family.negative_log_likelihoods(family.load(), batches)
    )


def test_an_adapter_on_a_bf16_base_is_trained_in_float32(base: BaseOf, tmp_path: Path) -> None:
    family = tiny.open_base(base("llama"), method="lora", dtype="bfloat16")
    assert {p.dtype for p in family.load().parameters()} == {torch.bfloat16}
    saved = trained(family, encode(family, 8), tmp_path, method="lora", learning_rate=1e-5)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    # steps of 1e-5 are lost in bfloat16 beside the adapter's start
    assert all(bool((t != t.bfloat16()).any()) for t in saved.values())


# --- what is trained on


def one_step(
    family: CausalLM, sequences: Sequence[Encoded], settings: Train, everything: bool = False
) -> dict[str, Tensor]:
    """One step of AdamW on the mean loss of the scored tokens, one sequence at a time."""
    model = family.load()
    count = sum(len(s.ids) - 1 if everything else s.num_scored for s in sequences)
    for s in sequences:
        logits = model(torch.tensor([s.ids])).logits[0, :-1]
        labels = torch.tensor((s.ids if everything else s.labels)[1:])
        (
            torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
            / count
        ).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, settings.learning_rate, weight_decay=settings.weight_decay).step()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "untied"])
def test_one_step_is_the_references_on_completions_alone(
    base: BaseOf, tmp_path: Path, kind: str
) -> None:
    family = tiny.open_base(base(kind))
    sequences = encode(family, 8)
    settings = train(max_steps=1, warmup_ratio=0, weight_decay=0.1)
    saved = trained(family, sequences, tmp_path, max_steps=1, warmup_ratio=0, weight_decay=0.1)
    assert off(saved, one_step(family, sequences, settings), 1e-5) < 0.002
    assert off(saved, one_step(family, sequences, settings, everything=True), 1e-5) > 0.1


def test_texts_are_trained_on_whole(base: BaseOf, tmp_path: Path) -> None:
    """Without a start token the first one has no prediction and must not count in the mean."""
    family = tiny.open_base(base("untied"), 16)
    sequences = family.encode(
        [Example(0, text="the cat sat on the mat " * 5)], "datasets.x"
    ).sequences
    assert len(sequences) > 2
    settings = train(max_steps=1, warmup_ratio=0)
    saved = trained(family, sequences, tmp_path, max_steps=1, warmup_ratio=0)
    assert off(saved, one_step(family, sequences, settings), 1e-5) < 0.002


def test_the_loss_falls(family: CausalLM, tmp_path: Path) -> None:
    sequences = encode(family, 16)
    batches = family.batches(sequences, 10**6)
    before = sum(family.negative_log_likelihoods(family.load(), batches))
    for method, rate in (("full", 3e-3), ("lora", 3e-2)):
        out = tmp_path / method
        finetune(family, sequences, train(method=method, learning_rate=rate, max_steps=20), out)
        assert (
            sum(family.negative_log_likelihoods(family.load_finetune(str(out)), batches))
            < 0.6 * before
        )


# --- settings that must change nothing


def test_accumulated_batches_are_one_batch(family: CausalLM, tmp_path: Path) -> None:
    sequences = encode(family, 16)
    whole = trained(family, sequences, tmp_path / "a", batch_size=8)
    accumulated = trained(family, sequences, tmp_path / "b", batch_size=4, gradient_accumulation=2)
    assert off(whole, accumulated, 2e-5) < 0.005
    assert off(whole, trained(family, sequences, tmp_path / "c", batch_size=4), 2e-5) > 0.2


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_changes_nothing(family: CausalLM, tmp_path: Path, method: str) -> None:
    sequences = encode(family, 16)
    plain = trained(family, sequences, tmp_path / "a", method=method)
    assert close(
        plain,
        trained(family, sequences, tmp_path / "b", method=method, gradient_checkpointing=True),
        2e-5,
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "untied"])
def test_packing_changes_nothing(base: BaseOf, tmp_path: Path, kind: str) -> None:
    family = tiny.open_base(base(kind))
    if kind == "gpt2":
        family = without_dropout(family, tmp_path / "base")
    texts = [Example(i, text=text) for i, text in enumerate(tiny.TEXTS * 3)]
    sequences = [*encode(family, 10), *family.encode(texts, "datasets.x").sequences]
    padded = trained(family, sequences, tmp_path / "a")
    packed = trained(family, sequences, tmp_path / "b", packing=True)
    assert off(padded, packed, 5e-5) < 0.005
    longer = [
        Encoded(a.ids + b.ids, a.labels + b.labels, 0)
        for a, b in zip(sequences[::2], sequences[1::2], strict=True)
    ]
    attending = trained(family, longer, tmp_path / "c", batch_size=4)
    assert off(padded, attending, 5e-5) > 0.2  # sequences that see each other give another model


def without_dropout(family: CausalLM, out: Path) -> CausalLM:
    """The same base: dropout draws other numbers for another shape of batch."""
    model = family.load()
    model.config.update({"embd_pdrop": 0.0, "resid_pdrop": 0.0})
    model.save_pretrained(out)
    family.tokenizer.save_pretrained(out)
    return tiny.open_base(str(out))


# --- steps and rates


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 1}, Schedule(13, 0, 1000)),
        ({"epochs": 3}, Schedule(39, 0, 3000)),
        ({"epochs": 0.5}, Schedule(7, 0, 538)),
        ({"epochs": 0.001}, Schedule(1, 0, 77)),
        ({"epochs": 1, "batch_size": 10}, Schedule(10, 0, 1000)),
        ({"epochs": 1.1, "batch_size": 10}, Schedule(11, 0, 1100)),
        ({"epochs": 1, "gradient_accumulation": 4}, Schedule(4, 0, 1000)),
        ({"epochs": 2, "max_steps": 5}, Schedule(5, 0, 385)),
        ({"max_tokens": 500}, Schedule(6, 0, 462)),
        ({"max_tokens": 1}, Schedule(1, 0, 77)),
        ({"max_tokens": 500, "max_steps": 20}, Schedule(20, 0, 1538)),
        ({"epochs": 1, "warmup_ratio": 0.1}, Schedule(13, 1, 1000)),
        ({"epochs": 1, "warmup_ratio": 0.03}, Schedule(13, 0, 1000)),
        ({"max_steps": 200, "warmup_ratio": 0.03}, Schedule(200, 6, 15385)),
        ({"max_steps": 1, "warmup_ratio": 0.9}, Schedule(1, 0, 77)),
    ],
)
def test_a_plan_counts_steps_and_tokens(changes: dict[str, Any], expected: Schedule) -> None:
    """100 sequences of 10 tokens, by batches of 8 unless said otherwise."""
    settings = Train(**{"batch_size": 8, "warmup_ratio": 0, **changes})
    assert plan(100, 1000, settings) == expected


@hypothesis.settings(derandomize=True, deadline=None)
@hypothesis.given(
    st.integers(1, 500),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(("epochs", "max_tokens", "max_steps")),
    st.integers(1, 40),
    st.floats(0, 0.99),
)
def test_a_plan_is_what_was_asked_for_to_a_step(
    num: int, batch: int, accumulate: int, unit: str, much: int, warmup: float
) -> None:
    """Sequences of 10 tokens: the last batch of an epoch may be short, and is a step."""
    asked = {unit: 10 * much if unit == "max_tokens" else much}
    values = {"batch_size": batch, "gradient_accumulation": accumulate, "warmup_ratio": warmup}
    found = plan(num, 10 * num, Train(**values, **asked))
    per_epoch = math.ceil(num / (batch * accumulate))
    wanted = {
        "epochs": much * per_epoch,
        "max_steps": much,
        "max_tokens": max(1, much * per_epoch / num),
    }[unit]
    assert abs(found.num_steps - wanted) <= 0.5
    assert found.num_tokens == round(10 * num * found.num_steps / per_epoch)
    assert 0 <= found.warmup_steps < found.num_steps


def test_steps_and_tokens_are_as_planned(family: CausalLM, tmp_path: Path) -> None:
    sequences = encode(family, 20)
    steps: list[StepLog] = []
    settings = train(max_steps=None, epochs=2, batch_size=4, gradient_accumulation=2)
    num_tokens, seconds = finetune(family, sequences, settings, tmp_path, steps.append)
    total = sum(len(s.ids) for s in sequences)
    numbers = [step.number for step in steps]
    assert numbers == [*range(1, 7)] == [*range(1, plan(20, total, settings).num_steps + 1)]
    seen = [step.num_tokens for step in steps]
    assert seen == sorted(seen) and seen[-1] == num_tokens and steps[-1].seconds <= seconds
    assert num_tokens == 2 * total == plan(20, total, settings).num_tokens
    assert seconds > 0


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        ("constant", lambda done: 1.0),
        ("linear", lambda done: 1 - done),
        ("cosine", lambda done: 0.5 * (1 + math.cos(math.pi * done))),
    ],
)
def test_learning_rates_follow_the_schedule(
    family: CausalLM, tmp_path: Path, schedule: str, shape: Callable[[float], float]
) -> None:
    sequences = encode(family, 4)
    settings = train(max_steps=10, warmup_ratio=0.2, schedule=schedule, learning_rate=1e-3)
    planned = plan(4, sum(len(s.ids) for s in sequences), settings)
    trainer = family.trainer(sequences, settings, arguments(family, settings, planned, tmp_path))
    trainer.train()
    rates = [
        entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry
    ]
    want = [min(i / 2, 1) * shape(max(0, i - 2) / 8) * 1e-3 for i in range(10)]
    assert rates == pytest.approx(want)


def test_union_keeps_everything_in_order(family: CausalLM) -> None:
    one, other = encode(family, 3), encode(family, 2, seed=1)
    assert union([one, other]) == [*one, *other]


# --- what goes wrong, and what is left behind


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_loss_that_is_not_finite_names_the_step(
    family: CausalLM, tmp_path: Path, method: str
) -> None:
    steps: list[int] = []
    settings = train(method=method, learning_rate=1e30, warmup_ratio=0, max_steps=9)
    with pytest.raises(
        TrainingError,
        match=r"^the loss is (nan|inf) at step [23]\nhint: lower train\.learning_rate",
    ):
        finetune(family, encode(family, 16), settings, tmp_path, steps.append)
    assert 1 <= len(steps) <= 3
    assert not list(tmp_path.glob("*.safetensors"))


def test_params_that_are_not_finite_after_the_last_step_are_named(
    family: CausalLM, tmp_path: Path
) -> None:
    settings = train(learning_rate=1e39, warmup_ratio=0, max_steps=1)
    with pytest.raises(TrainingError, match=r"^the tensor model\.\S+ is not finite at step 1"):
        finetune(family, encode(family, 8), settings, tmp_path)


def models() -> int:
    from transformers import PreTrainedModel

    return sum(isinstance(thing, PreTrainedModel) for thing in gc.get_objects())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_fine_tune_leaves_no_model_in_memory(
    family: CausalLM, tmp_path: Path, method: str
) -> None:
    sequences = encode(family, 8)
    gc.collect()
    before = models()
    gc.disable()
    try:
        finetune(family, sequences, train(method=method), tmp_path)
        assert models() == before
    finally:
        gc.enable()


def test_training_says_nothing(
    family: CausalLM, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    finetune(family, encode(family, 4), train(max_steps=1), tmp_path)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")

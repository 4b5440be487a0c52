"""One adapter for a mixture of them: exact, or the nearest of a rank; adapters of other kinds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergetomix import merge
from mergetomix.errors import ModelError
from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import LoraDelta, params, read_delta
from mergetomix.export import adapter
from mergetomix.export.folder import target_modules
from mergetomix.merge.lora_delta import Pair, stacked
from mergetomix.models.causal_lm.model import CausalLM

WHERE = "datasets.math.expert"
FACTORS = (0.6, -0.3, 0.05, 1.7)


def draw(seed: int, out: int = 30, width: int = 20, rank: int = 4, size: float = 1.0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(out, rank, generator=generator), torch.randn(
        rank, width, generator=generator
    )


def product(pair: Pair) -> Tensor:
    return pair[0].double() @ pair[1].double()


def dense(pairs: list[Pair]) -> Tensor:
    """sum_i c_i B_i A_i as a matrix, in float64."""
    return sum(
        (c * product(pair) for c, pair in zip(FACTORS, pairs, strict=True)),
        torch.zeros(1, dtype=torch.float64),
    )


def some(**changes: int) -> list[Pair]:
    return [draw(seed, **{"rank": seed + 1, **changes}) for seed in range(len(FACTORS))]


def terms(pairs: list[Pair]) -> list[tuple[Pair, float]]:
    return list(zip(pairs, FACTORS, strict=True))


# --- exact


def test_stacked_factors_are_the_sum_of_products() -> None:
    pairs = some()
    tall, flat = stacked(pairs, FACTORS, torch.float64)
    assert tall.shape == (30, 10) and flat.shape == (10, 20)
    torch.testing.assert_close(tall @ flat, dense(pairs), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        (tall @ flat).float(), merge.lora_product(pairs, FACTORS), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-7), (torch.bfloat16, 5e-3), (torch.float16, 6e-4)]
)
def test_an_exact_adapter_loses_one_rounding_and_says_so(dtype: torch.dtype, most: float) -> None:
    pairs = some()
    found = adapter.combine({"x": terms(pairs)}, None, dtype)
    assert found.is_exact and found.rank == found.full_rank == 10
    assert {side.dtype for side in found.factors["x"]} == {dtype}
    want = dense(pairs)
    error = float((product(found.factors["x"]) - want).norm() / want.norm())
    assert found.error == found.errors["x"] == pytest.approx(error, rel=1e-6)
    assert 0 < error < most


def test_numbers_too_small_for_one_side_survive_in_float16() -> None:
    tall, flat = draw(0, size=1e-9)
    found = adapter.combine({"x": [((tall, 1e4 * flat), 1.0)]}, None, torch.float16)
    assert tall.half().count_nonzero() == 0
    assert found.error < 6e-4


def test_balancing_rounds_nothing() -> None:
    tall, flat = draw(0, size=1e-3)
    tall[:, 1] = 0
    flat[2] = 0
    one, other = adapter.balanced((tall, flat))
    assert torch.equal(one[:, :, None] * other[None], tall[:, :, None] * flat[None])
    ratio = one.norm(dim=0) / other.norm(dim=1)
    assert all(0.5 <= float(ratio[i]) <= 2 for i in (0, 3))


def test_a_param_that_fewer_experts_change_is_padded_with_zeros() -> None:
    pairs = some()
    found = adapter.combine({"x": terms(pairs), "y": terms(pairs)[:1]}, None, torch.float32)
    tall, flat = found.factors["y"]
    assert tall.shape == (30, 10) and flat.shape == (10, 20)
    assert tall[:, 1:].count_nonzero() == flat[1:].count_nonzero() == 0
    torch.testing.assert_close(
        product((tall, flat)), FACTORS[0] * product(pairs[0]), rtol=0, atol=1e-6
    )


def test_an_expert_that_changes_nothing_has_no_error() -> None:
    tall, flat = draw(0)
    for rank in (None, 1):
        found = adapter.combine({"x": [((0 * tall, flat), 1.0)]}, rank, torch.float32)
        assert found.error == 0.0 and found.factors["x"][0].count_nonzero() == 0


# --- compressed


@settings(deadline=None, max_examples=30, derandomize=True)
@given(out=st.integers(1, 40), width=st.integers(1, 40), rank=st.integers(1, 9))
@example(out=30, width=20, rank=3)
@example(out=7, width=40, rank=9)
@example(out=40, width=7, rank=6)
def test_compressed_is_as_near_as_a_full_svd(out: int, width: int, rank: int) -> None:
    """The matrix may be narrower than the sum of ranks."""
    pairs = some(out=out, width=width)
    want = dense(pairs)
    values = torch.linalg.svdvals(want)
    best = math.sqrt(float((values[rank:] ** 2).sum()))
    pair = stacked(pairs, FACTORS, torch.float64)
    kept = adapter.compressed(pair, rank)
    assert kept[0].shape[1] <= rank
    assert float((product(kept) - want).norm()) == pytest.approx(best, abs=1e-10)
    assert adapter.distance(pair, kept) == pytest.approx(best, abs=1e-10)
    assert adapter.norm(pair) == pytest.approx(float(want.norm()), abs=1e-10)
    torch.testing.assert_close(kept[0].norm(dim=0), kept[1].norm(dim=1), rtol=1e-9, atol=1e-6)


def test_the_errors_are_those_of_the_factors_as_written() -> None:
    sets = {
        name: [draw(10 * i + seed, rank=seed + 1) for seed in range(4)]
        for i, name in enumerate("xyz")
    }
    found = adapter.combine({name: terms(pairs) for name, pairs in sets.items()}, 3, torch.float32)
    assert not found.is_exact and (found.rank, found.full_rank) == (3, 10)
    wants = {name: dense(pairs) for name, pairs in sets.items()}
    gaps = {
        name: float((product(found.factors[name]) - want).norm()) for name, want in wants.items()
    }
    for name, want in wants.items():
        assert found.errors[name] == pytest.approx(gaps[name] / float(want.norm()), rel=1e-9)
    whole = math.hypot(*gaps.values()) / math.hypot(
        *(float(want.norm()) for want in wants.values())
    )
    assert found.error == pytest.approx(whole, rel=1e-9)
    assert found.errors[found.worst] == max(found.errors.values()) and found.worst in "xyz"


def test_a_higher_rank_loses_less_and_all_of_it_nothing() -> None:
    pairs = some()
    errors = [
        adapter.combine({"x": terms(pairs)}, rank, torch.float64).error for rank in (1, 2, 4, 8, 10)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.1
    assert errors[-1] < 1e-12
    assert adapter.norm(
        adapter.compressed(stacked(pairs, FACTORS, torch.float64), 10)
    ) == pytest.approx(float(dense(pairs).norm()))


def test_a_rank_over_the_sum_is_exact_and_says_so() -> None:
    found = adapter.combine({"x": terms(some())}, 99, torch.float32)
    assert found.is_exact and found.rank == 10 and found.error < 1e-7
    assert "rank 99 was asked for, which is over that sum" in found.sentences()
    assert not any(
        "asked for" in line
        for line in adapter.combine({"x": terms(some())}, 10, torch.float32).sentences()
    )


def test_a_param_within_the_rank_stays_exact() -> None:
    pairs = some()
    found = adapter.combine({"x": terms(pairs), "y": terms(pairs)[:2]}, 5, torch.float32)
    assert found.errors["y"] < 1e-7 < found.errors["x"] == found.errors[found.worst]


# --- names of modules


def test_modules_are_named_so_that_no_other_is_met() -> None:
    modules = ["", "a", "a.q", "a.k", "b", "b.q", "b.k", "c.k"]
    assert target_modules(["a.q", "b.q"], modules) == ["q"]
    assert target_modules(["a.q", "b.q", "a.k"], modules) == ["a.k", "q"]
    assert target_modules(["b.k", "a.k", "c.k"], modules) == ["k"]


# --- adapters that cannot be read exactly


def read(family: CausalLM, path: str) -> Any:
    return read_delta(family, params(family.load()), path, WHERE)


def configured(folder: str, **changes: Any) -> str:
    file = Path(folder) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_the_tensors_alone_tell_where_the_configuration_is_silent(
    family: CausalLM, tmp_path: Path
) -> None:
    """A folder whose configuration was lost or edited must not be read as what it is not."""
    for key, value, other in (("use_dora", True, False), ("modules_to_save", ["norm"], None)):
        folder = tiny.adapter(family.base.path, tmp_path / key, 1, **{key: value})
        with pytest.raises(ModelError, match=f"^{WHERE}: .*is no LoRA factor"):
            read(family, configured(folder, **{key: other}))


def test_a_rank_pattern_that_the_configuration_hides_is_no_silent_error(
    family: CausalLM, tmp_path: Path
) -> None:
    """PEFT scales each module by its own rank, so a factor of another has another scaling."""
    folder = tiny.adapter(family.base.path, tmp_path, 1, rank_pattern={"q_proj": 2})
    with pytest.raises(ModelError, match=r"q_proj"):
        read(family, configured(folder, rank_pattern={}))


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_by_patterns_scale_each_param_by_its_own(
    family: CausalLM, tmp_path: Path, rslora: bool
) -> None:
    patterns = {
        "rank_pattern": {r".*layers\.1\.self_attn\.q_proj": 2, "up_proj": 6},
        "alpha_pattern": {"up_proj": 5, "v_proj": 3},
    }
    folder = tiny.adapter(family.base.path, tmp_path, 1, use_rslora=rslora, **patterns)
    delta = read(family, folder)
    assert isinstance(delta, LoraDelta) and len(delta.scalings) >= 5
    live = family.load()
    Bank(live, {"a": delta}, GIB).set({"a": 1.0})
    loaded = family.load_finetune(folder).merge_and_unload()
    for name, param in params(live).items():
        assert torch.allclose(param, params(loaded)[name], atol=1e-6), name


def test_adapted_embeddings_are_refused(family: CausalLM, tmp_path: Path) -> None:
    folder = tiny.adapter(family.base.path, tmp_path, 1, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(
        ModelError, match=f"^{WHERE}: .*embed_tokens.lora_embedding_A is no LoRA factor"
    ):
        read(family, folder)


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 8 / 4), (True, 8 / 2)])
def test_the_scaling_is_alpha_by_the_rank_or_its_root(
    family: CausalLM, tmp_path: Path, rslora: bool, scaling: float
) -> None:
    assert (
        read(family, tiny.adapter(family.base.path, tmp_path, 1, use_rslora=rslora)).scaling
        == scaling
    )


def test_modules_that_the_base_lacks_are_named(
    family: CausalLM, base: Callable[[str], str], tmp_path: Path
) -> None:
    with pytest.raises(
        ModelError, match=r"transformer\.h\.0\.attn\.c_attn\.weight, which the base lacks"
    ):
        read(family, tiny.adapter(base("gpt2"), tmp_path, 1, target_modules=["c_attn"]))


def test_an_adapter_of_a_wider_base_is_named_by_its_shapes(
    family: CausalLM, tmp_path: Path
) -> None:
    other = tiny.save(tiny.llama(hidden_size=64), tmp_path / "base")
    with pytest.raises(
        ModelError, match=rf"^{WHERE}: the adapter of .*B \(64, 4\) .*, the base needs \(32, 48\)"
    ):
        read(family, tiny.adapter(other, tmp_path / "a", 1))


def test_a_tied_head_is_not_adapted_apart(family: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lm_head\.weight, which the base lacks or shares"):
        read(family, tiny.adapter(family.base.path, tmp_path, 1, target_modules=["lm_head"]))


def test_a_truncated_file_is_one_message(family: CausalLM, tmp_path: Path) -> None:
    folder = tiny.adapter(family.base.path, tmp_path, 1)
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    for num_bytes in (0, 5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:num_bytes])
        with pytest.raises(ModelError, match=f"^{WHERE}: {tmp_path} does not load") as caught:
            read(family, folder)
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"LORA"',
        '{"peft_type": "LORA", "lora_alpha": 8}',
        '{"peft_type": "LORA", "r": 4}',
        "\udcff",
    ],
    ids=["empty", "cut", "list", "null", "text", "no r", "no alpha", "no UTF-8"],
)
def test_a_broken_configuration_is_one_message(family: CausalLM, tmp_path: Path, text: str) -> None:
    folder = tiny.adapter(family.base.path, tmp_path, 1)
    (tmp_path / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=f"^{WHERE}: "):
        read(family, folder)


SCALINGS: list[Any] = [
    {"r": "four"},
    {"lora_alpha": None},
    {"r": 0},
    {"r": 8},
    {"lora_alpha": math.inf},
]


@pytest.mark.parametrize("changes", SCALINGS)
def test_a_scaling_that_cannot_be_is_one_message(
    family: CausalLM, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = configured(tiny.adapter(family.base.path, tmp_path, 1), **changes)
    with pytest.raises(ModelError, match=f"^{WHERE}: "):
        read(family, folder)

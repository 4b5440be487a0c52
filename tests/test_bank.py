"""The bank: no drift, the same bits however little memory there is, exact gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergetomix.errors import ModelError
from mergetomix.experts import sums
from mergetomix.experts.bank import GIB, Bank, Room, room
from mergetomix.experts.deltas import FullDelta, LoraDelta, compare, mapped, params, read_delta
from mergetomix.merge.sums import blocks
from mergetomix.mixtures.spaces import Subsets
from mergetomix.models.causal_lm.model import CausalLM

WHERE = "datasets.math.expert"
NAMES = tuple("abcdefghijkl")
BLOCK = next(blocks(torch.empty(2**25))).stop
Deltas = Mapping[str, FullDelta | LoraDelta]


def snapshot(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in params(model).items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


class Net(torch.nn.Module):
    """Two params, one of them larger than the other."""

    def __init__(self, dtype: torch.dtype = torch.float32, num: int = 1000) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.large = torch.nn.Parameter(torch.randn(num, generator=generator).to(dtype))
        self.small = torch.nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype))


def experts(
    model: torch.nn.Module, names: str | tuple[str, ...], size: float = 0.01
) -> dict[str, FullDelta]:
    """Experts whose deltas differ by many orders of magnitude from element to element."""
    start, found = snapshot(model), {}
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed + 1)
        noise = {
            n: size
            * torch.randn(p.shape, generator=generator)
            * 10 ** (-6 * torch.rand(p.shape, generator=generator))
            for n, p in start.items()
        }
        found[name] = compare(
            start, {n: (p.float() + noise[n]).to(p.dtype) for n, p in start.items()}, WHERE
        )
    return found


def exact(
    start: Mapping[str, Tensor], deltas: Mapping[str, FullDelta], factors: Mapping[str, float]
) -> dict[str, Tensor]:
    """base + sum_i c_i (expert_i - base) in float64, in the order of the names, rounded once."""
    found = {}
    for name, base in start.items():
        total = torch.zeros(base.shape, dtype=torch.float64)
        for key in sorted(factors):
            total += factors[key] * (deltas[key].tensors[name].double() - base.double())
        found[name] = (base.double() + total).to(base.dtype)
    return found


# --- no drift


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_4095_steps_do_not_drift(dtype: torch.dtype) -> None:
    net = Net(dtype)
    start, deltas = snapshot(net), experts(net, NAMES, 0.05)
    bank = Bank(net, deltas)
    num_steps, sizes = 0, []
    before: frozenset[str] = frozenset()
    for mixture in Subsets(NAMES):
        members = frozenset(mixture.datasets)
        sizes.append(len(members ^ before))
        before = members
        bank.set(dict.fromkeys(members, 1 / len(members)))
        num_steps += 1
        if num_steps % 13 == 0 or num_steps > 4085:
            alone = Bank(Net(dtype), deltas)
            alone.set(dict.fromkeys(members, 1 / len(members)))
            assert equal(snapshot(net), snapshot(alone.model)), mixture
    assert num_steps == 4095 and set(sizes) == {1}
    wanted = exact(start, deltas, dict.fromkeys(members, 1 / len(members)))
    same = sum(int((param == wanted[name]).sum()) for name, param in params(net).items())
    assert same >= 0.999 * sum(p.numel() for p in wanted.values())
    bank.reset()
    assert equal(start, snapshot(net))


STEPS = st.dictionaries(st.sampled_from("abcdef"), st.floats(-2, 2), max_size=6) | st.builds(
    dict.fromkeys, st.sets(st.sampled_from("abcdef")), st.floats(0.1, 2)
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(way=st.lists(STEPS, max_size=6), end=STEPS)
@example(way=[dict.fromkeys("abcdef", 0.2), {"f": 1.0}, {}], end=dict.fromkeys("ace", 0.4))
def test_any_way_to_a_mixture_gives_the_same_bits(
    way: list[dict[str, float]], end: dict[str, float]
) -> None:
    deltas = experts(Net(num=40), "abcdef")
    banks = [Bank(Net(num=40), deltas), Bank(Net(num=40), deltas)]
    for step in way:
        banks[0].set(step)
    if len(way) % 2:
        banks[0].reset()
    for bank in banks:
        bank.set(end)
    assert equal(snapshot(banks[0].model), snapshot(banks[1].model))


def test_another_factor_of_the_same_members() -> None:
    net = Net()
    start, deltas = snapshot(net), experts(net, "abc")
    bank = Bank(net, deltas)
    for factor in (1.0, 0.5, 3**-0.75):
        bank.set(dict.fromkeys("abc", factor))
        assert equal(exact(start, deltas, dict.fromkeys("abc", factor)), snapshot(net))


def test_an_interrupted_move_leaves_no_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    deltas = experts(net, "abc")
    bank = Bank(net, deltas)
    bank.set({"a": 1.0})
    calls = []

    def interrupted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    original = sums.difference
    monkeypatch.setattr(sums, "difference", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bank.set(dict.fromkeys("ab", 0.5))
    monkeypatch.undo()
    bank.set(dict.fromkeys("abc", 1 / 3))
    fresh = Bank(Net(), deltas)
    fresh.set(dict.fromkeys("abc", 1 / 3))
    assert equal(snapshot(net), snapshot(fresh.model))


def test_sums_on_the_grid_are_exact_in_any_order() -> None:
    largest = 12 * 0.37
    rounding = sums.grid(largest)
    generator = torch.Generator().manual_seed(0)
    deltas = (
        0.37
        * torch.rand(12, 500, generator=generator, dtype=torch.float64)
        * 10.0 ** -torch.randint(0, 15, (12, 500))
    )
    on_grid = (deltas + rounding) - rounding
    assert (on_grid - deltas).abs().max() <= largest * 2**-51
    forwards, backwards = (
        torch.zeros(500, dtype=torch.float64),
        torch.zeros(500, dtype=torch.float64),
    )
    for delta in on_grid:
        forwards += delta
    for delta in reversed(on_grid):
        backwards += delta
    assert torch.equal(forwards, backwards)
    for delta in on_grid:
        forwards -= delta
    assert not forwards.any()
    plain = deltas.sum(0) - deltas.flip(0).cumsum(0)[-1]
    assert plain.any()  # without the grid the order shows


@pytest.mark.parametrize("largest", [0.0, 1e-300, 1e-38, 0.37, 1.0, 3e38])
def test_the_grid_is_finite_and_rounds_little(largest: float) -> None:
    rounding = sums.grid(largest)
    assert math.isfinite(rounding) and (0.3 * largest + rounding) - rounding == pytest.approx(
        0.3 * largest, rel=1e-9
    )


# --- memory


def test_blocks_cover_a_large_param_once() -> None:
    net = Net(num=2 * BLOCK + 17)
    deltas = experts(net, "ab")
    start = snapshot(net)
    Bank(net, deltas).set(dict.fromkeys("ab", 0.5))
    assert equal(exact(start, deltas, dict.fromkeys("ab", 0.5)), snapshot(net))


@pytest.mark.parametrize(
    "factors", [dict.fromkeys("abc", 1 / 3), {"a": 0.31, "b": -0.7, "c": 1e-3}]
)
def test_threads_and_places_give_the_same_bits(factors: dict[str, float]) -> None:
    """An element's result depends on its own values alone, not on who computes it or where."""
    whole, cut = Net(num=3 * BLOCK), Net(num=3 * BLOCK - 5)
    cut.large.data = whole.large.data[5:].clone()
    deltas = experts(whole, "abc")
    tails = {
        name: compare(snapshot(cut), {**each.tensors, "large": each.tensors["large"][5:]}, WHERE)
        for name, each in deltas.items()
    }
    Bank(whole, deltas).set(factors)
    torch.set_num_threads(3)
    try:
        Bank(cut, tails).set(factors)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(whole.large[5:], cut.large)


def full_bank(family: CausalLM, folders: Mapping[str, str], memory_bytes: float) -> Bank:
    model = family.load()
    base = params(model)
    deltas = {name: read_delta(family, base, path, WHERE) for name, path in folders.items()}
    return Bank(
        model, deltas, memory_bytes, mapped(family, Path(family.base.path), base, "base.path")
    )


def test_the_same_bits_however_little_memory(family: CausalLM, tmp_path: Path) -> None:
    folders = {
        name: tiny.perturbed(family.base.path, tmp_path / name, seed)
        for seed, name in enumerate("abc")
    }
    sums = 8 * sum(p.numel() for p in params(family.load()).values())
    banks = [full_bank(family, folders, memory) for memory in (3 * sums, sums, sums - 1)]
    assert [bank.room for bank in banks] == [
        Room(True, True),
        Room(False, True),
        Room(False, False),
    ]
    origin = mapped(family, Path(family.base.path), params(family.load()), "base.path")
    assert origin is not None
    for factors in (
        dict.fromkeys("ab", 0.5),
        dict.fromkeys("abc", 1 / 3),
        {"a": 0.3, "b": 0.7},
        {"b": 1.0},
    ):
        for bank in banks:
            bank.set(factors)
        first, *others = (snapshot(bank.model) for bank in banks)
        assert not equal(first, banks[0]._base) and all(equal(first, other) for other in others), (
            factors
        )
    resident, *lean = banks
    assert not any(
        delta.mapped for delta in resident.deltas.values() if isinstance(delta, FullDelta)
    )
    for bank in lean:  # what is not needed in memory is a page of a file
        assert all(isinstance(delta, FullDelta) and delta.mapped for delta in bank.deltas.values())
        bank.reset()
        assert equal(snapshot(bank.model), origin)


def test_a_budget_too_small_for_one_tensor_names_it(family: CausalLM, tmp_path: Path) -> None:
    folders = {"a": tiny.perturbed(family.base.path, tmp_path / "a", 1)}
    largest = 16 * 300 * 32
    assert full_bank(family, folders, largest).room == Room(False, False)
    with pytest.raises(
        ModelError,
        match=r"^merge.memory_gib: the tensor model.embed_tokens.weight alone needs 0.000143 GiB",
    ):
        full_bank(family, folders, largest - 1)


def test_adapters_need_no_room(family: CausalLM, tmp_path: Path) -> None:
    base = params(family.load())
    adapter = read_delta(family, base, tiny.adapter(family.base.path, tmp_path / "a", 1), WHERE)
    assert room([adapter], base, 1e-6 * GIB) == Room(True, True)


def test_files_that_name_tensors_otherwise_are_written_once(
    base: Callable[[str], str], tmp_path: Path
) -> None:
    """GPT-2's files on the hub have names without the prefix that the model's params have."""
    family = tiny.open_base(base("gpt2"))
    folder = tiny.perturbed(base("gpt2"), tmp_path / "a", 1)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    plain = read_delta(family, params(family.load()), folder, WHERE)
    assert isinstance(plain, FullDelta) and plain.mapped
    tiny.edit(folder, rename)
    held = read_delta(family, params(family.load()), folder, WHERE)
    spilled = read_delta(family, params(family.load()), folder, WHERE, tmp_path / "scratch" / "a")
    assert isinstance(held, FullDelta) and isinstance(spilled, FullDelta)
    assert (
        not held.mapped
        and spilled.mapped
        and (tmp_path / "scratch" / "a" / "expert.safetensors").exists()
    )
    assert equal(plain.tensors, held.tensors) and equal(plain.tensors, spilled.tensors)


def test_sharded_files_are_mapped(family: CausalLM, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = tiny.perturbed(family.base.path, tmp_path / "whole", 1)
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(
        tmp_path / "parts", max_shard_size="20KB"
    )
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    one, other = (
        read_delta(family, params(family.load()), str(tmp_path / name), WHERE)
        for name in ("whole", "parts")
    )
    assert isinstance(one, FullDelta) and isinstance(other, FullDelta) and other.mapped
    assert equal(one.tensors, other.tensors)


# --- experts that do not fit


def test_a_truncated_file_is_named(family: CausalLM, tmp_path: Path) -> None:
    folder = Path(tiny.perturbed(family.base.path, tmp_path / "a", 1))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=rf"^{WHERE}: {folder} does not load"):
        read_delta(family, params(family.load()), str(folder), WHERE)


def test_an_expert_with_fewer_digits_than_the_base_is_refused(
    family: CausalLM, tmp_path: Path
) -> None:
    folder = tiny.perturbed(family.base.path, tmp_path / "a", 1)
    tiny.edit(folder, lambda tensors: tensors.update({k: t.bfloat16() for k, t in tensors.items()}))
    with pytest.raises(
        ModelError,
        match=rf"^{WHERE}: the expert's tensor .* stands as bfloat16, the base's as float32",
    ):
        read_delta(family, params(family.load()), folder, WHERE)


def test_a_bf16_expert_of_a_base_stored_in_bf16_is_exact() -> None:
    net = Net()
    for param in net.parameters():
        param.data = param.data.bfloat16().float()
    start = snapshot(net)
    few = {name: (p + 0.1).bfloat16() for name, p in start.items()}
    delta = compare(start, few, WHERE)
    assert delta.tensors["large"].dtype == torch.bfloat16
    Bank(net, {"a": delta}).set({"a": 1.0})
    assert equal(snapshot(net), {name: tensor.float() for name, tensor in few.items()})


def test_another_tokenizer_is_refused(family: CausalLM, tmp_path: Path) -> None:
    folder = tiny.perturbed(family.base.path, tmp_path / "a", 1)
    tokens = tiny.tokenizer(start=True, chat=False)
    tokens.save_pretrained(folder)
    read_delta(family, params(family.load()), folder, WHERE)  # the base's own
    tokens.add_tokens(["<new>"])
    tokens.save_pretrained(folder)
    with pytest.raises(
        ModelError,
        match=rf"^{WHERE}: its tokenizer is not the base's: '<new>' is 300 there and None here",
    ):
        read_delta(family, params(family.load()), folder, WHERE)


# --- gradients in the coefficients


def in_float64(family: CausalLM) -> Any:
    return family.load().double()


def wide_experts(model: Any) -> dict[str, FullDelta]:
    start = snapshot(model)
    noise = {
        name: {
            n: 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).double()
            for n, p in start.items()
        }
        for seed, name in enumerate("ab")
    }
    return {
        name: compare(start, {n: p + each[n] for n, p in start.items()}, WHERE)
        for name, each in noise.items()
    }


def adapters(family: CausalLM, folder: Path, names: str = "xy") -> dict[str, FullDelta | LoraDelta]:
    base = params(family.load())
    made = {
        name: tiny.adapter(family.base.path, folder / name, seed, r=2 + seed)
        for seed, name in enumerate(names)
    }
    return {name: read_delta(family, base, path, WHERE) for name, path in made.items()}


def batches(family: CausalLM) -> list[Any]:
    examples = tiny.pairs(
        ("one plus two is", " three"), ("the cat sat on the", " mat and the dog sat"), ("a", " b")
    )
    return family.batches(family.encode(examples, "t").sequences, 40)


def losses(family: CausalLM, model: Any) -> Iterator[Tensor]:
    """The loss of each batch in the model's own precision: scoring takes its logits in float32."""
    for batch in batches(family):
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
        yield torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
        )


def value(family: CausalLM, bank: Bank, coefficients: Mapping[str, float]) -> float:
    bank.set(coefficients)
    with torch.inference_mode():
        return math.fsum(float(loss) for loss in losses(family, bank.model))


@pytest.mark.parametrize("kind", ["full", "lora", "both"])
def test_gradients_are_those_of_finite_differences(
    base: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    family = tiny.open_base(base("gpt2"))  # no step of it goes down to float32, as Llama's norms do
    model = in_float64(family)
    deltas: dict[str, FullDelta | LoraDelta] = {}
    if kind != "lora":
        deltas |= wide_experts(model)
    if kind != "full":
        deltas |= adapters(family, tmp_path)
    bank = Bank(model, deltas)
    point = {name: 0.2 + 0.1 * i for i, name in enumerate(sorted(deltas))}
    bank.set(point)
    asked = [p.requires_grad for p in model.parameters()]
    total, gradient = bank.gradient(losses(family, model))
    assert total == pytest.approx(value(family, bank, point), rel=1e-12)
    assert set(gradient) == set(deltas)
    assert [p.requires_grad for p in model.parameters()] == asked and all(
        p.grad is None for p in model.parameters()
    )
    for name in deltas:
        h = 1e-4
        ends = [value(family, bank, point | {name: point[name] + sign * h}) for sign in (1, -1)]
        assert gradient[name] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-8), (
            name
        )


def test_gradients_in_float32_are_near_those_in_float64(family: CausalLM, tmp_path: Path) -> None:
    folders = {
        name: tiny.perturbed(family.base.path, tmp_path / name, seed)
        for seed, name in enumerate("ab")
    }
    found = []
    for model in (family.load(), in_float64(family)):
        base = {name: p.detach().float() for name, p in params(model).items()}
        bank = Bank(
            model, {name: read_delta(family, base, path, WHERE) for name, path in folders.items()}
        )
        bank.set({"a": 0.3, "b": 0.4})
        found.append(bank.gradient(losses(family, model))[1])
    scored = family.load()
    bank = Bank(scored, bank.deltas)
    bank.set({"a": 0.3, "b": 0.4})
    found.append(bank.gradient(family.losses(scored, batch).sum() for batch in batches(family))[1])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[2] == pytest.approx(found[1], rel=1e-4)

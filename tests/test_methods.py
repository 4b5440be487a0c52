"""The laws of merging methods, stated over all, and each against a reference of ten lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergetomix import merge
from mergetomix.merge import METHODS, OPTIONS, Parts
from mergetomix.merge.sums import blocks
from mergetomix.merge.thinning import rank_probabilities
from mergetomix.records import Mixture

RANDOM = sorted(name for name, method in METHODS.items() if "seed" in method.options)
ON_PARAMS = ("slerp", "multislerp")
THROUGH_PRODUCTS = (*ON_PARAMS, "regmean")  # of whole params
BLOCK = next(blocks(torch.empty(2**25))).stop
WHOLE = {"density": 1.0, "epsilon": 0.0, "gamma": 0.0}  # nothing is thinned
SHAPES = [(6, 8), (7,), (4, 3, 2, 2), ()]

every = pytest.mark.parametrize("name", METHODS)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gram_of(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def made(
    name: str, shape: Sequence[int] = (6, 8), dtype: torch.dtype = torch.float32, num: int = 3
) -> Parts:
    """Random parts for a method, with uneven weights."""
    num = min(num, METHODS[name].max_experts or num)
    weights = [i + 1.0 for i in range(num)]
    statistics: list[Tensor] = []
    if METHODS[name].needs == "fisher":
        statistics = [draw(50 + i, *shape) ** 2 for i in range(num)]
    if METHODS[name].needs == "gram" and len(shape) == 2:
        statistics = [gram_of(draw(50 + i, 40, shape[1])) for i in range(num)]
    return Parts(
        param="layer.weight",
        base=draw(0, *shape).to(dtype),
        deltas=[0.3 * draw(1 + i, *shape) for i in range(num)],
        weights=[weight / sum(weights) for weight in weights],
        experts=[f"expert {i}" for i in range(num)],
        statistics=statistics,
    )


def options_of(name: str, **given: float) -> dict[str, float]:
    return {key: value for key, value in given.items() if key in METHODS[name].options}


def combine(name: str, parts: Parts, **given: float) -> Tensor:
    """The merge, with those of the given options that the method heeds."""
    return METHODS[name].combine(parts, **options_of(name, **given))


def picked(parts: Parts, places: Sequence[int], weights: Sequence[float] | None = None) -> Parts:
    """Some experts in another order."""
    return replace(
        parts,
        deltas=[parts.deltas[i] for i in places],
        weights=list(weights) if weights is not None else [parts.weights[i] for i in places],
        experts=[parts.experts[i] for i in places],
        statistics=[parts.statistics[i] for i in places] if parts.statistics else [],
    )


def close(found: Tensor, wanted: Tensor, size: float = 1e-6) -> None:
    torch.testing.assert_close(found, wanted, rtol=size, atol=size)


# --- the table


@every
def test_a_method_heeds_the_options_that_it_says(name: str) -> None:
    parts, first = made(name, (30, 8)), combine(name, made(name, (30, 8)))
    changed = {"density": 0.31, "epsilon": 0.55, "gamma": 0.2, "strength": 0.7, "offdiagonal": 0.2}
    for option in METHODS[name].options:
        other = combine(name, parts, **{option: changed.get(option, 5)})
        assert not torch.equal(first, other), option
    assert torch.equal(first, combine(name, parts, **METHODS[name].options))


def test_every_option_is_heeded_by_a_method() -> None:
    assert {option for method in METHODS.values() for option in method.options} == set(OPTIONS)


@settings(deadline=None, derandomize=True)
@given(
    shares=st.lists(st.floats(0.001, 1) | st.just(0.0), min_size=1, max_size=6).filter(any),
    exponent=st.floats(0, 2),
)
@example(shares=[0.999, 0.001, 0.0], exponent=0.75)
@example(shares=[1.0, 0.0, 0.0], exponent=0.0)
def test_coefficients_are_gain_times_weights_to_the_bit(
    shares: list[float], exponent: float
) -> None:
    weights = [share / math.fsum(shares) for share in shares]
    mixture = Mixture(tuple("abcdef"[: len(weights)]), tuple(weights))
    gain = merge.delta_factor(weights, exponent)
    active = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
    wanted = {name: gain * weight for name, weight in active.items()}
    assert merge.coefficients(mixture, exponent) == wanted
    num = 1 / sum(weight**2 for weight in weights)
    assert gain == pytest.approx(num ** (1 - exponent))
    assert merge.effective_number(weights) == pytest.approx(num)


# --- laws


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_merge_is_float32_of_the_bases_shape_and_leaves_its_arguments(
    name: str, shape: tuple[int, ...], dtype: Any
) -> None:
    parts = made(name, shape, dtype)
    tensors = [parts.base, *parts.deltas, *parts.statistics]
    before = [tensor.clone() for tensor in tensors]
    for options in ({}, WHOLE):
        merged = combine(name, parts, **options)
        assert (
            merged.dtype == torch.float32
            and merged.shape == parts.base.shape
            and merged.isfinite().all()
        )
        assert not merged.requires_grad and all(merged is not tensor for tensor in tensors)
    assert all(torch.equal(old, tensor) for old, tensor in zip(before, tensors, strict=True))


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_identical_experts_merge_to_themselves(name: str, shape: tuple[int, ...]) -> None:
    parts = made(name, shape)
    parts = replace(parts, deltas=[parts.deltas[0]] * len(parts.deltas))
    times = merge.effective_number(parts.weights) if name == "task_arithmetic" else 1
    close(combine(name, parts, **WHOLE), times * parts.deltas[0])


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_a_vertex_is_that_expert(name: str, shape: tuple[int, ...]) -> None:
    parts = made(name, shape)
    for place, delta in enumerate(parts.deltas):
        corner = picked(
            parts, range(len(parts.deltas)), [float(i == place) for i in range(len(parts.deltas))]
        )
        alone = picked(parts, [place], [1.0])
        close(combine(name, corner, **WHOLE), delta)
        close(combine(name, alone, **WHOLE), delta)
        close(combine(name, corner), combine(name, alone))


@every
def test_an_expert_without_weight_does_not_count(name: str) -> None:
    parts = made(name)
    places = range(len(parts.deltas))
    if len(places) > 2:
        with_it, without = picked(parts, places, [0.6, 0.4, 0.0]), picked(parts, [0, 1], [0.6, 0.4])
        close(combine(name, with_it), combine(name, without))


@every
def test_the_order_of_experts_does_not_matter(name: str) -> None:
    parts = made(name)
    merged = combine(name, parts, density=0.5)
    close(
        merged, combine(name, picked(parts, list(reversed(range(len(parts.deltas))))), density=0.5)
    )
    swapped = [1, 0, *range(2, len(parts.deltas))]
    other = picked(parts, swapped, parts.weights)
    assert not torch.allclose(
        merged, combine(name, other, density=0.5), atol=1e-4
    )  # whose weight it is does


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_that_learnt_nothing_merge_to_the_base(name: str, shape: tuple[int, ...]) -> None:
    parts = made(name, shape)
    parts = replace(parts, deltas=[torch.zeros(shape) for _ in parts.deltas])
    assert combine(name, parts).abs().max() < 1e-7
    blank = replace(
        parts,
        base=torch.zeros(shape),
        statistics=[torch.zeros_like(known) for known in parts.statistics],
    )
    assert not combine(name, blank).any()


@every
@pytest.mark.parametrize("factor", [2.0, 1e-4, -3.0])
def test_a_merge_scales_with_its_deltas(name: str, factor: float) -> None:
    """Those on the sphere scale with the params."""
    parts = made(name)
    larger = replace(parts, deltas=[factor * delta for delta in parts.deltas])
    if name in ON_PARAMS:
        larger = replace(larger, base=factor * parts.base)
    close(combine(name, larger) / factor, combine(name, parts))


@every
def test_the_base_counts_on_the_sphere_alone(name: str) -> None:
    parts = made(name)
    other = replace(parts, base=parts.base + 1)
    assert torch.equal(combine(name, parts), combine(name, other)) == (name not in ON_PARAMS)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RANDOM])
def test_a_transposed_param_merges_to_the_transposed(name: str) -> None:
    parts = made(name)
    turned = replace(
        parts,
        base=parts.base.T,
        deltas=[delta.T.contiguous() for delta in parts.deltas],
        transposed=True,
    )
    if METHODS[name].needs == "fisher":
        turned = replace(turned, statistics=[known.T for known in parts.statistics])
    close(combine(name, turned), combine(name, parts).T)


@every
def test_strength_is_a_factor(name: str) -> None:
    if "strength" in METHODS[name].options:
        close(
            combine(name, made(name), strength=0.4), 0.4 * combine(name, made(name), strength=1.0)
        )


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs])
def test_without_statistics_the_weighted_mean_is_taken(name: str) -> None:
    parts = made(name)
    close(combine(name, replace(parts, statistics=[])), combine("linear", parts))
    zeros = [torch.zeros_like(known) for known in parts.statistics]
    close(combine(name, replace(parts, statistics=zeros)), combine("linear", parts))


def test_task_arithmetic_is_the_sum_where_weights_are_equal() -> None:
    parts = replace(made("task_arithmetic"), weights=[1 / 3] * 3)
    close(combine("task_arithmetic", parts), sum(parts.deltas, torch.zeros(())))
    assert not METHODS["task_arithmetic"].scaled and all(
        m.scaled for n, m in METHODS.items() if n != "task_arithmetic"
    )


@pytest.mark.parametrize("shape", [(7,), (300, 1000)])
def test_sums_are_rounded_once(shape: tuple[int, ...]) -> None:
    """From left to right in float64, whatever processor: over one block of values and several."""
    parts = made("linear", shape)
    exact = torch.zeros(shape, dtype=torch.float64)
    naive = torch.zeros(shape)
    for weight, delta in zip(parts.weights, parts.deltas, strict=True):
        exact += weight * delta.double()
        naive += weight * delta
    assert torch.equal(combine("linear", parts), exact.float())
    if len(shape) > 1:
        assert (naive == exact.float()).double().mean() < 0.99


@pytest.mark.parametrize("name", [name for name in METHODS if name not in THROUGH_PRODUCTS])
def test_a_value_is_merged_alike_wherever_it_stands(name: str) -> None:
    """Vector instructions do not reach the ends of a block, and must not round otherwise."""
    parts = made(name, (BLOCK + 1001,))
    options = METHODS[name].options | options_of(name, **WHOLE)
    whole = METHODS[name].combine(parts, **options)
    for cut in (slice(3, None), slice(0, 999), slice(BLOCK - 1, BLOCK + 2)):
        some = replace(
            parts,
            base=parts.base[cut],
            deltas=[delta[cut] for delta in parts.deltas],
            statistics=[known[cut] for known in parts.statistics],
        )
        assert torch.equal(whole[cut], METHODS[name].combine(some, **options)), cut


# --- by chance


@pytest.mark.parametrize("name", RANDOM)
def test_a_draw_is_of_seed_expert_and_param_alone(name: str) -> None:
    parts = made(name)
    alone = picked(parts, [1], [1.0])
    drawn = combine(name, alone, seed=7)
    assert torch.equal(drawn, combine(name, alone, seed=7))
    assert torch.equal(drawn, combine(name, picked(parts, [2, 0, 1], [0.0, 0.0, 1.0]), seed=7))
    assert torch.equal(
        drawn != 0, combine(name, replace(alone, deltas=[2 * alone.deltas[0]]), seed=7) != 0
    )
    others = [
        combine(name, alone, seed=8),
        combine(name, replace(alone, experts=["another"]), seed=7),
        combine(name, replace(alone, param="layer.bias"), seed=7),
    ]
    assert all(not torch.equal(drawn, other) for other in others)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_draws_have_the_weighted_mean_for_their_mean(name: str) -> None:
    """Mean and variance over seeds, as the probabilities have them."""
    parts, num = made(name), 1000
    options = {"density": 0.4, "epsilon": 0.3}
    draws = torch.stack(
        [combine(name, parts, seed=seed, **options) for seed in range(num)]
    ).double()
    keeps = [
        rank_probabilities(d, 0.4, 0.3 if name == "della_linear" else 0.0, False).double()
        for d in parts.deltas
    ]
    variance = sum(
        (w * d.double()) ** 2 * (1 - keep) / keep
        for w, d, keep in zip(parts.weights, parts.deltas, keeps, strict=True)
    )
    z = (draws.mean(0) - combine("linear", parts).double()) / (variance / num).sqrt()
    assert z.abs().max() < 4.5 and 0.6 < z.std() < 1.4
    assert float((draws.var(0) / variance).mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", RANDOM)
def test_the_share_that_is_kept_is_the_density(name: str) -> None:
    alone = picked(made(name, (100, 100)), [0], [1.0])
    kept = float((combine(name, alone, density=0.3, epsilon=0.4) != 0).float().mean())
    assert kept == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.2), (0.95, 0.2), (1.0, 0.1)])
def test_probabilities_that_are_none_are_refused(density: float, epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        combine("della", made("della"), density=density, epsilon=epsilon)


@pytest.mark.parametrize("shape", [(5, 9), (9,), (3, 2, 2), (), (4, 1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_magprunes_probabilities_rise_with_the_rank_in_a_row(
    shape: tuple[int, ...], transposed: bool
) -> None:
    delta = draw(3, *shape)
    found = rank_probabilities(
        delta.T if transposed and len(shape) == 2 else delta,
        0.6,
        0.2,
        transposed and len(shape) == 2,
    )
    found = found.T if transposed and len(shape) == 2 else found
    rows = delta.reshape(shape[0] if len(shape) > 1 else 1, -1)
    wanted = torch.empty_like(rows)
    for row, place in zip(rows, wanted, strict=True):
        for rank, column in enumerate(sorted(range(len(row)), key=lambda i: abs(float(row[i])))):
            place[column] = 0.5 + 0.2 * rank / (len(row) - 1) if len(row) > 1 else 0.6
    close(found, wanted.reshape(shape))
    assert float(found.mean()) == pytest.approx(0.6)


# --- references


def largest_reference(delta: Any, density: float, gamma: float = 0.0) -> Any:
    order = np.argsort(np.abs(delta).ravel())
    num_top, num_kept = int(gamma * delta.size), int(density * delta.size)
    stop = len(order) - num_top
    mask = np.zeros(delta.size, bool)
    mask[order[stop - num_kept : stop]] = True
    return np.where(mask.reshape(delta.shape), delta, 0)


def elected_reference(thinned: Sequence[Any], weights: Sequence[float]) -> Any:
    out = np.zeros(thinned[0].shape)
    for place in np.ndindex(out.shape):
        values = [delta[place] for delta in thinned]
        sign = np.sign(sum(w * v for w, v in zip(weights, values, strict=True)))
        agreeing = [(w, v) for w, v in zip(weights, values, strict=True) if v * sign > 0]
        if agreeing:
            out[place] = sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing)
    return out


@pytest.mark.parametrize("density", [0.25, 0.5, 0.75])
def test_ties_is_trim_elect_and_merge(density: float) -> None:
    parts = made("ties")
    thinned = [largest_reference(delta.double().numpy(), density) for delta in parts.deltas]
    wanted = elected_reference(thinned, parts.weights)
    close(combine("ties", parts, density=density), torch.tensor(wanted).float())


def test_ties_of_two_experts_that_cancel_elects_no_sign() -> None:
    delta = torch.tensor([1.0, -2.0, 3.0])
    parts = replace(made("ties", (3,), num=2), deltas=[delta, -delta], weights=[0.5, 0.5])
    assert combine("ties", parts, density=1.0).tolist() == [0.0, 0.0, 0.0]


def test_equal_magnitudes_are_kept_together() -> None:
    delta = torch.tensor([1.0, -1.0, 1.0, 0.5, 0.0])
    parts = Parts("p", torch.zeros(5), [delta], [1.0], ["a"], [])
    assert combine("ties", parts, density=0.2).tolist() == [1.0, -1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.125), (0.25, 0.0), (0.125, 0.25)])
def test_breadcrumbs_leave_out_the_largest_and_the_small(
    name: str, density: float, gamma: float
) -> None:
    parts = made(name)
    thinned = [largest_reference(delta.double().numpy(), density, gamma) for delta in parts.deltas]
    mean = sum(weight * delta for weight, delta in zip(parts.weights, thinned, strict=True))
    wanted = mean if name == "breadcrumbs" else elected_reference(thinned, parts.weights)
    close(combine(name, parts, density=density, gamma=gamma), torch.tensor(wanted).float())


def slerp_reference(one: Any, other: Any, share: float) -> Any:
    cosine = (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
    angle = math.acos(cosine)
    return (math.sin((1 - share) * angle) * one + math.sin(share * angle) * other) / math.sin(angle)


def test_slerp_is_shoemakes() -> None:
    parts = made("slerp")
    base, one, other = (tensor.double().numpy() for tensor in (parts.base, *parts.deltas))
    wanted = slerp_reference(base + one, base + other, parts.weights[1]) - base
    close(combine("slerp", parts), torch.tensor(wanted).float())
    assert not torch.allclose(combine("slerp", parts), combine("linear", parts), atol=1e-3)


def test_slerp_takes_two_experts() -> None:
    parts = picked(made("linear"), [0, 1, 2])
    with pytest.raises(ValueError, match="merges two experts, not 3"):
        combine("slerp", parts)


def test_on_the_sphere_the_length_stays() -> None:
    one, other = (tensor / tensor.norm() for tensor in (draw(1, 50), draw(2, 50)))
    parts = Parts("p", torch.zeros(50), [one, other], [0.3, 0.7], ["a", "b"], [])
    for name in ON_PARAMS:
        merged = combine(name, parts)
        assert float(merged.norm()) == pytest.approx(1)
        angle = math.acos(float(one @ other))
        assert math.acos(float(one @ merged)) == pytest.approx(0.7 * angle, abs=1e-5)


def test_multislerp_is_the_mean_on_the_sphere() -> None:
    """At the mean the weighted logarithms cancel; its length is the mean of the lengths."""
    parts = made("multislerp")
    params = [(parts.base + delta).double().flatten() for delta in parts.deltas]
    merged = (parts.base + combine("multislerp", parts)).double().flatten()
    lengths = [float(p.norm()) for p in params]
    assert float(merged.norm()) == pytest.approx(
        sum(w * n for w, n in zip(parts.weights, lengths, strict=True))
    )
    mean, pull = merged / merged.norm(), torch.zeros_like(merged)
    for weight, p, length in zip(parts.weights, params, lengths, strict=True):
        cosine = p @ mean / length
        pull += weight * torch.acos(cosine) * (p / length - cosine * mean) / (1 - cosine**2).sqrt()
    assert pull.norm() < 1e-6
    start = combine("linear", parts).double().flatten() + parts.base.double().flatten()
    assert (start / start.norm() - mean).norm() > 1e-3


@pytest.mark.parametrize("name", ON_PARAMS)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([1.0, 2.0], [1.0, 2.0 + 1e-6]),
    ],
    ids=["parallel", "opposite", "zero", "zeros", "nearly parallel"],
)
def test_without_an_arc_the_line_is_taken(name: str, one: list[float], other: list[float]) -> None:
    for base in (torch.zeros(2), torch.tensor([0.5, -0.25])):
        deltas = [torch.tensor(values) - base for values in (one, other)]
        parts = Parts("p", base, deltas, [0.5, 0.5], ["a", "b"], [])
        close(combine(name, parts), combine("linear", parts))


def test_small_deltas_on_a_large_base_keep_their_digits() -> None:
    deltas = [1e-5 * draw(i, 1000) for i in (1, 2)]
    parts = Parts("p", draw(0, 1000), deltas, [0.25, 0.75], ["a", "b"], [])
    for name in ON_PARAMS:
        found, line = combine(name, parts), combine("linear", parts)
        assert (found - line).norm() < 1e-4 * line.norm()


def test_fisher_is_a_mean_weighted_by_information() -> None:
    parts = made("fisher")
    known, deltas = (
        [t.double().numpy() for t in tensors] for tensors in (parts.statistics, parts.deltas)
    )
    wanted = np.zeros(parts.base.shape)
    for place in np.ndindex(wanted.shape):
        pulls = [weight * f[place] for weight, f in zip(parts.weights, known, strict=True)]
        wanted[place] = sum(p * d[place] for p, d in zip(pulls, deltas, strict=True)) / sum(pulls)
    close(combine("fisher", parts), torch.tensor(wanted).float())


def test_fisher_takes_the_only_expert_that_knows_and_the_mean_where_none_does() -> None:
    known = [torch.tensor([1e-30, 0.0, 0.0]), torch.tensor([0.0, 1e-38, 0.0])]
    parts = Parts(
        "p",
        torch.zeros(3),
        [torch.tensor([1.0] * 3), torch.tensor([5.0] * 3)],
        [0.5, 0.5],
        ["a", "b"],
        known,
    )
    assert combine("fisher", parts).tolist() == [1.0, 5.0, 3.0]


def least_squares(num_inputs: int, num_rows: int, transposed: bool) -> tuple[Parts, Any, Any]:
    """Parts of linear layers with exact Grams, and the inputs and outputs of their problem."""
    weights, inputs = (
        [0.2, 0.3, 0.5],
        [draw(9 + i, num_rows, num_inputs).double() for i in range(3)],
    )
    deltas = [draw(1 + i, 4, num_inputs) for i in range(3)]
    rows = torch.cat([math.sqrt(w / num_rows) * x for w, x in zip(weights, inputs, strict=True)])
    outputs = torch.cat(
        [
            math.sqrt(w / num_rows) * x @ d.double().T
            for w, x, d in zip(weights, inputs, deltas, strict=True)
        ]
    )
    shaped = [delta.T.contiguous() if transposed else delta for delta in deltas]
    grams = [gram_of(x).float() for x in inputs]
    return (
        Parts("p", torch.zeros_like(shaped[0]), shaped, weights, list("abc"), grams, transposed),
        rows,
        outputs,
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_regmean_solves_the_least_squares_problem(transposed: bool) -> None:
    parts, rows, outputs = least_squares(num_inputs=8, num_rows=30, transposed=transposed)
    wanted = torch.linalg.lstsq(rows, outputs).solution.float()
    found = combine("regmean", parts, offdiagonal=1.0)
    close(found if transposed else found.T, wanted, 1e-5)
    assert not torch.allclose(found, combine("linear", parts), atol=1e-2)


def test_regmean_with_fewer_rows_than_inputs_fits_them_all() -> None:
    parts, rows, outputs = least_squares(num_inputs=20, num_rows=4, transposed=True)
    found = combine("regmean", parts, offdiagonal=1.0).double()
    assert found.isfinite().all()
    best = torch.linalg.lstsq(rows, outputs, driver="gelsd").solution
    assert (rows @ found - outputs).norm() < (rows @ best - outputs).norm() + 1e-3 * outputs.norm()


def test_regmean_damps_what_is_off_the_diagonal() -> None:
    parts = made("regmean")
    grams = [0.9 * gram + 0.1 * gram.diag().diag() for gram in parts.statistics]
    left = sum(w * gram for w, gram in zip(parts.weights, grams, strict=True))
    right = sum(
        w * gram @ d.T for w, gram, d in zip(parts.weights, grams, parts.deltas, strict=True)
    )
    close(combine("regmean", parts).T, torch.linalg.solve(left, right), 1e-5)


def test_regmean_keeps_the_mean_of_inputs_that_no_data_has() -> None:
    parts = made("regmean")
    dead = [gram.clone() for gram in parts.statistics]
    for gram in dead:
        gram[2], gram[:, 2] = 0, 0
    found, mean = combine("regmean", replace(parts, statistics=dead)), combine("linear", parts)
    close(found[:, 2], mean[:, 2])
    assert not torch.allclose(found[:, 3], mean[:, 3], atol=1e-3)


def test_what_is_no_gram_matrix_is_refused() -> None:
    parts = made("regmean")
    with pytest.raises(ValueError, match="positive semidefinite"):
        combine("regmean", replace(parts, statistics=[-gram - 9 for gram in parts.statistics]))

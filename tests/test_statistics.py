"""Statistics of an expert against plain references on tiny real models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_images
import torch
from torch import Tensor

from mergetomix.experts import fisher_and_gram
from mergetomix.experts.deltas import params
from mergetomix.experts.fisher_and_gram import STATISTICS, Statistic, fisher, gram, spread
from mergetomix.merge import METHODS, Parts

BaseOf = Callable[[str], str]
ROWS = [
    ("a cat", " sat on the mat"),
    ("one plus two", " is three"),
    ("x", " y"),
    ("the dog sat on", " a log and on a mat"),
]
every = pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS)
kinds = pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt2-untied"])


def opened(path: str) -> tuple[Any, Any, Sequence[Any]]:
    """A family, its base and sequences of several lengths."""
    family = tiny.open_base(path)
    sequences = family.encode(tiny.pairs(*ROWS), "datasets.a").sequences
    assert len({len(sequence.ids) for sequence in sequences}) > 2
    return family, family.load(), sequences


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], rtol=1e-4, atol=1e-6 * float(tensor.abs().max()), msg=name
        )


@kinds
def test_fisher_is_the_mean_of_squared_gradients(base: BaseOf, kind: str) -> None:
    family, model, sequences = opened(base(kind))
    found = fisher(family, model, sequences)
    wanted: dict[str, Tensor] = {}
    for sequence in sequences:
        model.zero_grad()
        logps = model(torch.tensor([list(sequence.ids)])).logits[0].log_softmax(-1)
        scored = [t for t in range(1, len(sequence.ids)) if sequence.labels[t] != -100]
        (-sum(logps[t - 1, sequence.ids[t]] for t in scored)).backward()
        for name, param in model.named_parameters():
            assert param.grad is not None
            wanted[name] = wanted.get(name, torch.zeros(())) + param.grad**2 / len(sequences)
    same(found, wanted)
    assert set(found) == set(params(model))
    assert all(
        tensor.dtype == torch.float32 and tensor.shape == params(model)[n].shape
        for n, tensor in found.items()
    )


@kinds
def test_gram_is_of_what_a_layer_reads(base: BaseOf, kind: str) -> None:
    """The first attention's input is the normed embedding, an untied head's the last state."""
    family, model, sequences = opened(base(kind))
    found = gram(family, model, sequences)
    body = model.base_model
    first, norm = ("model.layers.0.self_attn.q_proj", "layers.0.input_layernorm")
    if kind != "llama":
        first, norm = "transformer.h.0.attn.c_attn", "h.0.ln_1"
    attention, head = [], []
    with torch.no_grad():
        for sequence in sequences:
            states = body(
                torch.tensor([list(sequence.ids)]), output_hidden_states=True
            ).hidden_states
            attention.append(body.get_submodule(norm)(states[0])[0])
            head.append(states[-1][0])
    for name, rows in (
        (f"{first}.weight", torch.cat(attention)),
        ("lm_head.weight", torch.cat(head)),
    ):
        if name in found:
            torch.testing.assert_close(found[name], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    assert f"{first}.weight" in found and ("lm_head.weight" in found) == (kind == "gpt2-untied")


@kinds
def test_every_linear_layer_has_a_gram_and_nothing_else_has(base: BaseOf, kind: str) -> None:
    family, model, sequences = opened(base(kind))
    found = gram(family, model, sequences)
    matrices = {name for name, param in params(model).items() if param.ndim == 2}
    embeddings = {name for name in matrices if "embed" in name or "wte" in name or "wpe" in name}
    assert set(found) == matrices - embeddings
    for name, matrix in found.items():
        shape = params(model)[name].shape
        num_inputs = shape[0] if name in family.transposed else shape[1]
        assert matrix.shape == (num_inputs, num_inputs) and matrix.dtype == torch.float32
        assert (
            torch.equal(matrix, matrix.T)
            and torch.linalg.eigvalsh(matrix).min() > -1e-4 * matrix.diagonal().max()
        )


@every
def test_order_does_not_matter_and_sequences_do(base: BaseOf, statistic: Statistic) -> None:
    family, model, sequences = opened(base("llama"))
    one = statistic(family, model, sequences)
    same(one, statistic(family, model, [*reversed(sequences), *sequences]))
    name, other = "model.layers.0.mlp.up_proj.weight", statistic(family, model, sequences[:1])
    assert not torch.allclose(one[name], other[name], rtol=0.01)


@every
def test_no_more_sequences_are_read_than_the_limit(
    base: BaseOf, statistic: Statistic, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model, sequences = opened(base("llama"))
    wanted = statistic(family, model, [sequences[0], sequences[2]])
    monkeypatch.setattr(fisher_and_gram, "MAX_SEQUENCES", 2)
    same(statistic(family, model, sequences), wanted)


def test_sequences_are_taken_evenly() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 10) == [0, 1, 2]
    assert len(set(spread(range(1000), 256))) == 256


@every
def test_a_model_is_left_as_it_was(base: BaseOf, statistic: Statistic) -> None:
    family, model, sequences = opened(base("llama"))
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    statistic(family, model, sequences)
    assert all(
        torch.equal(param, before[name]) and param.grad is None
        for name, param in model.named_parameters()
    )
    assert not any(module._forward_pre_hooks for module in model.modules())


@every
def test_hooks_go_where_a_batch_fails(base: BaseOf, statistic: Statistic) -> None:
    family, model, sequences = opened(base("llama"))
    model.lm_head = torch.nn.Linear(5, 5)
    with pytest.raises(RuntimeError):
        statistic(family, model, sequences)
    assert not any(module._forward_pre_hooks for module in model.modules())


@every
@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_images_have_statistics_of_what_is_trained(
    tmp_path: Path, kind: str, statistic: Statistic
) -> None:
    family = tiny_images.open_base(tiny_images.BASES[kind](tmp_path))
    sequences = tiny_images.encoded(family, 5)
    model = family.load()
    found = statistic(family, model, sequences)
    same(found, statistic(family, model, [*reversed(sequences), *sequences]))
    trained = {name for name in params(model) if family.is_trained(name)}
    assert set(found) <= trained and any("mlp" in name for name in found)
    assert all(
        tensor.isfinite().all() and tensor.any()
        for name, tensor in found.items()
        if "k_proj.bias" not in name
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_regmean_and_fisher_take_their_statistics(base: BaseOf, kind: str) -> None:
    """A merge by real statistics lies nearer, in what layers put out, than the mean does."""
    family, model, sequences = opened(base(kind))
    for name, method in METHODS.items():
        if method.needs is None:
            continue
        known = [
            STATISTICS[method.needs](family, model, part) for part in (sequences[:2], sequences[2:])
        ]
        for param, value in params(model).items():
            deltas = [
                0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(i))
                for i in (1, 2)
            ]
            given = [each[param] for each in known] if param in known[0] else []
            turned = param in family.transposed
            merged = method.combine(
                Parts(param, value.detach(), deltas, [0.5, 0.5], ["a", "b"], given, turned)
            )
            mean = (deltas[0] + deltas[1]) / 2
            assert merged.isfinite().all() and (bool(given) != torch.allclose(merged, mean)), (
                name,
                param,
            )
            if name == "regmean" and given:
                assert distance(merged, deltas, given, turned) < distance(
                    mean, deltas, given, turned
                )


def distance(
    merged: Tensor, deltas: Sequence[Tensor], grams: Sequence[Tensor], transposed: bool
) -> float:
    """sum_i |X_i (d - d_i)|^2 / n_i."""
    gaps = [merged - delta if transposed else (merged - delta).T for delta in deltas]
    return float(sum((gap * (matrix @ gap)).sum() for gap, matrix in zip(gaps, grams, strict=True)))

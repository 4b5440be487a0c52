"""What an expert's own training data says of its params: the diagonal of the Fisher information, and layers' Gram matrices.

The methods `fisher` and `regmean` of `mergetomix.merge` weigh experts by them. The model is the expert under the base's names
(a bank at that vertex, not a model that PEFT has wrapped), in evaluation mode; it is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from mergetomix.models.family import Family

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_SEQUENCES = 256


class Statistic(Protocol):
    """A statistic of an expert, one tensor for each param that has it."""

    def __call__(
        self,
        family: Family,
        model: Any,
        sequences: Sequence[Any],
        batch_tokens: int,
        max_sequences: int = MAX_SEQUENCES,
    ) -> dict[str, Tensor]:
        """The statistic over at most `max_sequences` sequences."""
        ...


def fisher(
    family: Family,
    model: Any,
    sequences: Sequence[Any],
    batch_tokens: int,
    max_sequences: int = MAX_SEQUENCES,
) -> dict[str, Tensor]:
    """F = mean over sequences of (d NLL / d param)^2: the diagonal of the empirical Fisher information, at the labels that the
    data has (arXiv 2111.09832, section 3, where labels are drawn from the model).

    Args:
        model: the expert; params without gradients, and those that no loss depends on, have no entry.
        sequences: its training data, encoded; not empty.
        batch_tokens: not heeded, as the square of each sequence's own gradient is needed: one backward pass a sequence.
        max_sequences: how many sequences are taken, evenly spaced over all.

    Returns:
        For each param a float32 tensor of its shape, in squared nats a squared unit of the param.
    """
    import torch

    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    chosen = spread(sequences, max_sequences)
    found: dict[str, Tensor] = {}
    for sequence in chosen:
        (batch,) = family.batches([sequence], 1)
        with torch.enable_grad():
            loss = family.losses(model, batch).sum()
            gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        for name, gradient in zip(params, gradients, strict=True):
            if gradient is not None:
                square = (
                    gradient.float().square()
                )  # not in place: two params may share one tensor of gradients
                found[name] = found[name].add_(square) if name in found else square
    return {name: total.div_(len(chosen)) for name, total in found.items()}


def gram(
    family: Family,
    model: Any,
    sequences: Sequence[Any],
    batch_tokens: int,
    max_sequences: int = MAX_SEQUENCES,
) -> dict[str, Tensor]:
    """G = X^T X / n of the n inputs of a linear layer, one for each token (or image) that it reads (arXiv 2212.09849).

    Args:
        model: the expert.
        sequences: its training data, encoded; not empty.
        batch_tokens: the most tokens of a batch. Only sequences of one length share one, so that no input is padding.
        max_sequences: how many sequences are taken, evenly spaced over all.

    Returns:
        For the weight of each `nn.Linear` and each `Conv1D` of transformers that was called and is no other layer's weight
        too, float32 of the shape (in, in): 4 in^2 bytes. A weight that also embeds tokens has none: it serves two ends.
    """
    import torch

    by_length: dict[int, list[Any]] = {}
    for sequence in spread(sequences, max_sequences):
        by_length.setdefault(sequence.num_tokens, []).append(sequence)
    with _inputs_summed(_linear_layers(model)) as (sums, counts), torch.inference_mode():
        for group in by_length.values():
            for batch in family.batches(group, batch_tokens):
                family.losses(model, batch)
    return {name: total / counts[name] for name, total in sums.items()}


STATISTICS: Mapping[str, Statistic] = {"fisher": fisher, "gram": gram}
"""The statistics by the names that `merge.Method.needs` calls them."""


def spread(sequences: Sequence[Any], most: int) -> list[Any]:
    """At most `most` sequences, evenly spaced and in order, as data that is sorted would else be seen in part."""
    num = min(most, len(sequences))
    return [sequences[i * len(sequences) // num] for i in range(num)]


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers by the names of their weights, those whose weight another layer has too left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = {
        f"{name}.weight": each
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear | Conv1D)
    }
    owners: dict[int, int] = {}
    for _, param in model.named_parameters(remove_duplicate=False):
        owners[id(param)] = owners.get(id(param), 0) + 1
    return {name: each for name, each in layers.items() if owners.get(id(each.weight)) == 1}


@contextmanager
def _inputs_summed(
    layers: Mapping[str, nn.Module],
) -> Iterator[tuple[dict[str, Tensor], dict[str, int]]]:
    """X^T X and the number of rows of X over everything that each layer reads until the end, by name."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(layer: nn.Module, given: tuple[Any, ...]) -> None:
            inputs_ND = given[0].detach().flatten(end_dim=-2).float()
            product_DD = inputs_ND.T @ inputs_ND
            sums[name] = sums[name] + product_DD if name in sums else product_DD
            counts[name] = counts.get(name, 0) + len(inputs_ND)

        return add

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield sums, counts
    finally:
        for each in hooks:
            each.remove()

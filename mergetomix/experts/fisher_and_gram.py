"""What an expert's own training data says of its params: Fisher information and Gram matrices.

The methods `fisher` and `regmean` of `mergetomix.merge` weigh experts by them. The model is the
expert under the base's names (a bank at that vertex, not a model that PEFT has wrapped), in
evaluation mode; it is left as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mergetomix.models.family import TakesLosses

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_SEQUENCES = 256
"""How many sequences of an expert's data are taken at most."""

Statistic = Callable[[TakesLosses, Any, Sequence[Any]], "dict[str, Tensor]"]
"""From a family, the expert's model and its training data, encoded and not empty, to one tensor
for each param that has the statistic. Up to MAX_SEQUENCES of its sequences are read, one at a time:
no input is padding."""


def fisher(family: TakesLosses, model: Any, sequences: Sequence[Any]) -> dict[str, Tensor]:
    """Returns F = mean over sequences of (d NLL / d param)^2.

    It is the diagonal of the empirical Fisher information, at the labels that the data has
    (arXiv 2111.09832, section 3, where labels are drawn from the model).

    Returns:
        For each param a float32 tensor of its shape, in squared nats a squared unit of the param.
        Params without gradients, and those that no loss depends on, have none.
    """
    import torch

    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    found: dict[str, Tensor] = {}
    chosen = spread(sequences)
    for batch in family.batches(chosen, 1):
        with torch.enable_grad():
            loss = family.losses(model, batch).sum()
            gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        for name, gradient in zip(params, gradients, strict=True):
            if gradient is not None:
                # not in place: two params may share one tensor of gradients
                square = gradient.float().square()
                found[name] = found[name].add_(square) if name in found else square
    return {name: total.div_(len(chosen)) for name, total in found.items()}


def gram(family: TakesLosses, model: Any, sequences: Sequence[Any]) -> dict[str, Tensor]:
    """Returns G = X^T X / n of the n inputs of a linear layer (arXiv 2212.09849).

    There is one input for each token (or image) that the layer reads.

    Returns:
        For the weight of each `nn.Linear` and each `Conv1D` of transformers that was called and is
        no other layer's weight too, float32 of the shape (in, in): 4 in^2 bytes. A weight that also
        embeds tokens has none: it serves two ends.
    """
    import torch

    with _inputs_summed(_linear_layers(model)) as (sums, counts), torch.inference_mode():
        for batch in family.batches(spread(sequences), 1):
            family.losses(model, batch)
    return {name: total / counts[name] for name, total in sums.items()}


STATISTICS: Mapping[str, Statistic] = {"fisher": fisher, "gram": gram}
"""The statistics by the names that `merge.Method.needs` calls them."""


def spread(sequences: Sequence[Any], most: int | None = None) -> list[Any]:
    """Returns at most `most` (None: MAX_SEQUENCES) sequences, evenly spaced and in order.

    Data that is sorted would else be seen in part.

    >>> spread(range(10), 3)
    [0, 3, 6]
    """
    num = min(MAX_SEQUENCES if most is None else most, len(sequences))
    return [sequences[i * len(sequences) // num] for i in range(num)]


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns linear layers by the names of their weights, but for weights that others have too."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    owners = Counter(id(param) for _, param in model.named_parameters(remove_duplicate=False))
    return {
        f"{name}.weight": each
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear | Conv1D) and owners[id(each.weight)] == 1
    }


@contextmanager
def _inputs_summed(
    layers: Mapping[str, nn.Module],
) -> Iterator[tuple[dict[str, Tensor], Counter[str]]]:
    """Gives X^T X and the number of rows of X over everything that each layer reads, by name."""
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(layer: nn.Module, given: tuple[Any, ...]) -> None:
            inputs_ND = given[0].detach().flatten(end_dim=-2).float()
            product_DD = inputs_ND.T @ inputs_ND
            sums[name] = sums[name] + product_DD if name in sums else product_DD
            counts[name] += len(inputs_ND)

        return add

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield sums, counts
    finally:
        for each in hooks:
            each.remove()

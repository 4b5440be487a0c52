"""A small configuration of the same kind, for trying out what a large base would have to bear."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

SMALL = 2**28
"""Bytes of a base in float32 up to which it is small as it is: 256 MiB."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""How configurations call their number of layers."""
MOST_LAYERS = 16
"""A small model has no more layers."""


def torch_meta() -> AbstractContextManager[Any]:
    """Returns the context in which modules are made without weights."""
    import torch

    return torch.device("meta")


def plain_linears(model: Any) -> dict[str, Any]:
    """Returns the linear layers of a model by name, without the head.

    A layer whose forward is its own, such as a router that gives several things, is none.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    plain = {nn.Linear.forward, Conv1D.forward}
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and type(module).forward in plain
    }


def shortened(config: Any, build: Callable[[Any], Any]) -> Any:
    """Returns a configuration with the first layers alone, until each kind of param is there.

    What is listed for each layer is cut with them. None if that makes no model, or none that is
    smaller.

    Args:
        build: makes a model without weights of a configuration.
    """
    whole = config.to_dict()
    every = kinds(build(config))
    for num in range(2, MOST_LAYERS + 1):
        try:
            cut = _cut(whole, num)
            found = type(config).from_dict(cut)
            if cut == whole:
                return None
            if kinds(build(found)) == every:
                return found
        except Exception:  # noqa: BLE001, S112  # a configuration may check itself in any way
            continue
    return None


def kinds(model: Any) -> set[tuple[str, int]]:
    """Returns the names of a model's params without the numbers of layers, and their dimensions."""
    named = model.named_parameters()
    return {(re.sub(r"\.\d+\.", ".*.", name), param.dim()) for name, param in named}


def _cut(section: dict[str, Any], most: int) -> dict[str, Any]:
    """Returns a section of a configuration, and those within it, with at most so many layers.

    >>> _cut({"n_layer": 4, "layer_types": ["a", "a", "b", "a"], "width": 8, "at": {3: 1, 0: 2}}, 2)
    {'n_layer': 2, 'layer_types': ['a', 'a'], 'width': 8, 'at': {0: 2}}
    """
    whole: dict[str, Any] = {
        key: _cut(each, most) if isinstance(each, dict) else each for key, each in section.items()
    }
    key = next((key for key in LAYERS if isinstance(whole.get(key), int)), None)
    if key is None:
        return whole
    num, kept = whole[key], min(whole[key], most)
    found = {key: kept}
    for name, each in whole.items():
        if isinstance(each, list | tuple) and len(each) == num:
            found[name] = each[:kept]
        elif isinstance(each, dict) and each and all(str(place).isdigit() for place in each):
            found[name] = {place: value for place, value in each.items() if int(place) < kept}
        elif name != key:
            found[name] = each
    return {name: found[name] for name in whole}

"""A small configuration of the same kind, for trying out what a large base would have to bear."""

from __future__ import annotations

from typing import Any

SMALL = 2**28
"""Bytes of a base in float32 up to which it is small as it is: 256 MiB."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""How configurations call their number of layers."""


def shortened(config: Any) -> Any:
    """Returns a configuration with the first layers alone, one of each kind and two at least.

    What is listed for each layer is cut with them. None if that makes no configuration.
    """
    try:
        return type(config).from_dict(_cut(config.to_dict()))
    except Exception:  # noqa: BLE001  # a configuration may check itself in any way
        return None


def _cut(section: dict[str, Any]) -> dict[str, Any]:
    """Returns a section of a configuration, and those within it, with fewer layers.

    >>> _cut({"n_layer": 4, "layer_types": ["a", "a", "b", "a"], "width": 8})
    {'n_layer': 3, 'layer_types': ['a', 'a', 'b'], 'width': 8}
    """
    whole: dict[str, Any] = {
        key: _cut(each) if isinstance(each, dict) else each for key, each in section.items()
    }
    key = next((key for key in LAYERS if isinstance(whole.get(key), int)), None)
    if key is None:
        return whole
    num, kinds = whole[key], whole.get("layer_types") or ()
    kept = min(num, max([2, *(kinds.index(kind) + 1 for kind in kinds)]))
    return {
        name: each[:kept] if isinstance(each, list | tuple) and len(each) == num else each
        for name, each in {**whole, key: kept}.items()
    }

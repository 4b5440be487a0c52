"""What to do when a device's memory is too small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mergetomix.errors import Fault


@contextmanager
def enough_memory(what: str, hint: str) -> Iterator[None]:
    """Raises Fault where the device's memory is too small for something."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise Fault(f"{what} needs more memory than the device has: {reason}", hint=hint) from None


def free_memory() -> None:
    """Gives back what models that are no longer used still hold."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

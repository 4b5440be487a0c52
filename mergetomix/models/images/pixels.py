"""Pictures as the model reads them: decoded, through its own image processor, kept in memory as far as that goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.data.image import Picture
from mergetomix.errors import Fault, ModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Pixels:
    """Pictures to tensors of shape (colours, height, width), float32.

    Args:
        processor: gives the model's image processor; asked once.
        num_channels: 3, or 1 for grey.
        memory_gib: what may be kept in memory.
    """

    def __init__(self, processor: Callable[[], Any], num_channels: int, memory_gib: float) -> None:
        self._processor = processor
        self.mode = "L" if num_channels == 1 else "RGB"
        self.room_bytes = int(memory_gib * 2**30)
        self._kept: dict[str, Tensor] = {}

    def get(self, picture: Picture) -> Tensor:
        """One picture's pixels."""
        known = self._kept.get(picture.digest)
        if known is not None:
            return known
        try:
            made = self.processed(picture.open(), picture.name)
        except ValueError as error:
            raise Fault(f"{picture.name} could be read before and cannot be now: {error}") from None
        size = made.numel() * made.element_size()
        if size <= self.room_bytes:
            self.room_bytes -= size
            self._kept[picture.digest] = made
        return made

    def holds(self, pictures: Sequence[Picture]) -> bool:
        """Whether all of them are kept, after taking in as many as there is room for."""
        for picture in pictures:
            if picture.digest not in self._kept:
                size = self.get(picture).numel() * 4
                if picture.digest not in self._kept and size > self.room_bytes:
                    return False
        return True

    def keep_no_more(self) -> None:
        """Leaves what is kept and takes in nothing else: worker processes would each keep their own."""
        self.room_bytes = 0

    def stacked(self, pictures: Sequence[Picture]) -> Tensor:
        """Shape (pictures, colours, height, width)."""
        import torch

        return torch.stack([self.get(picture) for picture in pictures])

    def processed(self, image: Image, name: str) -> Tensor:
        """What the processor makes of an image. Raises ModelError where it cannot take it."""
        import numpy as np
        import torch

        array = np.asarray(image.convert(self.mode))
        if array.ndim == 2:
            array = array[:, :, None]
        try:
            made = self._processor()(
                images=[array], input_data_format="channels_last", return_tensors="np"
            )["pixel_values"][0]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                "base.path", f"the image processor cannot take {name}: {reason}"
            ) from None
        return torch.from_numpy(np.ascontiguousarray(made, dtype=np.float32))

"""Pictures as the model reads them: through its own image processor, of the shape that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergetomix.data.examples import Examples
from mergetomix.data.image import Picture
from mergetomix.errors import DataError, Fault, ModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PLAIN_PATCH = (16, 16)
"""Pixels that count as one token if a model makes no patches."""


@dataclass(frozen=True)
class EncodedImage:
    """One image, its class as a place among its head's classes, and the key of that head."""

    picture: Picture
    label: int
    head: str
    example: int
    num_tokens: int

    @property
    def num_scored(self) -> int:
        """An image has one class."""
        return 1

    def fingerprint(self) -> bytes:
        """Returns pixels, class, head, and the example that they are of."""
        return repr((self.picture.digest, self.label, self.head, self.example)).encode()


class Pixels:
    """Pictures as tensors of shape (colours, height, width), float32, kept in memory if they fit.

    `side` is (height, width) of what the model reads, None if it reads any; `patch` is that of a
    patch, None if it makes none.

    Args:
        processor: gives the model's image processor.
        config: of what reads images.
        memory_gib: what may be kept in memory.
        reads: whether the model reads images of a shape, other than its configuration says.
    """

    def __init__(
        self,
        processor: Callable[[], Any],
        config: Any,
        memory_gib: float,
        reads: Callable[[tuple[int, ...]], bool] = lambda _: False,
    ) -> None:
        self._processor, self._reads = processor, reads
        self.num_channels = int(getattr(config, "num_channels", 3))
        self.side = _pair(getattr(config, "image_size", None))
        self.patch = _pair(getattr(config, "patch_size", None))
        self.room_bytes = int(memory_gib * 2**30)
        self._kept: dict[str, Tensor] = {}
        self._sizes: dict[tuple[int, int], tuple[int, ...]] = {}

    def get(self, picture: Picture) -> Tensor:
        """Returns one picture's pixels."""
        known = self._kept.get(picture.digest)
        if known is not None:
            return known
        try:
            made = self.processed(picture.open(), picture.name)
        except ValueError as error:
            raise Fault(f"{picture.name} could be read before and cannot be now: {error}") from None
        if made.nbytes <= self.room_bytes:
            self.room_bytes -= made.nbytes
            self._kept[picture.digest] = made
        return made

    def holds(self, pictures: Sequence[Picture]) -> bool:
        """Returns whether all are kept, after taking in as many as there is room for."""
        for picture in pictures:
            size = 0 if picture.digest in self._kept else self.get(picture).nbytes
            if picture.digest not in self._kept and size > self.room_bytes:
                return False
        return True

    def stacked(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns pixels of the shape (pictures, colours, height, width)."""
        import torch

        return torch.stack([self.get(picture) for picture in pictures])

    def processed(self, image: Image, name: str) -> Tensor:
        """Returns what the processor makes of an image. Raises ModelError if it cannot take it."""
        import numpy as np
        import torch

        height, width = image.height, image.width
        array = np.asarray(image.convert("L" if self.num_channels == 1 else "RGB"))
        given = {"images": [array.reshape(height, width, -1)], "input_data_format": "channels_last"}
        try:
            made = self._processor()(**given, return_tensors="np")["pixel_values"][0]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())[:300]
            message = f"the image processor cannot take {name}: {reason}"
            raise ModelError("base.path", message) from None
        return torch.from_numpy(np.ascontiguousarray(made, dtype=np.float32))

    # --- shapes

    def check(self, sources: Sequence[Examples]) -> None:
        """Raises UserError if what the processor makes of images is not what the model reads.

        Images must also be of one shape, even if the model reads any.
        """
        from PIL import Image

        resizes = bool(getattr(self._processor(), "do_resize", False))
        wanted: tuple[int, ...] = (self.num_channels, *self.side) if self.side else ()
        first: dict[tuple[int, int], tuple[str, str]] = {}
        for examples in sources:
            for picture in (item.picture for item in examples.items if item.picture):
                first.setdefault(picture.size, (examples.where, picture.name))
        for (width, height), (where, name) in first.items():
            pixels = f"{width}x{height} pixels"
            if not resizes and not self._reads((self.num_channels, height, width)):
                self._check_size((height, width), f"{name} is {pixels}", f"{where}.path")
            found = tuple(self.processed(Image.new("RGB", (width, height)), name).shape)
            wanted = wanted or found
            if found == wanted:
                continue
            if self.side is not None and wanted[1:] == self.side and self._reads(found):
                # many models read other sizes than their configuration says
                self.side, wanted = None, found
                continue
            makes = f"the image processor makes {found} of {name} ({pixels})"
            if self.side is None:
                message = f"{makes}, but {wanted} of others, and a batch needs one shape"
                hint = "resize or crop to one size in preprocessor_config.json"
                raise DataError(f"{where}.path", message, hint=hint)
            message = f"{makes}, but the model reads {wanted} (colours, height, width)"
            hint = "mend size and crop_size in preprocessor_config.json"
            raise ModelError("base.path", message, hint=hint)

    def _check_size(self, size: tuple[int, int], has: str, where: str) -> None:
        """Raises DataError if nothing resizes an image and the model does not read it as it is."""
        hint = "set do_resize in the model's preprocessor_config.json"
        if self.patch is not None and (size[0] < self.patch[0] or size[1] < self.patch[1]):
            message = f"{has}, smaller than a patch of {self.patch[1]}x{self.patch[0]}"
            raise DataError(where, message, hint=hint)
        if self.side is not None and size != self.side:
            message = f"{has}, but the model reads {self.side[1]}x{self.side[0]}"
            raise DataError(where, message, hint=hint)

    def num_tokens(self, picture: Picture) -> int:
        """Returns the patches of a picture.

        If the model makes none, they are as many as a vision transformer's of 16 x 16 pixels.
        """
        if picture.size not in self._sizes:
            self._sizes[picture.size] = self.side or tuple(self.get(picture).shape[1:])
        height, width = self._sizes[picture.size]
        down, across = self.patch or PLAIN_PATCH
        rounded = math.floor if self.patch else math.ceil
        return int(max(1, rounded(height / down) * rounded(width / across)))


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

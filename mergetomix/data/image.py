"""An image and the classes that its label is of.

A picture is kept as its source keeps it (a file's name, bytes, an array) and decoded when it is needed.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class LabelSpace:
    """The classes that a source's labels are of, in order, and how a text says a class.

    `is_named` is false where classes are bare numbers. `head` names the dataset whose head scores a target, None where the
    recipe leaves that open.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    is_named: bool
    head: str | None = None

    def texts(self, name: str) -> list[str]:
        """What the templates say of a class; underscores are spaces."""
        return [template.replace("{}", name.replace("_", " ")) for template in self.templates]


@dataclass(frozen=True)
class Picture:
    """One image of a source. `name` says which, for errors; `digest` is the SHA-256 (hex) of its decoded pixels.

    `size` is (width, height) in pixels. Two pictures are equal where their pixels are.
    """

    source: Any = field(compare=False)
    name: str = field(compare=False)
    digest: str = ""
    size: tuple[int, int] = (0, 0)

    def open(self) -> Image:
        """The decoded image, upright. Raises ValueError where it does not decode."""
        import numpy as np
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            if hasattr(self.source, "transpose") and hasattr(self.source, "convert"):
                image: Image.Image = self.source
            elif isinstance(self.source, np.ndarray):
                image = Image.fromarray(self.source)
            else:
                place = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
                with Image.open(place) as opened:
                    opened.load()
                    image = opened.copy()
                    image.info = dict(opened.info)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                raise ValueError(
                    f"it has {upright.mode} pixels, which are deeper than 8 bits; convert it first"
                )
            # indices of a palette say nothing without it
            return (
                upright.convert("RGBA" if "transparency" in upright.info else "RGB")
                if "P" in upright.mode
                else upright
            )
        except UnidentifiedImageError:
            raise ValueError("it is no image that Pillow can read") from None
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None

    def looked_at(self) -> Picture:
        """The same with its digest and size. Raises ValueError where it does not decode."""
        image = self.open()
        sha = hashlib.sha256(repr((image.mode, image.size)).encode())
        sha.update(image.tobytes())
        return Picture(self.source, self.name, sha.hexdigest(), image.size)

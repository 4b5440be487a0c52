"""An image and the classes that its label is of.

A picture is kept as its source keeps it (a file's name, bytes, an array) and decoded when it is
needed.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mergetomix.data.errors import one_line

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class LabelSpace:
    """The classes that a source's labels are of, in order, and how a text says a class.

    `is_named` is false if classes are bare numbers. `head` names the dataset whose head scores a
    target, None if the recipe leaves that open.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    is_named: bool
    head: str | None = None

    def texts(self, name: str) -> list[str]:
        """Returns what the templates say of a class; underscores are spaces.

        >>> LabelSpace(("sea_lion", "dog"), ("a photo of a {}.",), True).texts("sea_lion")
        ['a photo of a sea lion.']
        """
        return [template.replace("{}", name.replace("_", " ")) for template in self.templates]


@dataclass(frozen=True)
class Picture:
    """One image of a source. Two pictures are equal if their pixels are.

    `source` is a file's name, encoded bytes, an array (height, width[, 3]) or a Pillow image;
    `name` says which it is, for errors. `digest` is the SHA-256 (hex) of its decoded pixels, `size`
    (width, height) in pixels.
    """

    source: Any = field(compare=False)
    name: str = field(compare=False)
    digest: str = ""
    size: tuple[int, int] = (0, 0)

    def open(self) -> Image:
        """Returns the decoded image, upright. Raises ValueError if it does not decode."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            upright = ImageOps.exif_transpose(self._decoded())
            if upright.mode.startswith(("I", "F")):
                problem = f"it has {upright.mode} pixels, which are deeper than 8 bits"
                raise ValueError(f"{problem}; convert it first")
            if "P" not in upright.mode:
                return upright
            # indices of a palette say nothing without it
            return upright.convert("RGBA" if "transparency" in upright.info else "RGB")
        except UnidentifiedImageError:
            raise ValueError("it is no image that Pillow can read") from None
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            raise ValueError(one_line(error)) from None

    def _decoded(self) -> Image:
        import numpy as np
        from PIL import Image

        if hasattr(self.source, "transpose") and hasattr(self.source, "convert"):
            image: Image.Image = self.source
            return image
        if isinstance(self.source, np.ndarray):
            return Image.fromarray(self.source)
        place = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        with Image.open(place) as opened:
            opened.load()
            image = opened.copy()
            image.info = dict(opened.info)
            return image

    def looked_at(self) -> Picture:
        """Returns the same with its digest and size. Raises ValueError if it does not decode."""
        image = self.open()
        sha = hashlib.sha256(repr((image.mode, image.size)).encode())
        sha.update(image.tobytes())
        return replace(self, digest=sha.hexdigest(), size=image.size)

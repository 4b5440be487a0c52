"""How images become predictions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mergetomix.sections.section import Section


class Images(Section):
    """For family: image-classifier."""

    head: Literal["auto", "text", "shared", "own"] = "auto"
    """`text`: a frozen head from the classes' names, by the text encoder of a CLIP model. `shared`:
    one head for all, which is trained and merged as the rest; all sources must have the same
    classes. `own`: for each dataset a frozen head of its own, a logistic regression on the base's
    features; only the rest is trained and merged. `auto`: text for CLIP, else shared."""
    broken: Literal["stop", "skip"] = "stop"
    """What to do with an image that does not decode."""
    num_workers: int | None = Field(default=None, ge=0)
    """Processes that decode images for training; null is none where all images fit in memory, else
    one less than there are processors, four at most; always none where processes are not forked
    (macOS, Windows)."""
    memory_gib: float = Field(default=4.0, ge=0)
    """Memory for images that are ready for the model; what does not fit is decoded again each
    time."""

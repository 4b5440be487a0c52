"""The demos: everything is on the machine already, real data without a download."""

from __future__ import annotations

from pathlib import Path

from mergetomix.errors import UserError


def write(family: str, folder: Path | None) -> Path:
    """Writes the demo's recipe of a family (`text` or `image`) and returns its path.

    An existing recipe is kept, so that a change to it counts. Raises `UserError` for another
    family.
    """
    from mergetomix.demo import images, text

    writers = {"text": text.write_recipe, "image": images.write_recipe}
    if family not in writers:
        raise UserError(f"--family must be {' or '.join(writers)}, not {family!r}")
    default = "mergetomix-demo" if family == "text" else f"mergetomix-demo-{family}"
    return writers[family](folder or Path(default))

"""Environments of other tools, each in a folder of its own under .bench/, made when asked for.

Versions are pinned: what `constraints.txt` pins for this package holds there too, so that both
sides run on the same torch.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".bench"
CONSTRAINTS = ROOT / "constraints.txt"
PINS = {
    "mergekit": (
        "torch==2.13.0",
        "mergekit==0.1.5",
        "immutables==0.21",
        "sentencepiece==0.2.3",
        "protobuf==7.36.2",
    )
}


def python_of(tool: str) -> Path:
    """The Python of a tool's environment, made anew if it has other pins or was not finished."""
    folder = FOLDER / tool
    python, stamp = folder / "bin" / "python", folder / "pins.txt"
    wanted = "\n".join((*PINS[tool], CONSTRAINTS.read_text()))
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making the environment of {tool} in {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    # torch first: what is on the way then takes this build instead of the newest one
    for pins in (PINS[tool][:1], PINS[tool]):
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, *pins],
            check=True,
        )
    stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    for name in sys.argv[1:] or PINS:
        print(python_of(name))

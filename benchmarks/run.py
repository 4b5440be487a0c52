"""Every benchmark of this folder, one after the other.

Usage: python benchmarks/run.py [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "startup",
    "search_overhead",
    "image_input",
    "evaluation_choice",
    "evaluation_loss",
    "harness",
    "bank_switch",
    "bank_mergekit",
    "merge_methods",
    "lora_combination",
    "gradient",
    "executors",
    "demo_seeds",
)


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, HERE / f"{name}.py"], check=True)


if __name__ == "__main__":
    main()

"""Pre-trains the base of the demo on images: a CLIP model of 0.26 M parameters on 400 digits.

Usage: python studies/demo_bases/pretrain_images.py OUT_DIR [EPOCHS]

The shipped checkpoint was made by this script; `mergetomix/demo/image_base/README.md` says when and
where.
"""

from __future__ import annotations

import sys

import numpy as np
import small_clip

from mergetomix.demo.images import NAMES, NUM_BASE, TEMPLATE, digits, inverted, turned


def main(out_dir: str, epochs: int = 20) -> None:
    """Trains on each of the base's digits upright, inverted and turned, and saves the model."""
    images_NHW, labels_N = digits()
    own = images_NHW[:NUM_BASE]
    changed = np.concatenate([own, inverted(own), turned(own)])
    labels = labels_N[:NUM_BASE].tolist() * 3
    captions = [TEMPLATE.replace("{}", name) for name in NAMES]
    shape = small_clip.Shape(side=8, patch=2)
    loss = small_clip.pretrain(changed, labels, captions, shape, epochs, out_dir)
    print(f"loss {loss:.3f} nats per image")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

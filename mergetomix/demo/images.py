"""The demo on images: scikit-learn's handwritten digits, changed in several ways, and a shipped CLIP model (0.26 M parameters).

The digits (1,797 images of 8 x 8 pixels, test part of the UCI set of E. Alpaydin and C. Kaynak, CC BY 4.0) come with a package
that is installed already: real images, no download.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASE = Path(__file__).parent / "image_base"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATE = "a photo of the digit {}."
NUM_BASE = 400
"""The first images are the base's alone, the next those of the datasets, the rest those of the targets."""
NUM_DATASETS = 700

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]


def inverted(images_NHW: Pixels) -> Pixels:
    """Dark for light."""
    return 255 - images_NHW


def turned(images_NHW: Pixels) -> Pixels:
    """A quarter turn."""
    return np.ascontiguousarray(np.rot90(images_NHW, axes=(1, 2)))


def same(images_NHW: Pixels) -> Pixels:
    """As they are."""
    return images_NHW


DATASETS: Mapping[str, tuple[Change, tuple[int, ...], float]] = {
    "low": (same, (0, 1, 2, 3, 4), 0.0),
    "high": (same, (5, 6, 7, 8, 9), 0.0),
    "inverted": (inverted, tuple(range(10)), 0.0),
    "turned": (turned, tuple(range(10)), 0.0),
    "turned_low": (turned, (0, 1, 2, 3, 4), 0.0),
    "careless": (inverted, tuple(range(10)), 0.5),
}
"""How images are changed, which digits there are, and what share of the labels is drawn at random."""
TARGETS: Mapping[str, Change] = {
    "inverted_and_turned": lambda x: inverted(turned(x)),
    "turned_digits": turned,
}

HEAD = """\
# Which of these sets of handwritten digits should a small CLIP model be fine-tuned on, to be good at {targets}? The base
# was pre-trained on {num_base} other digits (see its README). Its text encoder turns the classes' names into a
# frozen head; the image encoder is what is fine-tuned and merged.
# This is an ordinary recipe: change it and run `mergetomix run {name}` again; what is in the store is not done twice.

family: image-classifier
base: {base}

datasets:      # the same digits in other light, from another side, with other labels
"""

TAIL = """
train:
  method: full
  learning_rate: 1.5e-4
  schedule: linear
  batch_size: 16
  max_steps: 60

verify:        # a few real fine-tunes prove the pick
  budget: 2
  repeats: 0
  exponents: []

final:
  baselines: [all, random]
  num_random: 3

device: cpu
store: store
run_dir: run
"""


def digits() -> tuple[Pixels, NDArray[np.int64]]:
    """All images, uint8 of shape (1797, 8, 8), and what digit each is."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int64)


def write_data(folder: Path) -> None:
    """Write every dataset and target as an archive of images (x) and labels (y)."""
    folder.mkdir(parents=True, exist_ok=True)
    images_NHW, labels_N = digits()
    rng = np.random.default_rng(0)
    for name, (change, kept, noise) in DATASETS.items():
        own = np.arange(NUM_BASE, NUM_BASE + NUM_DATASETS)
        own = rng.permutation(own[np.isin(labels_N[own], kept)])[:160]
        labels = np.searchsorted(np.array(kept), labels_N[own])
        is_wrong = rng.random(len(own)) < noise
        labels[is_wrong] = rng.integers(len(kept), size=int(is_wrong.sum()))
        np.savez_compressed(folder / f"{name}.npz", x=change(images_NHW[own]), y=labels)
    rest = slice(NUM_BASE + NUM_DATASETS, None)
    for name, change in TARGETS.items():
        np.savez_compressed(folder / f"{name}.npz", x=change(images_NHW[rest]), y=labels_N[rest])


def write_recipe(folder: Path) -> Path:
    """Write the demo's data and recipe in `folder` and give the recipe's path; an existing one is kept."""
    path = folder / "recipe.yaml"
    if path.exists():
        return path
    write_data(folder / "data")
    lines = [HEAD.format(targets=" and ".join(TARGETS), num_base=NUM_BASE, name=path, base=BASE)]
    lines += [
        f"  {name}: {{path: data/{name}.npz, {_classes(kept)}}}\n"
        for name, (_, kept, _) in DATASETS.items()
    ]
    lines.append("\ntargets:       # of digits that no dataset holds\n")
    lines += [
        f"  {name}: {{path: data/{name}.npz, {_classes(range(10))}, score: loss}}\n"
        for name in TARGETS
    ]
    path.write_text("".join(lines) + TAIL, encoding="utf-8")
    return path


def _classes(kept: Any) -> str:
    return f'classes: [{", ".join(NAMES[i] for i in kept)}], templates: ["{TEMPLATE}"]'


def pretrain(out_dir: str, epochs: int = 20) -> None:
    """Pre-train the base, as it is shipped."""
    from mergetomix.demo import clip

    images_NHW, labels_N = digits()
    captions = [TEMPLATE.replace("{}", name) for name in NAMES]
    shape, own = clip.Shape(side=8, patch=2), images_NHW[:NUM_BASE]
    changed = np.concatenate([own, inverted(own), turned(own)])
    loss = clip.pretrain(
        changed, labels_N[:NUM_BASE].tolist() * 3, captions, shape, epochs, out_dir
    )
    print(f"loss {loss:.3f} nats per image")

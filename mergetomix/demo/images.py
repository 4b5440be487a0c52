"""The demo on images: handwritten digits, changed in several ways, and a shipped CLIP model.

The digits come with scikit-learn (1,797 images of 8 x 8 pixels, test part of the UCI set of
E. Alpaydin and C. Kaynak, CC BY 4.0): real images, no download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASE = Path(__file__).parent / "image_base"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATE = "a photo of the digit {}."
NUM_BASE = 400
"""The first images are the base's alone, the next the datasets', the rest the targets'."""
NUM_DATASETS = 700

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]


def inverted(images_NHW: Pixels) -> Pixels:
    """Returns images with dark for light."""
    return 255 - images_NHW


def turned(images_NHW: Pixels) -> Pixels:
    """Returns images after a quarter turn."""
    return np.ascontiguousarray(np.rot90(images_NHW, axes=(1, 2)))


DATASETS: Mapping[str, tuple[Change, tuple[int, ...], float]] = {
    "low": (np.asarray, (0, 1, 2, 3, 4), 0.0),
    "high": (np.asarray, (5, 6, 7, 8, 9), 0.0),
    "inverted": (inverted, tuple(range(10)), 0.0),
    "turned": (turned, tuple(range(10)), 0.0),
    "turned_low": (turned, (0, 1, 2, 3, 4), 0.0),
    "careless": (inverted, tuple(range(10)), 0.5),
}
"""How images are changed, which digits there are, and the share of labels drawn at random."""
TARGETS: Mapping[str, Change] = {
    "inverted_and_turned": lambda x: inverted(turned(x)),
    "turned_digits": turned,
}

RECIPE = """\
# Which of these sets of handwritten digits should a small CLIP model be fine-tuned on, to be good
# at {names}? The base was pre-trained on {num_base} other digits
# (see its README). Its text encoder turns the classes' names into a frozen head; the image encoder
# is what is fine-tuned and merged. This is an ordinary recipe: change it and run
#   mergetomix run {path}
# again; what is in the store is not done twice.

family: image-classifier
base: {base}

datasets:      # the same digits in other light, from another side, with other labels
{datasets}
targets:       # of digits that no dataset holds
{targets}
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
    """Returns all images, uint8 of shape (1797, 8, 8), and what digit each is."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int64)


def write_data(folder: Path) -> None:
    """Writes every dataset and target as an archive of images (x) and labels (y)."""
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
    """Writes the demo's data and recipe in `folder` if there is none; returns the recipe's path."""
    path = folder / "recipe.yaml"
    if path.exists():
        return path
    write_data(folder / "data")

    def line(name: str, digits: Iterable[int], ending: str = "") -> str:
        classes = f'classes: [{", ".join(NAMES[i] for i in digits)}], templates: ["{TEMPLATE}"]'
        return f"  {name}: {{path: data/{name}.npz, {classes}{ending}}}\n"

    text = RECIPE.format(
        names=" and ".join(TARGETS),
        num_base=NUM_BASE,
        path=path,
        base=BASE,
        datasets="".join(line(name, kept) for name, (_, kept, _) in DATASETS.items()),
        targets="".join(line(name, range(10), ", score: loss") for name in TARGETS),
    )
    path.write_text(text, encoding="utf-8")
    return path

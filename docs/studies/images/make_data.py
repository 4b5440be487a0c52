"""Writes the data, the base and the recipe of the study on images.

python docs/studies/images/make_data.py IMAGES OUT_DIR

IMAGES holds mnist.npz, fashion_mnist.npz and pneumonia_mnist.npz (x_train, y_train, x_test, y_test: uint8, 28 x 28, grey). The
base is a CLIP model of 0.3 M parameters, pre-trained on images that no dataset and no target holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mergetomix.demo import clip

Pixels = NDArray[np.uint8]
SHAPE = clip.Shape(side=28, patch=7, width=64, num_layers=3)
EPOCHS = 25
TEMPLATE = "a photo of a {}."
CLASSES: Mapping[str, tuple[str, ...]] = {
    "mnist": tuple(f"digit {n}" for n in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]),
    "fashion_mnist": ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    "pneumonia_mnist": ("healthy lung", "lung with pneumonia"),
}
NUM_BASE = {"mnist": 1500, "fashion_mnist": 1500, "pneumonia_mnist": 600}
"""Training images of each source that are the base's alone: the first ones."""
NUM_DATASET, NUM_TARGET = 600, 800


def same(images_NHW: Pixels) -> Pixels:
    """As they are."""
    return images_NHW


def inverted(images_NHW: Pixels) -> Pixels:
    """Dark for light."""
    return 255 - images_NHW


def turned(images_NHW: Pixels) -> Pixels:
    """A quarter turn."""
    return np.ascontiguousarray(np.rot90(images_NHW, axes=(1, 2)))


def blurred(images_NHW: Pixels) -> Pixels:
    """A Gaussian of 1.5 pixels."""
    return gaussian_filter(images_NHW, sigma=(0, 1.5, 1.5))


@dataclass(frozen=True)
class Made:
    """How a dataset or target is made of a source: which classes, how changed, what share of labels drawn at random."""

    source: str
    change: Callable[[Pixels], Pixels] = same
    kept: tuple[int, ...] = field(default=tuple(range(10)))
    noise: float = 0.0


DATASETS: Mapping[str, Made] = {
    "digits_low": Made("mnist", same, (0, 1, 2, 3, 4)),
    "digits_inverted": Made("mnist", inverted),
    "digits_careless": Made("mnist", same, noise=0.25),
    "clothes": Made("fashion_mnist"),
    "clothes_turned": Made("fashion_mnist", turned, (0, 2, 3, 4, 6)),
    "lungs_blurred": Made("pneumonia_mnist", blurred, (0, 1)),
}
TARGETS: Mapping[str, Made] = {
    "digits": Made("mnist"),
    "digits_inverted_blurred": Made("mnist", lambda x: blurred(inverted(x))),
    "digits_turned": Made("mnist", turned),
    "clothes_blurred": Made("fashion_mnist", blurred),
    "clothes_inverted": Made("fashion_mnist", inverted),
    "clothes_turned_all": Made("fashion_mnist", turned),
    "lungs": Made("pneumonia_mnist", same, (0, 1)),
}
TAIL = """
train: {method: full, learning_rate: 1.0e-4, schedule: linear, batch_size: 32, max_steps: 60}
study: {seeds: [1, 2, 3]}  # seed 0 was looked at while the recipe was made
device: cpu
batch_tokens: 8192
store: store
run_dir: run
"""


def main(folder: Path, out: Path) -> None:
    """Write everything into `out`."""
    sources = {name: dict(np.load(folder / f"{name}.npz")) for name in CLASSES}
    (out / "data").mkdir(parents=True, exist_ok=True)
    if not (out / "base").exists():
        make_base(sources, out / "base")
    rng = np.random.default_rng(0)
    for name, made in DATASETS.items():
        first = NUM_BASE[made.source]
        x, y = sources[made.source]["x_train"][first:], sources[made.source]["y_train"][first:].reshape(-1)
        write(out / "data" / f"{name}.npz", made, x, y, NUM_DATASET, rng)
    for name, made in TARGETS.items():
        x, y = sources[made.source]["x_test"], sources[made.source]["y_test"].reshape(-1)
        write(out / "data" / f"{name}.npz", made, x, y, NUM_TARGET, rng)
    lines = ["family: image-classifier\nbase: base\n\ndatasets:\n"]
    lines += [f"  {name}: {{{source(name, made)}}}\n" for name, made in DATASETS.items()]
    lines += ["\ntargets:\n"]
    lines += [f"  {name}: {{{source(name, made)}, score: loss}}\n" for name, made in TARGETS.items()]
    (out / "recipe.yaml").write_text("".join(lines) + TAIL, encoding="utf-8")


def source(name: str, made: Made) -> str:
    """The recipe's keys of a dataset or target."""
    classes = ", ".join(CLASSES[made.source][i] for i in made.kept)
    return f'path: data/{name}.npz, classes: [{classes}], templates: ["{TEMPLATE}"]'


def write(path: Path, made: Made, x: Pixels, y: NDArray[Any], num: int, rng: np.random.Generator) -> None:
    """Draw images of the classes kept, change them, and write them with their labels."""
    places = rng.permutation(np.flatnonzero(np.isin(y, made.kept)))[:num]
    labels = np.searchsorted(np.array(made.kept), y[places].astype(np.int64))
    is_random = rng.random(len(places)) < made.noise
    labels[is_random] = rng.integers(len(made.kept), size=int(is_random.sum()))
    np.savez_compressed(path, x=made.change(x[places]), y=labels)


def make_base(sources: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Pre-train a CLIP model on a few images of every source, each as it is and changed in every way."""
    images: list[Pixels] = []
    labels: list[int] = []
    captions: list[str] = []
    changes: Sequence[Callable[[Pixels], Pixels]] = (same, inverted, turned, blurred)
    for name, classes in CLASSES.items():
        x, y = sources[name]["x_train"][: NUM_BASE[name]], sources[name]["y_train"][: NUM_BASE[name]].reshape(-1)
        for change in changes:
            images.append(change(x))
            labels += [len(captions) + int(label) for label in y]
        captions += [TEMPLATE.replace("{}", each) for each in classes]
    loss = clip.pretrain(np.concatenate(images), labels, captions, SHAPE, EPOCHS, out)
    print(f"base: {loss:.3f} nats per image")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

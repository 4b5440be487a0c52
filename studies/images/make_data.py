"""Writes the data, the base and the recipe of the study on images.

python studies/images/make_data.py IMAGES OUT_DIR

IMAGES holds mnist.npz, fashion_mnist.npz and pneumonia_mnist.npz (x_train, y_train, x_test, y_test:
uint8, 28 x 28, grey). The base is a CLIP model of 0.3 M parameters, pre-trained on images that no
dataset and no target holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).parents[1] / "demo_bases"))
import small_clip as clip

Pixels = NDArray[np.uint8]
SHAPE = clip.Shape(side=28, patch=7, width=64, num_layers=3)
EPOCHS = 8
TEMPLATE = "a photo of a {}."
CLASSES: Mapping[str, tuple[str, ...]] = {
    "mnist": tuple(
        f"digit {n}"
        for n in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    ),
    "fashion_mnist": (
        "top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    ),
    "pneumonia_mnist": ("healthy lung", "lung with pneumonia"),
}
NUM_BASE = {"mnist": 5000, "fashion_mnist": 5000, "pneumonia_mnist": 1200}
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
    """How a dataset or target is made of a source: classes, change, share of random labels."""

    source: str
    change: Callable[[Pixels], Pixels] = same
    kept: tuple[int, ...] = field(default=tuple(range(10)))
    noise: float = 0.0


DATASETS: Mapping[str, Made] = {
    "digits_low_inverted": Made("mnist", inverted, (0, 1, 2, 3, 4)),
    "digits_turned_careless": Made("mnist", turned, noise=0.25),
    "clothes_inverted": Made("fashion_mnist", inverted),
    "tops_turned": Made("fashion_mnist", turned, (0, 2, 3, 4, 6)),
    "clothes_blurred_careless": Made("fashion_mnist", blurred, noise=0.25),
    "lungs_inverted": Made("pneumonia_mnist", inverted, (0, 1)),
}
TARGETS: Mapping[str, Made] = {
    "digits_inverted": Made("mnist", inverted),
    "digits_turned": Made("mnist", turned),
    "digits_inverted_turned": Made("mnist", lambda x: inverted(turned(x))),
    "clothes_inverted_blurred": Made("fashion_mnist", lambda x: inverted(blurred(x))),
    "clothes_turned": Made("fashion_mnist", turned),
    "clothes_blurred": Made("fashion_mnist", blurred),
    "lungs_inverted_turned": Made("pneumonia_mnist", lambda x: inverted(turned(x)), (0, 1)),
}
TAIL = """
train: {method: full, learning_rate: 1.0e-4, schedule: linear, batch_size: 32, max_steps: 60}
merge: {weighting: equal}  # as when the study was recorded
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
        x, y = (
            sources[made.source]["x_train"][first:],
            sources[made.source]["y_train"][first:].reshape(-1),
        )
        write(out / "data" / f"{name}.npz", made, x, y, NUM_DATASET, rng)
    for name, made in TARGETS.items():
        x, y = sources[made.source]["x_test"], sources[made.source]["y_test"].reshape(-1)
        write(out / "data" / f"{name}.npz", made, x, y, NUM_TARGET, rng)
    lines = ["family: image-classifier\nbase: base\n\ndatasets:\n"]
    lines += [f"  {name}: {{{source(name, made)}}}\n" for name, made in DATASETS.items()]
    lines += ["\ntargets:\n"]
    lines += [
        f"  {name}: {{{source(name, made)}, score: loss}}\n" for name, made in TARGETS.items()
    ]
    (out / "recipe.yaml").write_text("".join(lines) + TAIL, encoding="utf-8")


def source(name: str, made: Made) -> str:
    """The recipe's keys of a dataset or target."""
    classes = ", ".join(CLASSES[made.source][i] for i in made.kept)
    return f'path: data/{name}.npz, classes: [{classes}], templates: ["{TEMPLATE}"]'


def write(
    path: Path, made: Made, x: Pixels, y: NDArray[Any], num: int, rng: np.random.Generator
) -> None:
    """Draw images of the classes kept, change them, and write them with their labels."""
    places = rng.permutation(np.flatnonzero(np.isin(y, made.kept)))[:num]
    labels = np.searchsorted(np.array(made.kept), y[places].astype(np.int64))
    is_random = rng.random(len(places)) < made.noise
    labels[is_random] = rng.integers(len(made.kept), size=int(is_random.sum()))
    np.savez_compressed(path, x=made.change(x[places]), y=labels)


def make_base(sources: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Pre-trains a CLIP model on images as they are: what changes do, the datasets must teach."""
    images: list[Pixels] = []
    labels: list[int] = []
    captions: list[str] = []
    for name, classes in CLASSES.items():
        images.append(sources[name]["x_train"][: NUM_BASE[name]])
        labels += [
            len(captions) + int(label)
            for label in sources[name]["y_train"][: NUM_BASE[name]].reshape(-1)
        ]
        captions += [TEMPLATE.replace("{}", each) for each in classes]
    loss = clip.pretrain(np.concatenate(images), labels, captions, SHAPE, EPOCHS, out)
    print(f"base: {loss:.3f} nats per image")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

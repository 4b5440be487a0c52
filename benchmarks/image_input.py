"""How long training on images waits for its input, as a share of the training time.

Two cases: small images that stay in memory once they were decoded (the demo's base, with
augmentation), and photographs as JPEG files, decoded again every time by worker processes because
no memory is given to keep them (a vision transformer of 5.5 M parameters at 224 x 224 pixels).
Photographs are smooth noise: their content does not matter, their size does.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import Trainer, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mergetomix import training
from mergetomix.demo import images as demo
from mergetomix.models.images.classifier import ImageClassifier
from mergetomix.sections.base import Base
from mergetomix.sections.images import Images
from mergetomix.sections.source import Dataset
from mergetomix.sections.train import Augment, Train

RUNS = 5


class Waits:
    """A trainer's data loader, with the time until each batch is there."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.waited_s = loader, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self.waited_s += time.monotonic() - started
            if batch is None:
                return
            yield batch


def share(family: ImageClassifier, sequences: Any, settings: Train) -> float:
    """Waiting as a share of one fine-tune, its first batch and the workers' start counted."""
    found: list[Waits] = []
    plain = Trainer.get_train_dataloader

    def watched(self: Any) -> Waits:
        found.append(Waits(plain(self)))
        return found[-1]

    Trainer.get_train_dataloader = watched  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as out:
            _, seconds = training.finetune(family, sequences, settings, Path(out))
    finally:
        Trainer.get_train_dataloader = plain  # type: ignore[method-assign]
    return sum(each.waited_s for each in found) / seconds


def small(folder: Path) -> tuple[ImageClassifier, Any, Train]:
    """The demo's base and one of its datasets."""
    demo.write_data(folder)
    family = ImageClassifier(Base(path=str(demo.BASE)), "cpu", Images(), "full")
    names = [*demo.NAMES]
    source = Dataset(
        path=str(folder / "turned.npz"),
        image="image",
        label="label",
        classes=names,
        templates=[demo.TEMPLATE],
    )
    settings = Train(
        method="full", batch_size=16, max_steps=60, augment=Augment(shift=0.1, rotate=10)
    )
    return family, encoded(family, source), settings


def photographs(folder: Path, num_workers: int | None) -> tuple[ImageClassifier, Any, Train]:
    """A folder of JPEG files of 400 x 300 pixels, two classes, and a small vision transformer."""
    draw = np.random.default_rng(0)
    for i in range(96):
        place = folder / "photographs" / ("one", "two")[i % 2] / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(256, size=(30, 40, 3), dtype=np.uint8))
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(place, quality=90)
    shape = {
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    }
    model = ViTForImageClassification(
        ViTConfig(**shape, id2label={0: "one", 1: "two"}, label2id={"one": 0, "two": 1})
    )
    model.save_pretrained(folder / "vit")
    ViTImageProcessorPil().save_pretrained(folder / "vit")
    options = Images(memory_gib=0, num_workers=num_workers)
    family = ImageClassifier(Base(path=str(folder / "vit")), "cpu", options, "full")
    source = Dataset(path=str(folder / "photographs"), image="image", label="label")
    return family, encoded(family, source), Train(method="full", batch_size=8, epochs=1)


def encoded(family: ImageClassifier, source: Dataset) -> Any:
    examples = family.read(source, "datasets.a")
    family.settle({"datasets.a": examples})
    return family.encode(examples.items, "datasets.a").sequences


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        cases = {
            "in memory, augmented": small(Path(name)),
            "JPEG, one worker": photographs(Path(name), None),
            "JPEG, no worker": photographs(Path(name), 0),
        }
        found: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(RUNS):
            for case, (family, sequences, settings) in cases.items():
                found[case].append(share(family, sequences, settings))
    for case, shares in found.items():
        line = {
            "case": case,
            "median": statistics.median(shares),
            "least": min(shares),
            "most": max(shares),
            "runs": RUNS,
        }
        print(
            json.dumps(
                {
                    key: round(value, 4) if isinstance(value, float) else value
                    for key, value in line.items()
                }
            )
        )


if __name__ == "__main__":
    main()

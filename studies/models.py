"""How far is each architecture from plain transformers? Writes the table docs/architectures.md.

PYTHONPATH=tests:studies/demo_bases python studies/models.py

Tiny models of random weights (`tests/architectures.py`, `tests/image_architectures.py`), float32 on
a CPU. Every number is the largest difference that is found; `tests/test_architectures.py` and
`tests/test_image_architectures.py` hold the bounds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import image_architectures as images
import tiny
import torch
import transformers
from architectures import ARCHITECTURES, CLOSE, ROWS, build, loss, three_steps
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from mergetomix.data.examples import Example
from mergetomix.errors import ModelError
from mergetomix.experts.bank import GIB, Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.models.causal_lm.packing import keeps_apart
from mergetomix.sections.train import Lora, Train
from mergetomix.training import finetune

ROOT = Path(__file__).resolve().parents[1]
WHERE = "datasets.x"
VERSIONS = f"transformers {transformers.__version__}, torch {torch.__version__}"
COMMAND = "PYTHONPATH=tests:studies/demo_bases python studies/models.py"
HEAD = f"""# Architectures

Tiny models of random weights beside a few lines of transformers, float32 on a CPU. Written by
`{COMMAND}`
({VERSIONS}); `tests/test_architectures.py` and `tests/test_image_architectures.py` hold the bounds.

- *loss*: the largest difference over examples, nats per token;
- *options*: the same for the options of a choice against each as if it stood alone, and whether
  they are read behind one prompt;
- *three steps*: the share of the weights that differ by more than {CLOSE:g} after three steps of
  full fine-tuning at a rate of 1e-4;
- *adapter*: the merge of a LoRA expert with weight 1 against PEFT's own, nats per example;
- *written*: the largest difference between a merge of two experts in memory and as transformers
  loads it from the folder that was written;
- *packing*: whether `train.packing` is allowed.

| architecture | loss | options | three steps | adapter | written | packing |
|---|---|---|---|---|---|---|
"""
IMAGES = """
Image classifiers, in nats per image:

| architecture | loss | three steps | adapter | written |
|---|---|---|---|---|
"""


def main() -> None:
    lines = []
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(f"| {name} | {' | '.join(row(name, Path(folder)))} |\n")
            print(lines[-1], end="", flush=True)
    lines.append(IMAGES)
    for name in images.ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(f"| {name} | {' | '.join(image_row(name, Path(folder)))} |\n")
            print(lines[-1], end="", flush=True)
    (ROOT / "docs" / "architectures.md").write_text(HEAD + "".join(lines), encoding="utf-8")


def row(name: str, folder: Path) -> list[str]:
    """Returns what the table says of one architecture."""
    base = tiny.save(build(name), folder / "base")
    family = tiny.open_base(base)
    model = family.load()
    sequences = family.encode(ROWS, WHERE).sequences
    found = family.negative_log_likelihoods(model, family.batches(sequences, 64))
    with torch.no_grad():
        away = max(
            abs(value / each.num_scored - float(loss(model, [each])))
            for each, value in zip(sequences, found, strict=True)
        )
    options = (" on a mat", " three")
    rows = [Example(0, prompt=r.prompt, completion=options[0], options=options) for r in ROWS]
    asked = family.asked([family.question(r, i, WHERE) for i, r in enumerate(rows)], 256)
    pairs = zip(asked.questions, asked.losses(model), strict=True)
    with torch.no_grad():
        apart = max(
            abs(value / option.num_scored - float(loss(model, [option])))
            for question, values in pairs
            for option, value in zip(question.alone(), values, strict=True)
        )
    shared = "shared" if asked.shares else "apart"
    packing = "yes" if keeps_apart(model) else "refused"
    return [
        f"{away:.1e}",
        f"{apart:.1e}, {shared}",
        f"{trained(family, sequences, three_steps(base, sequences, 1e-4), folder):.1e}",
        adapter(tiny.open_base(base, method="lora"), sequences, folder),
        written(family, AutoModelForCausalLM, folder),
        packing,
    ]


def image_row(name: str, folder: Path) -> list[str]:
    """Returns what the table says of one architecture of image classifiers."""
    base = images.base_of(name, folder / "base")
    family, sequences = images.opened(base)
    model = family.load()
    with torch.no_grad():
        logits, labels = images.logits_of(model, family, sequences)
        wanted = cross_entropy(logits, labels, reduction="none").tolist()
    found = family.negative_log_likelihoods(model, family.batches(sequences, 10**6))
    away = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    after = images.three_steps(family, sequences)
    return [
        f"{away:.1e}",
        f"{trained(family, sequences, after, folder):.1e}",
        adapter(*images.opened(base, method="lora"), folder),
        written(family, AutoModelForImageClassification, folder),
    ]


def trained(family: Any, sequences: Any, wanted: Any, folder: Path) -> float:
    """Returns the share of weights that are elsewhere after three steps.

    The folder then holds two experts, `a` and `b`.
    """
    settings = Train(
        method="full",
        batch_size=len(sequences),
        max_steps=3,
        learning_rate=1e-4,
        warmup_ratio=0.0,
    )
    for key, own in (("a", sequences), ("b", sequences[:2])):
        finetune(family, own, settings, folder / key)
    expert = params(family.load_finetune(str(folder / "a")))
    away = torch.cat([(expert[key] - wanted[key]).abs().flatten() for key in wanted])
    return float((away > CLOSE).double().mean())


def written(family: Any, loader: Any, folder: Path) -> str:
    """Returns how far a merge that was written is from the one in memory."""
    live = family.load()
    deltas = {key: read_delta(family, params(live), str(folder / key), WHERE) for key in "ab"}
    Bank(live, deltas, GIB).set({"a": 0.5, "b": 0.5})
    family.save(live, folder / "merged")
    again = params(loader.from_pretrained(folder / "merged", dtype=torch.float32))
    away = max(float((again[key] - each).abs().max()) for key, each in params(live).items())
    return f"{away:.1e}" if away else "0"


def adapter(family: Any, sequences: Any, folder: Path) -> str:
    """Returns how far a merged adapter is from PEFT's, or that there can be none."""
    settings = Train(batch_size=4, max_steps=2, learning_rate=1e-2, lora=Lora(rank=4, alpha=8))
    try:
        finetune(family, sequences, settings, folder / "l")
    except ModelError:
        return "refused"
    live = family.load()
    delta = read_delta(family, params(live), str(folder / "l"), WHERE)
    Bank(live, {"a": delta}, GIB).set({"a": 1.0})
    found, wanted = (
        family.negative_log_likelihoods(each, family.batches(sequences, 10**6))
        for each in (live, family.load_finetune(str(folder / "l")))
    )
    return f"{max(abs(a - b) for a, b in zip(found, wanted, strict=True)):.1e}"


if __name__ == "__main__":
    main()

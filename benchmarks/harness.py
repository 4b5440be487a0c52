"""Candidates on tasks of the evaluation harness: in memory, beside a loop that merges to disk.

Ours goes on to the next mixture in the bank and scores it; the loop writes the same merge to a
folder and calls lm-eval's `simple_evaluate` on it, with its index of tasks made anew, as a script
around the command does, and with an index that is kept. Both in turn, RUNS times, after one each.
One task of each output type, 100 documents, all over local files. Set-up is what comes before the
first candidate; lm-eval's import is beside it, after torch and transformers.

Usage: python benchmarks/harness.py [BASE [DOCUMENTS [RUNS]]], of which BASE is a model's folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import models
import paired
import torch
import yaml

from mergetomix.demo.text import BASE
from mergetomix.experts.bank import Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.sections.base import Base
from mergetomix.targets.harness.documents import Documents
from mergetomix.targets.harness.kind import HarnessTarget
from mergetomix.targets.harness.library import quiet, require
from mergetomix.targets.target import TargetSetting

NUM_CANDIDATES = 63
ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
EXACT = {**ACC, "metric": "exact_match"}
COMMON = {
    "dataset_path": "json",
    "training_split": "train",
    "validation_split": "validation",
    "doc_to_text": "{{question}}\nAnswer:",
}
KINDS: dict[str, dict[str, Any]] = {
    "multiple_choice": {"doc_to_choice": "options", "doc_to_target": "right", "metric_list": [ACC]},
    "loglikelihood": {"doc_to_target": " {{answer}}", "metric_list": [ACC]},
    "generate_until": {
        "doc_to_target": "{{answer}}",
        "metric_list": [EXACT],
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16, "do_sample": False},
    },
}


def documents(num: int, seed: int) -> list[dict[str, Any]]:
    """Word problems of some 40 tokens, with four options of several tokens."""
    draw, found = random.Random(seed), []
    for _ in range(num):
        a, b, c = (draw.randint(2, 60) for _ in range(3))
        what = draw.choice(["apples", "letters", "coins", "books"])
        sums = [a + b - c, a + b + c, a - b + c, a * 2 - b]
        found.append(
            {
                "question": f"Anna has {a} {what}. Her brother gives her {b} more, and on the way"
                f" home she gives {c} of them to a friend. How many {what} does she have then?",
                "answer": f"she has {sums[0]} {what} left in the end",
                "options": [f"she has {each} {what} left in the end" for each in sums],
                "right": 0,
            }
        )
    return found


def write_tasks(folder: Path, num: int) -> None:
    files = {"train": documents(40, 1), "validation": documents(num, 2)}
    paths = {split: str(folder / f"{split}.jsonl") for split in files}
    for split, rows in files.items():
        Path(paths[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, config in KINDS.items():
        own = {"task": kind, "output_type": kind, "dataset_kwargs": {"data_files": paths}}
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump({**COMMON, **own, **config}))


def bank_of(family: CausalLM, folder: Path) -> Bank:
    """The base with two experts that are a little off it."""
    live, deltas = family.load(), {}
    for seed, name in enumerate("ab"):
        expert = family.load()
        models.perturb(expert, seed)
        family.save(expert, folder / name)
        deltas[name] = read_delta(family, params(live), str(folder / name), name, folder / "pages")
    return Bank(live, deltas)


def theirs(path: Path, task: str, folder: Path, manager: Any | None, shots: int) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        return simple_evaluate(
            model="hf",
            model_args=f"pretrained={path},dtype=float32",
            tasks=[task],
            num_fewshot=shots,
            task_manager=manager or TaskManager(include_path=str(folder)),
            bootstrap_iters=0,
            device="cpu",
            batch_size=8,
        )


def compare(family: CausalLM, bank: Any, folder: Path, task: str, shots: int) -> None:
    from lm_eval.tasks import TaskManager

    started = time.perf_counter()
    metric = "exact_match" if task == "generate_until" else "acc"
    how = {"include_path": str(folder), "metric": metric, "num_fewshot": shots}
    section = HarnessTarget(score="harness", task=task, **how)
    opened = Documents(section, TargetSetting(family, "targets.t", 8192))
    target = opened.over(opened.examples.items)
    set_up_s = time.perf_counter() - started
    with quiet():
        kept = TaskManager(include_path=str(folder), include_defaults=False)
    mixtures = [{"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.5}, {"a": 0.0, "b": 1.0}]
    turn = iter(range(10**6))
    scored: dict[str, Any] = {}

    def next_one() -> None:
        bank.set(mixtures[next(turn) % 3])

    def ours() -> None:
        next_one()
        scored["ours"] = target.score(bank.model).mean

    def to_disk(manager: Any | None) -> Callable[[], None]:
        def way() -> None:
            # the mixture that ours has just scored, as a loop would write it
            family.save(bank.model, folder / "merged")
            said = theirs(folder / "merged", task, folder, manager, shots)
            scored["theirs"] = said["results"][task][f"{metric},none"]

        return way

    ways = {"a loop": to_disk(None), "a loop that keeps the index": to_disk(kept)}
    ours(), ways["a loop"]()
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    taken = []
    for _ in range(RUNS):
        taken.append(paired.seconds(ours))
        for name, way in ways.items():
            ratios[name].append(paired.seconds(way) / taken[-1])
            assert scored["theirs"] == scored["ours"], scored
    candidate_s = statistics.median(taken)
    share = set_up_s / (NUM_CANDIDATES * candidate_s)
    for name, values in ratios.items():
        told = {"task": task, "shots": shots, "candidate_s": candidate_s}
        paired.show(what=f"{name} / ours", **told, **paired.spread(values))
    paired.show(what="set-up / 63 candidates", task=task, shots=shots, s=set_up_s, share=share)


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else str(BASE)
    num = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    family = CausalLM(Base(path=path), "cpu", 2048, "full")
    family.load()
    started = time.perf_counter()
    require("targets.t")
    import lm_eval.models.huggingface  # noqa: F401

    paired.show(what="import of lm-eval", s=time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, num)
        bank = bank_of(family, folder)
        for task in KINDS:
            for shots in (0, 3):
                compare(family, bank, folder, task, shots)


RUNS = int(sys.argv[3]) if len(sys.argv) > 3 else 5
if __name__ == "__main__":
    torch.manual_seed(0)
    main()

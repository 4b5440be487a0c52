"""Benchmarks in the format of the LM Evaluation Harness over local files, for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.targets.harness.documents import Documents
from mergetomix.targets.harness.kind import HarnessTarget
from mergetomix.targets.target import TargetSetting

WHERE = "targets.bench"
WORDS = ["cat", "dog", "mat", "log", "three", "seven", "four", "sat", "plus", "two"]
ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
MATCH = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": "options",
    "doc_to_target": "right",
    "metric_list": [ACC, {**ACC, "metric": "acc_norm"}, {**ACC, "metric": "acc_bytes"}],
}
LIKELIHOOD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        ACC,
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
    ],
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [MATCH],
    "filter_list": [
        {"name": "whole", "filter": [{"function": "take_first"}]},
        {
            "name": "word",
            "filter": [
                {"function": "regex", "regex_pattern": r"([a-z]+)"},
                {"function": "take_first"},
            ],
        },
    ],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": "word_perplexity"},
        {"metric": "byte_perplexity"},
        {"metric": "bits_per_byte"},
    ],
}
KINDS: dict[str, Mapping[str, Any]] = {
    "choice": CHOICE,
    "likelihood": LIKELIHOOD,
    "generate": GENERATE,
    "rolling": ROLLING,
}


def docs(num: int, shift: int = 0) -> list[dict[str, Any]]:
    """Documents no two of which ask the same."""
    found = []
    for i in range(num):
        first, second = WORDS[(i + shift) % 10], WORDS[(i // 10 + 3 * i + shift + 1) % 10]
        options = [f"the {first}", f"{second} and {first}", WORDS[(i + 5) % 10]]
        found.append(
            {
                "question": f"the {first} sat on {second}, and then number {i + 100 * shift}?",
                "answer": second if i % 2 else "<s>",
                "options": options,
                "right": (i * 7 + shift) % 3,
                "text": f"the {first} sat on the {second} and one plus {i} is {second}. "
                * (i % 12 + 1),
            }
        )
    return found


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_task(folder: Path, name: str, config: Mapping[str, Any], **splits: list[Any]) -> Path:
    """Writes a task over local files, `train`, `validation` and `test` as given."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: write(folder, f"{name}_{split}", rows).name for split, rows in splits.items()}
    keys = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
    values = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        **{keys[split]: split for split in splits},
        **config,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def write_kinds(folder: Path, num: int = 12) -> Path:
    """Writes one task of each output type, with a training and a validation split."""
    for name, config in KINDS.items():
        write_task(folder, name, config, train=docs(20, shift=1), validation=docs(num))
    return folder


def section(task: str, folder: Path, **values: Any) -> HarnessTarget:
    given = {"score": "harness", "task": task, "include_path": str(folder), **values}
    return HarnessTarget(**given)


def opened(family: CausalLM, task: str, folder: Path, **values: Any) -> Documents:
    setting = TargetSetting(family, WHERE, 4096)
    return Documents(section(task, folder, **values), setting)


def written(folder: Path, text: str, name: str = "made") -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    return name


PLAIN = yaml.safe_dump({"task": "made", "dataset_path": "json", **CHOICE})
FILES = yaml.safe_dump(
    {"dataset_kwargs": {"data_files": {"validation": "v.jsonl"}}, "validation_split": "validation"}
)


def write_yaml(folder: Path, name: str, values: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def group(folder: Path, name: str, **changes: Any) -> Path:
    listed = [{"metric": "acc", "weight_by_size": True}]
    values = {"group": name, "task": ["one", "two"], "aggregate_metric_list": listed}
    return write_yaml(folder, name, {**values, **changes})

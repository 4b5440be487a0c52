"""Writes benchmarks in the harness's format over real questions, and a recipe with 63 mixtures.

GSM8K and SVAMP are answered by greedy text, CommonsenseQA is five options and their letters, and
SVAMP's numbers are scored by their likelihood too. The data lies beside the project's
checkout: `NAME.train.jsonl.gz` and `NAME.test.jsonl.gz`, rows of `input` and `output`.

Usage: python studies/benchmarks/make_tasks.py TEXTS BASE OUT [DOCUMENTS]
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

NUM_SHOWN = 100
ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
MATCH = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
NUMBER = r"(-?[0-9][0-9,]*\.?[0-9]*)"
LAST = [{"function": "regex", "group_select": -1, "regex_pattern": NUMBER}]
FILTERS = [
    {"name": "strict", "filter": [{"function": "regex", "regex_pattern": f"#### {NUMBER}"}]},
    {"name": "last", "filter": LAST},
]
for each in FILTERS:
    each["filter"] = [*each["filter"], {"function": "take_first"}]
ANSWERS = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 96, "do_sample": False},
    "metric_list": [{**MATCH, "regexes_to_ignore": [","]}],
    "filter_list": FILTERS,
}
TASKS: dict[str, dict[str, Any]] = {
    "gsm8k_real": {**ANSWERS, "doc_to_target": "{{number}}"},
    "svamp_real": {**ANSWERS, "doc_to_target": "{{number}}"},
    "csqa_real": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "options",
        "doc_to_target": "right",
        "metric_list": [ACC, {**ACC, "metric": "acc_norm"}],
    },
    "svamp_likelihood": {
        "output_type": "loglikelihood",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": " {{number}}",
        "metric_list": [
            ACC,
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
    },
}
SOURCES = {
    "gsm8k_real": "gsm8k",
    "svamp_real": "svamp",
    "csqa_real": "commonsense_qa",
    "svamp_likelihood": "svamp",
}
CANDIDATES = ("gsm8k", "commonsense_qa", "clinc150", "banking77", "category_pick", "letters")


def rows(texts: Path, name: str, split: str, num: int) -> list[dict[str, Any]]:
    """The first rows of a file, as the documents of the tasks that ask them."""
    path = texts / f"{name}.{split}.jsonl.gz"
    found: list[dict[str, Any]] = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            if len(found) == num:
                break
            row = json.loads(line)
            found.append(document(name, row["input"], row["output"]))
    return found


def document(name: str, asked: str, answer: str) -> dict[str, Any]:
    """One document; of five options their texts, as a model without instructions reads them."""
    if name != "commonsense_qa":
        number = answer.rpartition("#### ")[2].strip()
        return {"question": asked, "worked": answer, "number": number}
    question, *options = re.split(r"\n[a-e]: ", asked)
    return {"question": question, "options": options, "right": "abcde".index(answer.strip())}


def write_tasks(texts: Path, out: Path, num: int) -> Path:
    """Writes every task and its documents into a folder; SVAMP shows examples of GSM8K."""
    out.mkdir(parents=True, exist_ok=True)
    for task, config in TASKS.items():
        name = SOURCES[task]
        train = rows(texts, "gsm8k" if name == "svamp" else name, "train", NUM_SHOWN)
        for split, some in (("train", train), ("test", rows(texts, name, "test", num))):
            text = "".join(json.dumps(row) + "\n" for row in some)
            (out / f"{task}_{split}.jsonl").write_text(text, encoding="utf-8")
        files = {split: f"{task}_{split}.jsonl" for split in ("train", "test")}
        own = {"task": task, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        splits = {"training_split": "train", "test_split": "test"}
        text = yaml.safe_dump({**own, **splits, **config}, sort_keys=False)
        (out / f"{task}.yaml").write_text(text, encoding="utf-8")
    return out


def recipe(texts: Path, base: str) -> dict[str, Any]:
    """Six candidates, two benchmarks and a loss: 63 mixtures."""
    bench = {"score": "harness", "include_path": "tasks", "allow_test_split": True}
    pair = {"prompt": "Question: {input}\nAnswer:", "completion": " {output}"}
    return {
        "base": base,
        "datasets": {
            name: {"path": str(texts / f"{name}.train.jsonl.gz"), **pair, "max_examples": 200}
            for name in CANDIDATES
        },
        "targets": {
            "csqa": {**bench, "task": "csqa_real", "metric": "acc_norm"},
            "answers": {**bench, "task": "svamp_likelihood", "metric": "perplexity"},
            "worked": {
                "path": str(texts / "gsm8k.test.jsonl.gz"),
                **pair,
                "max_examples": 100,
                "score": "loss",
            },
        },
        "train": {"method": "full", "learning_rate": 1e-4, "batch_size": 8, "max_length": 256},
        "verify": {"budget": 2, "repeats": 0, "exponents": []},
        "final": {"num_random": 2},
        "device": "cpu",
        "store": "store",
        "run_dir": "run",
    }


def main() -> None:
    texts, base, out = (Path(each).resolve() for each in sys.argv[1:4])
    write_tasks(texts, out / "tasks", int(sys.argv[4]) if len(sys.argv) > 4 else 100)
    text = yaml.safe_dump(recipe(texts, str(base)), sort_keys=False)
    (out / "recipe.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

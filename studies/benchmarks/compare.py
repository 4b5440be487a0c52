"""The scores of a model on real benchmarks: this package's, and the command's on the same folder.

For every task, with and without a chat template where the model has one, with no and three
examples. Prints a line of JSON each, and the first answers.

Usage: python studies/benchmarks/compare.py MODEL TASKS [DOCUMENTS]
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.sections.base import Base
from mergetomix.targets.harness.documents import Documents
from mergetomix.targets.harness.kind import HarnessTarget
from mergetomix.targets.target import TargetSetting

METRICS = {
    "csqa_real": ("acc", "acc_norm"),
    "svamp_likelihood": ("acc", "perplexity"),
    "gsm8k_real": ("exact_match,last",),
    "svamp_real": ("exact_match,last", "exact_match,strict"),
}


def command(path: str, tasks: str, chat: bool, shots: int, limit: int) -> dict[str, Any]:
    """What `lm_eval` says, all tasks in one call."""
    with tempfile.TemporaryDirectory() as out:
        given = f"--model hf --model_args pretrained={path},dtype=float32 --device cpu"
        given += f" --tasks {','.join(METRICS)} --include_path {tasks} --num_fewshot {shots}"
        given += f" --output_path {out} --batch_size 1 --limit {limit}"
        words = [sys.executable, "-m", "lm_eval", "run", *given.split()]
        words += ["--apply_chat_template"] if chat else []
        subprocess.run(words, cwd=tasks, check=True, capture_output=True)
        (file,) = Path(out).rglob("results_*.json")
        found: dict[str, Any] = json.loads(file.read_text())["results"]
        return found


def main() -> None:
    path, tasks = (str(Path(each).resolve()) for each in sys.argv[1:3])
    limit = int(sys.argv[3]) if len(sys.argv) > 3 else 40
    family = CausalLM(Base(path=path), "cpu", 2048, "full")
    model = family.load()
    for chat in (False, True) if family.tokenizer.chat_template else (False,):
        for shots in (0, 3):
            started = time.perf_counter()
            said = command(path, tasks, chat, shots, limit)
            theirs_s = time.perf_counter() - started
            started = time.perf_counter()
            for task, metrics in METRICS.items():
                for metric in metrics:
                    told = {"num_fewshot": shots, "apply_chat_template": chat, "limit": limit}
                    own = {"task": task, "include_path": tasks, "metric": metric}
                    section = HarnessTarget(score="harness", allow_test_split=True, **own, **told)
                    opened = Documents(section, TargetSetting(family, "targets.t", 8192))
                    target = opened.over(opened.examples.items)
                    scores = target.score(model)
                    mean = math.exp(scores.mean) if scores.kind == "loss" else scores.mean
                    wanted = said[task][metric if "," in metric else f"{metric},none"]
                    first = opened._documents[0].instances[0].resps[0]
                    told = {"chat": chat, "shots": shots, "task": task, "metric": metric}
                    line = {**told, "ours": mean, "lm_eval": wanted, "equal": mean == wanted}
                    print(json.dumps({**line, "first": str(first)[:90]}), flush=True)
            ours_s = time.perf_counter() - started
            print(json.dumps({"command_s": round(theirs_s), "ours_s": round(ours_s)}), flush=True)


if __name__ == "__main__":
    main()

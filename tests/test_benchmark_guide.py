"""The example of docs/benchmarks.md, file by file as it stands there, in small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml
from harness_tasks import opened
from recipes import Heard
from test_harness import ours, theirs

import mergetomix
from mergetomix.demo.text import BASE
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.sections.base import Base

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_example_of_the_guide(tmp_path: Path) -> None:
    files = dict(BLOCK.findall(GUIDE.read_text()))
    assert set(files) == {"make_documents.py", "next_line.yaml", "code_bits.yaml", "recipe.yaml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    script = [sys.executable, "make_documents.py"]
    said = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "questions.jsonl: 120" in said and "code.jsonl: 120" in said
    (tmp_path / "base").symlink_to(BASE)
    values = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    for name in values["targets"]:
        values["targets"][name]["limit"] = 24
    values["train"]["max_steps"] = 2
    values |= {"verify": {"budget": 0}, "final": {"num_random": 1}}
    values |= {"store": "store", "run_dir": "run"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    result = mergetomix.run(tmp_path / "recipe.yaml", Heard())
    assert len(result.selection.trials) == 31
    report = (tmp_path / "run" / "report.md").read_text()
    assert "`code_bits` is bits per byte of code_bits (lower is better)" in report
    assert "`next_line` is acc_norm of next_line (higher is better)" in report
    final = tmp_path / "run" / "final"
    family = CausalLM(Base(path=str(BASE)), "cpu", 256, "full")
    model = family.load(str(final))
    for task, metric in (("next_line", "acc_norm"), ("code_bits", "bits_per_byte")):
        found = ours(opened(family, task, tmp_path, metric=metric, limit=24), model).mean
        wanted = theirs(str(final), task, tmp_path, limit=24)["results"][task][f"{metric},none"]
        assert abs(found - wanted) < 1e-6

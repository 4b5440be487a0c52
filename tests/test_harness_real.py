"""Real questions (GSM8K, SVAMP, CommonsenseQA) on a pre-trained model, beside the harness."""

from __future__ import annotations

import math
from pathlib import Path

import make_tasks
import pytest
from harness_tasks import opened
from test_harness import ours, theirs

from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.sections.base import Base

SHARED = Path(__file__).resolve().parents[2] / "shared"
METRICS = {
    "csqa_real": "acc_norm",
    "svamp_likelihood": "perplexity",
    "gsm8k_real": "exact_match,last",
    "svamp_real": "exact_match,strict",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.exists(), reason="the data lies beside the checkout alone"),
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tasks.write_tasks(SHARED / "data" / "text", tmp_path_factory.mktemp("real"), 10)


@pytest.fixture(scope="module")
def pretrained() -> CausalLM:
    return CausalLM(Base(path=str(SHARED / "models" / "tiny-lm")), "cpu", 512, "full")


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("task", METRICS)
def test_real_questions_have_the_harness_s_scores(
    tasks: Path, pretrained: CausalLM, task: str, shots: int
) -> None:
    metric = METRICS[task]
    told = {"metric": metric, "num_fewshot": shots, "allow_test_split": True, "limit": 10}
    found = ours(opened(pretrained, task, tasks, **told), pretrained.load())
    said = theirs(pretrained.base.path, task, tasks, num_fewshot=shots, fewshot_as_multiturn=False)
    wanted = said["results"][task][metric if "," in metric else f"{metric},none"]
    assert len(found.values) == 10
    if found.kind == "loss":
        assert math.exp(found.mean) == pytest.approx(wanted, rel=1e-5)
    else:
        assert found.mean == pytest.approx(wanted, rel=1e-12)
    if task == "gsm8k_real" and shots:  # it has learnt how such answers end
        assert any("####" in str(each["resps"]) for each in said["samples"][task])

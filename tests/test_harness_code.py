"""Code of task files, and what the harness's metrics do: run where it is trusted, never else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness_tasks import (
    ACC,
    CHOICE,
    FILES,
    GENERATE,
    PLAIN,
    docs,
    opened,
    write_task,
    write_yaml,
    written,
)
from test_harness import ours, theirs

from mergetomix.errors import DataError, RecipeError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.targets.harness import metrics

MEMBER = {"task": "made", "metric_list": [{"metric": "evil"}]}


@pytest.mark.parametrize(
    "text, says",
    [
        ("process_docs: !function utils.load\n", r"calls code, in .*: !function utils\.load"),
        ("class: !function utils.Task\n", r"calls code, in .*: !function utils\.Task"),
        ("include: other.yaml\n", r"calls code, in .*third\.yaml: .*: !function deep\.code"),
        ("metadata: &a {include: third.yaml}\n<<: *a\n", r"third\.yaml: .*: !function deep\.code"),
        ("fewshot_config: {samples: [!function utils.a]}\n", r"calls code, in .*utils\.a"),
        ("metric_list: [{metric: exact_match, hf_evaluate: yes}]\n", r"hf_evaluate: True"),
        ("metric_list: [{metric: ./evil}]\n", r"lm-eval has no metric './evil'"),
        ("metric_list: [{metric: someone/evil}]\n", r"lm-eval has no metric 'someone/evil'"),
    ],
)
def test_code_of_a_task_file_wants_trust(
    family: CausalLM, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "other.yaml").write_text("include: [third.yaml]\n")
    (tmp_path / "third.yaml").write_text("process_results: !function deep.code\n")
    for module in ("utils", "deep", "evil"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('it was run')\n")
    values = yaml.safe_load(PLAIN)
    if "metric_list" in text:
        del values["metric_list"]
    written(tmp_path, yaml.safe_dump(values) + FILES + text)
    with pytest.raises(RecipeError, match=says) as caught:
        opened(family, "made", tmp_path, metric="acc")
    if "metric '" not in says:
        assert "trust_task_code: true" in str(caught.value.hint)


def test_a_group_gives_its_tasks_no_metric_of_a_hub(family: CausalLM, tmp_path: Path) -> None:
    write_task(tmp_path, "made", CHOICE, validation=docs(3))
    listed = [{"metric": "acc"}]
    write_yaml(tmp_path, "g", {"group": "g", "task": [MEMBER], "aggregate_metric_list": listed})
    with pytest.raises(DataError, match=r"lm-eval has no metric 'evil'"):
        opened(family, "g", tmp_path)


def test_code_that_is_trusted_is_called(family: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text(
        "FACTOR = 0.5\n"
        "def half():\n    return FACTOR\n"
        "def results(doc, results):\n    return {'own': half(), 'more': 1}\n"
    )
    listed = yaml.safe_dump({"metric_list": [{**ACC, "metric": "own"}]})
    text = PLAIN.replace(yaml.safe_dump({"metric_list": CHOICE["metric_list"]}), listed)
    written(tmp_path, text + FILES + "process_results: !function utils.results\n")
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(each) + "\n" for each in docs(4)))

    def get(metric: str) -> Any:
        return opened(family, "made", tmp_path, metric=metric, trust_task_code=True)

    found = ours(get("own"), family.load())
    assert found.values == (0.5,) * 4
    assert ours(get("more"), family.load()).values == (1.0,) * 4
    documents = get("other")
    with pytest.raises(DataError, match=r"metric: document 0 has own, more, not other"):
        ours(documents, family.load())


def test_a_metric_that_only_answers_name(family: CausalLM, tmp_path: Path) -> None:
    """HumanEval declares pass_at_k, and gives pass@1."""
    (tmp_path / "code.py").write_text(
        "def pass_at_k(references, predictions, **kwargs):\n"
        "    return {'pass@1': float(references[0] in predictions[0]), 'pass@2': 1.0}\n"
    )
    write_task(tmp_path, "coded", GENERATE, validation=docs(4))
    path = tmp_path / "coded.yaml"
    values = yaml.safe_load(path.read_text())
    del values["metric_list"], values["filter_list"]
    listed = "metric_list: [{metric: !function code.pass_at_k, aggregation: mean, "
    path.write_text(yaml.safe_dump(values) + listed + "higher_is_better: true}]\n")
    for metric, wanted in (("pass@1", {0.0, 1.0}), ("pass@2", {1.0})):
        documents = opened(family, "coded", tmp_path, metric=metric, trust_task_code=True)
        assert set(ours(documents, family.load()).values) <= wanted
    with pytest.raises(RecipeError, match=r"has pass_at_k,none, not pass_at_q"):
        opened(family, "coded", tmp_path, metric="pass_at_q", trust_task_code=True)


CODE = """import random


class Thing:
    pass


THING = Thing()


def shuffled(docs):
    order = list(range(len(docs)))
    random.shuffle(order)
    return docs.select(order)


def results(doc, results):
    return {"own": float(len(doc["question"]) % FACTOR), "thing": THING is None}
"""


def test_code_draws_as_the_command_does_and_is_known_by_its_file(
    family: CausalLM, tmp_path: Path
) -> None:
    """In two processes the same; another when the file is another."""
    listed = [{**ACC, "metric": "own"}]
    write_task(tmp_path, "drawn", {**CHOICE, "metric_list": listed}, validation=docs(8))
    path = tmp_path / "drawn.yaml"
    own = "process_docs: !function code.shuffled\nprocess_results: !function code.results\n"
    path.write_text(path.read_text() + own)
    script = (
        "import sys; from pathlib import Path; import tiny; from harness_tasks import opened;"
        f"d = opened(tiny.open_base({family.base.path!r}), 'drawn', Path({str(tmp_path)!r}),"
        " trust_task_code=True, metric='own'); print(d.over(d.examples.items).address(),"
        " [each.instances[0].args[0][:12] for each in d._documents])"
    )

    def said() -> str:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
        return done.stdout

    (tmp_path / "code.py").write_text(CODE.replace("FACTOR", "3"))
    first = said()
    assert said() == first
    (tmp_path / "code.py").write_text(CODE.replace("FACTOR", "4"))
    other = said()
    assert other.split()[0] != first.split()[0] and other.split()[1:] == first.split()[1:]
    sent = theirs(family.base.path, "drawn", tmp_path)["samples"]["drawn"]
    in_order = sorted((each["doc_id"], each["arguments"][0][0][:12]) for each in sent)
    assert str([text for _, text in in_order]) in first


def test_a_document_without_a_number_is_said(family: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "def results(doc, results):\n    return {'own': 1.0 if doc['right'] else float('nan')}\n"
    )
    listed = [{"metric": "own", "aggregation": "nanmean", "higher_is_better": True}]
    write_task(tmp_path, "holes", {**CHOICE, "metric_list": listed}, validation=docs(4))
    path = tmp_path / "holes.yaml"
    path.write_text(path.read_text() + "process_results: !function code.results\n")
    documents = opened(family, "holes", tmp_path, trust_task_code=True)
    with pytest.raises(DataError, match=r"document 0 has nan; lm-eval leaves such documents out"):
        ours(documents, family.load())


def test_a_metric_that_takes_too_long_says_so(
    family: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_S", 0.0)
    listed = [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]
    rows = [{**each, "options": ["no", "yes"], "right": 1} for each in docs(4)]
    write_task(tmp_path, "slow", {**CHOICE, "metric_list": listed}, validation=rows)
    with pytest.raises(DataError, match=r"metric: mcc,none .* computed anew without each document"):
        ours(opened(family, "slow", tmp_path), family.load())


def test_questions_that_differ_by_their_options_alone(family: CausalLM, tmp_path: Path) -> None:
    config = {**CHOICE, "doc_to_text": "Which is right?\nAnswer:"}
    write_task(tmp_path, "same", config, validation=docs(5))
    examples = opened(family, "same", tmp_path, metric="acc").examples.items
    assert len({each.prompt for each in examples}) == 5


def test_a_task_may_ask_for_the_model_and_more(family: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "import datasets\n\n\ndef load(pretrained, words, **_):\n"
        "    rows = [{'q': w, 'a': pretrained[-1:]} for w in words]\n"
        "    return {'validation': datasets.Dataset.from_list(rows)}\n"
    )
    text = "task: asks\ncustom_dataset: !function code.load\nvalidation_split: validation\n"
    text += "output_type: loglikelihood\ndoc_to_text: q\ndoc_to_target: ' {{a}}'\n"
    written(tmp_path, text + "metric_list: [{metric: acc}]\n", "asks")
    told = {"trust_task_code": True, "metadata": {"words": ["cat", "dog"]}}
    documents = opened(family, "asks", tmp_path, **told)
    assert [each.prompt for each in documents.examples.items] == ["cat", "dog"]


def test_templates_of_a_task_file_are_texts(family: CausalLM, tmp_path: Path) -> None:
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    config = {**GENERATE, "doc_to_text": reach}
    write_task(tmp_path, "reaching", config, validation=docs(3))
    with pytest.raises(DataError, match=r"task: reaching cannot be loaded: SecurityError"):
        opened(family, "reaching", tmp_path, metric="exact_match,word")

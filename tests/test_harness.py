"""Tasks of the LM Evaluation Harness as targets: the harness's own numbers, and its traps."""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness_tasks import GENERATE, MATCH, ROLLING, WHERE, docs, opened, write_kinds, write_task
from sources import target_section

from mergetomix.data.reading import read
from mergetomix.errors import DataError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.records import Scores
from mergetomix.targets.harness.documents import Documents
from mergetomix.targets.harness.library import quiet
from mergetomix.targets.target import TargetSetting

BaseOf = Callable[[str], str]
METRICS = {
    "choice": ["acc", "acc_norm", "acc_bytes"],
    "likelihood": ["acc", "perplexity"],
    "generate": ["exact_match,whole", "exact_match,word"],
    "rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kinds(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module", params=[512, 96])
def chatting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    """A base with a chat template, that reads all of a prompt, or loses the beginning of most."""
    model = tiny.llama(max_position_embeddings=request.param)
    return tiny.open_base(tiny.save(model, tmp_path_factory.mktemp("base"), chat=True), 64)


def theirs(path: str, task: str, folder: Path, **told: Any) -> dict[str, Any]:
    """What the harness says of a model in a folder, with everything that it logs of documents."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    model_args = f"pretrained={path},dtype=float32"
    with quiet(), contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
        found = simple_evaluate(
            model="hf",
            model_args=model_args,
            tasks=[task],
            task_manager=manager,
            bootstrap_iters=0,
            device="cpu",
            batch_size=1,
            **told,
        )
    assert found is not None
    return dict(found)


def ours(documents: Documents, model: Any) -> Scores:
    return documents.over(documents.examples.items).score(model)


# --- the harness's own numbers


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("task", ["choice", "likelihood", "generate"])
def test_scores_are_those_of_the_harness(
    chatting: CausalLM, folder: Path, task: str, chat: bool, shots: int
) -> None:
    told = {"num_fewshot": shots, "apply_chat_template": chat}
    # the command shows examples as turns where there is a template, simple_evaluate always does
    said = theirs(chatting.base.path, task, folder, **told, fewshot_as_multiturn=chat)
    model = chatting.load()
    for metric in METRICS[task]:
        documents = opened(chatting, task, folder, metric=metric, **told)
        found = ours(documents, model)
        if task == "generate":  # the metric may be zero for all: the texts are the same, too
            texts = {each["doc_id"]: each["resps"][0][0] for each in said["samples"][task]}
            assert [texts[i] for i in range(12)] == [each[0] for each in responses(documents)]
            assert len(set(texts.values())) > 3
        name = metric if "," in metric else f"{metric},none"
        wanted = said["results"][task][name]
        if found.kind == "loss":
            assert math.exp(found.mean) == pytest.approx(wanted, rel=1e-5)
        else:
            assert found.mean == wanted
            by_document = sorted(
                (each["doc_id"], each[metric.partition(",")[0]])
                for each in said["samples"][task]
                if each["filter"] == name.partition(",")[2]
            )
            assert list(found.values) == [float(value) for _, value in by_document]


def test_texts_are_scored_as_the_harness_scores_them(chatting: CausalLM, folder: Path) -> None:
    said = theirs(chatting.base.path, "rolling", folder)["results"]["rolling"]
    model = chatting.load()
    for metric in METRICS["rolling"]:
        found = ours(opened(chatting, "rolling", folder, metric=metric), model)
        assert found.kind == "loss"
        value = found.mean if metric == "bits_per_byte" else math.exp(found.mean)
        assert value == pytest.approx(said[f"{metric},none"], rel=1e-5)


def test_a_system_turn_and_one_turn_for_all(chatting: CausalLM, folder: Path) -> None:
    told = {
        "num_fewshot": 2,
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "system_instruction": "the cat says one",
        "fewshot_seed": 7,
        "limit": 5,
        "gen_kwargs": {"max_gen_toks": 3},
    }
    documents = opened(chatting, "generate", folder, metric="exact_match,word", **told)
    told["fewshot_random_seed"] = told.pop("fewshot_seed")
    said = theirs(chatting.base.path, "generate", folder, **told)
    sent = {each["doc_id"]: each["arguments"][0] for each in said["samples"]["generate"]}
    assert len(sent) == 5
    for place, document in enumerate(documents._documents):
        (instance,) = document.instances
        assert instance.args[0] == sent[place][0]
        assert instance.args[1] == sent[place][1]
    found = ours(documents, chatting.load())
    assert found.mean == said["results"]["generate"]["exact_match,word"]


@pytest.mark.parametrize("task", ["choice", "likelihood", "generate", "rolling"])
@pytest.mark.parametrize("kind", ["gpt2", "untied", "chat"])
def test_answers_are_those_of_the_harness_around_the_live_model(
    base: BaseOf, folder: Path, kind: str, task: str
) -> None:
    family = tiny.open_base(base(kind), 32)
    documents = opened(family, task, folder, metric=METRICS[task][0])
    target, model = documents.over(documents.examples.items), family.load()
    target.score(model)
    instances = [each for document in documents._documents for each in document.instances]
    reference = own_path(family, model)
    with quiet():
        wanted = getattr(reference, instances[0].request_type)(instances, disable_tqdm=True)
    assert len({str(each) for each in wanted}) > 3
    for instance, answer in zip(instances, wanted, strict=True):
        (found,) = instance.resps
        if isinstance(answer, str):
            assert found == answer
        elif isinstance(answer, tuple):
            assert found[0] == pytest.approx(answer[0], rel=1e-4)
            assert found[1] is answer[1]
        else:
            assert found == pytest.approx(answer, rel=1e-4)


def own_path(family: CausalLM, model: Any) -> Any:
    """The harness's class around a model that lives in memory."""
    from lm_eval.models.huggingface import HFLM

    with quiet():
        return HFLM(pretrained=model, tokenizer=family.tokenizer, batch_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("chatting", [512], indirect=True)
def test_the_command_says_the_same(chatting: CausalLM, folder: Path, tmp_path: Path) -> None:
    """The command itself, once for all output types; it makes its whole index first."""
    path = tiny.perturbed(chatting.base.path, tmp_path / "model", seed=3, size=0.1)
    chatting.tokenizer.save_pretrained(path)
    tasks = ["choice", "likelihood", "generate"]
    for chat in (False, True):
        given = f"--model hf --model_args pretrained={path},dtype=float32 --device cpu"
        given += f" --tasks {','.join(tasks)} --include_path {folder} --num_fewshot 3"
        given += f" --output_path {tmp_path / str(chat)} --batch_size 1"
        command = [sys.executable, "-m", "lm_eval", "run", *given.split()]
        command += ["--apply_chat_template"] if chat else []
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (file,) = (tmp_path / str(chat)).rglob("results_*.json")
        said = json.loads(file.read_text())["results"]
        model = chatting.load(path)
        for task in tasks:
            for metric in METRICS[task]:
                told = {"num_fewshot": 3, "apply_chat_template": chat, "metric": metric}
                found = ours(opened(chatting, task, folder, **told), model)
                wanted = said[task][metric if "," in metric else f"{metric},none"]
                mean = math.exp(found.mean) if found.kind == "loss" else found.mean
                assert mean == pytest.approx(wanted, rel=1e-5 if found.kind == "loss" else 0)


# --- its traps


@pytest.mark.parametrize("task", ["choice", "generate"])
def test_a_run_draws_its_examples_once(chatting: CausalLM, folder: Path, task: str) -> None:
    """A task object of the harness draws others each time it makes its requests."""
    told = {"num_fewshot": 3, "metric": METRICS[task][0]}
    documents, model = opened(chatting, task, folder, **told), chatting.load()
    target = documents.over(documents.examples.items)
    before = prompts(documents)
    first = target.score(model), responses(documents)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.3 * torch.randn_like(param))
    target.score(model)
    assert responses(documents) != first[1]  # nothing of the first model's answers is left
    assert (target.score(chatting.load()), responses(documents)) == first
    assert prompts(documents) == before
    again = opened(chatting, task, folder, **told)
    assert prompts(again) == before
    assert again.over(again.examples.items).address() == target.address()
    own = documents._documents[0].task
    with quiet():
        own.build_all_requests()
    assert [each.args[0] for each in own.instances] != [text for text, *_ in before]


def responses(documents: Documents) -> list[Any]:
    return [each.resps for document in documents._documents for each in document.instances]


def prompts(documents: Documents) -> list[Any]:
    return [each.args for document in documents._documents for each in document.instances]


def test_documents_keep_their_places(chatting: CausalLM, folder: Path) -> None:
    """The harness's samples come sorted as texts, where document 10 stands before 2."""
    documents, model = opened(chatting, "choice", folder, metric="acc"), chatting.load()
    items = documents.examples.items
    whole = documents.over(items).score(model)
    assert [item.row for item in items] == list(range(12))
    for order in (items[::-1], items[3:9:2], [items[10], items[2]]):
        found = documents.over(order).score(model)
        assert found.values == tuple(whole.values[item.row] for item in order)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_no_document_sees_its_own_answer(
    chatting: CausalLM, tmp_path: Path, split: str, sampler: str
) -> None:
    """Examples come from the split that is evaluated, which the harness does not always notice."""
    how = {"fewshot_split": split, "fewshot_config": {"sampler": sampler}}
    if split == "test":
        del how["fewshot_split"]
    write_task(tmp_path, "own", {**GENERATE, **how}, **{split: docs(8)})
    told = {"num_fewshot": 4, "metric": "exact_match,word", "allow_test_split": True}
    documents = opened(chatting, "own", tmp_path, **told)
    asked = [each["question"] for each in docs(8)]
    for place, (text, *_) in enumerate(prompts(documents)):
        shown = [question for question in asked if question in text]
        assert text.count("Answer:") == 5 and text.count(asked[place]) == 1
        assert len(shown) == 5 and text.index(asked[place]) == max(map(text.index, shown))
    (note,) = [each for each in documents.examples.notes if "own answer" in each]
    sent = theirs(chatting.base.path, "own", tmp_path, num_fewshot=4, fewshot_as_multiturn=False)[
        "samples"
    ]["own"]
    sent = sorted((each["doc_id"], each["arguments"][0][0]) for each in sent)[::2]  # two filters
    plain = [text for _, text in sent]
    leaking = [place for place, text in enumerate(plain) if text.count(asked[place]) == 2]
    assert leaking and f"{len(leaking)} of 8 documents" in note
    kept = [place for place in range(8) if place not in leaking]
    assert [prompts(documents)[place][0] for place in kept] == [plain[place] for place in kept]


def test_the_same_question_in_the_training_split_is_not_shown_either(
    chatting: CausalLM, tmp_path: Path
) -> None:
    twice = docs(6)
    others = [{**each, "text": "another"} for each in twice[:3]]  # so that documents differ
    train = [*others, *docs(4, shift=2)]
    write_task(tmp_path, "twice", GENERATE, train=train, validation=twice)
    documents = opened(chatting, "twice", tmp_path, num_fewshot=4, metric="exact_match,word")
    for place, (text, *_) in enumerate(prompts(documents)):
        assert text.count(twice[place]["question"]) == 1
    assert any("own answer" in note for note in documents.examples.notes)


def test_too_few_others_to_show(chatting: CausalLM, tmp_path: Path) -> None:
    write_task(tmp_path, "few", {**GENERATE, "fewshot_split": "validation"}, validation=docs(3))
    told = {"num_fewshot": 3, "metric": "exact_match,word"}
    with pytest.raises(DataError, match=r"num_fewshot: few has 2 other documents to show"):
        opened(chatting, "few", tmp_path, **told)


def test_a_limit_is_a_limit_each_time(
    chatting: CausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The harness's cache of requests heeds neither limit nor samples, and is not used."""
    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "cache"))
    for limit, num in ((3, 3), (5, 5), (0.5, 6), (None, 12), (0.01, 1)):
        documents = opened(chatting, "choice", folder, metric="acc", limit=limit)
        assert len(documents.examples.items) == num
        assert [each.doc["question"] for each in documents._documents] == [
            each["question"] for each in docs(num)
        ]
    assert not (tmp_path / "cache").exists()


def test_examples_are_turns_as_the_command_has_it(chatting: CausalLM, folder: Path) -> None:
    """simple_evaluate makes them turns by default, evaluate does not, the command with a chat."""
    told = {"num_fewshot": 2, "metric": "acc", "apply_chat_template": True}
    text = prompts(opened(chatting, "choice", folder, **told))[0][0]
    assert text.count("<s>assistant") == 3
    flat = prompts(opened(chatting, "choice", folder, **told, fewshot_as_multiturn=False))[0][0]
    assert flat.count("<s>assistant") == 1
    plain = prompts(opened(chatting, "choice", folder, num_fewshot=2, metric="acc"))[0][0]
    assert "<s>" not in plain


# --- answers


def test_an_answer_that_never_ends_is_bounded_and_counted(chatting: CausalLM, folder: Path) -> None:
    told = {"gen_kwargs": {"until": ["no such text"], "max_gen_toks": 5}}
    documents = opened(chatting, "generate", folder, metric="exact_match,word", **told)
    target = documents.over(documents.examples.items)
    target.score(chatting.load())
    cut = int(target.remark.split(" of ")[0])
    assert 0 < cut <= 12
    assert target.remark == f"{cut} of 12 answers came to max_gen_toks: 5 before they ended"


def test_stop_texts_cut_in_turn_as_the_harness_cuts(chatting: CausalLM, folder: Path) -> None:
    model = chatting.load()
    free = {"until": ["no such text"], "max_gen_toks": 8}
    documents = opened(chatting, "generate", folder, metric="exact_match,word", gen_kwargs=free)
    ours(documents, model)
    text = max((texts[0] for texts in responses(documents)), key=len)
    assert len(text) > 4
    until = [text[2:4], text[1:4]]  # the later one begins before the first
    told = {"gen_kwargs": {"until": until, "max_gen_toks": 8}}
    documents = opened(chatting, "generate", folder, metric="exact_match,word", **told)
    ours(documents, model)
    said = theirs(chatting.base.path, "generate", folder, **told)["samples"]["generate"]
    wanted = {each["doc_id"]: each["resps"][0][0] for each in said}
    assert [texts[0] for texts in responses(documents)] == [wanted[i] for i in range(12)]
    assert text[:2] in wanted.values()


def test_an_empty_text_has_no_loss(chatting: CausalLM, tmp_path: Path) -> None:
    rows = docs(3)
    write_task(tmp_path, "gaps", ROLLING, validation=[rows[0], {**rows[1], "text": ""}, rows[2]])
    documents = opened(chatting, "gaps", tmp_path, metric="byte_perplexity")
    with pytest.raises(DataError, match=r"metric: byte_perplexity,none .*: document 1 is empty"):
        ours(documents, chatting.load())


def test_answers_are_drawn_alike_for_every_model(chatting: CausalLM, tmp_path: Path) -> None:
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "until": ["\n"]}
    config = {**GENERATE, "generation_kwargs": drawn, "repeats": 3}
    config["filter_list"] = [{"name": "all", "filter": [{"function": "take_first_k", "k": 3}]}]
    config["metric_list"] = [{**MATCH, "metric": "bypass"}]
    write_task(tmp_path, "drawn", config, validation=docs(4))
    documents, model = opened(chatting, "drawn", tmp_path, metric="bypass"), chatting.load()
    target = documents.over(documents.examples.items)
    found = [target._answers.by_request(target.read(model)) for _ in range(2)]
    assert found[0] == found[1]
    assert all(len(texts) == 3 for texts in found[0].values())
    assert any(len(set(texts)) > 1 for texts in found[0].values())


def test_a_model_of_broken_weights_has_no_scores(chatting: CausalLM, folder: Path) -> None:
    model = chatting.load()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    for task, metrics in METRICS.items():
        for metric in metrics:
            scores = ours(opened(chatting, task, folder, metric=metric), model)
            assert all(map(math.isnan, scores.values)), metric


@pytest.mark.parametrize("normalize, metric", [(False, "acc"), ("characters", "acc_norm")])
def test_choice_and_a_task_of_multiple_choice_are_the_same(
    chatting: CausalLM, folder: Path, normalize: Any, metric: str
) -> None:
    model, rows = chatting.load(), docs(12)
    section = target_section(
        score="choice",
        rows=rows,
        prompt="{question}\nAnswer:",
        options="options",
        answer="right",
        answer_from=0,
        option_format=" {option}",
        normalize=normalize,
    )
    examples = read(section, WHERE).items
    light = section.build(examples, TargetSetting(chatting, WHERE, 4096)).score(model)
    assert set(light.values) == {0.0, 1.0}
    if chatting.limit == 512:  # too long a prompt is cut by the harness for each option by itself
        assert ours(opened(chatting, "choice", folder, metric=metric), model) == light


# --- what the scores are kept under


def test_an_address_is_of_what_is_asked_and_how_it_is_scored(
    chatting: CausalLM, folder: Path, tmp_path: Path
) -> None:
    def address(task: str = "choice", where: Path = folder, **told: Any) -> str:
        documents = opened(chatting, task, where, **{"metric": "acc", **told})
        return documents.over(documents.examples.items).address()

    same = write_kinds(tmp_path / "elsewhere")
    (same / "choice.yaml").write_text(
        (same / "choice.yaml").read_text().replace("task: choice", "task: renamed")
    )
    assert address("renamed", same) == address()
    other = {
        "metric": address(metric="acc_norm"),
        "shots": address(num_fewshot=2),
        "seed": address(num_fewshot=2, fewshot_seed=5),
        "limit": address(limit=5),
        "chat": address(apply_chat_template=True),
        "system": address(system_instruction="be right"),
        "": address(),
    }
    assert len(set(other.values())) == len(other)
    generated = {
        "": address("generate", metric="exact_match,word"),
        "filter": address("generate", metric="exact_match,whole"),
        "bound": address("generate", metric="exact_match,word", gen_kwargs={"max_gen_toks": 5}),
    }
    assert len(set(generated.values())) == len(generated)


def test_a_filter_and_an_answer_are_part_of_it(chatting: CausalLM, tmp_path: Path) -> None:
    def address(rows: list[Any], **changes: Any) -> str:
        write_task(tmp_path, "one", {**GENERATE, **changes}, validation=rows)
        documents = opened(chatting, "one", tmp_path, metric="exact_match,word")
        return documents.over(documents.examples.items).address()

    rows = docs(4)
    filters = json.loads(json.dumps(GENERATE["filter_list"]).replace("a-z", "a-y"))
    answers = [*rows[:3], {**rows[3], "answer": "other"}]
    case = [{**MATCH, "ignore_case": True}]
    found = [address(rows), address(rows, filter_list=filters), address(answers)]
    found.append(address(rows, metric_list=case))
    assert len(set(found)) == 4 and address(rows) == found[0]

"""What `write_proxy` leaves: a folder that loads, whole or not at all, or one adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from recipes import recipe_values, write_recipe
from safetensors.torch import load_file
from torch import Tensor

import mergetomix as m2m
from mergetomix import merge
from mergetomix.experts.bank import Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.export import folder, write
from mergetomix.export.card import fenced
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.records import Mixture
from mergetomix.sections.merge import Merge
from mergetomix.session.session import open_session

WEIGHTS = [5.0, 3.0, 2.0]
IDS = torch.arange(3, 43).view(2, 20)
EXPERTS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {},
        {"r": 2, "lora_alpha": 3, "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "r": 3},
    ],
    "gpt2-untied": [
        {},
        {"target_modules": ["c_proj", "lm_head"], "r": 2},
        {"target_modules": ["c_attn"], "use_rslora": True},
    ],
}


@pytest.fixture(params=EXPERTS)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> m2m.Recipe:
    """Three adapters from elsewhere on a tiny base, of different ranks, scalings and modules."""
    return adapted(tmp_path, request.param)


def adapted(place: Path, kind: str = "llama", **changes: Any) -> m2m.Recipe:
    base = tiny.BASES[kind](place / "base")
    values = recipe_values(place) | {"base": base, **changes}
    for seed, (name, settings) in enumerate(zip("abc", EXPERTS[kind], strict=True)):
        values["datasets"][name]["expert"] = tiny.adapter(
            base, place / f"expert {name}", seed, **settings
        )
    return m2m.load_recipe(write_recipe(place, values))


def model_of(path: Path | str, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, **options).eval()


def on_base(recipe: m2m.Recipe, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model_of(recipe.base.path), adapter).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def merged(recipe: m2m.Recipe) -> dict[str, Tensor]:
    """The mixture in memory, by the bank."""
    family = CausalLM(recipe.base, "cpu", 32, "full")
    model = family.load()
    start = {name: p.detach().clone() for name, p in params(model).items()}
    bank = Bank(
        model, {n: read_delta(family, start, str(recipe.datasets[n].expert), n) for n in "abc"}
    )
    bank.set(
        merge.coefficients(Mixture(("a", "b", "c"), (0.5, 0.3, 0.2)), recipe.merge.scale.exponent)
    )
    return params(bank.model)


def card_of(path: Path) -> tuple[dict[str, Any], str]:
    """The values in front of a model card, and its body."""
    empty, front, body = (path / "README.md").read_text().split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


# --- the merged model


def test_the_folder_is_the_merge_with_card_and_recipe(recipe: m2m.Recipe, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    written = m2m.write_proxy(recipe, ["c", "a", "b"], tmp_path / "out", [2, 5, 3])
    assert (
        written.path == tmp_path / "out" and written.dtype == "float32" and written.adapter is None
    )
    want, found = merged(recipe), params(model_of(tmp_path / "out"))
    assert set(found) == set(want) and all(torch.equal(found[name], want[name]) for name in want)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the cat").input_ids
    front, body = card_of(tmp_path / "out")
    assert front["base_model"] == recipe.base.path and front["library_name"] == "transformers"
    assert front["tags"] == ["merge", "mergetomix"] and front["base_model_relation"] == "merge"
    with open_session(recipe) as session:
        for name, weight in {"a": 0.5, "b": 0.3, "c": 0.2}.items():
            assert f"| {name} | {weight} |" in body and session.addresses.union([name]) in body
    assert (
        "method: linear, exponent of the scale: 1" in body and f"torch {torch.__version__}" in body
    )
    block = body.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block)["datasets"]["a"]["expert"] == recipe.datasets["a"].expert
    assert m2m.load_recipe(tmp_path / "out" / "recipe.yaml") == recipe


def test_several_files_with_an_index(tmp_path: Path) -> None:
    recipe = adapted(tmp_path)
    m2m.write_proxy(
        recipe, ["a", "b", "c"], tmp_path / "out", WEIGHTS, form=m2m.Form(max_shard_size="30KB")
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert set(index.values()) == files and len(files) > 2
    assert all(
        Path(tmp_path, "out", name).stat().st_size < 42_000 for name in files
    )  # one tensor has 38400 bytes
    want, found = merged(recipe), params(model_of(tmp_path / "out"))
    assert set(found) == set(want) and all(torch.equal(found[name], want[name]) for name in want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_number_type_is_one_rounding_of_the_sum(tmp_path: Path, dtype: str) -> None:
    recipe = adapted(tmp_path)
    assert (
        m2m.write_proxy(
            recipe, ["a", "b", "c"], tmp_path / "out", WEIGHTS, form=m2m.Form(dtype=dtype)
        ).dtype
        == dtype
    )
    want, found = merged(recipe), params(model_of(tmp_path / "out"))
    assert {param.dtype for param in found.values()} == {getattr(torch, dtype)}
    assert all(torch.equal(found[name], want[name].to(getattr(torch, dtype))) for name in want)


def test_a_base_in_bfloat16_gives_a_merge_in_bfloat16(tmp_path: Path) -> None:
    """And in float32, where that is asked for, without the rounding."""
    recipe = adapted(tmp_path)
    model_of(recipe.base.path).bfloat16().save_pretrained(recipe.base.path)
    for form, dtype in ((m2m.Form(), "bfloat16"), (m2m.Form(dtype="float32"), "float32")):
        assert (
            m2m.write_proxy(recipe, ["a", "b", "c"], tmp_path / dtype, WEIGHTS, form=form).dtype
            == dtype
        )
    want, whole, rounded = (
        merged(recipe),
        params(model_of(tmp_path / "float32")),
        params(model_of(tmp_path / "bfloat16")),
    )
    assert all(torch.equal(whole[name], want[name]) for name in want)
    assert all(torch.equal(rounded[name], want[name].bfloat16()) for name in want)
    stated = adapted(tmp_path / "stated", base={"path": recipe.base.path, "dtype": "float32"})
    assert m2m.write_proxy(stated, ["a"], tmp_path / "as stated").dtype == "float32"


def test_a_base_loaded_in_bfloat16_is_not_rounded_twice(tmp_path: Path) -> None:
    """With base.dtype: bfloat16 the run scores rounded merges; float32 is written from the sum."""
    plain = adapted(tmp_path, train={"method": "lora", "max_length": 32, "max_steps": 1})
    model_of(plain.base.path).bfloat16().save_pretrained(plain.base.path)
    recipe = m2m.load_recipe(tmp_path / "recipe.yaml", ["base.dtype=bfloat16"])
    m2m.write_proxy(
        recipe, ["a", "b", "c"], tmp_path / "out", WEIGHTS, form=m2m.Form(dtype="float32")
    )
    want, found = merged(plain), params(model_of(tmp_path / "out"))
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_numbers_over_float16_are_a_mistake_that_leaves_nothing(tmp_path: Path) -> None:
    recipe = adapted(tmp_path)
    tiny.edit(
        str(recipe.datasets["a"].expert), lambda tensors: [t.fill_(1e4) for t in tensors.values()]
    )
    for form in (m2m.Form(dtype="float16"), m2m.Form(adapter=True, dtype="float16")):
        if form.adapter:
            tiny.edit(
                str(recipe.datasets["a"].expert),
                lambda tensors: [t.fill_(1e6) for t in tensors.values()],
            )
        with pytest.raises(m2m.UserError, match="not finite in float16"):
            m2m.write_proxy(recipe, ["a", "b"], tmp_path / "out", form=form)
        assert not list(tmp_path.glob("*out*"))


# --- one adapter


def test_the_adapter_on_the_base_is_the_merge(recipe: m2m.Recipe, tmp_path: Path) -> None:
    written = m2m.write_proxy(
        recipe, ["a", "b", "c"], tmp_path / "adapter", WEIGHTS, form=m2m.Form(adapter=True)
    )
    m2m.write_proxy(recipe, ["a", "b", "c"], tmp_path / "merged", WEIGHTS)
    assert written.adapter is not None and written.adapter.is_exact and written.adapter.error < 1e-7
    want, base = logits(model_of(tmp_path / "merged")), logits(model_of(recipe.base.path))
    found = logits(on_base(recipe, tmp_path / "adapter"))
    assert (want - base).abs().max() > 0.1
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    front, body = card_of(tmp_path / "adapter")
    assert (
        front["library_name"] == "peft"
        and front["base_model_relation"] == "adapter"
        and "lora" in front["tags"]
    )
    worst = written.adapter.worst
    assert (
        "exact up to rounding" in body
        and f"| {worst} | {written.adapter.errors[worst]:.3g} |" in body
    )


def test_the_adapter_is_read_back_as_the_sum(recipe: m2m.Recipe, tmp_path: Path) -> None:
    """By the reader of experts, so that a written adapter may be another recipe's expert."""
    m2m.write_proxy(
        recipe, ["a", "b", "c"], tmp_path / "adapter", WEIGHTS, form=m2m.Form(adapter=True)
    )
    family = CausalLM(recipe.base, "cpu", 32, "lora")
    base = params(family.load())
    own = {
        name: read_delta(family, base, str(recipe.datasets[name].expert), name) for name in "abc"
    }
    back: Any = read_delta(family, base, str(tmp_path / "adapter"), "back")
    assert back.scaling == 1.0 and set(back.factors) == set().union(
        *(delta.names() for delta in own.values())
    )
    for name, (tall, flat) in back.factors.items():
        want = torch.zeros(1, dtype=torch.float64)
        for key, weight in zip("abc", (0.5, 0.3, 0.2), strict=True):
            delta: Any = own[key]
            if name in delta.factors:
                b, a = delta.factors[name]
                want = want + weight * delta.scaling * (b.double() @ a.double())
        error = (tall.double() @ flat.double() - want).norm() / want.norm()
        assert error < 1e-7, name


def test_a_lower_rank_says_what_it_loses(tmp_path: Path) -> None:
    recipe = adapted(tmp_path)
    errors = []
    for rank in (2, 6, 9):
        form = m2m.Form(adapter=True, rank=rank)
        written = m2m.write_proxy(recipe, ["a", "b", "c"], tmp_path / str(rank), WEIGHTS, form=form)
        assert written.adapter is not None
        errors.append(written.adapter.error)
        config = json.loads((tmp_path / str(rank) / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == rank and not config["rank_pattern"]
        assert any(
            f"{written.adapter.error:.3g} over all params" in line for line in written.sentences()
        )
        assert f"{written.adapter.error:.3g} over all params" in card_of(tmp_path / str(rank))[1]
    assert errors[0] > errors[1] > 1e-3 and errors[2] < 1e-7
    exact = logits(on_base(recipe, tmp_path / "9"))
    gaps = [
        float((logits(on_base(recipe, tmp_path / str(rank))) - exact).norm()) for rank in (2, 6)
    ]
    assert gaps[0] > gaps[1] > 0


def test_an_adapter_in_bfloat16(tmp_path: Path) -> None:
    recipe = adapted(tmp_path)
    form = m2m.Form(adapter=True, dtype="bfloat16")
    written = m2m.write_proxy(recipe, ["a", "b", "c"], tmp_path / "out", WEIGHTS, form=form)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert written.adapter is not None and 1e-4 < written.adapter.error < 5e-3


def test_a_rank_over_the_sum_is_exact(tmp_path: Path) -> None:
    written = m2m.write_proxy(
        adapted(tmp_path), ["a", "b"], tmp_path / "out", form=m2m.Form(adapter=True, rank=64)
    )
    assert written.adapter is not None and written.adapter.rank == 6 and written.adapter.is_exact
    assert "rank 64 was asked for, which is over that sum" in card_of(tmp_path / "out")[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "fisher"])
def test_no_expert_of_another_dataset_is_trained(tmp_path: Path, method: str) -> None:
    values = recipe_values(tmp_path, ("a", "b", "c"))
    values["train"]["max_steps"] = 2
    recipe = m2m.load_recipe(write_recipe(tmp_path, values | {"merge": {"method": method}}))
    m2m.write_proxy(recipe, ["a", "c"], tmp_path / "some")
    with open_session(recipe) as session:
        assert [
            session.store.finetune(session.addresses.union([name])) is None for name in "abc"
        ] == [False, True, False]
    m2m.train_experts(recipe)
    m2m.write_proxy(recipe, ["a", "c"], tmp_path / "all")
    assert torch.equal(logits(model_of(tmp_path / "some")), logits(model_of(tmp_path / "all")))


@pytest.mark.slow
def test_experts_are_trained_where_they_are_missing(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["train"] |= {"method": "lora", "max_steps": 2, "lora": {"rank": 2, "alpha": 4}}
    recipe = m2m.load_recipe(write_recipe(tmp_path, values))
    for form in (m2m.Form(adapter=True), m2m.Form()):
        m2m.write_proxy(recipe, ["a", "b"], tmp_path / str(form.adapter), form=form)
    found = logits(on_base(recipe, tmp_path / "True"))
    want = logits(model_of(tmp_path / "False"))
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()
    config = json.loads((tmp_path / "True" / "adapter_config.json").read_text())
    assert (
        config["task_type"] == "CAUSAL_LM" and config["base_model_name_or_path"] == recipe.base.path
    )
    assert config["r"] == 4


# --- mistakes, before anything is read


Mistake = tuple[dict[str, Any], list[str], str]
MISTAKES: dict[str, Mistake] = {
    "unknown": (
        {},
        ["a", "math", "chit"],
        "'math'; did you mean 'maths'.*'chit'; did you mean 'chat'",
    ),
    "twice": ({}, ["a", "a"], "'a' stands twice"),
    "none": ({}, [], "at least one dataset"),
    "full": ({"adapter": True}, ["maths"], "the expert of 'maths' is a full model"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_written_is_said_first(tmp_path: Path, case: str) -> None:
    form, names, message = MISTAKES[case]
    values = recipe_values(tmp_path, ("a", "maths", "chat"))
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()  # nothing is there to be read
    recipe = m2m.load_recipe(write_recipe(tmp_path, values))
    with pytest.raises(m2m.UserError, match=message):
        m2m.write_proxy(recipe, names, tmp_path / "out", form=m2m.Form(**form))
    assert not (tmp_path / "out").exists() and not (tmp_path / "store").exists()


def test_no_adapter_of_a_merge_that_is_no_sum(tmp_path: Path) -> None:
    recipe = adapted(tmp_path)
    other = recipe.model_copy(
        update={"merge": Merge.model_construct(**{**dict(recipe.merge), "method": "ties"})}
    )
    write.check(other, ["a"], tmp_path / "out", m2m.Form())
    with pytest.raises(m2m.UserError, match="a merge by ties is no sum of the experts' deltas"):
        write.check(other, ["a"], tmp_path / "out", m2m.Form(adapter=True))


def test_a_full_expert_among_adapters_is_named(tmp_path: Path) -> None:
    recipe = adapted(tmp_path)
    values = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    values["datasets"]["b"]["expert"] = tiny.perturbed(recipe.base.path, tmp_path / "full", 1)
    mixed = m2m.load_recipe(write_recipe(tmp_path, values))
    with pytest.raises(m2m.UserError, match="the expert of 'b' is a full model"):
        m2m.write_proxy(mixed, ["a", "b"], tmp_path / "out", form=m2m.Form(adapter=True))
    written = m2m.write_proxy(mixed, ["a", "c"], tmp_path / "out", form=m2m.Form(adapter=True))
    assert written.adapter is not None and written.adapter.rank == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 4}, "a rank is an adapter's"),
        ({"adapter": True, "rank": 0}, "at least 1, not 0"),
        ({"dtype": "int8"}, "float32, bfloat16, float16, not 'int8'"),
        ({"adapter": True, "max_shard_size": "5GB"}, "an adapter is one file"),
        ({"max_shard_size": "5 gigs"}, "such as 5GB, not '5 gigs'"),
    ],
)
def test_forms_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(m2m.UserError, match=message):
        m2m.Form(**fields)


# --- whole or not at all


def test_an_interrupted_folder_is_not_there(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), folder.place(tmp_path / "out") as partial:
            (partial / "half").write_text("x")
            assert partial.parent == tmp_path and not (tmp_path / "out").exists()
            raise error
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("x")
    with folder.place(tmp_path / "out") as partial:
        (partial / "whole").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]


def test_a_folder_that_holds_something_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "out", tmp_path / "file"):
        with pytest.raises(m2m.UserError, match="exists and is no empty folder"), folder.place(out):
            pass
    with pytest.raises(m2m.UserError, match="no folder that can be written to"):
        folder.check_free(tmp_path / "file" / "below")
    with (
        pytest.raises(m2m.UserError, match="no empty folder"),
        folder.place(tmp_path / "late") as partial,
    ):
        (partial / "whole").write_text("x")
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").write_text("x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "file",
        "late",
        "mine",
        "out",
        "theirs",
    ]


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    import errno
    import os

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(m2m.StoreError, match="disk full while writing"),
        folder.place(tmp_path / "out"),
    ):
        raise full
    assert list(tmp_path.iterdir()) == []


def test_the_card_fences_whatever_the_recipe_quotes() -> None:
    assert fenced("a: 1\n") == "```yaml\na: 1\n```"
    assert fenced("a: '````'\n").startswith("`````yaml\n")


@pytest.mark.slow
def test_rows_in_the_recipe_are_counted_in_the_card_and_kept_beside_it(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    del values["datasets"]["a"]["path"]
    values["datasets"]["a"]["rows"] = rows
    values["train"]["max_steps"] = 1
    m2m.write_proxy(m2m.load_recipe(write_recipe(tmp_path, values)), ["a", "b"], tmp_path / "out")
    body = card_of(tmp_path / "out")[1]
    assert "<12 rows, see recipe.yaml>" in body and rows[3]["question"] not in body
    assert (
        yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["datasets"]["a"]["rows"]
        == rows
    )


def test_what_the_search_may_hold_is_no_bound_on_what_is_written(tmp_path: Path) -> None:
    """A user may ask for any mixture of the recipe's datasets, with what weights she likes."""
    search = {"forbid": ["c"], "require": ["a"], "max_datasets": 1}
    recipe = adapted(tmp_path, search=search)
    m2m.write_proxy(recipe, ["b", "c"], tmp_path / "bc")
    m2m.write_proxy(recipe, ["b", "c"], tmp_path / "weighted", [3.0, 1.0])
    free = adapted(tmp_path)
    m2m.write_proxy(free, ["b", "c"], tmp_path / "wanted")
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("bc", "wanted")]
    assert all(torch.equal(each, tensors[1][name]) for name, each in tensors[0].items())
    assert "forbid" in (tmp_path / "bc" / "recipe.yaml").read_text()

"""What users and files may make a process do: each ends in one message, in seconds."""

from __future__ import annotations

import gzip
import json
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from recipes import recipe_values
from said import small

from mergetomix import bounds
from mergetomix.bounds import Exceeded, limited
from mergetomix.data import expressions, formats
from mergetomix.data.examples import Example
from mergetomix.data.reading import read
from mergetomix.errors import DataError, ModelError, RecipeError, UserError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.recipe.recipe import load, parse
from mergetomix.recipe.yaml import override, read_values
from mergetomix.sections.source import Dataset
from mergetomix.sections.train import Lora
from mergetomix.targets.generate import Generate, GenerateTarget
from mergetomix.targets.numbers import last_number
from mergetomix.targets.target import TargetSetting

SLOW = r"(a+)+$"
SECONDS = 0.3
"""What a test lets something take that would never end."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """No test of time, but of an end: what is not bounded takes hours."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 100 * seconds


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited.__wrapped__, "__defaults__", (SECONDS,))


def test_what_takes_too_long_ends() -> None:
    with within(SECONDS), pytest.raises(Exceeded, match=r"takes longer than 0\.3 s"), limited():
        while True:
            pass
    # and what was set before is as it was
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with limited(), limited():
        pass
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_what_takes_too_much_memory_ends() -> None:
    with pytest.raises(Exceeded, match="asks for more than 2 GiB"), limited():
        b"x" * 2**33
    assert len(b"x" * 2**20) == 2**20


def test_threads_are_let_be() -> None:
    found: list[int] = []

    def work() -> None:
        with limited():
            found.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]


# --- regular expressions


class Answers(CausalLM):
    def continued(self, *_: Any) -> dict[int, Any]:
        return {0: "ok", 1: "a" * 50 + "!"}


def test_a_pattern_that_never_ends_names_its_key_and_the_row(family: CausalLM) -> None:
    source = {"path": "x.jsonl", "prompt": "q", "completion": "a"}
    section = GenerateTarget(
        **source, score="generate", metric="regex", pattern=SLOW, max_new_tokens=4
    )
    answering = tiny.open_base(family.base.path)
    answering.__class__ = Answers
    examples = [Example(row, prompt="q", completion="a") for row in (3, 7)]
    setting = TargetSetting(answering, "targets.t", 512)
    target = section.build(examples, setting)
    assert isinstance(target, Generate)
    with within(SECONDS), pytest.raises(DataError) as caught:
        target.score(None)
    assert caught.value.message.startswith(f"targets.t.pattern: {SLOW!r} takes longer than")
    assert "row 7" in caught.value.message


def test_layers_named_by_a_pattern_that_never_ends(family: CausalLM) -> None:
    lora = Lora(target_modules=r"(\w+\.?)+!")
    with within(SECONDS), pytest.raises(ModelError, match=r"^train\.lora\.target_modules: .*takes"):
        family.adapted(family.load(), lora)


def test_an_adapter_whose_pattern_never_ends(family: CausalLM, tmp_path: Path) -> None:
    from mergetomix.experts.deltas import params, read_delta

    family.adapted(family.load(), Lora(rank=2)).save_pretrained(tmp_path)
    base = params(family.load())
    for pattern, says in ((r"(\w+\.?)+!", "takes longer"), ("(", "missing")):
        file = tmp_path / "adapter_config.json"
        config = json.loads(file.read_text()) | {"rank_pattern": {pattern: 2}}
        file.write_text(json.dumps(config))
        with (
            within(SECONDS),
            pytest.raises(ModelError, match=f"^datasets.d.expert: .*rank_pattern: .*{says}"),
        ):
            read_delta(family, base, str(tmp_path), "datasets.d.expert")


# --- templates

TEMPLATES = {
    "steps": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "a wide field": "{{ 'a'.center(10**12) }}",
    "many letters": "{{ messages[0].content * 10**12 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_chat_template_that_asks_for_too_much(
    family: CausalLM, tmp_path: Path, kind: str
) -> None:
    with within(SECONDS), pytest.raises(ModelError, match=r"^base\.chat_template: the template "):
        _ = tiny.open_base(family.base.path, chat_template=TEMPLATES[kind]).tokenizer


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_bases_own_template_that_asks_for_too_much(
    base: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    import shutil

    folder = Path(shutil.copytree(base("llama"), tmp_path / "base"))
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].content == 'go' %}" + TEMPLATES[kind] + "{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    opened = tiny.open_base(str(folder))
    rows = [(("user", "go"), ("assistant", "b"))]
    examples = [Example(5, messages=each) for each in rows]
    with within(SECONDS), pytest.raises(DataError, match=r"^datasets\.d\.messages: .* row 5"):
        opened.encode(examples, "datasets.d")


@pytest.mark.parametrize(
    "pattern", ["{t:>99999999999}", "{t:>{n}}", "{n:.100000f}", "{n:0>12345678}"]
)
def test_a_prompt_template_that_asks_for_too_much(pattern: str) -> None:
    rows = [{"t": "a", "n": 10**11, "a": "b"}]
    source = Dataset(rows=rows, prompt=pattern, completion="a")
    with within(SECONDS), pytest.raises(DataError, match=r"^datasets\.d\.prompt: .*at most 10,000"):
        read(source, "datasets.d")


# --- recipes

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "aliases of aliases": (ALIASES, "more than 100,000 values"),
    "an alias in itself": ("a: &a [*a]\n", "within what it stands for"),
    "an alias in itself by a key": ("a: &a {b: {c: *a}}\n", "within what it stands for"),
    "deep lists": ("a: " + "[" * 5000 + "]" * 5000, "recursion"),
    "deep mappings": (
        "".join(" " * i + "a:\n" for i in range(2000)) + " " * 2001 + "b",
        "recursion",
    ),
    "a number of 5,000 digits": ("train: {max_steps: " + "9" * 5000 + "}", "4300 digits"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_recipe_that_stands_for_too_much(tmp_path: Path, kind: str) -> None:
    text, says = TEXTS[kind]
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with within(SECONDS), pytest.raises(RecipeError, match=f"is not valid YAML: .*{says}"):
        read_values(file)
    if "\n" not in text.strip():
        key, _, value = text.partition(": ")
        with pytest.raises(UserError, match="not valid YAML"):
            override({}, f"{key}={value}")


def test_aliases_that_stand_for_little_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_values(file) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}] * 2}
    assert load(write(tmp_path, recipe_values(tmp_path))).train.seed == 0


def write(folder: Path, values: Any) -> Path:
    import yaml

    file = folder / "whole.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.parametrize(
    "key",
    [
        "train__max_steps",
        "train__max_tokens",
        "train__seed",
        "train__batch_size",
        "train__learning_rate",
        "train__lora__rank",
        "search__max_datasets",
        "search__budget",
        "verify__budget",
        "batch_tokens",
        "datasets__a__max_examples",
        "targets__t__weight",
    ],
)
def test_a_number_beyond_all_measure_names_its_key(key: str) -> None:
    for value in (10**400, -(10**400), 2**60):
        with pytest.raises(RecipeError) as caught:
            parse(small(**{key: value}))
        assert caught.value.where == key.replace("__", ".")
        assert len(caught.value.message) < 400


# --- files


def put(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def refused(file: Path, **how: Any) -> str:
    with within(SECONDS), pytest.raises(DataError) as caught:
        read(Dataset(**({"path": str(file), "text": "t"} | how)), "datasets.d")
    assert str(file) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("9" * 5000, "a number has too many digits"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
    ],
)
def test_json_that_python_cannot_read(tmp_path: Path, name: str, value: str, says: str) -> None:
    text = f'{{"t": "a"}}\n{{"t": "b", "n": {value}}}\n'
    message = refused(put(tmp_path / name, text.encode()))
    assert says in message and "line 2" in message


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bounds a thousandth as large, so that tests need not write gibibytes."""
    for module in (formats, expressions, bounds):
        monkeypatch.setattr(module, "MOST_CHARACTERS", 2**14)
    return 2**14


def test_a_gz_that_holds_beyond_all_measure(tmp_path: Path, short: int) -> None:
    for name in ("x.jsonl", "x.json", "x.csv", "x.txt", "x.tsv", "x.parquet"):
        bomb = gzip.compress(b'{"t": "a"}\n' * (30 * short))
        assert "200 times its size" in refused(put(tmp_path / f"{name}.gz", bomb)), name
    bomb = gzip.compress(b"a" * (300 * short))
    message = refused(put(tmp_path / "x.md.gz", bomb), text=True)
    assert "times its size" in message or "a text of more" in message
    # what compresses as data does is read
    rows = "".join(f'{{"t": "{"word " * 20}{i}"}}\n' for i in range(5000)).encode()
    assert len(rows) > short
    good = put(tmp_path / "good.jsonl.gz", gzip.compress(rows))
    assert len(read(Dataset(path=str(good), text="t"), "datasets.d").items) == 5000


def test_one_field_beyond_all_measure(tmp_path: Path, short: int) -> None:
    long = "a" * (short + 1)
    assert "line 2" in refused(
        put(tmp_path / "x.jsonl", f'{{"t":"a"}}\n{{"t":"{long}"}}\n'.encode())
    )
    assert "line 3" in refused(put(tmp_path / "x.csv", f"t\na\n{long}\n".encode()))
    assert "line 1" in refused(put(tmp_path / "x.txt", long.encode()), text="text")
    assert "a text of more than" in refused(put(tmp_path / "x.md", long.encode()), text=True)
    file = put(tmp_path / "x.json", json.dumps([{"t": "a"}, {"t": long}]).encode())
    with pytest.raises(DataError, match=r"^datasets\.d\.text: .*row 1.* 16,385 characters"):
        read(Dataset(path=str(file), text="t"), "datasets.d")


def test_an_archive_that_holds_beyond_all_measure(tmp_path: Path, short: int) -> None:
    file = tmp_path / "x.npz"
    np.savez_compressed(file, x=np.zeros((300 * short,), np.uint8), y=np.zeros(1))
    how = {"image": "image", "label": "label", "text": None}
    assert "times its size" in refused(file, **how)
    # a header that says more than there is
    header = b"\x93NUMPY\x01\x00v\x00"
    said = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 28), }"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("x.npy", header + said.ljust(117) + b"\n")
        packed.writestr("y.npy", header + said.ljust(117) + b"\n")
    assert "no archive of plain arrays" in refused(file, **how)


def test_a_parquet_that_holds_beyond_all_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(formats, "MOST_CELLS", 1000)
    pq.write_table(pa.table({"t": pa.nulls(2000, pa.string())}), tmp_path / "x.parquet")
    assert "says that it holds 2,000 rows" in refused(tmp_path / "x.parquet")


# --- answers


def test_a_number_of_any_length_is_read() -> None:
    long = "7" * 6000
    assert last_number(f"it is {long}") == last_number(long) != last_number(long[:-1] + "8")
    assert last_number(f"2 ^ {long}") is not None
    assert last_number(f"1e{long}") is not None
    assert last_number(rf"\frac{{{long}}}{{3}}") is not None

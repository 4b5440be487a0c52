"""Recipes and data files that nobody meant: each ends well, or with one message that names a place.

The law: a recipe is loaded, or refused with its key or file; a file is read, or refused with the
file or row; nothing else is raised, and nothing takes more than SECONDS.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness_tasks
import kills
import numpy as np
import said
import tiny
import yaml
from pydantic import TypeAdapter, ValidationError

from mergetomix.data.reading import read
from mergetomix.errors import RecipeError, UserError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.recipe.recipe import load
from mergetomix.sections.source import Dataset
from mergetomix.targets.kinds import AnyTarget

SECONDS = 20.0
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    10**25,
    2**53 + 1,
    "",
    " ",
    "\0",
    "a\nb",
    "x" * 5000,
    "../..",
    "/",
    "/dev/null",
    "~nobody/x",
    "*" * 50,
    "[",
    "{",
    "{}",
    "{a",
    "{a.b}",
    "{a[}",
    "(a+)+$",
    "é\ud83d".encode("utf-8", "ignore").decode(),
    "\u202e",
    "yes",
    "null",
    "1e3",
    "0x10",
    "2026-11-26",
    "linear",
    "gradient",
    "all",
    "auto",
    [],
    {},
    [None],
    [[]],
    {"a": {}},
    {"": ""},
    ["a", "a"],
    list(range(50)),
    {"path": "x"},
    {"weights": 1},
]
EXECUTORS: list[dict[str, Any]] = [
    {"kind": "local", "devices": [0, 1], "workers": 2, "threads": 1},
    {"kind": "ray", "address": "local", "gpus_per_training": 0.5, "labels": {"a": "b"}},
    {"kind": "ray", "max_evaluators": 3, "runtime_env": {"env_vars": {"A": "b"}}},
]


def value(draw: random.Random, depth: int = 0) -> Any:
    """Returns something that may stand anywhere."""
    if depth < 3 and draw.random() < 0.15:
        if draw.random() < 0.5:
            return [value(draw, depth + 1) for _ in range(draw.randint(0, 4))]
        return {str(value(draw, 3)): value(draw, depth + 1) for _ in range(draw.randint(0, 4))}
    return copy.deepcopy(draw.choice(ODD))


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Returns every container below a value with each of its keys."""
    found: list[tuple[Any, Any]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, below in list(items):
        found.append((tree, key))
        if isinstance(below, dict | list):
            found += places(below)
    return found


def recipe(draw: random.Random) -> str:
    """Returns the text of a recipe of which something is changed."""
    raw = copy.deepcopy(draw.choice([said.RAW, said.small()]))
    if draw.random() < 0.2:
        raw["datasets_from"] = {"path": "rows.jsonl", "text": "q", "by": "s", "min_rows": 2}
    if draw.random() < 0.3:
        raw["executor"] = copy.deepcopy(draw.choice(EXECUTORS))
        raw["store"] = draw.choice(["s3://bucket/prefix", "gs://bucket", "://", ".mergetomix"])
        raw.setdefault("train", {}).update(batch_size=8, launch={"processes": 4, "sharding": "ddp"})
    for _ in range(draw.randint(1, 4)):
        every = places(raw)
        if not every:
            break
        place, key = draw.choice(every)
        kind = draw.random()
        if kind < 0.55:
            place[key] = value(draw)
        elif kind < 0.7:
            del place[key]
        elif kind < 0.85 and isinstance(place, dict):
            place[str(value(draw))] = place.pop(key)
        elif isinstance(place, dict):
            place[str(draw.choice(every)[1])] = value(draw)
        else:
            place.insert(0, value(draw))
    if draw.random() < 0.05:
        raw = value(draw)
    text = yaml.safe_dump(raw, allow_unicode=draw.random() < 0.5)
    return spoilt(draw, text.encode()).decode(errors="replace") if draw.random() < 0.3 else text


def spoilt(draw: random.Random, data: bytes) -> bytes:
    """Returns bytes of which some are others, gone, twice there, or new."""
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice([1, 1, 2, 8, 100]))
        kind = draw.randrange(5)
        if kind == 0:
            data = data[:at] + bytes(draw.randrange(256) for _ in range(end - at)) + data[end:]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:end] + data[at:]
        elif kind == 3:
            odd = draw.choice(
                [b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"\n", b"\r", b"{", b"[", b","]
            )
            data = data[:at] + odd * draw.choice([1, 1, 3, 1000]) + data[at:]
        else:
            data = data[:at]
    return data


def rows(draw: random.Random) -> list[Any]:
    """Returns rows, most of them as they should be."""
    found: list[Any] = []
    for i in range(draw.randint(0, 6)):
        row: Any = {"q": f"question {i}", "a": f"answer {i}", "n": i, "m": chat(draw)}
        row["o"] = draw.choice([["one", "two"], {"text": ["one", "two"], "label": ["A", "B"]}])
        if draw.random() < 0.5:
            row[draw.choice(["q", "a", "n", "m", "o", "x"])] = value(draw)
        if draw.random() < 0.1:
            row = value(draw)
        found.append(row)
    return found


def chat(draw: random.Random) -> Any:
    """Returns the turns of a chat, some of them odd."""
    turns: list[Any] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if draw.random() < 0.3:
        draw.choice(turns)[draw.choice(["role", "content", "tool_calls"])] = value(draw)
    if draw.random() < 0.1:
        turns.insert(draw.randint(0, 2), value(draw))
    return turns


def as_text(each: Any) -> str:
    """Returns a value as a cell of a table."""
    return each if isinstance(each, str) else json.dumps(each)


def file_of(draw: random.Random, folder: Path) -> Path:
    """Writes a file of data, perhaps spoilt, and returns it."""
    own, kind = (
        rows(draw),
        draw.choice(["jsonl", "json", "csv", "tsv", "txt", "md", "parquet", "npz"]),
    )
    if kind == "jsonl":
        data = "".join(json.dumps(row) + "\n" for row in own).encode()
    elif kind == "json":
        data = json.dumps(draw.choice([own, {"data": own}])).encode()
    elif kind in ("csv", "tsv"):
        written = io.StringIO()
        table = csv.writer(written, delimiter="\t" if kind == "tsv" else ",")
        table.writerow(["q", "a", "n", "m", "o"])
        table.writerows(
            [as_text(each) for each in row.values()] for row in own if isinstance(row, dict)
        )
        data = written.getvalue().encode()
    elif kind in ("txt", "md"):
        data = "\n".join(as_text(row) for row in own).encode()
    elif kind == "parquet":
        data = parquet(own)
    else:
        packed = io.BytesIO()
        size = draw.randint(0, 5)
        np.savez(packed, x=np.zeros((size, 4, 4, 3), np.uint8), y=np.arange(draw.choice([size, 3])))
        data = packed.getvalue()
    if draw.random() < 0.6:
        data = spoilt(draw, data)
    name = draw.choice(["data", "train", "a b", "[x]"])
    file = folder / f"{name}.{kind}"
    if draw.random() < 0.2:
        file, data = file.with_name(f"{file.name}.gz"), gzip.compress(data)
        data = spoilt(draw, data) if draw.random() < 0.3 else data
    file.write_bytes(data)
    return file


def parquet(own: list[Any]) -> bytes:
    """Returns rows as parquet, what does not fit left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = io.BytesIO()
    kept = [
        {key: as_text(each) for key, each in row.items()} for row in own if isinstance(row, dict)
    ]
    pq.write_table(pa.Table.from_pylist(kept), written)
    return written.getvalue()


PLACES = [
    "q",
    "Q: {q}\n",
    "{q[0]}",
    "{n:>{n}}",
    "{m}",
    "m[0].content",
    "m.role",
    "o",
    "o[0]",
    "x.y[1]",
    "{x[y]}",
    "{{ q }}",
    "{% if n %}{{ q }}{% endif %}:",
    "{% for i in range(n) %}{{ i }}{% endfor %}",
    "{{ m[0].content * n }}",
    "{{ q.__class__ }}",
    "{% if %}",
]
"""What a key may say of these rows, or may not."""


def mapping(draw: random.Random) -> dict[str, Any]:
    """Returns how a source's rows are read."""
    pair = {"prompt": draw.choice(PLACES), "completion": draw.choice(["a", "a", *PLACES])}
    found: dict[str, Any] = draw.choice(
        [
            pair,
            pair,
            {"messages": draw.choice(["m", *PLACES])},
            {"text": draw.choice(PLACES)},
            {"text": True},
            {"prompt": "q", "answer": draw.choice(["n", "a", "x"]), "options": "o"},
            {"prompt": "q", "answer": "n", "options": ["{q}", "{a}"], "score": "choice"},
            {"prompt": "q", "answer": "n", "answer_map": {"0": "no", "1": "yes"}},
            {"prompt": "q", "chosen": "a", "rejected": "q", "score": "choice"},
            {"chosen": "m", "rejected": "x", "score": "choice"},
            {"prompt": "q", "completion": "o", "score": "generate", "metric": "f1"},
            {"map": made},
        ]
    )
    extra = {
        "max_examples": 2,
        "on_bad_row": "skip",
        "lines_per_example": 1,
        "system": "q",
        "chat": True,
        "where": draw.choice(["n > 1", "q", "x is none", "m[0].role == 'user'", "n / 0", "q."]),
        "split": draw.choice(["train[:2]", "train[50%:]", "test", "a[", "train[:1]+train[1:]"]),
        "shots": 1,
        "option_format": " {option}",
        "role_map": {"user": "assistant"},
    }
    while draw.random() < 0.4:
        key = draw.choice(list(extra))
        found = found | {key: extra[key]}
    return found


def made(row: Any) -> Any:
    """A user's function, which takes rows to be better than they are."""
    return [{"prompt": row["q"] + "\n", "completion": row["a"].strip()}] * (row["n"] % 3)


def lawful(what: Callable[[], object], *named: str) -> str | None:
    """Does something, and returns how it broke the law, None if it did not."""
    started = time.monotonic()
    try:
        what()
    except UserError as error:
        message = error.message
        where = getattr(error, "where", "")
        if not where and not any(name in message for name in named):
            return f"names neither key nor file: {message[:200]}"
        if len(message) > 4000:
            return f"a message of {len(message)} characters: {message[:200]}"
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        return f"raises {type(error).__name__}: {str(error)[:200]}"
    took = time.monotonic() - started
    return f"took {took:.0f} s" if took > SECONDS else None


def recipes(num: int, folder: Path, seed: int) -> kills.Counts:
    """Loads `num` recipes that nobody meant."""
    counts, file = kills.Counts(), folder / "recipe.yaml"
    rows = [{"q": f"question {i}", "s": ["one", "two", None][i % 3]} for i in range(9)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    for i in range(num):
        file.write_text(recipe(random.Random(f"recipe {seed} {i}")), encoding="utf-8", newline="")
        counts.add(f"recipe {i} of seed {seed}", lawful(lambda: load(file), str(file)))
    return counts


def files(num: int, folder: Path, seed: int) -> kills.Counts:
    """Reads and encodes `num` files that nobody meant."""
    counts = kills.Counts()
    family = tiny.open_base(tiny.BASES["llama"](folder / "base"))
    assert isinstance(family, CausalLM)
    for i in range(num):
        draw = random.Random(f"file {seed} {i}")
        file, how = file_of(draw, folder), mapping(draw)

        def use(file: Path = file, how: dict[str, Any] = how) -> None:
            try:
                kind = TypeAdapter(AnyTarget if "score" in how or "shots" in how else Dataset)
                source = kind.validate_python({"path": str(file), **how})
            except ValueError as error:
                raise RecipeError("datasets.d", str(error)) from None
            family.encode(read(source, "datasets.d").items, "datasets.d")

        counts.add(f"file {i} of seed {seed}, {file.name}, {how}", lawful(use, str(file)))
        file.unlink()
    return counts


def task_file(draw: random.Random) -> bytes:
    """Returns a task file of the harness of which something is changed."""
    config = copy.deepcopy(dict(draw.choice(list(harness_tasks.KINDS.values()))))
    split = {"validation_split": "validation", "num_fewshot": draw.choice([None, 0, 2])}
    files = {"data_files": {"validation": "documents.jsonl"}}
    raw = {"task": "odd", "dataset_path": "json", "dataset_kwargs": files, **split, **config}
    for _ in range(draw.randint(1, 3)):
        place, key = draw.choice(places(raw))
        if draw.random() < 0.7:
            place[key] = value(draw)
        else:
            del place[key]
    text = yaml.safe_dump(raw).encode()
    return spoilt(draw, text) if draw.random() < 0.3 else text


def benchmarks(num: int, folder: Path, seed: int) -> kills.Counts:
    """Opens `num` task files that nobody meant, over documents some of which are odd, and asks."""
    counts = kills.Counts()
    family = tiny.open_base(tiny.BASES["chat"](folder / "chat"))
    model = family.load()
    for i in range(num):
        draw = random.Random(f"task {seed} {i}")
        own = folder / f"task{i}"
        own.mkdir()
        (own / "odd.yaml").write_bytes(task_file(draw))
        documents = harness_tasks.docs(6)
        if draw.random() < 0.3:
            draw.choice(documents)[draw.choice(list(documents[0]))] = value(draw)
        text = "".join(json.dumps(each) + "\n" for each in documents)
        (own / "documents.jsonl").write_text(text)
        metric = draw.choice([None, "acc", "perplexity", "exact_match,word", "bits_per_byte"])
        told = {"metric": metric, "apply_chat_template": draw.random() < 0.3}
        if draw.random() < 0.2:
            told["gen_kwargs"] = {"max_gen_toks": 2, str(value(draw, 3)): value(draw)}

        def ask(own: Path = own, told: dict[str, Any] = told) -> None:
            try:
                found = harness_tasks.opened(family, str(own / "odd.yaml"), own, **told)
            except ValidationError as error:
                raise RecipeError(harness_tasks.WHERE, str(error)[:3000]) from None
            found.over(found.examples.items).score(model)

        counts.add(f"task {i} of seed {seed}, {told}", lawful(ask, str(own)))
        shutil.rmtree(own)
    return counts


def all_of(num: int, folder: Path, seed: int) -> dict[str, kills.Counts]:
    """Tries `num` recipes, as many files, and a tenth as many task files of the harness.

    Returns the counts by kind.
    """
    folder.mkdir(parents=True)
    found = {"odd recipe": recipes(num, folder, seed), "odd file": files(num, folder, seed)}
    return {**found, "odd task file": benchmarks(num // 10, folder, seed)}

"""What tests of sources share: files in every format, reading that must fail, any target."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

os.environ["HF_HUB_OFFLINE"] = "1"

from mergetomix.data.examples import Examples
from mergetomix.data.reading import read
from mergetomix.errors import DataError
from mergetomix.sections.source import Dataset, Source
from mergetomix.targets.kinds import AnyTarget
from mergetomix.targets.target import TargetKind

WHERE = "datasets.math"
FORMATS = ["jsonl", "json", "csv", "tsv", "parquet"]
ROWS = [
    {"q": "one?", "a": "1", "n": 7},
    {"q": "NA", "a": "2020-01-01T00:00:00", "n": 8},
    {"q": 'with, comma\nand "line"', "a": "None", "n": 9},
]
PAIR = {"prompt": "Q: {q} ({n})", "completion": "a"}
NUMBERED = [{"t": f"row {index}"} for index in range(50)]
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def put(path: Path, content: str | bytes) -> Path:
    """Write a file, compressed where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def encoded(kind: str, rows: list[dict[str, Any]], scratch: Path) -> bytes:
    """The rows in a file format."""
    if kind == "jsonl":
        return jsonl(rows).encode()
    if kind == "json":
        return json.dumps(rows, indent=1).encode()
    file = scratch / f"scratch-{kind}"
    if kind == "parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(file))
    else:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file.read_bytes()


def target_section(**fields: Any) -> TargetKind:
    """The section of the kind of target that `score` names."""
    section: TargetKind = TypeAdapter(AnyTarget).validate_python(fields)
    return section


def get(source: Callable[..., Source] = Dataset, **fields: Any) -> Examples:
    if isinstance(fields.get("path"), Path):
        fields["path"] = str(fields["path"])
    return read(source(**fields), WHERE)


def fails(
    key: str, *named: str, source: Callable[..., Source] = Dataset, **fields: Any
) -> DataError:
    """The error of reading, which must carry the key and name every thing in `named`."""
    with pytest.raises(DataError) as caught:
        get(source, **fields)
    error = caught.value
    assert error.where == f"{WHERE}.{key}" if key else WHERE
    assert "\n" not in error.message
    for thing in named:
        assert thing in str(error)
    return error


def choice(rows: Any, **fields: Any) -> dict[str, Any]:
    """The fields of a target with `score: choice`."""
    return {
        "rows": rows,
        "score": "choice",
        "prompt": "q",
        "completion": " {a}",
        "option_format": " {option}",
        **fields,
    }

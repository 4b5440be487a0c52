"""The first recipe: a commented file to change, with lines for what each source really holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from mergetomix.data import reading, shapes, tables
from mergetomix.data.examples import Example
from mergetomix.data.files import IMAGE_SUFFIXES, KINDS, TEXTS
from mergetomix.errors import DataError, UserError
from mergetomix.recipe.errors import NAME_RULE
from mergetomix.recipe.paths import is_there, resolve_data_path, under
from mergetomix.recipe.recipe import NAME, Recipe
from mergetomix.recipe.yaml import read_values
from mergetomix.sections.source import Dataset, Source
from mergetomix.store.mirror import is_remote
from mergetomix.targets.kinds import AnyTarget

NUM_LOOKED_AT = 200
"""Rows that are mapped, to see that a source's lines fit."""
NUM_SHOWN = 2
MOST_LABELS = 50
"""Labels that are options of a target; of more, the loss says as much."""
MOST_BAD = 0.2
"""With more bad rows than this the lines are wrong, not the rows."""
Ask = Callable[[str], str]
"""Asks the user something, and returns the answer."""

IMAGES = """\
# folders of classes, or x and y in an archive; number labels need classes: [cat, dog]
family: image-classifier
"""
DATASETS = """\
  math: {path: data/math.jsonl, prompt: "Q: {question}\\nA:", completion: " {answer}"}
  notes: {path: "docs/**/*.md", text: true}
"""
TARGETS = """\
  held:
    {path: data/held.jsonl, prompt: "Q: {question}\\nA:", completion: " {answer}", score: loss}
"""
TEXT = """\
# yaml-language-server: $schema=recipe.schema.json
# Which of these datasets should the base be fine-tuned on, to be good at the targets?
#   mergetomix check THIS_FILE   reads everything, shows rows and the plan
#   mergetomix run THIS_FILE     trains the experts, searches, fine-tunes, reports

{family}# a folder or a hub id; for a revision: {{path: ..., revision: main}}
base: {base}

datasets:                        # the candidates: a file, glob, folder or hub id each
{datasets}
targets:                         # what the final model should be good at
{targets}
train:
  method: lora                   # lora | full
  epochs: 1                      # or max_steps / max_tokens
  learning_rate: 2.0e-4
  batch_size: 8
  max_length: 1024
  seed: 0
  lora: {{rank: 16, alpha: 32}}

merge:
  scale: {{exponent: 1.0}}         # 1 averages the experts' deltas; lower goes farther
  weighting: sqrt_tokens         # sqrt_tokens | tokens | size | equal

search:
  strategy: auto                 # every mixture up to 255 of them; beyond, gradients or greedy
  min_datasets: 1
  max_datasets: null
  require: []
  forbid: []

final:
  train: true                    # fine-tune on the selected mixture
  baselines: [all, random]       # and, to compare, on all datasets and on random mixtures

# share of each target that the search sees; the rest is for the final table
select_fraction: 0.5
store: .mergetomix
run_dir: runs/first
"""


def pairs(given: Sequence[str] | None, flag: str) -> dict[str, str]:
    """Returns `NAME=PATH` strings as a mapping. Raises `UserError` for one that is no such pair.

    >>> pairs(["math=data/math.jsonl", "code=src"], "--dataset")
    {'math': 'data/math.jsonl', 'code': 'src'}
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UserError(
                f"{flag} needs NAME=PATH, not {text!r}",
                hint=f"for example {flag} math=data/math.jsonl",
            )
        if not re.fullmatch(NAME, name):
            raise UserError(f"{flag}: a name {NAME_RULE}, not {name!r}")
        if name in found:
            raise UserError(f"{flag}: the name {name} stands twice")
        found[name] = path
    return found


@dataclass(frozen=True)
class Look:
    """What a source turned out to hold: its recipe lines, and the first rows as they are used."""

    shape: str
    lines: Mapping[str, Any]
    items: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Looks:
    """Everything that a first recipe was told, looked at."""

    datasets: dict[str, tuple[str, Look]] = field(default_factory=dict)
    targets: dict[str, tuple[str, Look]] = field(default_factory=dict)


def recipe(base: str | None, looks: Looks, has_images: bool = False) -> str:
    """Returns the text of a recipe, with examples for what is not given."""
    family, model, some, one = "", "Qwen/Qwen2.5-0.5B", DATASETS, TARGETS
    if has_images:
        family, model, some, one = IMAGES, "openai/clip-vit-base-patch32", "", ""

    def lines(sources: Mapping[str, tuple[str, Look]]) -> str:
        return "".join(
            f"  {scalar(name)}: {written({'path': path, **look.lines})}\n"
            for name, (path, look) in sources.items()
        )

    return TEXT.format(
        family=family,
        base=scalar(base or model),
        datasets=lines(looks.datasets) or some,
        targets=lines(looks.targets) or one,
    )


def scalar(text: str) -> str:
    """Returns a text as YAML reads it back, between quotes where it must.

    >>> scalar("math"), scalar("yes"), scalar("a: b")
    ('math', "'yes'", "'a: b'")
    """
    return yaml.safe_dump(text, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()


def written(lines: Mapping[str, Any]) -> str:
    """Returns the lines of one source as YAML on one line.

    >>> written({"path": "a.jsonl", "prompt": "{q}\\n"})
    '{path: a.jsonl, prompt: "{q}\\\\n"}'
    """
    how: Any = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    return str(yaml.dump(dict(lines), Dumper=_OnOneLine, width=10**6, **how)).strip()


class _OnOneLine(yaml.SafeDumper):
    """Writes a text with line breaks between double quotes, so that it stays on its line."""


def _represented(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_OnOneLine.add_representer(str, _represented)


# --- looking at a source


def looked_at(name: str, path: str, folder: Path, is_target: bool, ask: Ask | None = None) -> Look:
    """Returns what a source holds.

    Args:
        path: as the user gave it; relative paths start at `folder`, that of the recipe.
        ask: for what its columns cannot tell; None raises an error instead.

    Raises:
        UserError: it cannot be read, or it cannot be told how its rows become examples.
    """
    where = f"{'targets' if is_target else 'datasets'}.{name}"
    resolved = resolve_data_path(path, folder.resolve())
    if has_images(path, folder):
        return Look("labelled images", {})
    if _is_documents(path):
        return _tried("documents", {"text": True}, resolved, where, is_target)
    table = tables.open_table(Source.model_construct(path=resolved), where)
    indices = table.kept()[: shapes.NUM_LOOKED_AT]
    rows = table.take(indices)
    shape = shapes.recognised(rows)
    if shape is not None:
        lines = _by_names(shape.of(is_target), table)
        found = _tried(shape.name, lines, resolved, where, is_target)
        return replace(found, notes=(*found.notes, *_taken_for(lines, table)))
    labelled = _labelled(table, where, is_target, ask)
    if labelled is not None:
        return _tried("texts with labels", labelled, resolved, where, is_target)
    if ask is None:
        columns = ", ".join(table.columns)
        hint = "write its lines by hand: docs/cookbook.md has those of seventy public datasets"
        problem = f"{path}: none of the usual shapes; its columns are {columns}"
        raise UserError(f"{where}: {problem}", hint=hint)
    return _asked(table.columns, resolved, where, is_target, ask)


def _tried(shape: str, lines: Mapping[str, Any], path: str, where: str, is_target: bool) -> Look:
    """Returns lines that were tried on the first rows; few bad ones are skipped, and said."""
    values = {"path": path, "max_examples": NUM_LOOKED_AT, **lines, "on_bad_row": "skip"}
    adapter: TypeAdapter[Any] = TypeAdapter(AnyTarget if is_target else Dataset)
    found = reading.read(adapter.validate_python(values), where)
    bad = [note for note in found.notes if "bad rows" in note]
    if bad and len(found.items) < (1 - MOST_BAD) * min(found.num_rows, NUM_LOOKED_AT):
        raise UserError(f"{bad[0]}", hint="write its lines by hand: docs/cookbook.md shows how")
    more = {"on_bad_row": "skip"} if bad else {}
    return Look(shape, {**lines, **more}, found.items[:NUM_SHOWN], found.notes)


def _by_names(lines: Mapping[str, Any], table: tables.Table) -> dict[str, Any]:
    """Returns lines whose words for a label are those that the source itself has for it."""
    names = table.names.get(str(lines.get("answer")))
    found = dict(lines)
    if names is None or isinstance(lines.get("options"), str):
        return found
    if "{" in "".join(lines.get("options") or ()):
        return found
    found.pop("options", None)
    found.pop("answer_from", None)
    return found | {"answer_map": {str(place): name for place, name in enumerate(names)}}


def _taken_for(lines: Mapping[str, Any], table: tables.Table) -> list[str]:
    """Returns a line on what numbers are taken for, where the source does not say it."""
    answer, options = str(lines.get("answer")), lines.get("options")
    words = lines.get("answer_map")
    if words is None and isinstance(options, list) and "{" not in "".join(options):
        words = {str(place): word for place, word in enumerate(options)}
    if answer in table.names or not words:
        return []
    listed = ", ".join(f"{number} for {word!r}" for number, word in words.items())
    return [f"{answer} is taken: {listed}; see that it is so"]


def _labelled(
    table: tables.Table, where: str, is_target: bool, ask: Ask | None
) -> dict[str, Any] | None:
    """Returns the lines of texts beside a label, None for a source with other columns.

    What numbers mean is known of some files, and asked for else.
    """
    text = next((each for each in ("text", "sentence") if each in table.columns), None)
    others = set(table.columns) - {text, "label", "idx", "id"}
    if text is None or "label" not in table.columns or others:
        return None
    values = [each for each in table.take_column("label") if each is not None]
    if not values or not all(isinstance(each, str | int | float) for each in values):
        return None
    labels = sorted({str(each) for each in values})
    lines: dict[str, Any] = {"prompt": f"{{{text}}}\nLabel:"}
    if not all(each.replace(".", "").lstrip("-").isdigit() for each in labels):
        if not is_target or not 2 <= len(labels) <= MOST_LABELS:
            return {**lines, "completion": " {label}"}
        return {**lines, "completion": "label", "options": labels, "score": "choice"}
    names = table.names.get("label") or _asked_words(labels, where, ask)
    meant = names if isinstance(names, dict) else {str(i): each for i, each in enumerate(names)}
    found = {**lines, "answer": "label", "answer_map": meant}
    return {**found, "score": "choice"} if is_target else found


def _asked_words(labels: Sequence[str], where: str, ask: Ask | None) -> dict[str, str]:
    """Returns what the user says that labels mean, one word for each."""
    shown = ", ".join(labels)
    if ask is None:
        hint = 'answer_map: {0: "...", 1: "..."} says it in the recipe'
        problem = f"label holds numbers ({shown}), and no word for what they mean"
        raise UserError(f"{where}: {problem}", hint=hint)
    while True:
        question = f"{where}: what do the labels {shown} mean, in words with commas between"
        words = [each.strip() for each in ask(question).split(",")]
        if len(words) == len(labels) and all(words):
            return dict(zip(labels, words, strict=True))


def _asked(columns: Sequence[str], path: str, where: str, is_target: bool, ask: Ask) -> Look:
    """Returns the lines that the user says, each answer tried on the rows at once."""
    while True:
        shown = ", ".join(columns)
        prompt = ask(f"{where}: the columns are {shown}. Which is the prompt (none: a plain text)")
        answer = ask(f"{where}: which is {'the text' if not prompt else 'the answer'}")
        lines = {"prompt": f"{{{prompt}}}\n", "completion": answer} if prompt else {"text": answer}
        try:
            return _tried("as you said", lines, path, where, is_target)
        except (UserError, ValueError) as error:
            ask(f"{error}. Enter tries again")


def has_images(path: str, folder: Path) -> bool:
    """Returns whether a local path holds labelled images.

    They are an archive of arrays, a table of images and labels, or a folder for each class.
    """
    place = Path(resolve_data_path(path, folder.resolve()))
    if place.suffix == ".npz":
        return True
    if place.is_file():
        return {"image", "label"} <= set(_columns(str(place)))
    return place.is_dir() and any(
        each.suffix.lower() in IMAGE_SUFFIXES for each in (*place.glob("*/*"), *place.glob("*/*/*"))
    )


def _is_documents(path: str) -> bool:
    return path.removesuffix(".gz").endswith(TEXTS)


def _columns(path: str) -> tuple[str, ...]:
    """Returns the columns of a local source; none for a file that is no table."""
    if not path.removesuffix(".gz").endswith(tuple(KINDS)) and not Path(path).is_dir():
        return ()
    rows = reading.read_rows(Dataset(path=path, completion="any", max_examples=1), "init")
    if not rows:
        raise DataError("init", f"{path} is empty")
    return tuple(rows[0])


def check_base(base: str, folder: Path) -> None:
    """Raises UserError for a base that is meant to be a local folder and is none."""
    local = under(folder, base)
    is_local = base.startswith((".", "/", "~")) or is_there(local)
    if is_local and not (local / "config.json").is_file() and not local.is_file():
        raise UserError(f"base: no model in {base}", hint="a folder with config.json, or a hub id")


def store_of(given: str) -> str | Path:
    """Returns the store that a recipe, a run's folder or a store's path or address leads to."""
    if is_remote(given):
        return given
    path = Path(given)
    if path.is_dir() and (path / "recipe.yaml").is_file() and not (path / "ledger.sqlite").exists():
        path = path / "recipe.yaml"
    if not path.is_file():
        return path
    store = read_values(path).get("store") or Recipe.model_fields["store"].default
    if is_remote(str(store)):
        return str(store)
    return path.resolve().parent / Path(str(store)).expanduser()

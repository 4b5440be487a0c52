"""The first recipe: a commented file to change, which says how each source's rows are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mergetomix.data.files import IMAGE_SUFFIXES, KINDS, TEXTS
from mergetomix.errors import DataError, UserError
from mergetomix.recipe.paths import resolve_data_path
from mergetomix.recipe.recipe import Recipe
from mergetomix.recipe.yaml import read_values
from mergetomix.sections.source import Dataset

PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("source", "target"),
)
MAPPINGS = (
    {"messages": "messages"},
    *({"prompt": prompt, "completion": completion} for prompt, completion in PAIRS),
    {"text": "text"},
)
"""Which columns of a source may be what; the first that a source has is taken."""

IMAGES = """\
# folders of classes, or x and y in an archive; number labels need classes: [cat, dog]
family: image-classifier
"""
DATASETS = """\
  math: {path: data/math.jsonl, prompt: question, completion: answer}
  notes: {path: "docs/**/*.md", text: true}
"""
TARGETS = """\
  held: {path: data/held.jsonl, prompt: question, completion: answer, score: loss}
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
        if name in found:
            raise UserError(f"{flag}: the name {name} stands twice")
        found[name] = path
    return found


def recipe(
    base: str | None, datasets: Mapping[str, str], targets: Mapping[str, str], folder: Path
) -> str:
    """Returns the text of a recipe in `folder`, with examples for what is not given."""
    family, model, some, one = "", "Qwen/Qwen2.5-0.5B", DATASETS, TARGETS
    if any(has_images(path, folder) for path in (*datasets.values(), *targets.values())):
        family, model, some, one = IMAGES, "openai/clip-vit-base-patch32", "", ""

    def lines(sources: Mapping[str, str], ending: str = "") -> str:
        found = ""
        for name, path in sources.items():
            quoted = f'"{path}"' if any(c in path for c in "*?[]{}:,# ") else path
            how = "" if family else f", {guess(path, folder)}{ending}"
            found += f"  {name}: {{path: {quoted}{how}}}\n"
        return found

    return TEXT.format(
        family=family,
        base=base or model,
        datasets=lines(datasets) or some,
        targets=lines(targets, ", score: loss") or one,
    )


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


def guess(path: str, folder: Path) -> str:
    """Returns how the rows at `path` become examples, by the names of its columns.

    A hub id is not looked at.
    """
    if path.removesuffix(".gz").endswith(TEXTS):
        return "text: true"
    resolved = resolve_data_path(path, folder.resolve())
    columns = _columns(resolved) if Path(resolved).is_absolute() else ()
    how = next((each for each in MAPPINGS if set(each.values()) <= set(columns)), MAPPINGS[1])
    return ", ".join(f"{key}: {column}" for key, column in how.items())


def _columns(path: str) -> tuple[str, ...]:
    """Returns the columns of a local source; none for a file that is no table."""
    from mergetomix.data import reading

    if not path.removesuffix(".gz").endswith(tuple(KINDS)) and not Path(path).is_dir():
        return ()
    rows = reading.read_rows(Dataset(path=path, completion="any", max_examples=1), "init")
    if not rows:
        raise DataError("init", f"{path} is empty")
    return tuple(rows[0])


def store_of(path: Path) -> Path:
    """Returns the store that a recipe, a run's folder or a store's path leads to."""
    if path.is_dir() and (path / "recipe.yaml").is_file() and not (path / "ledger.sqlite").exists():
        path = path / "recipe.yaml"
    if not path.is_file():
        return path
    store = read_values(path).get("store") or Recipe.model_fields["store"].default
    return path.resolve().parent / Path(str(store)).expanduser()

"""The first recipe: a commented file to change, with the mapping of each source guessed from its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mergetomix.data.tables import IMAGE_SUFFIXES
from mergetomix.errors import DataError, UserError
from mergetomix.recipe.recipe import DATA_SUFFIXES, Recipe, resolve_data_path
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
DOCUMENTS = (".md", ".rst", ".txt", ".py")

IMAGES = """\
family: image-classifier         # folders of classes, or x and y in an archive; number labels need classes: [cat, dog]
"""
TEXT = """\
# yaml-language-server: $schema=recipe.schema.json
# Which of these datasets should the base be fine-tuned on, to be good at the targets?
#   mergetomix check THIS_FILE   reads everything, shows rows and the plan
#   mergetomix run THIS_FILE     trains the experts, searches, fine-tunes, reports

{family}base: {base}                     # a folder or a hub id; for a revision: {{path: ..., revision: main}}

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
  weighting: equal               # equal | size | tokens

search:
  strategy: auto                 # every mixture up to 255 of them; beyond, gradients or greedy
  min_datasets: 1
  max_datasets: null
  require: []
  forbid: []

final:
  train: true                    # fine-tune on the selected mixture
  baselines: [all, random]       # and, to compare, on all datasets and on random mixtures

select_fraction: 0.5             # share of each target that the search sees; the rest is for the final table
store: .mergetomix
run_dir: runs/first
"""


def pairs(given: Sequence[str] | None, flag: str) -> dict[str, str]:
    """`NAME=PATH` strings as a mapping. Raises UserError for one that is no such pair."""
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
    """The text of a recipe in `folder`; where nothing is given, an example that says what to put there."""
    if any(has_images(path, folder) for path in (*datasets.values(), *targets.values())):
        shown, wanted = (
            {name: f"{{path: {_quoted(path)}}}" for name, path in some.items()}
            for some in (datasets, targets)
        )
        model = base or "openai/clip-vit-base-patch32"
        return TEXT.format(
            family=IMAGES, base=model, datasets=_lines(shown), targets=_lines(wanted)
        )
    shown = {
        name: f"{{path: {_quoted(path)}, {guess(path, folder)}}}" for name, path in datasets.items()
    } or {
        "math": "{path: data/math.jsonl, prompt: question, completion: answer}",
        "notes": '{path: "docs/**/*.md", text: true}',
    }
    wanted = {
        name: f"{{path: {_quoted(path)}, {guess(path, folder)}, score: loss}}"
        for name, path in targets.items()
    } or {"held": "{path: data/held.jsonl, prompt: question, completion: answer, score: loss}"}
    return TEXT.format(
        family="", base=base or "Qwen/Qwen2.5-0.5B", datasets=_lines(shown), targets=_lines(wanted)
    )


def has_images(path: str, folder: Path) -> bool:
    """Whether a local path holds labelled images: an archive of arrays, a table of both, or a folder for each class."""
    place = Path(resolve_data_path(path, folder.resolve()))
    if place.suffix == ".npz":
        return True
    if place.is_file():
        return {"image", "label"} <= set(_columns(str(place)))
    return place.is_dir() and any(
        each.suffix.lower() in IMAGE_SUFFIXES for each in (*place.glob("*/*"), *place.glob("*/*/*"))
    )


def guess(path: str, folder: Path) -> str:
    """How the rows at `path` become examples, by the names of its columns; a hub id is not looked at."""
    if path.removesuffix(".gz").endswith(DOCUMENTS):
        return "text: true"
    resolved = resolve_data_path(path, folder.resolve())
    columns = _columns(resolved) if Path(resolved).is_absolute() else ()
    if "messages" in columns:
        return "messages: messages"
    for prompt, completion in PAIRS:
        if prompt in columns and completion in columns:
            return f"prompt: {prompt}, completion: {completion}"
    if "text" in columns:
        return "text: text"
    return "prompt: prompt, completion: completion"


def _columns(path: str) -> tuple[str, ...]:
    """The columns of a local source; a missing file is named, one of another kind has none."""
    from mergetomix.data import reading

    if not path.removesuffix(".gz").endswith(DATA_SUFFIXES) and not Path(path).is_dir():
        return ()
    rows = reading.read_rows(Dataset(path=path, completion="any", max_examples=1), "init")
    if not rows:
        raise DataError("init", f"{path} is empty")
    return tuple(rows[0])


def store_of(path: Path) -> Path:
    """The store that a recipe, a run's folder or a store's path leads to."""
    if path.is_dir() and (path / "recipe.yaml").is_file() and not (path / "ledger.sqlite").exists():
        path = path / "recipe.yaml"
    if not path.is_file():
        return path
    store = read_values(path).get("store") or Recipe.model_fields["store"].default
    return path.resolve().parent / Path(str(store)).expanduser()


def _lines(entries: Mapping[str, str]) -> str:
    return "".join(f"  {name}: {text}\n" for name, text in entries.items())


def _quoted(path: str) -> str:
    return f'"{path}"' if any(c in path for c in "*?[]{}:,# ") else path

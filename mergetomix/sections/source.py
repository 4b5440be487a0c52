"""The source of rows, and how a row becomes an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from mergetomix.sections.section import Section, Seed, Text
from mergetomix.sections.user_function import UserFunction

SOURCE_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "image-classifier": {"image": "image", "label": "label"}
}
"""What a source of a family has unless it says otherwise."""

WHOLE = ("completion", "answer", "messages", "text", "label", "chosen")
"""The keys that say how a row becomes an example; a source has one of them."""


def _share(value: Any) -> Any:
    """Returns a percentage such as `1%` as a share."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


def _quoted(values: Iterable[Any]) -> None:
    """Raises ValueError for a word that YAML took for true or false."""
    if any(isinstance(each, bool) for each in values):
        raise ValueError('YAML reads yes, no, on and off as true and false: quote it, such as "no"')


def _listed(value: Any) -> Any:
    """Returns options as they are given, all of them texts."""
    if isinstance(value, list):
        _quoted(value)
    return value


def _by_text(value: Any) -> Any:
    """Returns a mapping whose keys are texts, as a value of a row is written."""
    if not isinstance(value, Mapping):
        return value
    _quoted(value.values())
    return {_key(key): each for key, each in value.items()}


def _key(key: Any) -> Any:
    """Returns a key as a value of a row is written: `true`, `0`, `1.5`."""
    if isinstance(key, bool):
        return str(key).lower()
    if isinstance(key, float) and key.is_integer():
        key = int(key)
    return str(key) if isinstance(key, int | float) else key


Share = Annotated[
    float, BeforeValidator(_share, json_schema_input_type=float | str), Field(ge=0, le=1)
]


class Source(Section):
    """A source of rows, and how a row becomes an example.

    That is by `prompt` and `completion` (or `answer`), `messages`, `text`, `chosen` and `rejected`,
    or an `image` and its `label`. What a key says of a row is a column, a place within one such as
    `answers.text[0]`, a format string such as `"Q: {question}\\nA:"`, or a Jinja template such as
    `"{{ instruction }}{% if input %}: {{ input }}{% endif %}"`. `needs_mapping` is false where a
    source may leave this out.
    """

    needs_mapping: ClassVar[bool] = True
    default_split: ClassVar[str] = "train"

    path: Text | list[Text] | None = None
    """A file, glob or folder (jsonl, json, csv, tsv, parquet, each also .gz; plain text), a list of
    these, or a hub id."""
    rows: Any = None
    """The rows themselves, instead of a path: a list of mappings, or a `datasets.Dataset` from
    Python."""
    name: str | None = None
    """Configuration of a hub dataset, such as `main`."""
    split: Text | None = None
    """Split of a hub dataset, folder or file, or a part of it: `validation`, `train[:100]`,
    `train[10%:20%]`, `train+validation`. null is all of a file, a glob, documents, or a folder
    whose names say no split; else `train`, of a target `test`."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    where: Text | None = None
    """The rows to take: a Jinja expression over columns, such as `level == "Level 5"`, of those
    that `map` gives."""
    map: UserFunction = None
    """For what else a row may need: `module:function` or `file.py:function`, which is given a row
    and returns a mapping of columns, several, or None to leave the row out. Without another key
    here, its columns are `prompt` and `completion`, `messages`, `text`, and so on."""
    prompt: str | None = None
    """The prompt. Not trained on."""
    completion: str | None = None
    """What the model should answer. The loss is taken here alone. With `score: generate` it may be
    a list of right answers."""
    answer: str | None = None
    """Instead of `completion`: which of the `options` is right, by its place, letter, label or
    text; or, without options, what `answer_map` makes of it."""
    answer_map: Annotated[dict[str, str], BeforeValidator(_by_text)] | None = None
    """What an `answer` means: `{0: "yes", 1: "no"}` gives the words, which are the options if there
    are no others."""
    answer_from: Literal[0, 1] | None = None
    """Whether numbers of options count from 0 or from 1; null tells it from the rows."""
    options: Annotated[str | list[str] | None, BeforeValidator(_listed)] = None
    """What may be answered: the same texts for all rows, or `["{sol1}", "{sol2}"]`, or where a row
    has its list. `answer` or `completion` says which one is right."""
    option_format: str | None = None
    """How an option is written after the prompt, such as `" {option}"`; null puts a space between
    two words that would be one."""
    chosen: str | None = None
    """Of preference pairs: the better answer, which is trained on. A text behind `prompt`, a whole
    transcript (`Human: ... Assistant: ...`), or a list of messages."""
    rejected: str | None = None
    """The worse answer; `score: choice` asks whether `chosen` is the likelier."""
    messages: str | None = None
    """A column or place with chat messages (`role`, `content`; or `from`, `value`), rendered by the
    chat template of the tokenizer, with tool calls, thoughts and whatever else it reads."""
    role_key: Text | None = None
    """What a message calls its role, where that is neither `role` nor `from`."""
    content_key: Text | None = None
    """What a message calls its content, where that is neither `content` nor `value`."""
    role_map: dict[str, Literal["system", "developer", "user", "assistant", "tool"]] | None = None
    """The roles by other names, such as `{customer: user, agent: assistant}`."""
    tools: str | None = None
    """The column of a chat's tools; null takes the column `tools` if there is one."""
    system: str | None = None
    """The system turn of chats that have none: a text, or what stands in a column."""
    chat: bool | None = None
    """`true` renders prompt and completion by the chat template, as a user's turn and its reply.
    `false` says that they are meant as they stand, for a base that has a template."""
    train_on: Literal["all", "last"] = "all"
    """Of chats: the loss is taken on all replies, or on the last one, which templates need that
    change earlier turns."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do about a row that gives no example: stop, or pass over it and count it."""
    max_bad: Share | None = None
    """With `on_bad_row: skip`: stop if more than this share of the rows is bad, such as `1%`."""
    text: str | bool | None = None
    """`true`: every file is one document. Else what holds the text."""
    image: str | None = None
    """The column of images: names of files, encoded bytes, arrays, or an Image of `datasets`. For
    family: image-classifier, where it is `image` unless given."""
    label: str | None = None
    """The column of labels: names of classes, or numbers that count `classes` from 0. `label`
    unless given; the folders' names where a folder holds one for each class."""
    classes: list[Text] | None = None
    """The names of the classes in order; null takes them from the source: its folders, its
    ClassLabel, or the labels."""
    templates: list[Text] = Field(default=["a photo of a {}."])
    """For a text head: what a text says of a class, {} being its name; several are averaged."""
    lines_per_example: int | None = Field(default=None, ge=1)
    """With `text: true`: cut every document into examples of so many lines; null keeps it whole. A
    target of few long documents needs it: what is compared is examples."""
    max_examples: int | None = Field(default=None, ge=1)
    """Take at most so many rows, drawn by the seed."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Take at most so many tokens after encoding, drawn by the seed in whole sequences."""
    seed: Seed = 0
    """Seed of the draws above and of a target's split."""

    @model_validator(mode="before")
    @classmethod
    def _without_old_defaults(cls, values: Any) -> Any:
        """Leaves out what earlier releases wrote of every target, and what says nothing."""
        if not isinstance(values, Mapping) or any(map(values.get, ("options", "answer", "map"))):
            return values
        return {
            key: value
            for key, value in values.items()
            if key != "option_format" or value != "{option}"
        }

    @model_validator(mode="after")
    def _one_mapping(self) -> Source:
        given = [key for key in WHOLE if getattr(self, key) not in (None, False)]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(WHOLE)}, not {' and '.join(given)}")
        if self.needs_mapping and not given and self.map is None:
            known = "prompt and completion, messages, text (or family: image-classifier)"
            raise ValueError(f"say how a row becomes an example: {known}")
        answers = {"completion", "answer", "chosen"} & set(given)
        if self.needs_mapping and self.prompt is not None and not answers and self.map is None:
            raise ValueError("prompt needs a completion beside it")
        return self

    @model_validator(mode="after")
    def _fits_its_mapping(self) -> Source:
        for text in self.templates:
            if "{}" not in text:
                raise ValueError(f"templates: {text!r} must hold {{}}, where the class's name goes")
        if self.chat and not (self.completion or self.answer or self.chosen or self.map):
            raise ValueError("chat: true needs prompt and completion")
        if self.lines_per_example is not None and not self.files:
            raise ValueError("lines_per_example cuts documents, so it needs text: true")
        if self.rejected is not None and self.chosen is None:
            raise ValueError("rejected needs a chosen beside it")
        if self.answer is not None and self.options is None and self.answer_map is None:
            raise ValueError("answer needs options or an answer_map; else it is a completion")
        is_choice = getattr(self, "score", None) == "choice"
        if self.options is not None and not (self.answer or is_choice or self.map):
            raise ValueError("options is for score: choice, or needs an answer")
        if self.option_format is not None and not (self.options or self.answer or self.map):
            raise ValueError("option_format needs options")
        if self.max_bad is not None and self.on_bad_row == "stop":
            raise ValueError("max_bad needs on_bad_row: skip")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if self.path is not None and self.rows is not None:
            raise ValueError("give path or rows, not both")
        is_missing = self.needs_mapping and self.path is None and self.rows is None
        if is_missing or self.path == []:
            raise ValueError("give a path")
        return self

    @property
    def paths(self) -> list[str]:
        """Every path, one of a source that has one."""
        found = self.path if isinstance(self.path, list) else [self.path]
        return [each for each in found if each is not None]

    @property
    def files(self) -> bool:
        """Whether every file is one document."""
        return self.text is True


class Dataset(Source):
    """A candidate: data that one may fine-tune on."""

    expert: Text | None = None
    """A folder with an expert already trained on this dataset from the same base (safetensors):
    used instead of training."""


class DatasetsFrom(Source):
    """One source as many candidates: a dataset for each value of a column.

    All other keys are those of each of them.
    """

    by: Text
    """The column, or the place within one, whose values the datasets are."""
    min_rows: int = Field(default=50, ge=1)
    """A value with fewer rows is no dataset of its own."""
    rest: Text | None = "rest"
    """The name of the dataset that has all other rows; null leaves them out."""
    prefix: str = ""
    """What stands before each name."""

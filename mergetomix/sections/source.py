"""The source of rows, and how a row becomes an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mergetomix.sections.section import Section, Seed, Text

SOURCE_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "image-classifier": {"image": "image", "label": "label"}
}
"""What a source of a family has unless it says otherwise."""


class Source(Section):
    """A source of rows, and how a row becomes an example.

    That is by `prompt` and `completion`, `messages`, `text`, or an `image` and its `label`.
    `needs_mapping` is false where a source may leave both out.
    """

    needs_mapping: ClassVar[bool] = True

    path: Text | None = None
    """A file, glob or folder (jsonl, json, csv, tsv, parquet, each also .gz; plain text), or a hub
    id."""
    rows: Any = None
    """The rows themselves, instead of a path: a list of mappings, or a `datasets.Dataset` from
    Python."""
    name: str | None = None
    """Configuration of a hub dataset, such as `main`."""
    split: str = "train"
    """Split of a hub dataset or of a folder that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    prompt: str | None = None
    """The prompt: a column, or a format string over columns such as `"Q: {question}\\nA:"`. Not
    trained on."""
    completion: str | None = None
    """What the model should answer: a column or a format string. The loss is taken here alone."""
    messages: str | None = None
    """A column of chat messages (`role`, `content`; or `from`, `value`), rendered by the chat
    template of the tokenizer, with tool calls, thoughts and whatever else it reads."""
    tools: str | None = None
    """The column of a chat's tools; null takes the column `tools` if there is one."""
    system: str | None = None
    """The system turn of chats that have none: a text, a column or a format string."""
    chat: bool | None = None
    """`true` renders prompt and completion by the chat template, as a user's turn and its reply.
    `false` says that they are meant as they stand, for a base that has a template."""
    train_on: Literal["all", "last"] = "all"
    """Of chats: the loss is taken on all replies, or on the last one, which templates need that
    change earlier turns."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What to do about a row that gives no example: stop, or pass over it and count it."""
    text: str | bool | None = None
    """`true`: every file is one document. A string: the column (or format string) that holds the
    text."""
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

    @model_validator(mode="after")
    def _one_mapping(self) -> Source:
        keys = ("completion", "messages", "text", "label")
        given = [key for key in keys if getattr(self, key) not in (None, False)]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(keys)}, not {' and '.join(given)}")
        if self.needs_mapping and not given:
            known = "prompt and completion, messages, text (or family: image-classifier)"
            raise ValueError(f"say how a row becomes an example: {known}")
        if self.needs_mapping and self.prompt is not None and "completion" not in given:
            raise ValueError("prompt needs a completion beside it")
        for text in self.templates:
            if "{}" not in text:
                raise ValueError(f"templates: {text!r} must hold {{}}, where the class's name goes")
        if self.chat and not self.completion:
            raise ValueError("chat: true needs prompt and completion")
        if self.lines_per_example is not None and not self.files:
            raise ValueError("lines_per_example cuts documents, so it needs text: true")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if self.path is not None and self.rows is not None:
            raise ValueError("give path or rows, not both")
        if self.needs_mapping and self.path is None and self.rows is None:
            raise ValueError("give a path")
        return self

    @property
    def files(self) -> bool:
        """Whether every file is one document."""
        return self.text is True


class Dataset(Source):
    """A candidate: data that one may fine-tune on."""

    expert: Text | None = None
    """A folder with an expert already trained on this dataset from the same base (safetensors):
    used instead of training."""

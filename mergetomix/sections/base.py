"""The model that every fine-tune starts from."""

from __future__ import annotations

from typing import Literal

from mergetomix.sections.section import Section, Text


class Base(Section):
    """The model that every fine-tune starts from."""

    path: Text
    """A folder, or the id of a model on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; null is its main branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the weights: `auto` is bfloat16 for LoRA on a GPU that has it, else
    float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
    gguf_file: Text | None = None
    """A GGUF file in that folder or of that hub model, its blocks made plain numbers of `dtype`.
    Needs the package gguf. What is written is no GGUF."""
    rehearse: bool = True
    """Before anything is trained, train, merge, save, load and score once in small: a model of the
    base's configuration, a few examples."""
    chat_template: Text | None = None
    """A chat template instead of the tokenizer's: the path of a file (`.jinja`), or the template
    itself. Models that are written have it."""

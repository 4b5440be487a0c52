"""What tests of recipes share: one that says much, the least one, and how one is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import yaml

from mergetomix.errors import RecipeError
from mergetomix.recipe.recipe import parse

TEXT = r"""
base: {path: Qwen/Qwen2.5-0.5B, revision: main}
datasets:
  math:  {path: openai/gsm8k, name: main, split: validation, prompt: question, completion: answer,
          max_examples: 5000}
  chats: {path: data/chats.jsonl, messages: messages}
  notes: {path: "docs/**/*.md", text: true}
targets:
  svamp: {path: data/svamp.jsonl, prompt: "Q: {input}\nA:", completion: " {output}",
          score: generate, metric: number, weight: 2}
  held:  {path: data/held.jsonl, messages: messages, score: loss}
  quiz:  {path: data/quiz.jsonl, prompt: question, completion: answer, score: choice,
          options: choices}
  own:   {score: python, function: "scoring.py:score"}
train:  {method: lora, epochs: 1, max_steps: null, learning_rate: 2.0e-4, batch_size: 8,
         max_length: 1024, seed: 0, lora: {rank: 16, alpha: 32}}
images: {head: auto}
merge:  {method: linear, scale: {exponent: 1.0}, weighting: sqrt_tokens}
search: {strategy: auto, min_datasets: 1, max_datasets: null, require: [], forbid: []}
verify: {budget: null, confidence: 0.95, repeats: 1}
study:  {seeds: [0, 1, 2], max_finetunes: 100}
final:  {train: true, baselines: [all, random]}
select_fraction: 0.5
store: .mergetomix
run_dir: runs/first
"""
RAW: dict[str, Any] = yaml.safe_load(TEXT)
TINY = {"rows": [{"t": "x"}], "text": "t"}
PAIR = {"path": "x.csv", "prompt": "p", "completion": "c"}


def small(**changes: Any) -> dict[str, Any]:
    """The least that a recipe must say, with keys such as `train__seed` changed."""
    raw: dict[str, Any] = {
        "base": "b",
        "datasets": {"a": dict(TINY), "b": dict(TINY)},
        "targets": {"t": dict(TINY)},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = raw
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return raw


def refused(where: str, *named: str, **changes: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse(small(**changes))
    assert caught.value.where == where
    for thing in named:
        assert thing in caught.value.message
    return caught.value


def at(place: Any, part: str) -> Any:
    return place[part] if isinstance(place, dict) else getattr(place, part)


def place_of(where: str, values: Any) -> Any:
    """The value at a path such as `train.lora`; the whole at an empty one."""
    return functools.reduce(at, where.split(".") if where else [], values)

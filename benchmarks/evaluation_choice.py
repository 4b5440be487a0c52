"""Scoring four options behind a prompt: reading the prompt once, against each option's full text.

Options have about 8 tokens, prompts 200.

Both ways in one process, in turn, with batches of the same number of tokens; the ratio is that of
examples a second. The plain way computes all logits, as a straightforward loop does. Peak memory is
that of one pass over the examples.
"""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path

import evaluation_models
import paired

from mergetomix.models.causal_lm.questions import Question

REPETITIONS = 5
BATCH_TOKENS = 4096
NUM_EXAMPLES = {"llama-1M": 60, "llama-5M": 60, "gpt2-124M": 16}


def prepare(kind: str, folder: Path) -> Mapping[str, paired.Way]:
    """Both ways over the same questions."""
    family = evaluation_models.open_model(kind, folder)
    draw = random.Random(0)
    questions = []
    for i in range(NUM_EXAMPLES[kind]):
        prompt = evaluation_models.random_ids(draw, draw.randint(190, 210), family)
        options = tuple(
            evaluation_models.random_ids(draw, draw.randint(6, 10), family) for _ in range(4)
        )
        questions.append(Question(prompt, options, i))
    model, asked = evaluation_models.load(family), family.asked(questions, BATCH_TOKENS)
    rows = [
        (question.prompt + option, len(option))
        for question in questions
        for option in question.options
    ]
    return {
        "once": lambda: [loss for losses in asked.losses(model) for loss in losses],
        "plain": lambda: evaluation_models.all_logits(model, rows, BATCH_TOKENS),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind in evaluation_models.KINDS:
            found = paired.compare(functools.partial(prepare, kind, Path(folder)), REPETITIONS)
            print(json.dumps({"model": kind, "examples": NUM_EXAMPLES[kind], **found}), flush=True)


if __name__ == "__main__":
    main()

"""The loss of completions: logits where they are scored, against all logits.

Completions are a quarter of a text of about 256 tokens; `all` scores every token, where nothing can
be saved. Both ways in one process, in turn, with batches of the same number of tokens. Peak memory
is that of one pass over the texts.
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

from mergetomix.models.causal_lm.sequences import IGNORE, Encoded

REPETITIONS = 5
BATCH_TOKENS = 4096
NUM_TEXTS = {"gpt2-124M": 13, "llama-5M": 64}
SHARES = {"a quarter": 0.25, "all": 1.0}


def prepare(kind: str, share: float, folder: Path) -> Mapping[str, paired.Way]:
    """Both ways over the same texts."""
    family = evaluation_models.open_model(kind, folder)
    draw = random.Random(0)
    rows = []
    for _ in range(NUM_TEXTS[kind]):
        ids = evaluation_models.random_ids(draw, draw.randint(216, 296), family)
        rows.append((ids, min(len(ids) - 1, round(share * len(ids)))))
    sequences = [
        Encoded(ids, (IGNORE,) * (len(ids) - n) + ids[len(ids) - n :], i)
        for i, (ids, n) in enumerate(rows)
    ]
    model, batches = evaluation_models.load(family), family.batches(sequences, BATCH_TOKENS)
    return {
        "scored": lambda: family.negative_log_likelihoods(model, batches),
        "plain": lambda: evaluation_models.all_logits(model, rows, BATCH_TOKENS),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind in NUM_TEXTS:
            for name, share in SHARES.items():
                found = paired.compare(
                    functools.partial(prepare, kind, share, Path(folder)), REPETITIONS
                )
                print(
                    json.dumps({"model": kind, "scored": name, "texts": NUM_TEXTS[kind], **found}),
                    flush=True,
                )


if __name__ == "__main__":
    main()

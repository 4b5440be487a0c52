"""Questions with options: the prompt is read once for all of them, where the model is one that can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mergetomix.models.causal_lm.scoring import sums, token_losses
from mergetomix.models.causal_lm.sequences import (
    IGNORE,
    PROMPT,
    Encoded,
    Scored,
    TokenBatch,
    collate,
    grouped,
    padded,
)

MIN_ROOM = 256
"""Tokens of options that a prompt may always have behind it."""
TOLERANCE = 1e-4
"""Nats per token by which float32 may differ between the two ways to score."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the options that may follow it, as tokens; none of them is empty."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    example: int

    @property
    def num_scored(self) -> int:
        """Tokens of all options."""
        return sum(map(len, self.options))

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads: nothing is predicted from an option's last token."""
        return len(self.prompt) + self.num_scored - len(self.options)

    def fingerprint(self) -> bytes:
        """Tokens and the example that they are of."""
        return repr((self.prompt, self.options, self.example)).encode()

    def alone(self) -> list[Encoded]:
        """The prompt followed by each option, as sequences of their own."""
        hidden = (IGNORE,) * len(self.prompt)
        return [
            Encoded((*self.prompt, *option), (*hidden, *option), self.example)
            for option in self.options
        ]


@dataclass(frozen=True)
class BatchLayout:
    """How batches are made: the padding token, the device, the most tokens of a batch, and the tokens that the model's
    attention reaches back where that is limited."""

    pad: int
    device: str
    batch_tokens: int
    window: int | None = None


class Asked:
    """Questions, collated once and asked of any number of models.

    A question is one row: the prompt, and behind it the options, each blind to the others by a mask of four dimensions and
    with positions as if it followed the prompt alone. Not every model heeds such a mask: some look back by the distance in
    the row (ALiBi, sliding windows), some have no attention at all. So the longest and the shortest question are first scored
    both ways, and where the two differ each option is read with a prompt of its own, then and ever after: all models that one
    target scores are of one architecture.
    """

    def __init__(self, questions: Sequence[Question], layout: BatchLayout) -> None:
        self.questions, self.layout = tuple(questions), layout
        self.together = packed(questions, layout)
        self.shares: bool | None = None
        if all(batch.segments is None for batch in self.together):
            self.shares = True  # prompts alone: nothing that a model could get wrong
        elif (
            layout.window is not None
            and max(_reach(question) for question in questions) > layout.window
        ):
            self.shares = False

    @cached_property
    def apart(self) -> list[TokenBatch]:
        """Every option with a prompt of its own."""
        return apart(self.questions, self.layout)

    def losses(self, model: Any) -> list[list[float]]:
        """The sum over an option's tokens of -log p after the prompt, in nats, for every option of every question."""
        if self.shares is None:
            self.shares = agrees(model, self.questions, self.layout)
        values = iter(losses_in_order(model, self.together if self.shares else self.apart))
        return [[next(values) for _ in question.options] for question in self.questions]


def losses_in_order(model: Any, batches: Sequence[TokenBatch]) -> list[float]:
    """The sum over scored tokens of -log p, in nats, for every sequence or option in its original order."""
    import torch

    with torch.inference_mode():
        found = sums([token_losses(model, batch) for batch in batches], batches).tolist()
    rows = [row for batch in batches for row in batch.rows]
    return [value for _, value in sorted(zip(rows, found, strict=True))]


def agrees(model: Any, questions: Sequence[Question], layout: BatchLayout) -> bool:
    """Whether options behind one prompt have the losses that they have by themselves: of the longest question and of the
    shortest, which is padded, to TOLERANCE a token, or 16 roundings of a number type shorter than float32."""
    import torch

    ordered = sorted(questions, key=_reach)
    some = [ordered[-1], ordered[0]][: len(ordered)]
    wanted = losses_in_order(model, apart(some, layout))
    try:
        found = losses_in_order(model, packed(some, replace(layout, batch_tokens=10**9)))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return False  # a model that takes no such mask says so in its own way, and can be asked the other way
    bound = TOLERANCE if model.dtype == torch.float32 else 16 * torch.finfo(model.dtype).eps
    lengths = [len(option) for question in some for option in question.options]
    return all(abs(a - b) <= bound * n for a, b, n in zip(wanted, found, lengths, strict=True))


def apart(questions: Sequence[Question], layout: BatchLayout) -> list[TokenBatch]:
    """Batches of the options, each with a prompt of its own."""
    sequences = [sequence for question in questions for sequence in question.alone()]
    groups = grouped([sequence.num_tokens for sequence in sequences], layout.batch_tokens)
    return [
        collate([sequences[i] for i in group], group, layout.pad, layout.device) for group in groups
    ]


def packed(questions: Sequence[Question], layout: BatchLayout) -> list[TokenBatch]:
    """Batches of the questions, each prompt with its options behind it."""
    rows = strips(questions)
    groups = grouped([row.width for row in rows], layout.batch_tokens)
    return [pack([rows[i] for i in group], layout) for group in groups]


def _reach(question: Question) -> int:
    """Tokens from the prompt's first to the end of the longest option."""
    return len(question.prompt) + max(map(len, question.options))


@dataclass(frozen=True)
class Strip:
    """One row of a batch of questions: a prompt and some of its options, whose numbers among all options begin at `first`."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    first: int

    @property
    def width(self) -> int:
        """Tokens that are read."""
        return len(self.prompt) + sum(len(option) - 1 for option in self.options)

    def line(self) -> tuple[list[int], list[int], list[int]]:
        """Token ids, segments and positions. An option's last token is left out: nothing is predicted from it."""
        ids, segments, positions = (
            list(self.prompt),
            [PROMPT] * len(self.prompt),
            list(range(len(self.prompt))),
        )
        for number, option in enumerate(self.options, start=1):
            ids += option[:-1]
            segments += [number] * (len(option) - 1)
            positions += range(len(self.prompt), len(self.prompt) + len(option) - 1)
        return ids, segments, positions

    def predictions(self) -> list[tuple[int, int, int]]:
        """(column, token, option) of everything that is scored, by column: first tokens are all predicted by the prompt."""
        found = [(len(self.prompt) - 1, option[0], i) for i, option in enumerate(self.options)]
        column = len(self.prompt)
        for i, option in enumerate(self.options):
            found += [(column + t, token, i) for t, token in enumerate(option[1:])]
            column += len(option) - 1
        return found


def strips(questions: Sequence[Question]) -> list[Strip]:
    """The questions as rows.

    The options of a row take no more room than its prompt, or MIN_ROOM tokens: attention grows with the square of a row, and
    hundreds of options behind a short prompt would cost more than reading the prompt again.
    """
    found: list[Strip] = []
    number = 0
    for question in questions:
        room, taken = max(len(question.prompt), MIN_ROOM), 0
        start = 0
        for i, option in enumerate(question.options):
            if i > start and taken + len(option) - 1 > room:
                found.append(Strip(question.prompt, question.options[start:i], number + start))
                start, taken = i, 0
            taken += len(option) - 1
        found.append(Strip(question.prompt, question.options[start:], number + start))
        number += len(question.options)
    return found


def pack(group: Sequence[Strip], layout: BatchLayout) -> TokenBatch:
    """Rows of questions as one batch, padded behind to the widest."""
    import torch

    width = max(strip.width for strip in group)
    lines = [strip.line() for strip in group]
    ids_BT = padded([ids for ids, _, _ in lines], width, layout.pad)
    segments_BT = padded([segments for _, segments, _ in lines], width, -1)
    positions_BT = padded([positions for _, _, positions in lines], width, 0)
    mask_BT = (segments_BT != -1).long()
    placed: list[tuple[int, int, int]] = []
    rows: list[int] = []
    for b, strip in enumerate(group):
        placed += [
            (b * width + column, token, len(rows) + i) for column, token, i in strip.predictions()
        ]
        rows += range(strip.first, strip.first + len(strip.options))
    places_K, wanted_K, owners_K = torch.tensor(placed).unbind(dim=1)
    places_P, picks_K = places_K.unique(return_inverse=True)
    on: Any = {"device": layout.device}
    scored = Scored(
        places_P.to(**on), tuple(picks_K.tolist()), picks_K.to(**on), wanted_K.to(**on), owners_K
    )
    batch = TokenBatch(ids_BT.to(**on), mask_BT.to(**on), tuple(rows), scored)
    if not (segments_BT > PROMPT).any():
        return batch  # options of one token: prompts alone, as any model reads them
    return TokenBatch(
        batch.ids, batch.mask, batch.rows, scored, None, segments_BT.to(**on), positions_BT.to(**on)
    )

"""Questions with options: the prompt is read once for all of them, if the model is one that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

from mergetomix.models.causal_lm.scoring import answers_in_order, losses_in_order
from mergetomix.models.causal_lm.sequences import (
    IGNORE,
    PROMPT,
    BatchLayout,
    Encoded,
    Scored,
    TokenBatch,
    grouped,
    padded,
)
from mergetomix.stretches import WHOLE, Stretch

V = TypeVar("V")
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

    @property
    def reach(self) -> int:
        """Tokens from the prompt's first to the end of the longest option."""
        return len(self.prompt) + max(map(len, self.options))

    def fingerprint(self) -> bytes:
        """Returns tokens and the example that they are of."""
        return repr((self.prompt, self.options, self.example)).encode()

    def alone(self) -> list[Encoded]:
        """Returns the prompt followed by each option, as sequences of their own."""
        hidden = (IGNORE,) * len(self.prompt)
        return [
            Encoded((*self.prompt, *option), (*hidden, *option), self.example)
            for option in self.options
        ]

    def apart(self) -> list[Question]:
        """Returns the prompt with each option as a question of its own."""
        return [replace(self, options=(option,)) for option in self.options]


class Asked:
    """Questions, collated once and asked of any number of models of one architecture.

    A question is one row: the prompt, and behind it the options, each blind to the others by a mask
    of four dimensions and with positions as if it followed the prompt alone. Not every model heeds
    such a mask: some look back by the distance in the row (ALiBi, sliding windows), some have no
    attention at all. So the longest and the shortest question are first scored both ways, and if
    the two differ each option is read with a prompt of its own, then and ever after.

    Options of a question that are alike are read once, so that they come out alike to the bit.
    """

    def __init__(self, questions: Sequence[Question], layout: BatchLayout) -> None:
        self.questions, self.layout = tuple(questions), layout
        self._distinct = [
            replace(each, options=tuple(dict.fromkeys(each.options))) for each in questions
        ]
        self.together = packed(self._distinct, layout)
        self.shares: bool | None = None
        if all(batch.segments is None for batch in self.together):
            self.shares = True  # nothing that a model could get wrong
        elif layout.window is not None and max(each.reach for each in questions) > layout.window:
            self.shares = False

    @cached_property
    def apart(self) -> list[TokenBatch]:
        """Every option with a prompt of its own."""
        return packed([each for own in self._distinct for each in own.apart()], self.layout)

    def losses(self, model: Any) -> list[list[float]]:
        """Returns the sum over an option's tokens of -log p, in nats, for every option."""
        return self.by_question(self.read(model))

    def answers(self, model: Any) -> list[list[tuple[float, bool]]]:
        """Returns log p of every option in nats, and whether each of its tokens is the likeliest.

        So it says whether a greedy continuation of the prompt begins with the option.
        """
        return self.by_question(self.read_answers(model))

    def read(self, model: Any, stretch: Stretch = WHOLE) -> dict[int, float]:
        """Returns the losses of the options in a stretch of batches, by their places."""
        return self._read(losses_in_order, model, stretch)

    def read_answers(self, model: Any, stretch: Stretch = WHOLE) -> dict[int, tuple[float, bool]]:
        """Returns what `answers` says of the options in a stretch of batches, by their places."""
        return self._read(answers_in_order, model, stretch)

    def _read(
        self, how: Callable[[Any, Sequence[TokenBatch]], list[V]], model: Any, stretch: Stretch
    ) -> dict[int, V]:
        every = self._batches(model)
        batches = [every[place] for place in stretch.of([batch.ids.numel() for batch in every])]
        rows = sorted(row for batch in batches for row in batch.rows)
        return dict(zip(rows, how(model, batches) if batches else [], strict=True))

    def by_question(self, found: Mapping[int, V]) -> list[list[V]]:
        """Returns what was read of every option, by question; those that are alike are one."""
        values = (found[place] for place in range(len(found)))
        several = []
        for question, distinct in zip(self.questions, self._distinct, strict=True):
            known = {option: next(values) for option in distinct.options}
            several.append([known[option] for option in question.options])
        return several

    def _batches(self, model: Any) -> list[TokenBatch]:
        if self.shares is None:
            self.shares = agrees(model, self._distinct, self.layout)
        return self.together if self.shares else self.apart


def agrees(model: Any, questions: Sequence[Question], layout: BatchLayout) -> bool:
    """Returns whether options behind one prompt have the losses that they have by themselves.

    The longest question is asked and the shortest, which is padded. Losses may differ by TOLERANCE
    a token, or by 16 roundings of a number type shorter than float32.
    """
    import torch

    ordered = sorted(questions, key=lambda question: question.reach)
    some = [ordered[-1], ordered[0]][: len(ordered)]
    apart = [each for question in some for each in question.apart()]
    wanted = losses_in_order(model, packed(apart, layout))
    try:
        found = losses_in_order(model, packed(some, replace(layout, batch_tokens=10**9)))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        # a model that takes no such mask says so in its own way, and can be asked the other way
        return False
    bound = TOLERANCE if model.dtype == torch.float32 else 16 * torch.finfo(model.dtype).eps
    lengths = [len(option) for question in some for option in question.options]
    return all(abs(a - b) <= bound * n for a, b, n in zip(wanted, found, lengths, strict=True))


def rows_of(question: Question) -> list[Question]:
    """Returns a question as rows of a batch, each with some of its options.

    The options of a row take no more room than its prompt, or MIN_ROOM tokens: attention grows with
    the square of a row, and hundreds of options behind a short prompt would cost more than reading
    the prompt again.
    """
    room, taken = max(len(question.prompt), MIN_ROOM), 0
    groups: list[list[tuple[int, ...]]] = [[]]
    for option in question.options:
        if groups[-1] and taken + len(option) - 1 > room:
            groups.append([])
            taken = 0
        groups[-1].append(option)
        taken += len(option) - 1
    return [replace(question, options=tuple(group)) for group in groups]


def packed(questions: Sequence[Question], layout: BatchLayout) -> list[TokenBatch]:
    """Returns batches of the questions, each prompt with its options behind it."""
    rows = [row for question in questions for row in rows_of(question)]
    firsts = list(accumulate((len(row.options) for row in rows), initial=0))
    groups = grouped([row.num_tokens for row in rows], layout.batch_tokens)
    return [_pack([(rows[i], firsts[i]) for i in group], layout) for group in groups]


def _pack(group: Sequence[tuple[Question, int]], layout: BatchLayout) -> TokenBatch:
    """Returns rows, each with the number of its first option, as one batch."""
    import torch

    width, on = max(row.num_tokens for row, _ in group), layout.device
    ids, segments, positions = [], [], []
    placed: list[tuple[int, int, int]] = []
    numbers: list[int] = []
    for b, (row, first) in enumerate(group):
        num, done = len(row.prompt), len(numbers)
        line, segment, position = list(row.prompt), [PROMPT] * num, list(range(num))
        # first tokens are all predicted by the prompt, and nothing is by the last ones
        placed += [(b * width + num - 1, each[0], done + i) for i, each in enumerate(row.options)]
        for i, option in enumerate(row.options):
            start = b * width + len(line)
            placed += [(start + t, token, done + i) for t, token in enumerate(option[1:])]
            line += option[:-1]
            segment += [i + 1] * (len(option) - 1)
            position += range(num, num + len(option) - 1)
        numbers += range(first, first + len(row.options))
        ids.append(line)
        segments.append(segment)
        positions.append(position)
    places_K, wanted_K, owners_K = torch.tensor(placed).unbind(dim=1)
    places_P, picks_K = places_K.unique(return_inverse=True)
    scored = Scored(places_P.to(on), picks_K, wanted_K.to(on), owners_K)
    ids_BT, segments_BT = padded(ids, width, layout.pad), padded(segments, width, -1)
    mask_BT = (segments_BT != -1).long()
    batch = TokenBatch(ids_BT.to(on), mask_BT.to(on), tuple(numbers), scored)
    has_one_each = all(len(row.options) == 1 for row, _ in group)
    if has_one_each or not (segments_BT > PROMPT).any():
        return batch  # one option a row, or prompts alone: as any model reads them
    positions_BT = padded(positions, width, 0)
    return replace(batch, segments=segments_BT.to(on), positions=positions_BT.to(on))

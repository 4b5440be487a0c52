"""Tokens as batches: what one forward pass reads, and which of its predictions are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORE = -100
PROMPT = 0
"""The segment of a question's prompt; its options have 1, 2, ... and padding has -1."""


@dataclass(frozen=True)
class Encoded:
    """One sequence of tokens.

    `labels` repeats a token where the loss is taken and holds -100 elsewhere.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    example: int

    @property
    def num_scored(self) -> int:
        """Positions that count in the loss: the first token of a sequence has no context."""
        return sum(label != IGNORE for label in self.labels[1:])

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids)

    def fingerprint(self) -> bytes:
        """Returns tokens, labels and the example that they are of."""
        return repr((self.ids, self.labels, self.example)).encode()


@dataclass(frozen=True)
class Scored:
    """The K predictions of a batch that count, in the order of the places that they are made at.

    `places_P` are the places of a batch (row * width + column) whose logits are needed, each once
    and ascending. Prediction k is made at `places_P[picks_K[k]]`, of the token `wanted_K[k]`, and
    counts for row `owners_K[k]` of the result. Several may be made at one place: the first tokens
    of a question's options. `picks_K` and `owners_K` are on the CPU.
    """

    places_P: torch.Tensor
    picks_K: torch.Tensor
    wanted_K: torch.Tensor
    owners_K: torch.Tensor


@dataclass(frozen=True)
class TokenBatch:
    """What one forward pass reads and what is scored of it; tensors are (rows, tokens).

    `rows` says which sequence (or option) of the whole each line of the result is. With `segments`,
    a row is a prompt with several options behind it, each blind to the others, at `positions` as if
    it alone followed the prompt.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    rows: tuple[int, ...]
    scored: Scored
    labels: torch.Tensor | None = None
    segments: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def inputs(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Returns the model's arguments; `dtype` is the number type of the model and its mask.

        Rows padded behind need no mask, as no token of a causal model sees what comes after it;
        without one, attention computes no more than the half that is seen.
        """
        if self.segments is None or self.positions is None:
            return {"input_ids": self.ids}
        import torch

        # a token sees the prompt and its own segment, up to itself
        segments_BT, width = self.segments, self.segments.shape[1]
        same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
        seen_BTT = (same_BTT | (segments_BT == PROMPT)[:, None, :]).tril()
        mask_BTT = self.ids.new_zeros((len(self.ids), width, width), dtype=dtype)
        mask_BTT.masked_fill_(~seen_BTT, torch.finfo(dtype).min)
        given = {"input_ids": self.ids, "position_ids": self.positions}
        return {**given, "attention_mask": mask_BTT[:, None]}


@dataclass(frozen=True)
class BatchLayout:
    """How batches are made.

    `pad` is the padding token, `batch_tokens` the most tokens of a batch, and `window` how far back
    the model's attention reaches, None if it reaches all.
    """

    pad: int
    device: str
    batch_tokens: int
    window: int | None = None

    def batches(self, sequences: Sequence[Encoded]) -> list[TokenBatch]:
        """Returns batches of sequences by length, padded behind, the same every time."""
        groups = grouped([each.num_tokens for each in sequences], self.batch_tokens)
        return [self._collated([sequences[i] for i in group], group) for group in groups]

    def _collated(self, group: Sequence[Encoded], rows: Sequence[int]) -> TokenBatch:
        import torch

        width = max(len(s.ids) for s in group)
        labels_BT = padded([s.labels for s in group], width, IGNORE)
        owners_K, columns_K = (labels_BT[:, 1:] != IGNORE).nonzero(as_tuple=True)
        places_K = owners_K * width + columns_K
        wanted_K = labels_BT[owners_K, columns_K + 1].to(self.device)
        return TokenBatch(
            padded([s.ids for s in group], width, self.pad).to(self.device),
            padded([[1] * len(s.ids) for s in group], width, 0).to(self.device),
            tuple(rows),
            Scored(places_K.to(self.device), torch.arange(len(places_K)), wanted_K, owners_K),
            labels_BT.to(self.device),
        )


def grouped(widths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Returns places of rows, longest first, in groups of at most `batch_tokens` tokens or one row.

    A group's tokens count with their padding.

    >>> grouped([3, 9, 9, 1], 18)
    [[1, 2], [0, 3]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(widths)), key=lambda i: (-widths[i], i)):
        if groups and (len(groups[-1]) + 1) * widths[groups[-1][0]] <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def padded(lines: Sequence[Sequence[int]], width: int, fill: int) -> torch.Tensor:
    """Returns rows of numbers, filled up behind to one width."""
    import torch

    return torch.tensor([[*line, *[fill] * (width - len(line))] for line in lines])

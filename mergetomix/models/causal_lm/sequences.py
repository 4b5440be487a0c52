"""Tokens as batches: what one forward pass reads, and which of its predictions are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORE = -100
PROMPT = 0
"""The segment of a question's prompt; its options have the segments 1, 2, ... and padding has -1."""


@dataclass(frozen=True)
class Encoded:
    """One sequence of tokens. `labels` repeats a token where the loss is taken and holds -100 elsewhere."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    example: int

    @property
    def num_scored(self) -> int:
        """Positions that count in the loss: the first token of a sequence has no context and never does."""
        return sum(label != IGNORE for label in self.labels[1:])

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids)

    def fingerprint(self) -> bytes:
        """Tokens, labels and the example that they are of."""
        return repr((self.ids, self.labels, self.example)).encode()


@dataclass(frozen=True)
class Scored:
    """The predictions of a batch that count, K of them, in the order of the places that they are made at.

    `places_P` are the places of a batch (row * width + column) whose logits are needed, each once and ascending. Prediction k
    is made at `places_P[picks[k]]`, of the token `wanted_K[k]`, and counts for row `owners_K[k]` of the result. Several may
    be made at one place: the first tokens of a question's options.
    """

    places_P: torch.Tensor
    picks: tuple[int, ...]
    picks_K: torch.Tensor
    wanted_K: torch.Tensor
    owners_K: torch.Tensor


@dataclass(frozen=True)
class TokenBatch:
    """What one forward pass reads and what is scored of it. Shapes: (rows, tokens).

    `rows` says which sequence (or option) of the whole each line of the result is. With `segments`, a row is a prompt with
    several options behind it, each blind to the others, at `positions` as if it alone followed the prompt.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    rows: tuple[int, ...]
    scored: Scored
    labels: torch.Tensor | None = None
    segments: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def inputs(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The model's arguments; `dtype` is the model's number type, that of a mask of four dimensions.

        Rows padded behind need no mask: no token of a causal model sees what comes after it. Without one, attention computes
        the half that is seen alone.
        """
        if self.segments is None or self.positions is None:
            return {"input_ids": self.ids}
        mask_B1TT = _block_mask(self.segments, dtype)
        return {"input_ids": self.ids, "position_ids": self.positions, "attention_mask": mask_B1TT}


def _block_mask(segments_BT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores: zero where a token sees another, else the lowest number there is; (B, 1, T, T).

    A token sees the prompt and its own segment, up to itself.
    """
    import torch

    width = segments_BT.shape[1]
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    seen_BTT = (same_BTT | (segments_BT == PROMPT)[:, None, :]).tril()
    mask_BTT = torch.zeros((len(segments_BT), width, width), dtype=dtype, device=segments_BT.device)
    return mask_BTT.masked_fill_(~seen_BTT, torch.finfo(dtype).min)[:, None]


def grouped(widths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Places of rows, longest first, in groups of at most `batch_tokens` tokens with their padding (or one row)."""
    groups: list[list[int]] = []
    for i in sorted(range(len(widths)), key=lambda i: (-widths[i], i)):
        if groups and (len(groups[-1]) + 1) * widths[groups[-1][0]] <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def collate(group: Sequence[Encoded], rows: Sequence[int], pad: int, device: str) -> TokenBatch:
    """Sequences as one batch, padded behind to the longest."""
    import torch

    width = max(len(s.ids) for s in group)
    ids_BT = padded([s.ids for s in group], width, pad)
    labels_BT = padded([s.labels for s in group], width, IGNORE)
    mask_BT = padded([[1] * len(s.ids) for s in group], width, 0)
    owners_K, columns_K = (labels_BT[:, 1:] != IGNORE).nonzero(as_tuple=True)
    wanted_K = labels_BT[owners_K, columns_K + 1]
    places_K = owners_K * width + columns_K
    picks_K = torch.arange(len(places_K))
    scored = Scored(
        places_K.to(device),
        tuple(range(len(places_K))),
        picks_K.to(device),
        wanted_K.to(device),
        owners_K,
    )
    return TokenBatch(
        ids_BT.to(device), mask_BT.to(device), tuple(rows), scored, labels_BT.to(device)
    )


def padded(lines: Sequence[Sequence[int]], width: int, fill: int) -> torch.Tensor:
    """Rows of numbers, filled up behind to one width."""
    import torch

    return torch.tensor([[*line, *[fill] * (width - len(line))] for line in lines])

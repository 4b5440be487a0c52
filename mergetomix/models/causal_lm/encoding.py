"""Texts as the model's own tokens: a text is encoded whole, and its pieces are found by offsets.

Chats become texts, with the places of their replies, in `templates.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergetomix.models.causal_lm.sequences import IGNORE
from mergetomix.models.causal_lm.templates import Span, num_shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


@dataclass(frozen=True)
class Labelled:
    """A text's tokens: `labels` repeat a token that is trained on and hold -100 elsewhere.

    `straddles` says whether a token begins before a piece that is trained on and ends in it, and
    `has_marks` whether the text itself held the mark of a beginning or an end.
    """

    ids: Ids
    labels: Ids
    straddles: bool = False
    has_marks: bool = False

    @property
    def trains(self) -> bool:
        """Whether any token is trained on."""
        return any(label != IGNORE for label in self.labels)

    def behind(self, front: Sequence[int]) -> Labelled:
        """Returns the same behind tokens that are not trained on."""
        labels = [IGNORE] * len(front) + self.labels
        return Labelled([*front, *self.ids], labels, self.straddles, self.has_marks)

    def ended(self, token: int) -> Labelled:
        """Returns the same before an end token, which is trained on."""
        return Labelled([*self.ids, token], [*self.labels, token], self.straddles, self.has_marks)


class TextEncoder:
    """Encodes texts, without the marks that a tokenizer adds on its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def start(self) -> Ids:
        """What the tokenizer puts before a text: its beginning-of-text token, or nothing."""
        ids: Ids = list(self._tokenizer("")["input_ids"])
        return ids[: self.num_start(ids)]

    @cached_property
    def end(self) -> int:
        """The tokenizer's end-of-text token."""
        return int(self._tokenizer.eos_token_id)

    def num_start(self, ids: Sequence[int]) -> int:
        """Returns how many tokens at the front stay: the start token, whoever wrote it."""
        bos = self._tokenizer.bos_token_id
        return int(bos is not None and list(ids[:1]) == [bos])

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """Returns the tokens of texts."""
        plain: Any = {"add_special_tokens": False, "verbose": False}
        return (
            [list(ids) for ids in self._tokenizer(list(texts), **plain)["input_ids"]]
            if texts
            else []
        )

    def opened(self, prompt: Ids) -> Ids:
        """Returns a prompt behind the start token, or the end token if there is neither."""
        front = [] if prompt[: len(self.start)] == self.start else self.start
        # an answer's first token must be predicted from something, if only from a text's end
        return [*front, *prompt] or [self.end]

    def labelled(self, texts: Sequence[tuple[str, Sequence[Span]]]) -> list[Labelled]:
        """Returns texts as tokens, and which of them lie in the spans that are trained on.

        A token over the edge of a span belongs to it.
        """
        if not texts:
            return []
        if not self._tokenizer.is_fast:
            return [self._by_prefixes(text, spans) for text, spans in texts]
        how: Any = {"add_special_tokens": False, "verbose": False, "return_offsets_mapping": True}
        found = self._tokenizer([text for text, _ in texts], **how)
        rows = zip(found["input_ids"], found["offset_mapping"], texts, strict=True)
        return [self._by_offsets(list(ids), offsets, spans) for ids, offsets, (_, spans) in rows]

    def _by_offsets(
        self, ids: Ids, offsets: Sequence[tuple[int, int]], spans: Sequence[Span]
    ) -> Labelled:
        labels, straddles, place = [IGNORE] * len(ids), False, 0
        for i, (start, end) in enumerate(offsets):
            while place < len(spans) and start >= spans[place][1]:
                place += 1
            if place == len(spans):
                break
            # a token of no width, such as the mark of a space that is not there, goes with the next
            if max(end, start + 1) > spans[place][0]:
                labels[i] = ids[i]
                straddles |= start < spans[place][0] < end
        return Labelled(ids, labels, straddles, self._has_marks(ids))

    def _by_prefixes(self, text: str, spans: Sequence[Span]) -> Labelled:
        """Does the same for a tokenizer that tells no offsets, by the tokens of beginnings."""
        (ids,) = self.ids([text])
        edges = [edge for span in spans for edge in span if 0 < edge < len(text)]
        starts = dict(zip(edges, self.ids([text[:edge] for edge in edges]), strict=True))
        labels, straddles = [IGNORE] * len(ids), False
        for start, end in spans:
            first, last = (
                edge and (num_shared(starts[edge], ids) if edge < len(text) else len(ids))
                for edge in (start, end)
            )
            labels[first:last] = ids[first:last]
            straddles |= bool(start) and first < len(starts[start])
        return Labelled(ids, labels, straddles, self._has_marks(ids))

    def _has_marks(self, ids: Ids) -> bool:
        return bool({self.end, self._tokenizer.bos_token_id} & set(ids))

    def options(self, prompt: str, options: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """Returns a prompt and what may follow it, each as in the text of both together.

        Tokens that an option changes belong to the options, all of which then begin with them.
        """
        spans = [(len(prompt), len(prompt) + len(option)) for option in options]
        pairs = [(prompt + option, [span]) for option, span in zip(options, spans, strict=True)]
        whole = self.labelled(pairs)
        seams = [
            next((i for i, label in enumerate(each.labels) if label != IGNORE), len(each.ids))
            for each in whole
        ]
        num = min(seams)
        num = min(num, *(num_shared(whole[0].ids, each.ids) for each in whole))
        return whole[0].ids[:num], [each.ids[num:] for each in whole]

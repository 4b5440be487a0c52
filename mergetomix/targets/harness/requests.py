"""Requests of the harness as tokens, encoded by its own rules, and what a model answers to them.

The harness's class for models of transformers encodes: where a prompt ends and what follows begins,
what is cut off a prompt that is too long, which texts end an answer. Models answer in this
package's batches: options behind one prompt together, greedy answers with a cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from mergetomix.errors import DataError
from mergetomix.models.causal_lm.generation import Generation
from mergetomix.models.causal_lm.questions import Question
from mergetomix.models.family import AnswersRequests
from mergetomix.stretches import WHOLE, Stretch
from mergetomix.targets.harness.library import quiet

OWN_KWARGS = ("until", "max_gen_toks")
"""What says how answers are made in the harness alone."""
DRAW_SEED = 1234
"""Of answers that are drawn: the seed that the command gives torch."""
Ids = tuple[int, ...]
Pair = tuple[Ids, Ids]
"""A prompt, and what may follow it."""
Place = tuple[str, int]
"""Where an answer belongs: what kind it is, and its place among those."""


@dataclass(frozen=True)
class Requests:
    """The requests of some documents, as tokens, by their places.

    `pairs` are prompts with what follows, and the document that they are of; `windows` those of a
    text that is scored whole. `prompts` are to be continued, each with its settings, and as often
    as answers are drawn. `num_cut` prompts lost their beginning.
    """

    pairs: Mapping[int, tuple[Any, Pair]]
    windows: Mapping[int, tuple[Pair, ...]]
    prompts: Mapping[int, tuple[Ids, Generation, int]]
    num_cut: int = 0

    def content(self) -> list[Any]:
        """Returns what the answers depend on."""
        told = [[place, ids, repr(how), num] for place, (ids, how, num) in self.prompts.items()]
        pairs = [[place, pair] for place, (_, pair) in self.pairs.items()]
        return [pairs, sorted(self.windows.items()), told]

    def some(self, places: Sequence[int], most_new_tokens: int | None = None) -> Requests:
        """Returns some of the requests, numbered anew in the order given.

        Args:
            most_new_tokens: of an answer, where that is fewer than its own bound.
        """
        new = {old: i for i, old in enumerate(places)}
        prompts = {}
        for old, (ids, told, num) in self.prompts.items():
            most = min(told.max_new_tokens, most_new_tokens or told.max_new_tokens)
            if old in new:
                prompts[new[old]] = ids, replace(told, max_new_tokens=most), num
        return Requests(
            {new[old]: each for old, each in self.pairs.items() if old in new},
            {new[old]: each for old, each in self.windows.items() if old in new},
            prompts,
        )


class Encoder:
    """The harness's own encoding of requests, for a family of models."""

    def __init__(self, family: Any, batch_tokens: int, where: str) -> None:
        from lm_eval.models.huggingface import HFLM

        self._batch_tokens, self._where = batch_tokens, where
        # encoding takes no weights, so it gets a model that has none
        model = SimpleNamespace(device=family.device, config=family.config)
        with quiet():
            self.model: Any = HFLM(pretrained=model, tokenizer=family.processor, backend="causal")
        self.model._loglikelihood_tokens = lambda requests, **_: requests

    @property
    def chat_template(self) -> Any:
        """The function that renders messages."""
        return self.model.apply_chat_template

    def requests(self, instances: Sequence[Any]) -> Requests:
        """Returns instances as tokens.

        Raises:
            DataError: a request has nothing to score, or no room for an answer.
        """
        pairs, windows, prompts, num_cut = {}, {}, {}, 0
        for place, each in enumerate(instances):
            is_cut = False
            if each.request_type == "generate_until":
                settings = self._generation(each.args[1])
                ids, is_cut = self._prompt(each.args[0], settings)
                # a greedy answer is the same each time
                is_drawn = dict(settings.changes).get("do_sample")
                prompts[place] = ids, settings, (each.repeats or 1) if is_drawn else 1
            elif each.request_type == "loglikelihood_rolling":
                windows[place] = tuple(self._windows(each.args[0]))
            else:
                pair, is_cut = self._pair(each)
                pairs[place] = (each.task_name, each.doc_id), pair
            num_cut += is_cut
        return Requests(pairs, windows, prompts, num_cut)

    def _pair(self, instance: Any) -> tuple[Pair, bool]:
        """Returns a prompt and what may follow it, and whether the prompt lost its beginning."""
        key = f"{self._where}.task"
        try:
            ((_, prompt, after),) = self.model.loglikelihood([instance], disable_tqdm=True)
        except IndexError:
            prompt, after = [], []
        if not prompt or not after:
            message = f"document {instance.doc_id} has nothing to score behind its prompt"
            raise DataError(key, message)
        most = self.model.max_length
        if len(after) > most:
            message = f"document {instance.doc_id} has {len(after)} tokens to score"
            raise DataError(key, f"{message}, and the model reads {most}")
        kept = prompt[max(0, len(prompt) + len(after) - most - 1) :]
        return (tuple(kept), tuple(after)), len(kept) < len(prompt)

    def _windows(self, text: str) -> Iterator[Pair]:
        """Yields a text in windows, each token of which is scored once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = get_rolling_token_windows(
            token_list=self.model.tok_encode(text),
            prefix_token=self.model.prefix_token_id,
            max_seq_len=self.model.max_length,
            context_len=1,
        )
        for prompt, after in map(make_disjoint_window, windows):
            yield tuple(prompt), tuple(after)

    def _generation(self, given: dict[str, Any]) -> Generation:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        key = f"{self._where}.gen_kwargs"
        try:
            told = dict(normalize_gen_kwargs(given, self.model.max_gen_toks))
        except (TypeError, ValueError) as error:
            raise DataError(key, f"max_gen_toks and temperature are numbers: {error}") from error
        stop = handle_stop_sequences(told.pop("until", None), eos=self._end)
        if not all(isinstance(each, str) for each in stop):
            raise DataError(key, f"until must be texts, not {stop!r}")
        num_new = int(told.pop("max_gen_toks"))
        if not 0 < num_new < self.model.max_length:
            rule = f"must be under the model's limit of {self.model.max_length} tokens"
            raise DataError(key, f"max_gen_toks {rule}; got {num_new}")
        if not isinstance(told.get("do_sample"), bool | None):
            raise DataError(key, f"do_sample must be true or false, not {told['do_sample']!r}")
        known = self._known_kwargs
        for name in (name for name in told if name not in known):
            close = get_close_matches(name, [*known, *OWN_KWARGS], n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}?" if close else None
            raise DataError(key, f"nothing is called {name}", hint=hint)
        if not told.get("do_sample"):
            told.pop("temperature", None)
        return Generation(
            num_new,
            tuple(each for each in stop if each),
            self._batch_tokens,
            own=True,
            seed=DRAW_SEED,
            changes=tuple(sorted(told.items())),
            in_turn=True,
        )

    @cached_property
    def _known_kwargs(self) -> set[str]:
        from transformers import GenerationConfig

        return set(GenerationConfig().to_dict())

    @cached_property
    def _end(self) -> str:
        return str(self.model.tok_decode(self.model.eot_token_id, skip_special_tokens=False))

    def _prompt(self, text: str, settings: Generation) -> tuple[Ids, bool]:
        room = self.model.max_length - settings.max_new_tokens
        ids = self.model.tok_batch_encode([text], truncation=self.model.truncation)[0][0].tolist()
        return tuple(ids[-room:]), len(ids) > room


class Answers:
    """What models answer to requests, by the place of each; made once, asked of any model."""

    def __init__(self, family: AnswersRequests, requests: Requests, batch_tokens: int) -> None:
        self._family, self._requests = family, requests
        groups: dict[Any, list[tuple[int, Pair]]] = {}
        for place, (document, pair) in requests.pairs.items():
            groups.setdefault((document, pair[0]), []).append((place, pair))
        several = [*groups.values()]
        several += [[(place, each)] for place, some in requests.windows.items() for each in some]
        self._places = [[place for place, _ in group] for group in several]
        self.questions = [
            Question(group[0][1][0], tuple(after for _, (_, after) in group), i)
            for i, group in enumerate(several)
        ]
        self._asked = family.asked(self.questions, batch_tokens) if self.questions else None
        self._by_settings: dict[Generation, list[int]] = {}
        for place, (_, settings, num) in requests.prompts.items():
            self._by_settings.setdefault(settings, []).extend([place] * num)

    @property
    def num_tokens(self) -> int:
        """Tokens that a model reads; of an answer, whose length is not known, its bound."""
        told = self._requests.prompts.values()
        return sum(question.num_tokens for question in self.questions) + sum(
            num * (len(ids) + settings.max_new_tokens) for ids, settings, num in told
        )

    @property
    def most_new_tokens(self) -> int:
        """The largest bound of an answer; zero if there are none."""
        return max((each.max_new_tokens for each in self._by_settings), default=0)

    def read(self, model: Any, stretch: Stretch = WHOLE) -> dict[Place, Any]:
        """Returns what a model says to the requests in a stretch of batches.

        Options by their places are (log p, whether greedy), texts stand by their settings and
        places; a text is None, and a log p nan, where logits are not finite.
        """
        found: dict[Place, Any] = {}
        if self._asked is not None:
            known = self._asked.read_answers(model, stretch)
            found |= {("option", place): each for place, each in known.items()}
        for number, (settings, own) in enumerate(self._by_settings.items()):
            prompts = [self._requests.prompts[place][0] for place in own]
            texts = self._family.continued(model, prompts, settings, stretch)
            found |= {(f"text {number}", place): each for place, each in texts.items()}
        return found

    def by_request(self, read: Mapping[Place, Any]) -> dict[int, Any]:
        """Returns the answers, (log p, whether greedy) or a list of texts, by their requests."""
        found: dict[int, Any] = dict.fromkeys(self._requests.windows, (0.0, True))
        options = {place: each for (kind, place), each in read.items() if kind == "option"}
        answers = [] if self._asked is None else self._asked.by_question(options)
        for places, each in zip(self._places, answers, strict=True):
            for place, (logp, is_greedy) in zip(places, each, strict=True):
                before = found.get(place, (0.0, True))
                found[place] = (before[0] + logp, before[1] and is_greedy)
        for number, own in enumerate(self._by_settings.values()):
            for i, place in enumerate(own):
                found.setdefault(place, []).append(read[f"text {number}", i])
        return found


def is_finite(answer: Any) -> bool:
    """Returns whether a model's logits were finite."""
    if isinstance(answer, tuple):
        return math.isfinite(answer[0])
    return None not in answer

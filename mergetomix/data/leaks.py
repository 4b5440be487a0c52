"""What two sources share: the same examples but for case, marks and spaces, or many words in a row.

The rule of many words is GPT-3's (arXiv 2005.14165, appendix C), which the LM Evaluation Harness
takes over for its decontamination: 13 words in a row, but for those that stand in more than ten
examples, which are somebody's boilerplate.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mergetomix.data.examples import Example, last_reply

WORDS = 13
"""So many words in a row are no chance."""
COMMON = 10
"""Words in a row that more examples hold are no leak, but a form that all of them have."""
MARKS = re.compile(r"\s*['\u2019\u2018`\u00b4]")
"""An apostrophe and the space before it, which tokenised texts have."""
UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
"""Letters of scripts that put no space between words."""
WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[+*/=<>%^#@&|~$\u00d7\u00f7]|-(?=\s*\d)")
"""A number, letters in a row, or a sign that means something in sums and code."""
BETWEEN_DIGITS = re.compile(r"(?<=\d) (?=\d)")


def words(text: str) -> list[str]:
    """Returns a text's words: without case, punctuation and forms of letters.

    >>> words("Don 't  PANIC: it's 1,000 - 4.5!")
    ['dont', 'panic', 'its', '1000', '-', '4.5']
    """
    plain = MARKS.sub("", unicodedata.normalize("NFKC", text).casefold())
    found = WORD.findall(UNSPACED.sub(r" \1 ", plain))
    return [each.replace(",", "") for each in found] or plain.split()  # signs alone mean themselves


def squeezed(some: Sequence[str]) -> str:
    """Returns words without the spaces between, which texts have where others have none.

    >>> squeezed(["can", "not", "12", "3"])
    'cannot12 3'
    """
    return BETWEEN_DIGITS.sub("\0", " ".join(some)).replace(" ", "").replace("\0", " ")


@dataclass(frozen=True)
class Said:
    """What an example says: the words of its prompt and of its answer, or of its text.

    An image is its content as a single word, and its class the answer.
    """

    prompt: list[str]
    answer: list[str]

    @property
    def whole(self) -> tuple[str, str]:
        """What two examples have in common that are the same."""
        return squeezed(self.prompt), squeezed(self.answer)

    @property
    def runs(self) -> list[int]:
        """The words in a row that the example holds, WORDS at a time, as hashes."""
        some = [*self.prompt, *self.answer]
        return [hash(tuple(some[i : i + WORDS])) for i in range(len(some) - WORDS + 1)]


@dataclass(frozen=True)
class Affixes:
    """What a recipe writes around the columns of every row: `before` and `after` them."""

    before: str = ""
    after: str = ""

    @classmethod
    def of(cls, pattern: str | None) -> Affixes:
        """Returns what a format string or template writes around its fields; nothing for a column.

        >>> Affixes.of("Q: {question} A:")
        Affixes(before='Q: ', after=' A:')
        """
        if "{%" in (pattern or ""):
            text = pattern or ""
            return cls(text[: text.index("{")], text[text.rindex("}") + 1 :])
        try:
            parts = list(string.Formatter().parse(pattern or ""))
        except ValueError:
            return cls()
        if not any(name is not None for _, name, _, _ in parts):
            return cls()
        last = parts[-1]
        return cls(parts[0][0], last[0] if last[1] is None else "")

    def strip(self, text: str) -> str:
        """Returns a text without what was written around it."""
        return text.removeprefix(self.before).removesuffix(self.after)


def said_by(items: Iterable[Example], affixes: Mapping[str, Affixes]) -> Iterator[Said]:
    """Yields what examples say.

    Args:
        affixes: what the recipe writes around `prompt`, `completion` and `text`.
    """
    own = {key: affixes.get(key, Affixes()) for key in ("prompt", "completion", "text")}
    for item in items:
        if item.picture is not None:
            yield Said([item.picture.digest], [item.label])
        elif item.messages and not item.prompt:
            place = last_reply(item)
            before = [text for role, text in item.messages[:place] if role != "system"]
            before = before[item.num_shown :]
            yield Said(words("\n".join(before)), words(item.messages[place][1]))
        elif item.text:
            yield Said([], words(own["text"].strip(item.text)))
        else:
            prompt, answer = own["prompt"], own["completion"]
            yield Said(words(prompt.strip(item.prompt)), words(answer.strip(item.completion)))


@dataclass(frozen=True)
class Overlap:
    """The examples of a target that a dataset holds, and where: places of both, the first one each.

    `whole` are the same; of `runs` many words in a row are the same; of `prompts` the prompt is,
    and the answer is another.
    """

    whole: Mapping[int, int] = field(default_factory=dict)
    runs: Mapping[int, int] = field(default_factory=dict)
    prompts: Mapping[int, int] = field(default_factory=dict)
    places: frozenset[int] = frozenset()

    @property
    def leaked(self) -> dict[int, int]:
        """Every example of the target that leaked, and where it stands first."""
        return dict(sorted({**self.runs, **self.whole}.items()))


def overlap(dataset: Iterable[Said], target: Iterable[Said], common: int = COMMON) -> Overlap:
    """Returns what of a target stands in a dataset; `places` are those of the dataset that hold it.

    An example without words is like no other. Words in a row that more than `common` examples of
    one side hold are a form.
    """
    by_whole: dict[tuple[str, str], list[int]] = {}
    by_prompt: dict[str, list[int]] = {}
    by_run: dict[int, list[int]] = {}
    for place, each in enumerate(target):
        prompt, answer = each.whole
        if prompt or answer:
            by_whole.setdefault((prompt, answer), []).append(place)
        if prompt:
            by_prompt.setdefault(prompt, []).append(place)
        for run in set(each.runs):
            by_run.setdefault(run, []).append(place)
    whole: dict[int, int] = {}
    prompts: dict[int, int] = {}
    holders: dict[int, list[int]] = {}
    found: set[int] = set()
    for place, each in enumerate(dataset):
        prompt, answer = each.whole
        same = by_whole.get((prompt, answer), ())
        for other in same:
            whole.setdefault(other, place)
        found.update([place] if same else [])
        for other in by_prompt.get(prompt, ()) if prompt else ():
            prompts.setdefault(other, place)
        for run in {run for run in each.runs if run in by_run}:
            holders.setdefault(run, []).append(place)
    runs: dict[int, int] = {}
    for run, own in holders.items():
        if len(own) > common or len(by_run[run]) > common:
            continue
        found.update(own)
        for other in by_run[run]:
            runs[other] = min(own[0], runs.get(other, own[0]))
    runs = {place: first for place, first in runs.items() if place not in whole}
    others = {p: first for p, first in prompts.items() if p not in whole and p not in runs}
    return Overlap(whole, runs, others, frozenset(found))

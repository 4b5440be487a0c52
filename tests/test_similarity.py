"""Choosing data without merging: measures of similarity and regressions, against references."""

from __future__ import annotations

import functools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from mergetomix.data.examples import Example
from mergetomix.errors import UserError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.sequences import Encoded
from mergetomix.statistics import regression
from mergetomix.study import similarity
from mergetomix.study.similarity import (
    log_importance,
    ngram_importance,
    pieces,
    ranking,
    sentence_embedding,
    text_of,
    tf_idf,
)

WORDS = {
    "animals": "the cat sat on the mat while a dog ran over it and saw birds fly",
    "code": "def f ( x ) : return x + 1 if x else f ( y ) for y in z",
    "sums": "one plus two is three and four plus five is nine so take away six",
}
Texts = dict[str, list[str]]
TextMeasure = Callable[[Mapping[str, Sequence[str]], Sequence[str]], dict[str, float]]
TEXT_MEASURES: dict[str, TextMeasure] = {"tf_idf": tf_idf, "ngram_importance": ngram_importance}


def drawn(words: str, num: int, seed: int) -> list[str]:
    """Texts of 5 to 30 words drawn from some words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(words.split(), k=rng.randint(5, 30))) for _ in range(num)]


@pytest.fixture
def texts() -> Texts:
    return {name: drawn(words, 12 + 3 * i, i) for i, (name, words) in enumerate(WORDS.items())}


# --- words


def test_the_text_of_an_example_is_what_is_trained_on() -> None:
    assert text_of(Example(0, prompt="1 + 1 =", completion=" 2")) == "1 + 1 = 2"
    assert text_of(Example(0, text="def f(): pass")) == "def f(): pass"
    assert text_of(Example(0, messages=(("user", "why"), ("assistant", "so")))) == "why\nso"


def test_ranking_puts_the_nearest_first_and_equals_by_name() -> None:
    assert ranking({"c": 0.5, "b": 0.1, "a": 0.1, "d": -1.0, "e": 0.9}) == ("e", "c", "a", "b", "d")


@pytest.mark.parametrize("num_words", [1, 127, 128, 129, 300, 1025])
def test_pieces_are_even_and_lose_nothing(num_words: int) -> None:
    words = [f"w{i}" for i in range(num_words)]
    cut = pieces([" ".join(words)])
    assert [word for piece in cut for word in piece] == words
    assert len(cut) == math.ceil(num_words / 128)
    sizes = [len(piece) for piece in cut]
    assert max(sizes) - min(sizes) <= 1


def test_pieces_are_words_and_punctuation_in_lower_case_and_stay_within_a_text() -> None:
    assert pieces(["If x_1 >= 2: Go!", " \n", "b"]) == [
        ["if", "x_1", ">=", "2", ":", "go", "!"],
        ["b"],
    ]


# --- measures over texts


@pytest.mark.parametrize("measure", TEXT_MEASURES)
@pytest.mark.parametrize("name", WORDS)
def test_a_target_of_a_datasets_words_is_nearest_to_it(
    texts: Texts, measure: str, name: str
) -> None:
    found = TEXT_MEASURES[measure](texts, drawn(WORDS[name], 9, 99))
    assert ranking(found)[0] == name
    assert found[name] > 3 * max(value for other, value in found.items() if other != name)


@pytest.mark.parametrize("measure", TEXT_MEASURES)
def test_the_order_of_datasets_and_examples_does_not_matter(texts: Texts, measure: str) -> None:
    # near enough to all that every dataset's number is more than 0
    target = drawn(" ".join(WORDS.values()), 9, 7)
    turned = {name: texts[name][::-1] for name in reversed(texts)}
    found = TEXT_MEASURES[measure](texts, target)
    assert TEXT_MEASURES[measure](turned, target[::-1]) == pytest.approx(found, rel=1e-12)
    assert TEXT_MEASURES[measure](texts, target) == found
    assert list(found) == list(texts) and len(set(found.values())) == 3


@pytest.mark.parametrize("measure", TEXT_MEASURES)
@pytest.mark.parametrize("empty", ["animals", "the target"])
def test_a_source_without_text_is_named(texts: Texts, measure: str, empty: str) -> None:
    nothing = [" \n", ""]
    with pytest.raises(UserError, match=rf"{empty} must hold an example with text"):
        TEXT_MEASURES[measure](
            texts | {"animals": nothing} if empty == "animals" else texts, nothing
        )


def test_tf_idf_is_its_formula() -> None:
    texts = {"a": ["x y y", "X = z"], "b": ["z z w"]}
    target = ["y w unknown", "w"]
    documents = [text.lower().split() for own in texts.values() for text in own]
    vocabulary = sorted({word for words in documents for word in words})
    idf = {
        word: 1 + math.log(4 / (1 + sum(word in words for words in documents)))
        for word in vocabulary
    }

    def mean(own: Sequence[str]) -> Any:
        rows = []
        for counts in (Counter(text.lower().split()) for text in own):
            row = np.array(
                [
                    (1 + math.log(counts[word])) * idf[word] if word in counts else 0.0
                    for word in vocabulary
                ]
            )
            rows.append(row / np.linalg.norm(row))
        return np.mean(rows, axis=0)

    wanted = {name: cosine(mean(own), mean(target)) for name, own in texts.items()}
    assert tf_idf(texts, target) == pytest.approx(wanted, rel=1e-12)


def test_tf_idf_of_a_dataset_as_target_is_1_and_of_strange_words_0(texts: Texts) -> None:
    found = tf_idf(texts, texts["code"])
    assert found["code"] == pytest.approx(1) and found["sums"] < 0.5
    assert tf_idf(texts, ["wholly unheard"]) == dict.fromkeys(texts, 0.0)


def test_one_targets_numbers_do_not_depend_on_words_that_no_dataset_has(texts: Texts) -> None:
    with_more = tf_idf(texts, [f"{text} qqq" for text in texts["sums"]])
    assert with_more == pytest.approx(tf_idf(texts, texts["sums"]), rel=1e-12)


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# --- importance resampling


@pytest.mark.parametrize("num_buckets", [7, 2**18])
def test_log_weights_are_their_formula(num_buckets: int) -> None:
    from sklearn.utils import murmurhash3_32

    pool, target = (
        [["a", "b", "a"], ["c"], ["b", "c", "c", "d"]],
        [["a", "b"], ["b", "e", "a", "b"]],
    )

    def counted(piece: Sequence[str]) -> Counter[int]:
        grams = [*piece, *(f"{first} {second}" for first, second in pairwise(piece))]
        return Counter(abs(murmurhash3_32(gram)) % num_buckets for gram in grams)

    p, q = (sum((counted(piece) for piece in source), Counter()) for source in (pool, target))
    num, num_target, reached, mean = p.total(), q.total(), len(q), p.total() / 3
    smoothed = {b: (q[b] + reached * p[b] / num) / (num_target + reached) for b in p}
    sums = [
        sum(c * math.log(smoothed[b] / (p[b] / num)) for b, c in counted(piece).items())
        for piece in pool
    ]
    wanted = [total * mean / (2 * len(piece) - 1) for total, piece in zip(sums, pool, strict=True)]
    assert log_importance(pool, target, num_buckets).tolist() == pytest.approx(wanted, rel=1e-12)
    assert wanted[0] > wanted[2]


def test_log_weights_of_pieces_of_one_length_are_the_papers_up_to_smoothing() -> None:
    # every n-gram of the pool is common in the target, so that smoothing matters little
    pool, target = (
        [["a", "b"], ["b", "a"], ["b", "b"]],
        [["a", "b"] * 50 + ["b", "a"] * 50 + ["b"] * 50] * 40,
    )
    p = {"a": 2 / 9, "b": 4 / 9, "a b": 1 / 9, "b a": 1 / 9, "b b": 1 / 9}
    words = target[0]
    counts = Counter([*words, *(" ".join(pair) for pair in pairwise(words))])
    q = {gram: count / counts.total() for gram, count in counts.items()}
    wanted = [sum(math.log(q[g] / p[g]) for g in (*piece, " ".join(piece))) for piece in pool]
    assert log_importance(pool, target, 2**18).tolist() == pytest.approx(wanted, abs=0.01)
    assert max(map(abs, wanted)) > 0.3


def test_a_pieces_weight_does_not_hang_on_its_length() -> None:
    short, long, *_ = log_importance(
        [["a", "b"] * 5, ["a", "b"] * 50, ["c", "d"] * 20], [["a", "b"] * 20], 2**18
    )
    assert short == pytest.approx(long, rel=0.02) and short > 1


def test_pieces_are_taken_in_proportion_to_their_weights() -> None:
    texts, target = {"a": ["x y"], "b": ["x z"]}, ["x y x z y x"]
    taken = [ngram_importance(texts, target, seed=seed)["a"] for seed in range(400)]
    odds = np.exp(log_importance(pieces([*texts["a"], *texts["b"]]), pieces(target), 10_000))
    share = odds[0] / odds.sum()
    assert set(taken) == {0.0, 1.0} and 0.55 < share < 0.9
    # four standard errors
    assert np.mean(taken) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 400))


def test_as_many_are_taken_as_the_mean_dataset_has(texts: Texts) -> None:
    long = {**texts, "sums": [" ".join(texts["sums"])]}
    sizes = {name: len(pieces(own)) for name, own in long.items()}
    assert sizes["sums"] > 1
    for seed in range(3):
        found = ngram_importance(long, texts["sums"], seed=seed)
        assert sum(found[name] * sizes[name] for name in long) == pytest.approx(
            round(sum(sizes.values()) / 3)
        )
        assert found["sums"] == 1


def test_shares_lie_within_0_and_1_and_the_seed_matters(texts: Texts) -> None:
    target = [text for own in texts.values() for text in own]
    found = [ngram_importance(texts, target, seed=seed) for seed in range(4)]
    assert all(0 <= share <= 1 for shares in found for share in shares.values())
    assert len({tuple(shares.values()) for shares in found}) > 1


# --- hidden states


def encoded(family: CausalLM, texts: Sequence[str]) -> Sequence[Encoded]:
    return family.encode([Example(i, text=text) for i, text in enumerate(texts)], "x").sequences


def mean_state(model: Any, sequences: Sequence[Encoded]) -> Any:
    """One sequence at a time, by the whole model, in float64."""
    states = []
    for sequence in sequences:
        with torch.no_grad():
            out = model(torch.tensor([sequence.ids]), output_hidden_states=True)
        states.append(out.hidden_states[-1][0].double().numpy())
    return np.concatenate(states).mean(axis=0)


SOURCES = {
    "a": [*tiny.TEXTS, "cat"],
    "b": ["1 2 3", "the dog sat on the log " * 3, "x"],
    "c": ["plus " * 40],
}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 10**6])
def test_hidden_state_is_the_cosine_of_mean_states(
    base: Callable[[str], str], kind: str, batch_tokens: int
) -> None:
    family = tiny.open_base(base(kind))
    model = family.load()
    sequences = {name: encoded(family, own) for name, own in SOURCES.items()}
    target = encoded(family, ["the cat and the dog", "three"])
    wanted = {
        name: cosine(mean_state(model, own), mean_state(model, target))
        for name, own in sequences.items()
    }
    found = similarity.hidden_state(family, model, sequences, target, batch_tokens)
    assert found == pytest.approx(wanted, abs=1e-5)
    values = sorted(found.values())
    assert min(b - a for a, b in pairwise(values)) > 1e-3


def test_the_hidden_state_of_a_dataset_as_target_is_1_whatever_the_order(family: CausalLM) -> None:
    model = family.load()
    sequences = {name: encoded(family, own) for name, own in SOURCES.items()}
    found = similarity.hidden_state(family, model, sequences, sequences["b"][::-1], 60)
    assert found["b"] == pytest.approx(1, abs=1e-6) and ranking(found)[0] == "b"
    with pytest.raises(UserError, match="dataset b must hold an example"):
        similarity.hidden_state(family, model, sequences | {"b": ()}, sequences["a"], 60)


# --- sentence embeddings


class Letters:
    """Stands for a sentence-transformers model: an embedding is counts of letters, at length 1."""

    def __init__(self, name: str) -> None:
        if name == "nowhere":
            raise OSError("no such\nmodel")

    def encode(
        self, sentences: list[str], normalize_embeddings: bool, show_progress_bar: bool
    ) -> Any:
        assert normalize_embeddings and not show_progress_bar
        rows = np.array(
            [[text.count(letter) for letter in "abc"] for text in sentences], dtype=np.float32
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Letters)
    )


@pytest.mark.usefixtures("letters")
def test_sentence_embedding_is_the_cosine_of_mean_embeddings() -> None:
    found = sentence_embedding(
        {"a": ["aa", "b"], "b": ["bbb"], "c": ["c"]}, ["a", "a", "bb"], "letters"
    )
    assert found == pytest.approx({"a": 3 / math.sqrt(10), "b": 1 / math.sqrt(5), "c": 0}, rel=1e-6)


@pytest.mark.usefixtures("letters")
def test_an_embedder_that_does_not_load_is_named() -> None:
    with pytest.raises(
        UserError,
        match=r"^nowhere does not load as a sentence-transformers model: no such model\nhint: ",
    ):
        sentence_embedding({"a": ["a"]}, ["a"], "nowhere")


def test_without_sentence_transformers_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"need the package sentence-transformers") as caught:
        sentence_embedding({"a": ["a"]}, ["a"], "letters")
    assert caught.value.hint == "pip install sentence-transformers"


# --- regressions


SLOPES = np.array([1.0, -2.0, 0.5, 3.0, 0.0])


def runs(num: int, seed: int = 0) -> tuple[Any, Any]:
    """Mixtures of five datasets, and their objectives in a linear world."""
    weights_XN = np.random.default_rng(seed).dirichlet(np.ones(5), num)
    return weights_XN, 7 + weights_XN @ SLOPES


@pytest.mark.parametrize("num_runs", [3, 12])
def test_linear_is_ridge_with_a_free_intercept(num_runs: int) -> None:
    weights_XN, objective_X = runs(num_runs)
    weights_MN, _ = runs(9, seed=1)
    centred = weights_XN - weights_XN.mean(axis=0)
    slopes = np.linalg.solve(
        centred.T @ centred + 1e-3 * np.eye(5), centred.T @ (objective_X - objective_X.mean())
    )
    wanted = objective_X.mean() + (weights_MN - weights_XN.mean(axis=0)) @ slopes
    assert regression.linear(weights_XN, objective_X, weights_MN) == pytest.approx(wanted, rel=1e-9)


def test_linear_recovers_a_linear_world() -> None:
    weights_MN, objective_M = runs(20, seed=1)
    assert regression.linear(*runs(12), weights_MN) == pytest.approx(objective_M, abs=0.02)
    assert np.ptp(objective_M) > 2


def test_a_dataset_that_no_run_used_changes_nothing() -> None:
    weights_XN = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]])
    mean, first = regression.linear(
        weights_XN, np.array([4.0, 2.0, 3.0]), np.array([[0, 0, 1.0], [1, 0, 0]])
    )
    # at the intercept, which is what is left of the other two at weight 0
    assert mean == pytest.approx(3, abs=1e-2) and first == pytest.approx(4, abs=1e-2)


@pytest.mark.parametrize("num_runs", [8, 40])
def test_boosted_ranks_an_obvious_world(num_runs: int) -> None:
    weights_XN, _ = runs(num_runs)
    weights_MN, _ = runs(40, seed=1)
    predicted = regression.boosted(weights_XN, 10 * weights_XN[:, 3], weights_MN, seed=0)
    order = np.argsort(weights_MN[:, 3])
    assert predicted[order[-10:]].mean() > predicted[order[:10]].mean() + 2
    assert np.corrcoef(predicted, weights_MN[:, 3])[0, 1] > 0.75


def test_boosted_splits_an_effect_that_two_datasets_may_have_between_them() -> None:
    # the first two datasets rise and fall together, so the runs cannot say which of them helps
    share = np.linspace(0, 0.5, 12)
    weights_XN = np.stack([share, share, 1 - 2 * share], axis=1)
    alone = regression.boosted(
        weights_XN, share, np.array([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]), seed=0
    )
    assert alone == pytest.approx(np.full(2, 0.25), abs=0.1)


def test_boosted_gives_the_same_twice_and_follows_its_seed() -> None:
    weights_MN, _ = runs(5, seed=1)
    first = regression.boosted(*runs(9), weights_MN, seed=0).tolist()
    assert regression.boosted(*runs(9), weights_MN, seed=0).tolist() == first
    assert regression.boosted(*runs(9), weights_MN, seed=1).tolist() != first


@pytest.mark.parametrize("num_runs", [1, 2, 3])
def test_too_few_runs_for_a_split_give_their_mean(
    num_runs: int, capfd: pytest.CaptureFixture[str]
) -> None:
    weights_XN, objective_X = runs(num_runs)
    predicted = regression.boosted(weights_XN, objective_X, np.eye(5), seed=0)
    assert predicted == pytest.approx(np.full(5, objective_X.mean()), rel=1e-6)
    assert capfd.readouterr() == ("", "")


REGRESSIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "linear": regression.linear,
    "boosted": functools.partial(regression.boosted, seed=0),
}


@pytest.mark.parametrize("fit", REGRESSIONS)
def test_a_regression_without_runs_or_with_a_missing_number_is_refused(fit: str) -> None:
    weights_XN, objective_X = runs(8)
    with pytest.raises(ValueError, match=r"."):
        REGRESSIONS[fit](weights_XN[:0], objective_X[:0], weights_XN)
    with pytest.raises(ValueError, match=r"."):
        REGRESSIONS[fit](weights_XN, np.where(np.arange(8) == 3, np.nan, objective_X), weights_XN)
    with pytest.raises(ValueError, match=r"."):
        REGRESSIONS[fit](
            np.where(weights_XN == weights_XN[0, 0], np.inf, weights_XN), objective_X, weights_XN
        )

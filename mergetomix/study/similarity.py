"""How near a dataset is to a target, without training anything: what people use to choose data instead of merging.

Every measure gives one number for each dataset, higher is nearer. Numbers compare datasets under one measure and one
target, never two measures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergetomix.data.examples import Example
from mergetomix.errors import UserError

if TYPE_CHECKING:
    from mergetomix.models.encoding import Item
    from mergetomix.models.family import Family

# Words and runs of punctuation, as NLTK's WordPunctTokenizer has them and DSIR's authors use them: operators and brackets
# tell code from prose, and one code from another, which scikit-learn's own pattern (words of two letters or more) drops.
WORD = r"\w+|[^\w\s]+"
# DSIR's unit: its authors cut the Pile into pieces of 128 words (preprocessing/reformat_and_chunk_data.py)
PIECE_WORDS = 128

Array = NDArray[np.float64]


def ranking(similarities: Mapping[str, float]) -> tuple[str, ...]:
    """The datasets, nearest first; equals in the order of their names."""
    return tuple(sorted(similarities, key=lambda name: (-similarities[name], name)))


def text_of(example: Example) -> str:
    """What an example says: its messages one a line without their roles, or its text, or prompt and completion joined as
    they are trained on."""
    if example.messages:
        return "\n".join(content for _, content in example.messages)
    return example.text or example.prompt + example.completion


def hidden_state(
    family: Family,
    model: Any,
    sequences: Mapping[str, Sequence[Item]],
    target: Sequence[Item],
    batch_tokens: int,
) -> dict[str, float]:
    """Cosine between the base's mean last hidden states on a dataset and on the target.

    The state is what the model's head reads, behind the last norm; the mean is over all tokens of a source, prompts and
    end tokens included, so long sequences count more. Padding does not count, and the batches change it by rounding only.

    Args:
        model: in evaluation mode, as `family.load` gives it.
        sequences: of each dataset.
        batch_tokens: tokens computed at once, padding included.

    Raises:
        UserError: a source has no sequence.
    """
    _check({name: bool(own) for name, own in sequences.items()}, bool(target))
    means = {name: family.mean_state(model, own, batch_tokens) for name, own in sequences.items()}
    return _cosines(means, family.mean_state(model, target, batch_tokens))


def tf_idf(texts: Mapping[str, Sequence[str]], target: Sequence[str]) -> dict[str, float]:
    """Cosine between the mean TF-IDF vectors of a dataset's examples and of the target's.

    One example is one document: its terms count (1 + ln tf)(1 + ln((1 + n) / (1 + df))), and its vector is scaled to
    length 1, so that every example counts the same (scikit-learn's TfidfVectorizer with sublinear_tf). Terms are words in
    lower case and runs of punctuation; n and df are taken over the examples of all datasets together and not over the
    target's, so that one target's numbers do not depend on the wording of another. A target that shares no term with any
    dataset is at 0 from all.

    Raises:
        UserError: a source holds no text.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    _check_texts(texts, target)
    vectorizer = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True)
    vectorizer.fit(text for own in texts.values() for text in own)
    means = {name: _column_sums(vectorizer.transform(own)) for name, own in texts.items()}
    return _cosines(means, _column_sums(vectorizer.transform(target)))


def sentence_embedding(
    texts: Mapping[str, Sequence[str]], target: Sequence[str], model_name_or_path: str
) -> dict[str, float]:
    """Cosine between the mean sentence embeddings of a dataset's examples and of the target's.

    Embeddings are scaled to length 1 before the mean. What an example holds beyond the embedder's own limit (256 word
    pieces in all-MiniLM-L6-v2, say) is not seen.

    Args:
        model_name_or_path: a sentence-transformers model, of the hub or a folder.

    Raises:
        UserError: sentence-transformers is not installed, the model does not load, or a source holds no text.
    """
    _check_texts(texts, target)
    embedder = _embedder(model_name_or_path)

    def mean(own: Sequence[str]) -> Array:
        embeddings_XD = embedder.encode(
            list(own), normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(np.mean(embeddings_XD, axis=0, dtype=np.float64))

    return _cosines({name: mean(own) for name, own in texts.items()}, mean(target))


def _embedder(model_name_or_path: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        hint = "pip install sentence-transformers"
        raise UserError(
            f"sentence embeddings need the package sentence-transformers ({error})", hint=hint
        ) from None
    try:
        return SentenceTransformer(model_name_or_path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = "check the name and the network"
        raise UserError(
            f"{model_name_or_path} does not load as a sentence-transformers model: {reason}",
            hint=hint,
        ) from None


def ngram_importance(
    texts: Mapping[str, Sequence[str]],
    target: Sequence[str],
    *,
    num_buckets: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """The share (0 to 1) of a dataset that data selection by importance resampling takes: DSIR, arXiv 2302.03169.

    Every piece of a text is weighed by `log_importance`, Gumbel noise is added, and the highest are taken (section 3 of the
    paper: sampling without replacement, in proportion to the weights): as many as the mean dataset has pieces. A dataset
    larger than that can reach 1 by no means.

    Where it departs from the paper and its authors' code (github.com/p-lambda/dsir):
    - the paper selects examples; here the share of a dataset's own that was selected stands for the dataset;
    - texts are cut into pieces of 128 words as there, but evenly, so that no short rest stands apart, and by `WORD`;
    - weights are compared at one length, and the target's model is smoothed otherwise: see `log_importance`;
    - n-grams are hashed by MurmurHash3, not SHA-256.

    The noise goes with a piece's rank among the dataset's pieces and the dataset's name, so the order in which datasets and
    examples are given does not matter.

    Raises:
        UserError: a source holds no text.
    """
    _check_texts(texts, target)
    pool = {name: sorted(pieces(texts[name])) for name in sorted(texts)}
    log_weights_P = log_importance(
        [piece for own in pool.values() for piece in own], pieces(target), num_buckets
    )
    noisy_P = log_weights_P + np.random.default_rng(seed).gumbel(size=len(log_weights_P))
    is_taken_P = np.zeros(len(noisy_P))
    is_taken_P[np.argsort(-noisy_P, kind="stable")[: max(1, round(len(noisy_P) / len(pool)))]] = 1
    ends = np.cumsum([len(own) for own in pool.values()])
    shares = {
        name: float(part.mean())
        for name, part in zip(pool, np.split(is_taken_P, ends[:-1]), strict=True)
    }
    return {name: shares[name] for name in texts}


def log_importance(
    pool: Sequence[Sequence[str]], target: Sequence[Sequence[str]], num_buckets: int
) -> Array:
    """The log importance weight of every piece of the pool, in nats: shape (pieces,).

    log w(x) = (L / n(x)) sum_b c_b(x) ln(q(b) / p(b)), over the buckets b that the words and pairs of neighbouring words of
    a piece x are hashed into: c_b(x) of them in b, n(x) in all, and L the pool's mean of n. p is the share of b among all
    of the pool's, q(b) = (c_b + D p(b)) / (C + D) with c_b the target's count, C its sum and D the number of buckets that
    the target reaches.

    DSIR (arXiv 2302.03169, section 3) is this with L / n(x) = 1, as its pieces are all of one length. Without it, pieces of
    few words would win whatever they say: a mean piece's log weight is negative and falls with its length. The authors' code
    adds 1e-8 to p and q instead of smoothing q towards p (Witten and Bell 1991). With a target of fewer n-grams than buckets,
    as is usual here, every n-gram that the target happens to lack would then weigh more than all others together.

    Args:
        pool: pieces of one word or more, as lists of words.
        target: the same of the target.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    hashed = HashingVectorizer(
        analyzer=_ngrams, n_features=num_buckets, norm=None, alternate_sign=False
    )
    counts_PB = hashed.transform(pool)
    pool_B, target_B = _column_sums(counts_PB), _column_sums(hashed.transform(target))
    sizes_P = np.array([2 * len(piece) - 1 for piece in pool])
    return np.asarray(
        (counts_PB @ _log_ratio(target_B, pool_B)) * (sizes_P.mean() / sizes_P), dtype=np.float64
    )


def _log_ratio(target_B: Array, pool_B: Array) -> Array:
    """ln(q / p) from counts; 0 in buckets that the pool never reaches, which no piece of it can hold."""
    num_reached = np.count_nonzero(target_B)
    p_B = pool_B / pool_B.sum()
    boost_B = np.divide(target_B, p_B, out=np.zeros_like(p_B), where=p_B > 0)
    log_B = np.log((boost_B + num_reached) / (target_B.sum() + num_reached))
    return np.where(p_B > 0, log_B, 0.0)


def pieces(texts: Iterable[str]) -> list[list[str]]:
    """Words of the texts in lower case, in even pieces of at most 128; a text without a word gives none."""
    cut = []
    for text in texts:
        words = re.findall(WORD, text.lower())
        num = math.ceil(len(words) / PIECE_WORDS)
        cut += [words[len(words) * i // num : len(words) * (i + 1) // num] for i in range(num)]
    return cut


def _ngrams(words: Sequence[str]) -> list[str]:
    return [*words, *(" ".join(pair) for pair in pairwise(words))]


# --- shared by the measures


def _cosines(vectors: Mapping[str, Array], target: Array) -> dict[str, float]:
    """Cosines with the target's vector; 0 where either is zero."""
    norm = float(np.linalg.norm(target))
    products = {name: norm * float(np.linalg.norm(vector)) for name, vector in vectors.items()}
    return {
        name: float(vector @ target) / products[name] if products[name] else 0.0
        for name, vector in vectors.items()
    }


def _column_sums(matrix: Any) -> Array:
    """Sums over the rows of a sparse matrix."""
    return np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel()


def _check_texts(texts: Mapping[str, Sequence[str]], target: Sequence[str]) -> None:
    _check({name: _has_words(own) for name, own in texts.items()}, _has_words(target))


def _has_words(texts: Sequence[str]) -> bool:
    return any(text.strip() for text in texts)


def _check(has_content: Mapping[str, bool], target_has: bool) -> None:
    for name, has in {
        **{f"dataset {name}": has for name, has in has_content.items()},
        "the target": target_has,
    }.items():
        if not has:
            raise UserError(
                f"{name} must hold an example with text, else there is nothing to compare"
            )

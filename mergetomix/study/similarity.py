"""How near a dataset is to a target, without training: how people choose data without merging.

Every measure gives one number for each dataset, higher is nearer. Numbers compare datasets under
one measure and one target, never two measures. Each raises UserError if a source holds no text.

Array names end in their shape: P pieces of text, B buckets of n-grams.
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

# Words and runs of punctuation, as DSIR's authors use them (NLTK's WordPunctTokenizer): operators
# tell code from prose, and scikit-learn's own pattern (words of two letters or more) drops them.
WORD = r"\w+|[^\w\s]+"
# DSIR's unit: its authors cut the Pile into pieces of 128 words (reformat_and_chunk_data.py)
PIECE_WORDS = 128

Array = NDArray[np.float64]
Texts = Mapping[str, Sequence[str]]


def ranking(similarities: Mapping[str, float]) -> tuple[str, ...]:
    """Returns the datasets, nearest first; equals in the order of their names.

    >>> ranking({"b": 0.5, "a": 0.5, "c": 0.9})
    ('c', 'a', 'b')
    """
    return tuple(sorted(similarities, key=lambda name: (-similarities[name], name)))


def text_of(example: Example) -> str:
    """Returns what an example says: its messages one a line without roles, or its text.

    Prompt and completion are joined as they are trained on.
    """
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
    """Returns the cosine between the base's mean last hidden states on a dataset and the target.

    The state is what the model's head reads, behind the last norm; the mean is over all tokens of a
    source, prompts and end tokens included, so long sequences count more. Padding does not count,
    and the batches, of `batch_tokens` with padding, change it by rounding only. `model` is in
    evaluation mode, as `family.load` gives it.
    """
    _check(sequences, target)
    means = {name: family.mean_state(model, own, batch_tokens) for name, own in sequences.items()}
    return _cosines(means, family.mean_state(model, target, batch_tokens))


def tf_idf(texts: Texts, target: Sequence[str]) -> dict[str, float]:
    """Returns the cosine between mean TF-IDF vectors of a dataset's and the target's examples.

    One example is one document: its terms count (1 + ln tf)(1 + ln((1 + n) / (1 + df))), and its
    vector is scaled to length 1, so that every example counts the same (scikit-learn's
    TfidfVectorizer with sublinear_tf). Terms are words in lower case and runs of punctuation; n and
    df are taken over the examples of all datasets together and not over the target's, so that one
    target's numbers do not depend on the wording of another. A target that shares no term with any
    dataset is at 0 from all.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    _check(texts, target)
    vectorizer = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True)
    vectorizer.fit(text for own in texts.values() for text in own)
    means = {name: _column_sums(vectorizer.transform(own)) for name, own in texts.items()}
    return _cosines(means, _column_sums(vectorizer.transform(target)))


def sentence_embedding(
    texts: Texts, target: Sequence[str], model_name_or_path: str
) -> dict[str, float]:
    """Returns the cosine between mean sentence embeddings of a dataset's and the target's examples.

    Embeddings are scaled to length 1 before the mean. What an example holds beyond the embedder's
    own limit (256 word pieces in all-MiniLM-L6-v2, say) is not seen. The model is one of the hub or
    a folder. Raises UserError if it does not load, or sentence-transformers is not installed.
    """
    _check(texts, target)
    try:
        from sentence_transformers import SentenceTransformer

        embedder = SentenceTransformer(model_name_or_path)
    except ImportError as error:
        needs = f"sentence embeddings need the package sentence-transformers ({error})"
        raise UserError(needs, hint="pip install sentence-transformers") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        failed = f"{model_name_or_path} does not load as a sentence-transformers model: {reason}"
        raise UserError(failed, hint="check the name and the network") from None

    def mean(own: Sequence[str]) -> Array:
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        return np.asarray(np.mean(embedder.encode(list(own), **options), axis=0, dtype=np.float64))

    return _cosines({name: mean(own) for name, own in texts.items()}, mean(target))


def ngram_importance(
    texts: Texts, target: Sequence[str], *, num_buckets: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Returns the share of a dataset that selection by importance takes: DSIR, arXiv 2302.03169.

    Every piece of a text is weighed by `log_importance`, Gumbel noise is added, and the highest are
    taken (section 3 of the paper: sampling without replacement, in proportion to the weights): as
    many as the mean dataset has pieces. A larger dataset can reach a share of 1 by no means.

    Where it departs from the paper and its authors' code (github.com/p-lambda/dsir):
    - the paper selects examples; here the share of a dataset's own that was selected stands for it;
    - texts are cut into pieces of 128 words as there, but evenly, so that no short rest stands
      apart, and by `WORD`;
    - weights are compared at one length, and the target's model is smoothed otherwise (see there);
    - n-grams are hashed by MurmurHash3, not SHA-256.

    The noise goes with a piece's rank among the dataset's pieces and the dataset's name, so the
    order in which datasets and examples are given does not matter.
    """
    _check(texts, target)
    pool = {name: sorted(pieces(texts[name])) for name in sorted(texts)}
    every = [piece for own in pool.values() for piece in own]
    noise_P = np.random.default_rng(seed).gumbel(size=len(every))
    order_P = np.argsort(
        -(log_importance(every, pieces(target), num_buckets) + noise_P), kind="stable"
    )
    is_taken_P = np.zeros(len(every))
    is_taken_P[order_P[: max(1, round(len(every) / len(pool)))]] = 1
    ends = np.cumsum([len(own) for own in pool.values()])
    parts = dict(zip(pool, np.split(is_taken_P, ends[:-1]), strict=True))
    return {name: float(parts[name].mean()) for name in texts}


def log_importance(
    pool: Sequence[Sequence[str]], target: Sequence[Sequence[str]], num_buckets: int
) -> Array:
    """Returns the log importance weight of every piece of the pool, in nats: shape (pieces,).

    log w(x) = (L / n(x)) sum_b c_b(x) ln(q(b) / p(b)), over the buckets b that the words and pairs
    of neighbouring words of a piece x are hashed into: c_b(x) of them in b, n(x) in all, and L the
    pool's mean of n. p is the share of b among all of the pool's, q(b) = (c_b + D p(b)) / (C + D)
    with c_b the target's count, C its sum and D the number of buckets that the target reaches.

    DSIR (arXiv 2302.03169, section 3) is this with L / n(x) = 1, as its pieces are all of one
    length. Without it, pieces of few words would win whatever they say: a mean piece's log weight
    is negative and falls with its length. The authors' code adds 1e-8 to p and q instead of
    smoothing q towards p (Witten and Bell 1991). With a target of fewer n-grams than buckets, as is
    usual here, every n-gram that it happens to lack would then weigh more than all others together.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    hashed = HashingVectorizer(
        analyzer=_ngrams, n_features=num_buckets, norm=None, alternate_sign=False
    )
    counts_PB = hashed.transform(pool)
    pool_B, target_B = _column_sums(counts_PB), _column_sums(hashed.transform(target))
    num_reached, p_B = np.count_nonzero(target_B), pool_B / pool_B.sum()
    # a bucket that the pool never reaches is in no piece
    boost_B = np.divide(target_B, p_B, out=np.zeros_like(p_B), where=p_B > 0)
    log_B = np.log((boost_B + num_reached) / (target_B.sum() + num_reached))
    sizes_P = np.array([2 * len(piece) - 1 for piece in pool])
    return np.asarray((counts_PB @ log_B) * (sizes_P.mean() / sizes_P), dtype=np.float64)


def pieces(texts: Iterable[str]) -> list[list[str]]:
    """Returns the texts' words in lower case, in even pieces of at most 128.

    A text without a word gives none.

    >>> pieces(["x >= 2: Go!", " "])
    [['x', '>=', '2', ':', 'go', '!']]
    """
    cut = []
    for text in texts:
        words = re.findall(WORD, text.lower())
        num = math.ceil(len(words) / PIECE_WORDS)
        cut += [words[len(words) * i // num : len(words) * (i + 1) // num] for i in range(num)]
    return cut


def _ngrams(words: Sequence[str]) -> list[str]:
    return [*words, *(" ".join(pair) for pair in pairwise(words))]


def _cosines(vectors: Mapping[str, Array], target: Array) -> dict[str, float]:
    """Returns cosines with the target's vector; 0 if either is zero."""
    found = {}
    for name, vector in vectors.items():
        product = float(np.linalg.norm(target)) * float(np.linalg.norm(vector))
        found[name] = float(vector @ target) / product if product else 0.0
    return found


def _column_sums(matrix: Any) -> Array:
    """Returns sums over the rows of a sparse matrix."""
    return np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel()


def _check(sources: Mapping[str, Sequence[Any]], target: Sequence[Any]) -> None:
    named = {f"dataset {name}": own for name, own in sources.items()} | {"the target": target}
    for name, own in named.items():
        if not any(not isinstance(each, str) or each.strip() for each in own):
            must = "must hold an example with text, else there is nothing to compare"
            raise UserError(f"{name} {must}")

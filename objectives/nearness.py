"""Which texts are alike: by TF-IDF, by the words they share, or by a model. No step compares all pairs of an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from objectives.cleaning import CJK
from objectives.evaluation import FloatArray
from objectives.incidents import UNKNOWN, IntArray

Kind = Literal["tfidf", "jaccard", "model"]
Encode = Callable[[IntArray], NDArray[np.float32]]  # numbers of texts -> unit vectors, shape (texts, dimensions)
BoolArray = NDArray[np.bool_]
Barred = Callable[[IntArray, IntArray], BoolArray]  # of numbers of texts, by broadcasting
WORDS = {"token_pattern": rf"(?u)[{CJK}]|\b\w\w+\b", "alternate_sign": False, "norm": None, "dtype": np.float32}
COMMON = 0.1  # a word in more than this share of the texts tells little and costs most of the time
LITTLE, BARRED = 1e-5, -2  # beside similarities
FEW = 10  # texts in which a word is not common in any case
CHUNK = 256  # texts at a time, each against the whole pool


@dataclass(frozen=True)
class Vectors:
    """The product of two rows is their similarity, or for jaccard the number of words they share."""

    numbers: IntArray  # of the texts, ascending
    rows: Any  # (texts, words) sparse, or of a model (texts, dimensions)
    kind: Kind

    def of(self, numbers: IntArray) -> Any:
        return self.rows[np.searchsorted(self.numbers, numbers)]


def make_vectors(kind: Kind, texts: Sequence[str], numbers: IntArray, encode: Encode) -> Vectors:
    """Of the texts `numbers`, from which words and their weights are learnt, too."""
    numbers = np.unique(numbers)
    if kind == "model":
        return Vectors(numbers, encode(numbers), kind)
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer  # takes a second to load

    counts = HashingVectorizer(binary=kind == "jaccard", **WORDS).transform(texts[number] for number in numbers)
    uses = np.bincount(counts.indices, minlength=counts.shape[1])
    counts = counts[:, (uses > 0) & (uses <= max(COMMON * len(numbers), FEW))]
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts) if kind == "tfidf" and counts.nnz else counts
    return Vectors(numbers, weighted, kind)


def NO_MODEL(numbers: IntArray) -> NDArray[np.float32]:
    raise TypeError("nothing here is measured by a model")


def similarity(vectors: Vectors, left: IntArray, right: IntArray) -> FloatArray:
    """Of each pair, shape (pairs,)."""
    a, b = vectors.of(left), vectors.of(right)
    both = a * b if vectors.kind == "model" else a.multiply(b)
    products, *sizes = (np.asarray(part.sum(axis=1)).ravel() for part in (both, a, b))
    return np.asarray(_scores(vectors.kind, products, *sizes), dtype=np.float64)


def nearest(vectors: Vectors, anchors: IntArray, pool: IntArray, count: int, is_barred: Barred) -> IntArray:
    """(anchors, count) numbers from the pool, the most alike first; UNKNOWN where there are no more."""
    columns, count = vectors.of(pool).T, min(count, len(pool))
    columns = columns if vectors.kind == "model" else columns.tocsr()
    sizes = np.asarray(columns.sum(axis=0)).ravel()
    # Most have nothing in common, and a partition of equal numbers takes thirty times as long.
    apart = np.random.default_rng(0).permutation(len(pool)).astype(np.float32) * np.float32(LITTLE / len(pool))
    found = np.empty((len(anchors), count), dtype=np.int64)
    for chunk in (slice(start, start + CHUNK) for start in range(0, len(anchors), CHUNK)):
        rows = vectors.of(anchors[chunk])
        products = rows @ columns if vectors.kind == "model" else (rows @ columns).toarray()
        scores = _scores(vectors.kind, products, np.asarray(rows.sum(axis=1)).reshape(-1, 1), sizes)
        scores[is_barred(anchors[chunk, None], pool)] = BARRED
        found[chunk] = _top(scores + apart, pool, count)
    return found


def _scores(kind: Kind, products: Any, sizes: Any, other_sizes: Any) -> Any:
    return products / np.maximum(sizes + other_sizes - products, 1) if kind == "jaccard" else products


def _top(scores: NDArray[np.float32], pool: IntArray, count: int) -> IntArray:
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(scores, best, axis=1)
    order = np.lexsort((best, -values))
    ranked = np.take_along_axis(np.where(values >= -1, pool[best], UNKNOWN), order, axis=1)
    return ranked.astype(np.int64)

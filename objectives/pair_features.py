"""What a pair of incidents shows: how alike the vectors, the words and the likely classes of its two are.

Every feature is the same whichever of the two comes first. Words are hashed: what is learnt here holds none.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from objectives.evaluation import FloatArray
from objectives.incidents import UNKNOWN, IncidentTable, IntArray
from objectives.nearness import WORDS

Vectors = NDArray[np.float32]
MOST_INCIDENTS, MOST_CLASSES = 20_000, 500  # from which classes are learnt: the cost stays bounded
TOPICS = 256  # dimensions that the words are brought to
WORDS_STRENGTH, VECTOR_STRENGTH = 10.0, 3.0  # inverse regularisation
STEPS = 60
CHUNK = 4096  # pairs at a time
LEAST = 1e-6  # before logarithms


@dataclass(frozen=True)
class Reader:
    """What is learnt of incidents, not of pairs."""

    words: IntArray  # hashes of those that count
    categories: IntArray  # of each class
    shares: NDArray[np.float32]  # of each class
    weights: TfidfTransformer
    topics: TruncatedSVD
    by_words: LogisticRegression
    by_vector: LogisticRegression


@dataclass(frozen=True)
class Seen:
    """Incidents as a Reader sees them, a row for each."""

    vectors: Vectors
    words: Any  # sparse, 1 where a text has a word
    weighted: Any  # sparse TF-IDF
    topics: Vectors
    classes: Vectors  # how likely each class is
    categories: Vectors


def fit_reader(table: IncidentTable, vectors: Vectors, members: IntArray, seed: int) -> Reader:
    """Learns from the incidents `members`; `vectors` has a row for each of the table."""
    members = np.random.default_rng(seed).permutation(members)[:MOST_INCIDENTS]
    of = _classes(table, members)
    counts = _counts([table.texts[number] for number in members])
    words = np.flatnonzero(np.bincount(counts.indices, minlength=counts.shape[1]) > 1)
    weights = TfidfTransformer(sublinear_tf=True).fit(counts[:, words])
    weighted = weights.transform(counts[:, words])
    topics = TruncatedSVD(min(TOPICS, *(size - 1 for size in weighted.shape)), random_state=seed).fit(weighted)
    known = of[members] != UNKNOWN
    _, first, sizes = np.unique(of[members[known]], return_index=True, return_counts=True)
    labels, rows = of[members[known]], normalize(topics.transform(weighted))[known]
    return Reader(
        words=words,
        categories=np.unique(table.category[members[known]][first], return_inverse=True)[1],
        shares=(sizes / sizes.sum()).astype(np.float32),
        weights=weights,
        topics=topics,
        by_words=_fit(WORDS_STRENGTH, rows, labels),
        by_vector=_fit(VECTOR_STRENGTH, vectors[members[known]], labels),
    )


def _fit(strength: float, rows: Vectors, labels: IntArray) -> LogisticRegression:
    with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):  # more steps cost time and gain nothing
        return LogisticRegression(C=strength, max_iter=STEPS).fit(rows, labels)


def see(reader: Reader, texts: Sequence[str], vectors: Vectors) -> Seen:
    counts = _counts(texts)
    weighted = reader.weights.transform(counts[:, reader.words])
    topics = normalize(reader.topics.transform(weighted)).astype(np.float32)
    likely = (reader.by_words.predict_proba(topics) + reader.by_vector.predict_proba(vectors)) / 2
    sums = np.eye(reader.categories.max() + 1)[reader.categories]
    classes, categories = likely.astype(np.float32), (likely @ sums).astype(np.float32)
    return Seen(vectors, counts.sign(), weighted, topics, classes, categories)


def features(reader: Reader, seen: Seen, left: IntArray, right: IntArray, same_item: FloatArray) -> FloatArray:
    """left, right: (pairs,) rows of `seen`. same_item: 1 where the two are known to concern one item, else 0."""
    chunks = [slice(start, start + CHUNK) for start in range(0, len(left), CHUNK)]
    return np.concatenate([_features(reader, seen, left[chunk], right[chunk], same_item[chunk]) for chunk in chunks])


def _features(reader: Reader, seen: Seen, a: IntArray, b: IntArray, same_item: FloatArray) -> FloatArray:
    shared, own, others = (
        _sums(part) for part in (seen.words[a].multiply(seen.words[b]), seen.words[a], seen.words[b])
    )
    both = seen.classes[a] * seen.classes[b]
    surest = seen.classes[a].max(axis=1), seen.classes[b].max(axis=1)
    agreements = [
        both.sum(axis=1),
        (both / np.sqrt(reader.shares)).sum(axis=1),
        (both / reader.shares).sum(axis=1),
        np.sqrt(both).sum(axis=1),
        (seen.categories[a] * seen.categories[b]).sum(axis=1),
    ]
    return np.column_stack(
        [
            (seen.vectors[a] * seen.vectors[b]).sum(axis=1),
            (seen.topics[a] * seen.topics[b]).sum(axis=1),
            _sums(seen.weighted[a].multiply(seen.weighted[b])),
            shared / np.maximum(own + others - shared, 1),
            *np.log(np.array(agreements) + LEAST),
            surest[0] * surest[1],
            np.abs(surest[0] - surest[1]),
            same_item,
        ]
    ).astype(np.float64)


def _sums(rows: Any) -> FloatArray:
    return np.asarray(rows.sum(axis=1), dtype=np.float64).ravel()


def _counts(texts: Sequence[str]) -> Any:
    return HashingVectorizer(**WORDS).transform(texts)


def _classes(table: IncidentTable, members: IntArray) -> IntArray:
    """Subcategories, of which there must be two, else categories; UNKNOWN for all but the largest."""
    known = table.subcategory[members]
    of = table.subcategory if len(np.unique(known[known != UNKNOWN])) > 1 else table.category
    sizes = np.bincount(of[members][of[members] != UNKNOWN], minlength=of.max() + 1)
    large = np.zeros(len(sizes) + 1, dtype=np.bool_)
    large[np.argsort(-sizes, kind="stable")[:MOST_CLASSES]] = True
    large[-1] = False
    return np.where(large[of], of, UNKNOWN)


def same_item(table: IncidentTable, left: IntArray, right: IntArray) -> FloatArray:
    """1 where both are known to concern one configuration item, whatever their categories."""
    items = table.item  # not table.configuration_item, which is of the subcategory, too: it would tell the label
    return np.asarray((items[left] == items[right]) & (items[left] != UNKNOWN), dtype=np.float64)

"""Links texts that differ by little: a few words, letters or numbers, case, punctuation or word order. Loads no torch.

A text is the set of its character trigrams, none across two words. MinHash LSH proposes pairs; those whose exact
Jaccard similarity reaches the threshold are linked. No step compares all pairs, not even of texts that are equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import csr_array

from objectives.evaluation import IntArray

BANDS, ROWS = 40, 7  # a pair of similarity s is proposed with probability 1 - (1 - s**ROWS)**BANDS
WINDOW = 4  # pairs of a text per bucket: texts that are all alike must not cost the square of their number
LARGEST_SHARE, SMALLEST_CAP = 0.01, 10  # of the distinct texts: nor may they chain to a cluster that fills a split
CHUNK, HASH_BITS = 10_000, 30  # texts at a time; bits of a trigram's hash
ODD = np.arange(1, 2 * ROWS, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # high bits of a product: a hash
NOT_WORD = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """Texts that people would call equal: Unicode forms, case and spacing do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def near_duplicate_links(texts: Sequence[str], threshold: float = 0.7, seed: int = 0) -> IntArray:
    """(links, 2) text numbers. The connected components over them are the clusters of near-duplicates."""
    bare = (NOT_WORD.sub(" ", normal).strip() or normal for normal in map(normalise, texts))
    first: dict[str, int] = {}
    same = np.array([first.setdefault(text, i) for i, text in enumerate(bare)], dtype=np.int64)
    copies = np.flatnonzero(same != np.arange(len(same)))
    numbers = np.fromiter(first.values(), np.int64)
    near = _links(first, threshold, seed) if first else np.empty((0, 2), dtype=np.int64)
    return np.concatenate([np.stack([same[copies], copies], axis=1), numbers[near]])


def _links(first: dict[str, int], threshold: float, seed: int) -> IntArray:
    """The strongest links that join distinct texts to trees below the cap. Empties `first`: they are many."""
    texts = list(first)
    first.clear()
    parts = [_sketch(texts[start : start + CHUNK], seed) for start in range(0, len(texts), CHUNK)]
    size = len(texts)
    texts.clear()
    columns = list(zip(*parts, strict=True))
    parts.clear()
    buckets, counts, trigrams = (np.concatenate(columns.pop()) for _ in range(3))
    ends = np.concatenate([[0], np.cumsum(counts)])
    sets = csr_array((np.ones(len(trigrams), dtype=np.bool_), trigrams, ends), shape=(size, 1 << HASH_BITS))
    pairs, similarity = np.empty(0, dtype=np.int64), np.empty(0)
    for band in range(BANDS):
        new = _proposed(buckets[:, band], buckets[:, band - 1])
        new = new[~np.isin(new, pairs, assume_unique=True)]
        found = _similarity(sets, *np.divmod(new, size))
        pairs = np.concatenate([pairs, new[found >= threshold]])
        similarity = np.concatenate([similarity, found[found >= threshold]])
    links = np.stack(np.divmod(pairs[np.lexsort((pairs, -similarity))], size), axis=1)
    trees, cap = DisjointSet(links.ravel().tolist()), max(SMALLEST_CAP, int(LARGEST_SHARE * size))
    members = trees.subset_size
    kept = [link for link in links.tolist() if members(link[0]) + members(link[1]) <= cap and trees.merge(*link)]
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _sketch(texts: list[str], seed: int) -> tuple[NDArray[np.int32], IntArray, NDArray[np.uint32]]:
    """The distinct trigrams of one text after the other, their counts, and (texts, BANDS) bucket numbers."""
    characters = "".join(f" {text} " for text in texts).encode("utf-32-le", "surrogatepass")
    a = np.frombuffer(characters, dtype=np.uint32).astype(np.uint64)
    text = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(text) + 2 for text in texts])[1:-1]
    hashes = (a[:-2] << np.uint64(42) | a[1:-1] << np.uint64(21) | a[2:]) * ODD[0] >> np.uint64(64 - HASH_BITS)
    keys = np.sort((text << np.uint64(HASH_BITS) | hashes)[a[1:-1] != ord(" ")])
    keys = keys[np.diff(keys, prepend=~np.uint64(0)) != 0]  # np.unique takes fifteen times as long
    counts = np.bincount((keys >> np.uint64(HASH_BITS)).astype(np.int64), minlength=len(texts))
    trigrams, ends = keys & np.uint64((1 << HASH_BITS) - 1), np.append([0], np.cumsum(counts)).astype(np.uint64)
    minima = RMinHash.digest_matrix_from_flat_token_hashes(trigrams * ODD[0], ends, BANDS * ROWS, seed).to_rows()
    buckets = np.array(minima, dtype=np.uint64).reshape(len(texts), BANDS, ROWS) @ ODD >> np.uint64(32)
    return trigrams.astype(np.int32), counts, buckets.astype(np.uint32)


def _proposed(bucket: NDArray[np.uint32], tie: NDArray[np.uint32]) -> IntArray:
    """Pairs low * texts + high in one bucket and at most WINDOW places apart; those of equal `tie` lie together."""
    order = np.lexsort((tie, bucket))
    pairs = [np.empty(0, dtype=np.int64)]
    for step in range(1, min(WINDOW + 1, len(order))):
        here = np.flatnonzero(bucket[order[step:]] == bucket[order[:-step]])
        ends = np.stack([order[here], order[here + step]])
        pairs.append(ends.min(axis=0) * len(order) + ends.max(axis=0))
    return np.concatenate(pairs)


def _similarity(sets: csr_array, left: IntArray, right: IntArray) -> NDArray[np.float64]:
    """The Jaccard similarity of each pair of rows."""
    both, size = np.empty(len(left)), np.diff(sets.indptr)
    for rows in (slice(start, start + CHUNK) for start in range(0, len(left), CHUNK)):
        both[rows] = np.diff(sets[left[rows]].multiply(sets[right[rows]]).tocsr().indptr)
    return both / np.asarray(size[left] + size[right] - both)

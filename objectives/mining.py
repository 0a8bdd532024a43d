"""Training pairs: positives by label and likeness, hard negatives, altered anchors. Seeded, and linear in the pairs."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import partial

import numpy as np

from objectives.augmentation import augment
from objectives.config import Mining
from objectives.grades import Ladder, grade, may_be_alike
from objectives.incidents import UNKNOWN, IncidentTable, IntArray
from objectives.nearness import Encode, make_vectors, nearest, similarity
from objectives.pairs import OVERSAMPLING, POOL, distinct, share_out, tied_pairs
from objectives.reading import DataError

MINER = 2  # to be raised when this module draws otherwise: what boxes have kept is then mined anew
RANKS = 20  # a hard negative is drawn from so many of the most alike ones
BALANCED = ("same_category", "same_subcategory")  # the others are scarce, and would be repeated until they fill all
POWER = {"off": 1.0, "sqrt": 0.5, "oversample": 0.0}


@dataclass(frozen=True)
class TrainPairs:
    """Numbers of texts: the incidents', then the altered ones'."""

    ends: IntArray  # (pairs, 2 + hard negatives): anchor, positive, hard negatives
    altered: list[str]
    sources: IntArray  # (altered,) the incidents that they were made from


def mine(
    table: IncidentTable, ladder: Ladder, members: IntArray, config: Mining, seed: int, encode: Encode
) -> TrainPairs:
    """At most config.train_pairs; an anchor without hard negatives is left out. Raises DataError if none is left."""
    rng = np.random.default_rng(seed)
    ends = _positives(table, ladder, members, config, rng, encode)
    if not len(ends):
        raise DataError("no two training incidents make a positive pair; check labels, mining and splits")
    ends = rng.permutation(ends)
    if config.hard_negatives != "off":
        ends = np.concatenate([ends, _hard_negatives(table, members, ends[:, 0], config, rng, encode)], axis=1)
        ends = ends[ends[:, 2] != UNKNOWN]
        if not len(ends):
            raise DataError("no training incident has a hard negative: nothing of another subcategory is there")
    if config.augmentation == "off":
        return TrainPairs(ends, [], ends[:0, 0])
    altered = rng.permutation(len(ends))[: round(config.augmented_share * len(ends))]
    sources = ends[altered, 0]
    ends[altered, 0] = len(table) + np.arange(len(altered))
    return TrainPairs(ends, augment([table.texts[number] for number in sources], config.augmentation, seed), sources)


def _positives(
    table: IncidentTable, ladder: Ladder, members: IntArray, config: Mining, rng: np.random.Generator, encode: Encode
) -> IntArray:
    """(pairs, 2), of other texts than their anchors' and between the thresholds."""

    def draw(tie: str) -> IntArray:
        size = config.train_pairs * OVERSAMPLING
        power = POWER[config.class_balance] if tie in BALANCED else 1.0
        ends = tied_pairs(table, ladder, tie, members, size, rng, power)
        ends = ends[table.text_number[ends[:, 0]] != table.text_number[ends[:, 1]]]
        return _between_thresholds(table, ends, config, encode)

    if config.positives == "same_subcategory":
        ends = np.concatenate([draw(tie) for tie in ("duplicate", "same_subcategory")])
        return rng.permutation(ends if config.class_balance != "off" else distinct(ends))[: config.train_pairs]
    drawn = {tie: draw(tie) for tie in ladder.grades}
    pools = [ends[grade(table, ladder, *ends.T) == ladder.grades[tie]] for tie, ends in drawn.items()]
    return share_out(pools, config.train_pairs, list(ladder.grades.values()))


def _between_thresholds(table: IncidentTable, ends: IntArray, config: Mining, encode: Encode) -> IntArray:
    if (config.min_similarity, config.max_similarity) == (-1.0, 1.0) or not len(ends):
        return ends
    vectors = make_vectors(config.similarity, table.texts, ends.ravel(), encode)
    found = similarity(vectors, *ends.T)
    return ends[(found >= config.min_similarity) & (found <= config.max_similarity)]


def _hard_negatives(
    table: IncidentTable,
    members: IntArray,
    anchors: IntArray,
    config: Mining,
    rng: np.random.Generator,
    encode: Encode,
) -> IntArray:
    """(pairs, hard_negatives_per_pair), drawn from the RANKS most alike ones after those to be skipped.

    UNKNOWN for an anchor that has none.
    """
    assert config.hard_negatives != "off"
    pool, (own, index) = rng.permutation(members)[:POOL], np.unique(anchors, return_inverse=True)
    vectors = make_vectors(config.hard_negatives, table.texts, np.concatenate([own, pool]), encode)
    skip, wanted = config.hard_negative_skip, config.hard_negatives_per_pair
    near = nearest(vectors, own, pool, skip + max(RANKS, wanted), partial(may_be_alike, table))
    ranked = np.maximum((near != UNKNOWN).sum(axis=1), 1)
    first = np.minimum(skip, np.maximum(ranked - wanted, 0))[index]
    width = np.minimum(ranked[index] - first, RANKS)
    ranks = (rng.integers(width)[:, None] + np.arange(wanted)) % width[:, None] + first[:, None]
    return np.take_along_axis(near[index], ranks, axis=1)


def to_bytes(pairs: TrainPairs) -> bytes:
    buffer, texts = io.BytesIO(), np.frombuffer(json.dumps(pairs.altered).encode(), dtype=np.uint8)
    np.savez_compressed(buffer, ends=pairs.ends, texts=texts, sources=pairs.sources)
    return buffer.getvalue()


def from_bytes(content: bytes) -> TrainPairs:
    with np.load(io.BytesIO(content)) as parts:
        return TrainPairs(parts["ends"], json.loads(parts["texts"].tobytes()), parts["sources"])

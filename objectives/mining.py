"""Training pairs: positives by label and likeness, hard negatives, altered anchors. Seeded, and linear in the pairs."""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from objectives.augmentation import augment
from objectives.config import Mining, Pairs
from objectives.evaluation import FloatArray
from objectives.grades import Ladder, grade, may_be_alike
from objectives.incidents import UNKNOWN, IncidentTable, IntArray
from objectives.nearness import Encode, make_vectors, nearest, similarity
from objectives.pairs import OVERSAMPLING, POOL, distinct, graded_pairs, share_out, tied_pairs
from objectives.reading import DataError

MINER = 3  # to be raised when this module draws otherwise: what boxes have kept is then mined anew
EMPTY, NO_GRADES, SHARES = np.empty(0, dtype=np.int64), np.empty(0), Pairs()
DRAWN = 16  # at random, one of which is no positive in all but the plainest exports
RANKS = 20  # a hard negative is drawn from so many of the most alike ones
BALANCED = ("same_category", "same_subcategory")  # the others are scarce, and would be repeated until they fill all
POWER = {"off": 1.0, "sqrt": 0.5, "oversample": 0.0}


@dataclass(frozen=True)
class TrainPairs:
    """Numbers of texts: the incidents', then the altered ones'."""

    ends: IntArray  # (pairs, 2 + hard negatives): anchor, positive, hard negatives
    altered: list[str] = field(default_factory=list)
    sources: IntArray = field(default_factory=EMPTY.copy)  # (altered,) the incidents that they were made from
    negatives: IntArray = field(default_factory=EMPTY.copy)  # (pairs,) a hard one where there are, else any
    labelled: IntArray = field(default_factory=EMPTY.copy)  # (labelled, 2), as held-out pairs are
    grades: FloatArray = field(default_factory=NO_GRADES.copy)  # (labelled,)
    positive_grade: float = 1.0

    def rows(self, columns: str) -> int:
        """What an epoch of a loss over these columns is."""
        return len(self.ends if columns in ("ranked", "triplets") else self.labelled)


def mine(
    table: IncidentTable,
    ladder: Ladder,
    members: IntArray,
    config: Mining,
    seed: int,
    encode: Encode,
    columns: Collection[str] = ("ranked",),
    shares: Pairs = SHARES,
) -> TrainPairs:
    """What losses over these `columns` need, at most config.train_pairs rows of each. Raises DataError if none is left.

    An anchor without hard negatives is left out. shares: of the grades of labelled pairs.
    """
    rng = np.random.default_rng(seed)
    ranked, negatives, labelled, grades = EMPTY.reshape(0, 2), EMPTY, EMPTY.reshape(0, 2), NO_GRADES
    if "ranked" in columns or "triplets" in columns:
        ranked = _ranked(table, ladder, members, config, rng, encode)
    if "triplets" in columns:
        has_hard = config.hard_negatives != "off"
        negatives = ranked[:, 2] if has_hard else _any_negatives(table, members, ranked[:, 0], rng)
        ranked, negatives = ranked[negatives != UNKNOWN], negatives[negatives != UNKNOWN]
    if "graded" in columns or "binary" in columns:
        found = graded_pairs(table, ladder, members, shares, config.train_pairs, rng)
        order = rng.permutation(len(found.grades))
        labelled, grades = np.stack([found.anchors, found.others], axis=1)[order], found.grades[order]
    altered, sources = _altered(table, [ranked, labelled], config, seed, rng)
    return TrainPairs(ranked, altered, sources, negatives, labelled, grades, ladder.positive)


def _ranked(
    table: IncidentTable, ladder: Ladder, members: IntArray, config: Mining, rng: np.random.Generator, encode: Encode
) -> IntArray:
    """(pairs, 2 + hard negatives)."""
    ends = _positives(table, ladder, members, config, rng, encode)
    if not len(ends):
        raise DataError("no two training incidents make a positive pair; check labels, mining and splits")
    ends = rng.permutation(ends)
    if config.hard_negatives != "off":
        ends = np.concatenate([ends, _hard_negatives(table, members, ends[:, 0], config, rng, encode)], axis=1)
        ends = ends[ends[:, 2] != UNKNOWN]
        if not len(ends):
            raise DataError("no training incident has a hard negative: nothing of another subcategory is there")
    return ends


def _any_negatives(table: IncidentTable, members: IntArray, anchors: IntArray, rng: np.random.Generator) -> IntArray:
    """(anchors,), the first of a few at random that is one; UNKNOWN where none is."""
    drawn = members[rng.integers(len(members), size=(len(anchors), DRAWN))]
    alike = may_be_alike(table, anchors[:, None], drawn)
    return np.where(alike.all(axis=1), UNKNOWN, drawn[np.arange(len(drawn)), alike.argmin(axis=1)])


def _altered(
    table: IncidentTable, rows: list[IntArray], config: Mining, seed: int, rng: np.random.Generator
) -> tuple[list[str], IntArray]:
    """A share of the rows' anchors is altered in place; the new texts, and the incidents that they were made from."""
    sources = EMPTY
    if config.augmentation == "off":
        return [], sources
    for ends in rows:
        altered = rng.permutation(len(ends))[: round(config.augmented_share * len(ends))]
        numbers = len(table) + len(sources) + np.arange(len(altered))
        sources = np.concatenate([sources, ends[altered, 0]])
        ends[altered, 0] = numbers
    return augment([table.texts[number] for number in sources], config.augmentation, seed), sources


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
    np.savez_compressed(buffer, **{**vars(pairs), "altered": texts})
    return buffer.getvalue()


def from_bytes(content: bytes) -> TrainPairs:
    with np.load(io.BytesIO(content)) as parts:
        altered, positive_grade = json.loads(parts["altered"].tobytes()), float(parts["positive_grade"])
        return TrainPairs(**{**parts, "altered": altered, "positive_grade": positive_grade})

"""Splits by group, graded held-out pairs, and training pairs. Nothing enumerates all pairs; every draw is seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from objectives.config import Pairs
from objectives.config import Splits
from objectives.evaluation import FloatArray
from objectives.grades import Ladder
from objectives.grades import classes
from objectives.grades import grade
from objectives.incidents import UNKNOWN
from objectives.incidents import IncidentTable
from objectives.incidents import IntArray
from objectives.reading import DataError

OVERSAMPLING = 4  # draws per wanted pair: repeats and wrong grades are thrown away


@dataclass(frozen=True)
class GradedPairs:
    """anchors, others: (pairs,) incident numbers. grades: (pairs,)."""

    anchors: IntArray
    others: IntArray
    grades: FloatArray


def split_incidents(table: IncidentTable, config: Splits) -> dict[str, IntArray]:
    """Incident numbers of train, validation and test; a group is never divided.

    By date, test is the latest and validation comes before; else groups are drawn.
    """
    sizes = np.bincount(table.group)
    order = np.random.default_rng(config.seed).permutation(len(sizes))
    if table.opened is not None:
        latest = np.full(len(sizes), -np.inf)
        np.maximum.at(latest, table.group, table.opened)
        order = order[np.argsort(-latest[order], kind="stable")]
    held_out = config.validation + config.test
    first, second = ("test", "validation") if table.opened is not None else ("validation", "test")
    middle = getattr(config, first)
    before = np.empty(len(sizes))  # share of the incidents in the groups that came before this one
    before[order] = (np.cumsum(sizes[order]) - sizes[order]) / len(table)
    edges = {first: (0.0, middle), second: (middle, held_out), "train": (held_out, 1.0)}
    share = before[table.group]
    return {name: np.flatnonzero((low <= share) & (share < high)) for name, (low, high) in edges.items()}


def held_out_pairs(table: IncidentTable, ladder: Ladder, members: IntArray, config: Pairs) -> GradedPairs:
    """Pairs among `members` with the declared shares; fewer in all where a grade is scarce.

    Raises DataError if a class has no pair.
    """
    rng = np.random.default_rng(config.seed)

    def draw(of: IntArray, level: float) -> IntArray:
        ends = _partners(of, members, config.held_out * OVERSAMPLING, rng)
        of_level: IntArray = ends[grade(table, ladder, *ends.T) == level]
        return of_level

    pools = {tie: draw(classes(table, tie), level) for tie, level in reversed(ladder.grades.items())}
    far = draw(np.zeros(len(table), dtype=np.int64), 0.0)
    positives = _alike([pools.pop(tie) for tie in ladder.positives], round(config.positive_share * config.held_out))
    near = np.concatenate([far[:0], *pools.values()])
    ends = _with_shares([rng.permutation(positives), rng.permutation(near), far], config)
    return GradedPairs(ends[:, 0], ends[:, 1], grade(table, ladder, *ends.T))


def train_pairs(table: IncidentTable, members: IntArray, size: int, seed: int) -> IntArray:
    """At most `size` distinct (anchor, positive) pairs, shape (pairs, 2): linked or of equal subcategory, other text.

    Raises DataError if there is none.
    """
    rng = np.random.default_rng(seed)
    drawn = [_partners(classes, members, size * OVERSAMPLING, rng) for classes in (table.cluster, table.subcategory)]
    ends: IntArray = _distinct(np.concatenate(drawn))
    ends = ends[table.text_number[ends[:, 0]] != table.text_number[ends[:, 1]]]
    if not len(ends):
        raise DataError("no two training incidents share a subcategory; there is nothing to learn from")
    chosen: IntArray = ends[rng.permutation(len(ends))[:size]]
    return chosen


def _partners(classes: IntArray, members: IntArray, size: int, rng: np.random.Generator) -> IntArray:
    """Distinct pairs (at most `size`, 2): an anchor drawn from all that have company in their class, and one of it."""
    known = members[classes[members] != UNKNOWN]
    known = known[np.argsort(classes[known], kind="stable")]
    _, starts, index, counts = np.unique(classes[known], return_index=True, return_inverse=True, return_counts=True)
    start, count = starts[index], counts[index]
    eligible = np.flatnonzero(count > 1)
    if not len(eligible):
        return np.empty((0, 2), dtype=np.int64)
    anchor = rng.choice(eligible, size)
    step = rng.integers(1, count[anchor])  # around the class, never back to the anchor
    other = start[anchor] + (anchor - start[anchor] + step) % count[anchor]
    return _distinct(np.stack([known[anchor], known[other]], axis=1))


def _distinct(ends: IntArray) -> IntArray:
    """Each unordered pair once, in the order drawn."""
    low, high = ends.min(axis=1), ends.max(axis=1)
    first = np.unique(low * (high.max(initial=0) + 1) + high, return_index=True)[1]
    return ends[np.sort(first)]


def _alike(pools: list[IntArray], size: int) -> IntArray:
    """As many of each pool as there are of the others, up to `size` in all; a scarce one gives all that it has."""
    taken = [pool[:0] for pool in pools]
    scarce_first = sorted(range(len(pools)), key=lambda number: len(pools[number]))
    for done, number in enumerate(scarce_first):
        taken[number] = pools[number][: (size - sum(map(len, taken))) // (len(pools) - done)]
    return np.concatenate(taken)


def _with_shares(pools: list[IntArray], config: Pairs) -> IntArray:
    """The first pairs of (positives, same category, other category) in their shares; an empty middle leaves its own."""
    positives, near, far = pools
    if not len(positives) or not len(far):
        raise DataError("a held-out split has no positive or no negative pair; hold out more or map other columns")
    middle = config.same_category_share if len(near) else 0.0
    shares = [config.positive_share, middle, 1 - config.positive_share - middle]
    total = min([config.held_out, *(len(pool) / share for pool, share in zip(pools, shares, strict=True) if share)])
    return np.concatenate([pool[: int(share * total + 1e-9)] for pool, share in zip(pools, shares, strict=True)])

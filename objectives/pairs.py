"""Splits by group, and graded held-out pairs. Nothing enumerates all pairs; every draw is seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from objectives.config import Pairs, Splits
from objectives.evaluation import FloatArray
from objectives.grades import Ladder, classes, grade, may_be_alike
from objectives.incidents import UNKNOWN, IncidentTable, IntArray
from objectives.nearness import NO_MODEL, make_vectors, nearest
from objectives.reading import DataError

OVERSAMPLING = 4  # draws per wanted pair: repeats and wrong grades are thrown away
POOL = 50_000  # incidents among which those alike are looked for: the cost stays linear
SPLITS = ("train", "validation", "test")
# An interval is as narrow as there are incidents, and every evaluation encodes each: 15,000 make it 0.005 either way.
MOST_INCIDENTS, PAIRS_PER_INCIDENT = 15_000, 15
HARD_NEGATIVES = 8  # per anchor of a held-out pair


@dataclass(frozen=True)
class GradedPairs:
    """anchors, others: (pairs,) incident numbers. grades: (pairs,)."""

    anchors: IntArray
    others: IntArray
    grades: FloatArray

    def distinct(self) -> tuple[IntArray, IntArray, IntArray]:
        """Each incident once, and of every pair the rows of its two among them."""
        numbers, rows = np.unique(np.concatenate([self.anchors, self.others]), return_inverse=True)
        left, right = np.split(rows, 2)
        return numbers, left, right


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
    return {name: np.flatnonzero((edges[name][0] <= share) & (share < edges[name][1])) for name in SPLITS}


def held_out_pairs(table: IncidentTable, ladder: Ladder, members: IntArray, config: Pairs) -> GradedPairs:
    """Pairs among `members` with the declared shares; fewer in all where a grade is scarce.

    Raises DataError if a class has no pair.
    """
    rng = np.random.default_rng(config.seed)
    members = _whole_groups(table.group, members, rng)
    return graded_pairs(table, ladder, members, config, min(config.held_out, PAIRS_PER_INCIDENT * len(members)), rng)


def graded_pairs(
    table: IncidentTable, ladder: Ladder, members: IntArray, config: Pairs, size: int, rng: np.random.Generator
) -> GradedPairs:
    """At most `size` pairs of all grades in the declared shares. Raises DataError if a class has no pair."""
    hard = _hard_pairs(table, members, round(config.hard_share * size), rng)
    hard_grades = grade(table, ladder, *hard.T)

    def draw(tie: str, level: float) -> IntArray:
        ends = tied_pairs(table, ladder, tie, members, size * OVERSAMPLING, rng)
        ends = _stratified(ends[grade(table, ladder, *ends.T) == level], table.category)
        if level >= ladder.positive:
            return ends
        return distinct(_mixed([hard[hard_grades == level], ends], [config.hard_share, 1 - config.hard_share]))

    pools = {tie: draw(tie, level) for tie, level in [*reversed(ladder.grades.items()), ("", 0.0)]}
    positives = share_out([pools.pop(tie) for tie in ladder.positives], round(config.positive_share * size))
    far, near = pools.pop(""), list(pools.values())
    ends = _with_shares([positives, _mixed([hard[:0], *near], [0, *map(len, near)]), far], size, config)
    return GradedPairs(ends[:, 0], ends[:, 1], grade(table, ladder, *ends.T))


def tied_pairs(
    table: IncidentTable,
    ladder: Ladder,
    tie: str,
    members: IntArray,
    size: int,
    rng: np.random.Generator,
    power: float = 1.0,
) -> IntArray:
    """At most `size` pairs (pairs, 2) that have this tie or a stronger one; of any two for no tie.

    A class is drawn by its size to the `power`; with 1, pairs are distinct.
    """
    of = classes(table, tie) if tie else [np.zeros(len(table), dtype=np.int64)]
    if tie == "near" and ladder.near_text:
        of = [*of, table.subcategory]
    ends = np.concatenate([_partners(numbers, members, size, rng, power) for numbers in of])
    return distinct(ends) if power == 1 else ends


def share_out(pools: Sequence[IntArray], size: int, weights: Sequence[float] | None = None) -> IntArray:
    """As many of each pool as its weight says, up to `size` in all; a scarce one gives all that it has."""
    left = list(weights or [1.0] * len(pools))
    taken = [pool[:0] for pool in pools]
    for number in sorted(range(len(pools)), key=lambda number: len(pools[number]) / left[number]):
        wanted = (size - sum(map(len, taken))) * left[number] / sum(left)
        taken[number], left[number] = pools[number][: round(wanted)], 0.0
    return _mixed(taken, [len(pool) for pool in taken])


def _partners(classes: IntArray, members: IntArray, size: int, rng: np.random.Generator, power: float) -> IntArray:
    """Pairs (at most `size`, 2): an anchor drawn from all that have company in their class, and one of it."""
    known = members[classes[members] != UNKNOWN]
    known = known[np.argsort(classes[known], kind="stable")]
    _, starts, index, counts = np.unique(classes[known], return_index=True, return_inverse=True, return_counts=True)
    start, count = starts[index], counts[index]
    eligible = np.flatnonzero(count > 1)
    if not len(eligible):
        return np.empty((0, 2), dtype=np.int64)
    weights = count[eligible] ** (power - 1.0)
    anchor = rng.choice(eligible, size, p=None if power == 1 else weights / weights.sum())
    step = rng.integers(1, count[anchor])  # around the class, never back to the anchor
    other = start[anchor] + (anchor - start[anchor] + step) % count[anchor]
    return np.stack([known[anchor], known[other]], axis=1)


def distinct(ends: IntArray) -> IntArray:
    """Each unordered pair once, in the order drawn."""
    low, high = ends.min(axis=1), ends.max(axis=1)
    first = np.unique(low * (high.max(initial=0) + 1) + high, return_index=True)[1]
    return ends[np.sort(first)]


def _whole_groups(group: IntArray, members: IntArray, rng: np.random.Generator) -> IntArray:
    """At most about MOST_INCIDENTS."""
    place = rng.permutation(group.max() + 1)[group[members]]
    sizes = np.bincount(place)
    before = np.cumsum(sizes) - sizes
    return members[before[place] < MOST_INCIDENTS]


def _hard_pairs(table: IncidentTable, members: IntArray, wanted: int, rng: np.random.Generator) -> IntArray:
    """Alike in words, and not by their labels; (pairs, 2)."""
    if not wanted or len(members) < 2:
        return np.empty((0, 2), dtype=np.int64)
    anchors, pool = (rng.permutation(members)[:most] for most in (max(wanted, HARD_NEGATIVES), POOL))
    vectors = make_vectors("tfidf", table.texts, np.concatenate([anchors, pool]), NO_MODEL)
    near = nearest(vectors, anchors, pool, HARD_NEGATIVES, lambda a, b: may_be_alike(table, a, b))
    ends = np.stack([np.repeat(anchors, near.shape[1]), near.ravel()], axis=1)
    return _stratified(distinct(rng.permutation(ends[ends[:, 1] != UNKNOWN])), table.category)


def _stratified(ends: IntArray, category: IntArray) -> IntArray:
    """In an order of which every beginning holds each category of anchors in its share."""
    numbers, counts = np.unique(category[ends[:, 0]], return_counts=True)
    pools = [ends[category[ends[:, 0]] == number] for number in numbers]
    return _mixed([ends[:0], *pools], [1.0, *counts])


def _mixed(pools: Sequence[IntArray], shares: Sequence[float]) -> IntArray:
    """In an order of which every beginning holds the pools in their shares, until one is used up."""
    shares = [max(share, 1e-9) for share in shares]
    places = [(np.arange(len(pool)) + 0.5) / share for pool, share in zip(pools, shares, strict=True)]
    return np.concatenate(pools)[np.argsort(np.concatenate(places), kind="stable")]


def _with_shares(pools: list[IntArray], size: int, config: Pairs) -> IntArray:
    """The first pairs of (positives, same category, other category) in their shares; a scarce middle leaves its own."""
    positives, near, far = pools
    if lacking := [name for name, pool in (("positive", positives), ("negative", far)) if not len(pool)]:
        raise DataError(f"no {' and no '.join(lacking)} pair among the held-out incidents")
    total = min(size, len(positives) / config.positive_share)
    middle = min(round(config.same_category_share * total), len(near))
    total = min(total, (len(far) + middle) / (1 - config.positive_share))
    positive = max(int(config.positive_share * total + 1e-9), 1)
    return np.concatenate([positives[:positive], near[:middle], far[: max(int(total + 1e-9) - positive - middle, 1)]])

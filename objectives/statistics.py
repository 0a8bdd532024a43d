"""What an export holds, in numbers: classes, texts, duplicates, how splits and labels turn out. Loads no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objectives.config import TrialConfig
from objectives.data import load_data, needs_model, train_pairs
from objectives.evaluation import FloatArray, MetricName, ceilings, noise_ceilings
from objectives.incidents import UNKNOWN, IncidentTable, IntArray

QUANTILES = (5, 25, 50, 75, 95)  # percent
FEW = 8  # incidents of a class that is too small to learn
REPEATED = 30  # pairs labelled twice, from which on their agreement says something
BINS = 30


@dataclass(frozen=True)
class Statistics:
    rows: int
    incidents: int  # rows with text and category
    changed: dict[str, int]  # how often which kind of thing was stripped from a text or masked in it
    categories: dict[str, int]  # incidents of each, the largest first
    subcategories: int
    subcategory_sizes: list[int]  # descending
    small_subcategories: int  # with fewer than FEW incidents
    merged: int  # incidents in classes that were merged or dropped, as declared
    words: dict[int, int]  # of a text, by percentile
    word_counts: dict[int, int]  # texts by number of words: the lower edge of each bin
    equal_texts: int  # incidents whose text another one has, too
    near_duplicates: int  # incidents that must stay with another one in a split: linked, equal or nearly equal
    largest_group: int  # incidents that stay together
    duplicates: int  # incidents linked to another one
    repeated: int  # pairs of them
    agreement: dict[str, float]  # of linked pairs: how many have the same label
    splits: dict[str, int]
    train_pairs: int | None  # None: a model takes part in mining them
    held_out_grades: dict[float, int]
    ceilings: dict[MetricName, float]
    noise_ceilings: dict[MetricName, float]  # by the agreement of linked pairs; empty where there are few


def statistics(config: TrialConfig, cache: Path | None = None) -> Statistics:
    """Raises DataError."""
    data = load_data(config, cache)
    table, grades = data.table, data.validation.grades
    words = np.array([len(text.split()) for text in table.texts])
    sizes = -np.sort(-np.bincount(table.subcategory[table.subcategory != UNKNOWN]))
    sizes = sizes[sizes > 0]
    levels, counts = np.unique(grades, return_counts=True)
    linked = _linked(table)
    agreement = _agreement(table, linked)
    by_subcategory = data.ladder.positive == data.ladder.grades.get("same_subcategory", data.ladder.positive)
    share = float((grades >= data.ladder.positive).mean())
    sure = float((grades == data.ladder.grades.get("duplicate")).mean())
    return Statistics(
        rows=len(table) + table.dropped,
        incidents=len(table),
        changed=table.changed,
        categories=_sizes(table, np.concatenate(list(data.splits.values()))),
        subcategories=len(sizes),
        subcategory_sizes=sizes.tolist(),
        small_subcategories=int((sizes < FEW).sum()),
        merged=data.small,
        words={percent: round(float(np.percentile(words, percent))) for percent in QUANTILES},
        word_counts=_histogram(words),
        equal_texts=_shared(table.text_number),
        near_duplicates=_shared(table.group),
        largest_group=int(np.bincount(table.group).max()),
        duplicates=_shared(table.cluster),
        repeated=len(linked),
        agreement=agreement,
        splits={name: len(numbers) for name, numbers in data.splits.items()},
        train_pairs=None if needs_model(config.mining) else len(train_pairs(data, config, cache).ends),
        held_out_grades=dict(zip(levels.tolist(), counts.tolist(), strict=True)),
        ceilings=ceilings(grades, data.ladder.positive),
        noise_ceilings=noise_ceilings(agreement["subcategory"], _shares(table.subcategory), share, sure)
        if len(linked) >= REPEATED and "subcategory" in agreement and by_subcategory
        else {},
    )


def _sizes(table: IncidentTable, members: IntArray) -> dict[str, int]:
    sizes: Counter[str] = Counter()  # names may be equal once they are masked
    for number, count in enumerate(np.bincount(table.category[members]).tolist()):
        sizes[table.category_names[number]] += count
    return {name: count for name, count in sizes.most_common() if count}


def _histogram(words: IntArray) -> dict[int, int]:
    """Up to the 99th percentile; the longest are in the last bin."""
    longest = int(np.percentile(words, 99))
    edges = np.arange(0, longest + 1, longest // BINS + 1)
    counts = np.bincount(np.searchsorted(edges, np.minimum(words, longest), side="right") - 1, minlength=len(edges))
    return dict(zip(edges.tolist(), counts.tolist(), strict=True))


def _shared(classes: IntArray) -> int:
    sizes = np.bincount(classes)
    return int(sizes[sizes > 1].sum())


def _linked(table: IncidentTable) -> IntArray:
    """Neighbours within each cluster of linked incidents, (pairs, 2)."""
    order = np.argsort(table.cluster, kind="stable")
    pairs = np.stack([order[:-1], order[1:]], axis=1)
    linked: IntArray = pairs[table.cluster[pairs[:, 0]] == table.cluster[pairs[:, 1]]]
    return linked


def _agreement(table: IncidentTable, linked: IntArray) -> dict[str, float]:
    """Where both labels are known; empty where none are."""
    agreement = {}
    for name, numbers in (("category", table.category), ("subcategory", table.subcategory)):
        a, b = numbers[linked].T
        known = (a != UNKNOWN) & (b != UNKNOWN)
        if known.any():
            agreement[name] = float(np.mean(a[known] == b[known]))
    return agreement


def _shares(classes: IntArray) -> FloatArray:
    sizes = np.bincount(classes[classes != UNKNOWN]).astype(np.float64)
    return np.asarray(sizes / sizes.sum())

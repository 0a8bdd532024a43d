"""What an export holds, in numbers: classes, texts, duplicates, how splits and labels turn out. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from objectives.config import Incidents
from objectives.config import Labels
from objectives.config import Pairs
from objectives.config import Splits
from objectives.data import load_data
from objectives.evaluation import MetricName
from objectives.evaluation import ceilings
from objectives.incidents import UNKNOWN
from objectives.incidents import IncidentTable
from objectives.incidents import IntArray
from objectives.pairs import split_incidents

QUANTILES = (5, 25, 50, 75, 95)  # percent
FEW = 8  # incidents of a class that is too small to learn


@dataclass(frozen=True)
class Statistics:
    rows: int
    incidents: int  # rows with text and category
    changed: dict[str, int]  # how often which kind of thing was stripped from a text or masked in it
    categories: dict[str, int]  # incidents of each, the largest first
    subcategories: int
    small_subcategories: int  # with fewer than FEW incidents
    words: dict[int, int]  # of a text, by percentile
    equal_texts: int  # incidents whose text another one has, too
    duplicates: int  # incidents linked to another one
    agreement: dict[str, float]  # of linked pairs: how many have the same label
    splits: dict[str, int]
    train_pairs: int
    held_out_grades: dict[float, int]
    ceilings: dict[MetricName, float]


def statistics(incidents: Incidents, labels: Labels, splits: Splits, pairs: Pairs) -> Statistics:
    """Raises DataError."""
    data = load_data(incidents, labels, splits, pairs)
    table, grades = data.table, data.validation.grades
    words = np.array([len(text.split()) for text in table.texts])
    sizes = np.bincount(table.subcategory[table.subcategory != UNKNOWN])
    percentiles = np.percentile(words, QUANTILES)
    levels, counts = np.unique(grades, return_counts=True)
    return Statistics(
        rows=len(table) + table.dropped,
        incidents=len(table),
        changed=table.changed,
        categories=_sizes(table),
        subcategories=len(sizes),
        small_subcategories=int((sizes < FEW).sum()),
        words={percent: round(value) for percent, value in zip(QUANTILES, percentiles, strict=True)},
        equal_texts=_shared(table.text_number),
        duplicates=_shared(table.cluster),
        agreement=_agreement(table),
        splits={name: len(numbers) for name, numbers in split_incidents(table, splits).items()},
        train_pairs=len(data.train),
        held_out_grades=dict(zip(levels.tolist(), counts.tolist(), strict=True)),
        ceilings=ceilings(grades, data.ladder.positive),
    )


def _sizes(table: IncidentTable) -> dict[str, int]:
    counts = np.bincount(table.category)
    order = np.argsort(-counts, kind="stable").tolist()
    return {table.category_names[number]: int(counts[number]) for number in order}


def _shared(classes: IntArray) -> int:
    sizes = np.bincount(classes)
    return int(sizes[sizes > 1].sum())


def _agreement(table: IncidentTable) -> dict[str, float]:
    """Over neighbours within each cluster of linked incidents; empty where there is none."""
    order = np.argsort(table.cluster, kind="stable")
    a, b = order[:-1], order[1:]
    linked = table.cluster[a] == table.cluster[b]
    a, b = a[linked], b[linked]
    if not len(a):
        return {}
    classes = {"category": table.category, "subcategory": table.subcategory}
    return {name: float(np.mean(numbers[a] == numbers[b])) for name, numbers in classes.items()}

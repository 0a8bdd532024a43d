"""How alike two incidents are by their labels: the grade of the strongest tie between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from objectives.config import Columns, Labels
from objectives.evaluation import FloatArray
from objectives.incidents import UNKNOWN, IncidentTable, IntArray

MERGED = "(small categories)"


@dataclass(frozen=True)
class Ladder:
    """The grades that the data can give, ascending, by name of the tie. Pairs from `positive` on are positives."""

    grades: dict[str, float]
    positive: float
    near_text: float | None = None

    @property
    def positives(self) -> dict[str, float]:
        return {tie: grade for tie, grade in self.grades.items() if grade >= self.positive}


def make_ladder(labels: Labels, columns: Columns) -> Ladder:
    """Positives begin at the next tie below, where the one declared has no data."""
    has_data = {
        "same_category": True,
        "same_subcategory": columns.subcategory is not None,
        "near": bool(columns.configuration_item or columns.assignment_group or labels.near_text),
        "duplicate": bool(columns.duplicate_of or columns.parent),
    }
    ties = [tie for tie in has_data if has_data[tie]]
    order = list(has_data)
    first = max((tie for tie in ties if order.index(tie) <= order.index(labels.positive)), key=order.index)
    return Ladder({tie: getattr(labels, tie) for tie in ties}, getattr(labels, first), labels.near_text)


def classes(table: IncidentTable, tie: str) -> list[IntArray]:
    """Numbers of the classes within any of which incidents have this tie, or a stronger one."""
    by_tie = {
        "same_category": [table.category],
        "same_subcategory": [table.subcategory],
        "near": [table.configuration_item, table.assignment_group],
        "duplicate": [table.cluster],
    }
    return by_tie[tie]


def grade(table: IncidentTable, ladder: Ladder, anchors: IntArray, others: IntArray) -> FloatArray:
    """Of each pair, shape (pairs,); nan where a subcategory is not known that would decide."""
    grades = np.zeros(len(anchors))
    for tie, value in ladder.grades.items():
        if tie == "near" and ladder.near_text:
            grades[_near_in_text(table, anchors, others, ladder.near_text)] = value
        for numbers in classes(table, tie):
            a, b = numbers[anchors], numbers[others]
            if tie == "same_subcategory":
                grades[(grades > 0) & ((a == UNKNOWN) | (b == UNKNOWN))] = np.nan
            grades[(a == b) & (a != UNKNOWN)] = value
    return grades


def may_be_alike(table: IncidentTable, left: IntArray, right: IntArray) -> NDArray[np.bool_]:
    """Which pairs are no negatives, by broadcasting: linked, nearly equal, or of one subcategory as far as is known."""
    a, b = table.subcategory[left], table.subcategory[right]
    unknown = ((a == UNKNOWN) | (b == UNKNOWN)) & (table.category[left] == table.category[right])
    alike: NDArray[np.bool_] = unknown | (table.group[left] == table.group[right]) | ((a == b) & (a != UNKNOWN))
    return alike


def _near_in_text(table: IncidentTable, anchors: IntArray, others: IntArray, threshold: float) -> NDArray[np.bool_]:
    """Of one subcategory, by the Jaccard similarity of the texts' words."""
    near = (table.subcategory[anchors] == table.subcategory[others]) & (table.subcategory[anchors] != UNKNOWN)
    for pair in np.flatnonzero(near):
        a, b = (set(table.texts[ends[pair]].lower().split()) for ends in (anchors, others))
        near[pair] = len(a & b) >= threshold * len(a | b)
    return np.asarray(near)


def without_small_classes(table: IncidentTable, labels: Labels) -> tuple[IncidentTable, NDArray[np.bool_], int]:
    """Small classes merged, or not to be used, as declared; which incidents stay, and how many were concerned."""
    everything = np.ones(len(table), dtype=np.bool_)
    if labels.small_classes == "keep":
        return table, everything, 0
    few, small = (_in_small_class(numbers, labels.small_below) for numbers in (table.category, table.subcategory))
    concerned = int((few | small).sum())
    if labels.small_classes == "drop":
        return table, ~(few | small), concerned
    names = [*table.category_names, MERGED]
    category = np.where(few, len(names) - 1, table.category)
    merged = (few | small) & (table.subcategory != UNKNOWN)
    subcategory = np.where(merged, table.subcategory.max() + 1 + category, table.subcategory)
    return replace(table, category=category, category_names=names, subcategory=subcategory), everything, concerned


def _in_small_class(classes: IntArray, below: int) -> NDArray[np.bool_]:
    sizes = np.bincount(classes[classes != UNKNOWN])
    small: NDArray[np.bool_] = np.append(sizes < below, False)[classes]  # UNKNOWN is the last: not small
    return small

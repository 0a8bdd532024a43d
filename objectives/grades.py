"""How alike two incidents are by their labels: the grade of the strongest tie between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from objectives.config import Columns
from objectives.config import Labels
from objectives.evaluation import FloatArray
from objectives.incidents import UNKNOWN
from objectives.incidents import IncidentTable
from objectives.incidents import IntArray


@dataclass(frozen=True)
class Ladder:
    """The grades that the data can give, ascending, by name of the tie. Pairs from `positive` on are positives."""

    grades: dict[str, float]
    positive: float

    @property
    def positives(self) -> dict[str, float]:
        return {tie: grade for tie, grade in self.grades.items() if grade >= self.positive}


def make_ladder(labels: Labels, columns: Columns) -> Ladder:
    """Positives begin at the next tie below, where the one declared has no data."""
    has_data = {
        "same_category": True,
        "same_subcategory": columns.subcategory is not None,
        "near": columns.configuration_item is not None,
        "duplicate": columns.duplicate_of is not None,
    }
    ties = [tie for tie in has_data if has_data[tie]]
    order = list(has_data)
    first = max((tie for tie in ties if order.index(tie) <= order.index(labels.positive)), key=order.index)
    return Ladder({tie: getattr(labels, tie) for tie in ties}, getattr(labels, first))


def classes(table: IncidentTable, tie: str) -> IntArray:
    """Numbers of the classes within which incidents have this tie, or a stronger one."""
    by_tie = {
        "same_category": table.category,
        "same_subcategory": table.subcategory,
        "near": table.configuration_item,
        "duplicate": table.cluster,
    }
    return by_tie[tie]


def grade(table: IncidentTable, ladder: Ladder, anchors: IntArray, others: IntArray) -> FloatArray:
    """Of each pair, shape (pairs,); nan where a subcategory is not known that would decide."""
    grades = np.zeros(len(anchors))
    for tie, value in ladder.grades.items():
        a, b = classes(table, tie)[anchors], classes(table, tie)[others]
        if tie == "same_subcategory":
            grades[(grades > 0) & ((a == UNKNOWN) | (b == UNKNOWN))] = np.nan
        grades[(a == b) & (a != UNKNOWN)] = value
    return grades

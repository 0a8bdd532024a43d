"""From the incidents of a study to its training pairs and graded validation pairs. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from objectives.config import Incidents
from objectives.config import Labels
from objectives.config import Pairs
from objectives.config import Splits
from objectives.grades import Ladder
from objectives.grades import make_ladder
from objectives.incidents import IncidentTable
from objectives.incidents import IntArray
from objectives.incidents import read_incidents
from objectives.pairs import GradedPairs
from objectives.pairs import held_out_pairs
from objectives.pairs import split_incidents
from objectives.pairs import train_pairs
from objectives.reading import DataError


@dataclass(frozen=True)
class Data:
    table: IncidentTable
    train: IntArray  # (pairs, 2) incident numbers
    validation: GradedPairs
    ladder: Ladder


@lru_cache(maxsize=1)
def load_data(incidents: Incidents, labels: Labels, splits: Splits, pairs: Pairs) -> Data:
    """Kept for the next trial of the same process. Raises DataError."""
    table, ladder = read_incidents(incidents), make_ladder(labels, incidents.columns)
    members = split_incidents(table, splits)
    try:
        train = train_pairs(table, members["train"], pairs.train, pairs.seed)
        validation = held_out_pairs(table, ladder, members["validation"], pairs)
    except DataError as error:
        raise DataError(f"{incidents.path}: {error}") from None
    return Data(table, train, validation, ladder)

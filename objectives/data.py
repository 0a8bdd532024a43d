"""From the incidents of a study to its training pairs and graded validation pairs. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from objectives import mining
from objectives.cache import cached
from objectives.config import COLUMNS, Incidents, Labels, Mining, Pairs, Splits, TrialConfig
from objectives.grades import Ladder, make_ladder, without_small_classes
from objectives.incidents import IncidentTable, IntArray, cache_key, load_incidents
from objectives.mining import TrainPairs
from objectives.nearness import NO_MODEL, Encode
from objectives.pairs import GradedPairs, held_out_pairs, split_incidents
from objectives.reading import DataError


@dataclass(frozen=True)
class Data:
    table: IncidentTable
    ladder: Ladder
    splits: dict[str, IntArray]  # incident numbers of train, validation and test
    validation: GradedPairs
    small: int  # incidents in classes that were merged or dropped


def load_data(config: TrialConfig, cache: Path | None = None) -> Data:
    """What the trials of a study have in common; kept for the next one of the same process. Raises DataError."""
    return _load(config.incidents, config.labels, config.splits, config.pairs, cache)


@lru_cache(maxsize=1)
def _load(incidents: Incidents, labels: Labels, splits: Splits, pairs: Pairs, cache: Path | None) -> Data:
    table, kept, small = without_small_classes(load_incidents(incidents, cache), labels)
    ladder = make_ladder(labels, incidents.columns)
    members = {name: numbers[kept[numbers]] for name, numbers in split_incidents(table, splits).items()}
    try:
        return Data(table, ladder, members, held_out_pairs(table, ladder, members["validation"], pairs), small)
    except DataError as error:
        categories, group = len(np.unique(table.category)), np.bincount(table.group).max()
        found = f"{len(table)} incidents of {categories} categories, {group} linked or nearly equal to each other"
        raise DataError(f"{incidents.path}: {error} ({found}); check labels, splits and columns") from None


def train_pairs(data: Data, config: TrialConfig, cache: Path | None = None, encode: Encode = NO_MODEL) -> TrainPairs:
    """Raises DataError. `encode` is asked where the mining is by a model, with the untrained one."""

    def make() -> bytes:
        members, seed = data.splits["train"], config.pairs.seed
        return mining.to_bytes(
            mining.mine(data.table, data.ladder, members, config.mining, seed, encode, columns, config.pairs)
        )

    chosen = [config.training.loss, config.training.second_loss]
    columns = sorted({COLUMNS[name] for name in chosen if name != "off"})
    by_model = needs_model(config.mining)
    model = (config.model, config.model_revision, config.max_seq_tokens) if by_model else None
    decided_by = config.model_dump(mode="json", include={"labels", "splits", "mining", "pairs"}) | {"columns": columns}
    try:
        return mining.from_bytes(
            cached(
                cache if config.incidents.sha256 else None,
                "pairs",
                [mining.MINER, cache_key(config.incidents), decided_by, model],
                make,
            )
        )
    except DataError as error:
        raise DataError(f"{config.incidents.path}: {error}") from None


def needs_model(config: Mining) -> bool:
    has_thresholds = config.min_similarity > -1 or config.max_similarity < 1
    return config.hard_negatives == "model" or (config.similarity == "model" and has_thresholds)

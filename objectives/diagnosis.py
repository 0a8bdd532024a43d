"""What a finished model does with held-out pairs, small enough to be recorded with its trial. Loads no torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from objectives.config import TrialConfig
from objectives.data import load_data
from objectives.evaluation import FloatArray, Ranking
from objectives.pairs import GradedPairs, held_out_pairs
from objectives.reading import DataError

RECALLS, BINS, PARTS = 30, 24, 10  # points of a curve, bars by similarity, and groups of pairs: 2 KiB of JSON at most
DIGITS = 4
Diagnosis = dict[str, Any]


def seen_pairs(config: TrialConfig, cache: Path | None = None) -> GradedPairs | None:
    """Pairs of training incidents, made as held-out pairs are, of no more incidents than every evaluation encodes.

    None where they cannot be made. The same for all trials of a study, and kept for the next one.
    """
    parts = {name: getattr(config, name) for name in ("incidents", "labels", "splits", "pairs")}
    return _seen(TrialConfig(**parts, model="any"), cache)


@lru_cache(maxsize=1)
def _seen(config: TrialConfig, cache: Path | None) -> GradedPairs | None:
    data = load_data(config, cache)
    train, group = data.splits["train"], data.table.group
    place = np.random.default_rng(config.pairs.seed).permutation(group.max() + 1)[group[train]]
    until = np.cumsum(np.bincount(place))[place]
    most = len(np.union1d(data.validation.anchors, data.validation.others))
    try:
        return held_out_pairs(data.table, data.ladder, train[until <= most], config.pairs)
    except DataError:
        return None


def diagnose(ranking: Ranking, threshold: float, probabilities: FloatArray | None = None) -> Diagnosis:
    """Of the ranking by cosine: precision by recall, and cosines by grade. How far a prediction can be taken at its
    word is told of the match head's `probabilities`, (pairs,), where there are any, else of the cosines.
    """
    cosines, grades = ranking.similarities[ranking.similarity_index], ranking.grades[ranking.grade_index]
    is_match = grades >= ranking.positive_grade
    predicted = cosines if probabilities is None else probabilities
    return {
        "precision_recall": _precision_recall(cosines, is_match, threshold),
        "similarities": _similarities(cosines, grades),
        "calibration": _calibration(predicted, is_match),
        "calibrated": "cosine" if probabilities is None else "head",
    }


def _precision_recall(cosines: FloatArray, is_match: Any, threshold: float) -> list[list[float]]:
    """Recall, precision and threshold, at equal steps of recall, and at the frozen threshold."""
    every, matches = np.sort(cosines), np.sort(cosines[is_match])
    steps = np.quantile(matches, np.linspace(0, 1, RECALLS - 1), method="nearest")
    thresholds = np.unique([*steps, threshold])[::-1]
    found, retrieved = (len(sorted_) - np.searchsorted(sorted_, thresholds) for sorted_ in (matches, every))
    points: list[list[float]] = np.stack([found / len(matches), found / retrieved, thresholds], axis=1).tolist()
    return [[round(number, DIGITS) for number in point] for point in points]


def _similarities(cosines: FloatArray, grades: FloatArray) -> Diagnosis:
    edges = np.histogram_bin_edges(cosines, BINS)
    counts = {f"{grade:g}": np.histogram(cosines[grades == grade], edges)[0].tolist() for grade in np.unique(grades)}
    return {"edges": [round(float(edges[end]), DIGITS) for end in (0, -1)], "counts": counts}


def _calibration(predicted: FloatArray, is_match: Any) -> list[list[float]]:
    """Mean prediction, share of matches, and pairs, of parts with equally many pairs."""
    parts = [part for part in np.array_split(np.argsort(predicted, kind="stable"), PARTS) if len(part)]
    return [
        [round(float(predicted[part].mean()), DIGITS), round(float(is_match[part].mean()), DIGITS), len(part)]
        for part in parts
    ]

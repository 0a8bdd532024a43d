"""Scores of similarities against graded labels: pure functions on arrays.

All metrics come from one table of weights (distinct similarity x grade), so that a point estimate (weights of one)
and a bootstrap replicate (weights from resampling) are the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MetricName = Literal["spearman", "spearman_binary", "roc_auc", "pr_auc", "f1"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
RESAMPLES = 200
WHOLE = 1e9  # pairs, of which shares are as good as whole numbers
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap


class Collapsed(ValueError):
    """All similarities are equal: the ranking says nothing and no Spearman exists."""

    exit_code = 1


@dataclass(frozen=True)
class Ranking:
    """Pairs sorted into distinct similarities and distinct grades."""

    similarities: FloatArray  # (distinct,), ascending
    similarity_index: IntArray  # (pairs,) into similarities
    grades: FloatArray  # (levels,), ascending
    grade_index: IntArray  # (pairs,) into grades
    positive_grade: float


def rank_pairs(similarities: FloatArray, grades: FloatArray, positive_grade: float) -> Ranking:
    """similarities, grades: (pairs,). Raises Collapsed for constant or non-finite similarities."""
    if not np.isfinite(similarities).all() or np.ptp(similarities) == 0:
        raise Collapsed("all similarities are equal or not finite; the embeddings have collapsed")
    distinct, similarity_index = np.unique(similarities, return_inverse=True)
    levels, grade_index = np.unique(grades, return_inverse=True)
    if not levels[0] < positive_grade <= levels[-1]:
        raise ValueError(f"grades {levels.tolist()} hold no two classes around {positive_grade}")
    return Ranking(distinct, similarity_index, levels, grade_index, positive_grade)


def score(ranking: Ranking, weights: FloatArray | None = None) -> dict[str, float]:
    """METRICS and `threshold`, the similarity from which a pair counts as positive at the best F1.

    weights: (pairs,) whole numbers, default ones. roc_auc and pr_auc are those of scikit-learn (average precision).
    """
    shape = (len(ranking.similarities), len(ranking.grades))
    cells = ranking.similarity_index * shape[1] + ranking.grade_index
    table = np.bincount(cells, weights, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)
    is_positive = ranking.grades >= ranking.positive_grade
    binary = np.stack([table[:, ~is_positive].sum(1), table[:, is_positive].sum(1)], axis=1)
    f1, threshold = _best_f1(binary, ranking.similarities)
    return {
        "spearman": _spearman(table),
        "spearman_binary": _spearman(binary),
        "roc_auc": _roc_auc(binary),
        "pr_auc": _average_precision(binary),
        "f1": f1,
        "threshold": threshold,
    }


def bootstrap_intervals(
    ranking: Ranking, anchors: IntArray, others: IntArray, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals by resampling incidents, not pairs: pairs that share an incident are not independent.

    anchors, others: (pairs,) incident numbers. A pair's weight is the product of how often its two were drawn.
    """
    weights = resampled(anchors, others, seed)
    replicates: list[dict[str, float]] = []
    while len(replicates) < RESAMPLES:
        with np.errstate(invalid="ignore"):
            replicate = score(ranking, next(weights))
        if np.isfinite(list(replicate.values())).all():  # else a class went without weight: drawn again
            replicates.append(replicate)
    return {m: tuple(np.percentile([r[m] for r in replicates], INTERVAL).tolist()) for m in METRICS}


def resampled(anchors: IntArray, others: IntArray, seed: int) -> Iterator[FloatArray]:
    """Weights of the pairs, (pairs,), for one draw of incidents after another, without end."""
    rng = np.random.default_rng(seed)
    incidents, index = np.unique(np.concatenate([anchors, others]), return_inverse=True)
    a, b = np.split(index, 2)
    while True:
        drawn = np.bincount(rng.integers(len(incidents), size=len(incidents)), minlength=len(incidents))
        yield (drawn[a] * drawn[b]).astype(np.float64)


def ceilings(grades: FloatArray, positive_grade: float) -> dict[MetricName, float]:
    """The most each metric can be when similarities are untied: only Spearman is held down, by ties of the labels."""
    binary = (grades >= positive_grade).astype(np.float64)
    return {
        "spearman": spearman_ceiling(grades),
        "spearman_binary": spearman_ceiling(binary),
        "roc_auc": 1.0,
        "pr_auc": 1.0,
        "f1": 1.0,
    }


def noise_ceilings(
    agreement: float, class_shares: FloatArray, positive_share: float, sure_share: float = 0.0
) -> dict[MetricName, float]:
    """What a model that knows the true class could score against labels that are not all true.

    agreement: how often two labels of one thing are equal. A label that is not true is taken to be drawn by the shares
    of the classes; then it says how often a pair is truly of one class, given its label. The model tells two kinds of
    pairs apart, truly alike and not, and its scores follow from four shares. sure_share: of all pairs, those that are
    positives by more than their labels.
    """
    chance = float((class_shares**2).sum())  # that any two labels are equal
    true = np.sqrt(max(agreement - chance, 0.0) / max(1 - chance, 1e-9))  # of all labels
    one_wrong = 2 * true * (1 - true) * (class_shares**3).sum() / chance
    agreed = true**2 + one_wrong + (1 - true) ** 2 * chance  # by pairs that are truly alike
    by_chance = chance * (1 - agreed) / max(1 - chance, 1e-9)  # truly alike though labelled otherwise
    alike = np.array([(1 - positive_share) * by_chance, sure_share + (positive_share - sure_share) * agreed])
    other = np.array([1 - positive_share, positive_share]) - alike
    ranking = rank_pairs(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]), 1.0)
    found = score(ranking, np.concatenate([other, alike]) * WHOLE)
    return {metric: found[metric] for metric in ("pr_auc", "f1")}


def spearman_ceiling(labels: FloatArray) -> float:
    """sqrt(1 - sum(t^3 - t) / (n^3 - n)) over groups of t equal labels; tends to sqrt(1 - sum p^3)."""
    tied = np.unique(labels, return_counts=True)[1].astype(np.float64)
    n = tied.sum()
    return float(np.sqrt(1 - (tied**3 - tied).sum() / (n**3 - n)))


def _midranks(counts: FloatArray) -> FloatArray:
    """Mean rank of each group of ties, centred: counts ascending by value."""
    ranks: FloatArray = np.cumsum(counts) - counts / 2 - counts.sum() / 2
    return ranks


def _spearman(table: FloatArray) -> float:
    by_similarity, by_label = table.sum(1), table.sum(0)
    x, y = _midranks(by_similarity), _midranks(by_label)
    return float(x @ table @ y / np.sqrt((by_similarity @ x**2) * (by_label @ y**2)))


def _roc_auc(binary: FloatArray) -> float:
    negatives, positives = binary.T
    negatives_below = np.cumsum(negatives) - negatives / 2
    return float(positives @ negatives_below / (positives.sum() * negatives.sum()))


def _at_least(counts: FloatArray) -> FloatArray:
    """Sums from each similarity upwards."""
    sums: FloatArray = np.cumsum(counts[::-1])[::-1]
    return sums


def _average_precision(binary: FloatArray) -> float:
    found, retrieved = _at_least(binary[:, 1]), _at_least(binary.sum(1))
    return float(binary[:, 1] @ (found / np.maximum(retrieved, 1)) / found[0])


def _best_f1(binary: FloatArray, similarities: FloatArray) -> tuple[float, float]:
    found, retrieved = _at_least(binary[:, 1]), _at_least(binary.sum(1))
    f1 = 2 * found / (retrieved + found[0])
    best = int(np.argmax(f1))
    # Half-way to the next similarity below, so that rounding in another program flips no pair.
    below = similarities[max(best - 1, 0)]
    half_way = (below + similarities[best]) / 2
    return float(f1[best]), float(half_way if half_way > below else similarities[best])

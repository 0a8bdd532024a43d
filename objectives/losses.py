"""Losses by name: which class of sentence-transformers each is, and the rows of training pairs that it is computed on.

Each is computed on vectors that are there already: two losses share a text's vector, and whatever the loss, a batch
can be encoded in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.losses.contrastive import SiameseDistanceMetric
from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric
from sentence_transformers.util import cos_sim

from objectives.config import COLUMNS, LossName, Training
from objectives.device import device
from objectives.evaluation import FloatArray
from objectives.incidents import IntArray
from objectives.mining import TrainPairs
from objectives.nearness import Barred

GIVEN: Any = None  # in place of a model: vectors are given
CACHED_BATCH = 32  # texts that cached_mnrl computes at once


class Similarity:
    """Cosines between a batch's anchors and its texts; minus infinity where a text is no negative of an anchor."""

    def __init__(self, is_alike: Barred | None) -> None:
        self._is_alike, self._barred = is_alike, torch.empty(0)

    def expect(self, ends: IntArray) -> None:
        if self._is_alike is not None:
            barred = self._is_alike(ends[:, :1], ends[:, 1:].T.ravel())
            np.fill_diagonal(barred[:, : len(ends)], False)  # an anchor's own positive
            self._barred = torch.from_numpy(barred).to(device())

    def __call__(self, anchors: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """All anchors of a batch, and its texts or the positives alone."""
        cosines = cos_sim(anchors, texts)
        return cosines if self._is_alike is None else cosines.masked_fill(self._barred[:, : len(texts)], -torch.inf)


def _ranking(config: Training, similarity: Similarity) -> Any:
    return losses.MultipleNegativesRankingLoss(GIVEN, scale=config.scale, similarity_fct=similarity)


def _symmetric(config: Training, similarity: Similarity) -> Any:
    return losses.MultipleNegativesRankingLoss(
        GIVEN,
        scale=config.scale,
        similarity_fct=similarity,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )


LOSSES: dict[LossName, Callable[[Training, Similarity], Any]] = {
    "mnrl": _ranking,
    "symmetric_mnrl": _symmetric,
    "cached_mnrl": _ranking,  # encoded in parts
    "triplet": lambda config, _: losses.TripletLoss(GIVEN, TripletDistanceMetric.COSINE, config.margin),
    "contrastive": lambda config, _: losses.ContrastiveLoss(
        GIVEN, SiameseDistanceMetric.COSINE_DISTANCE, config.margin
    ),
    "online_contrastive": lambda config, _: losses.OnlineContrastiveLoss(
        GIVEN, SiameseDistanceMetric.COSINE_DISTANCE, config.margin
    ),
    "cosent": lambda config, _: losses.CoSENTLoss(GIVEN, config.scale),
    "angle": lambda config, _: losses.AnglELoss(GIVEN, config.scale),
}


@dataclass(frozen=True)
class Term:
    """A loss, its weight, and the rows that it is computed on."""

    weight: float
    ends: IntArray  # (rows, texts of a row), numbers of texts
    labels: FloatArray | None  # (rows,)
    loss: Any
    similarity: Similarity

    def __call__(self, rows: IntArray, vectors: Callable[[IntArray], torch.Tensor]) -> torch.Tensor:
        ends = self.ends[rows]
        self.similarity.expect(ends)
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows].astype(np.float32)).to(device())
        value: torch.Tensor = self.loss.compute_loss_from_embeddings([vectors(column) for column in ends.T], labels)
        return value if self.weight == 1 else self.weight * value


def make_terms(config: Training, pairs: TrainPairs, is_alike: Barred | None = None) -> list[Term]:
    """The loss, and the second one if there is any."""
    chosen = [(config.loss, 1.0)]
    if config.second_loss != "off":
        chosen.append((config.second_loss, config.second_loss_weight))
    terms = []
    for name, weight in chosen:
        similarity = Similarity(is_alike)
        terms.append(Term(weight, *_rows(name, pairs), LOSSES[name](config, similarity), similarity))
    return terms


def _rows(name: LossName, pairs: TrainPairs) -> tuple[IntArray, FloatArray | None]:
    match COLUMNS[name]:
        case "ranked":
            return pairs.ends, None
        case "triplets":
            return np.column_stack([pairs.ends[:, :2], pairs.negatives]), None
        case "graded":
            return pairs.labelled, pairs.grades
        case "binary":
            return pairs.labelled, (pairs.grades >= pairs.positive_grade).astype(np.float64)


def batches(terms: list[Term], batch_size: int, epochs: int, seed: int) -> Iterator[list[IntArray]]:
    """Rows of each term, step by step. The first decides how many; a second one begins anew when it is through."""
    seeds = [[seed], [seed, 1]]
    orders = [_order(len(term.ends), batch_size, own) for term, own in zip(terms, seeds, strict=False)]
    steps = epochs * -(-len(terms[0].ends) // batch_size)
    for _ in range(steps):
        yield [next(order) for order in orders]


def _order(rows: int, batch_size: int, seed: list[int]) -> Iterator[IntArray]:
    for epoch in count():
        order = np.random.default_rng([*seed, epoch]).permutation(rows)
        for start in range(0, rows, batch_size):
            yield order[start : start + batch_size]

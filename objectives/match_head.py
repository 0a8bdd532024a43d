"""The match head: how probable it is that two incidents are a match, and from which probability on they count as one.

A fine-tuned model has seen the labels of its training incidents, so its cosines say more of those than of new ones. The
head is therefore fitted on a `Practice`: a model's vectors, and incidents that this model was not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from imblearn.over_sampling import SMOTE
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from objectives.config import Head, Pairs
from objectives.data import Data
from objectives.evaluation import FloatArray, rank_pairs, score
from objectives.incidents import IncidentTable, IntArray
from objectives.model_files import ModelError
from objectives.nearness import BoolArray
from objectives.pair_features import Reader, Vectors, features, fit_reader, same_item, see
from objectives.pairs import GradedPairs, graded_pairs
from objectives.reading import DataError

LEAST_OF_A_CLASS = 10  # pairs, in each part that is fitted or calibrated on
UNSEEN_SHARE = 0.3  # of the training incidents
FOLDS = 3  # of incidents: a pair within one is scored by a classifier that knows neither of its two
NEIGHBOURS = 5  # of SMOTE
CERTAIN = 1e6  # next to no regularisation
ESTIMATORS, ARRAYS, FACTS = "estimators.skops", "arrays.npz", "head.json"
LEARNT, PLAIN = ("weights", "topics", "by_words", "by_vector"), ("words", "categories", "shares")
NUMBERS = ("slope", "offset", "threshold")
TRUSTED = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]  # beyond what skops trusts


@dataclass(frozen=True)
class Practice:
    vectors: Vectors  # of all texts of the table
    unseen: IntArray  # training incidents that the model behind them was not trained on: unseen_incidents()


@dataclass(frozen=True)
class Lesson:
    """What a classifier learns from."""

    reader: Reader  # for the model that the head is for
    found: FloatArray  # (pairs, features), of the practice
    labels: BoolArray
    folds: IntArray  # (2, pairs), of either incident


@dataclass(frozen=True)
class MatchHead:
    reader: Reader
    classifier: Any  # from features to log odds
    slope: float  # makes them those of the pairs' own shares
    offset: float
    threshold: float

    def probabilities(
        self, texts: Sequence[str], vectors: Vectors, left: IntArray, right: IntArray, items: FloatArray
    ) -> FloatArray:
        """Of pairs of rows of `texts` and their unit vectors; items: 1 where the two are known to be of one item."""
        with threadpool_limits(1):
            found = features(self.reader, see(self.reader, texts, vectors), left, right, items)
            odds = self.slope * self.classifier.decision_function(found) + self.offset
        probabilities: FloatArray = 1 / (1 + np.exp(-odds))
        return probabilities


def unseen_incidents(data: Data, seed: int) -> IntArray:
    """Whole groups of training incidents, for a model to practise on that is trained on the others."""
    train, group = data.splits["train"], data.table.group
    is_unseen = np.random.default_rng(seed).random(group.max() + 1) < UNSEEN_SHARE
    unseen: IntArray = train[is_unseen[group[train]]]
    return unseen


def fit_head(config: Head, data: Data, vectors: Vectors, practice: Practice, pairs: Pairs, seed: int) -> MatchHead:
    """vectors: the fine-tuned model's, of all texts. The threshold is that of the best F1 on validation."""
    return learn(config, prepare(config, data, vectors, practice, pairs, seed), data, vectors, seed)


def prepare(config: Head, data: Data, vectors: Vectors, practice: Practice, pairs: Pairs, seed: int) -> Lesson:
    """The same for every kind of head. Raises DataError."""
    ends = training_pairs(config, data, practice.unseen, pairs)
    labels = ends.grades >= data.ladder.positive
    fold = np.random.default_rng(seed).integers(FOLDS, size=data.table.group.max() + 1)[data.table.group]
    folds = np.stack([fold[ends.anchors], fold[ends.others]])
    for part in (folds[0] == folds[1], *((folds != number).all(axis=0) for number in range(FOLDS))):
        if min(labels[part].sum(), (~labels[part]).sum()) < LEAST_OF_A_CLASS:
            few = f"{len(labels)} pairs of {len(practice.unseen)} incidents are too few to fit a match head"
            raise DataError(f"{few}; raise head_pairs, or set head to off")
    learnt = np.setdiff1d(data.splits["train"], practice.unseen)
    with threadpool_limits(1):  # so that equal configurations give equal bits
        rehearsal = fit_reader(data.table, practice.vectors, learnt, seed)
        found = _pair_features(rehearsal, data.table, practice.vectors, ends)
        reader = fit_reader(data.table, vectors, data.splits["train"], seed)
    return Lesson(reader, found, labels, folds)


def learn(config: Head, lesson: Lesson, data: Data, vectors: Vectors, seed: int) -> MatchHead:
    with threadpool_limits(1):
        classifier = _fit(config, lesson.found, lesson.labels, seed)
        slope, offset = _calibration(config, lesson, seed)
    if slope <= 0:
        raise DataError("what the match head has learnt does not hold for other pairs; raise head_pairs")
    head = MatchHead(lesson.reader, classifier, slope, offset, threshold=0.0)
    return replace(head, threshold=scores(head, data, vectors)["threshold"])


def training_pairs(config: Head, data: Data, members: IntArray, pairs: Pairs) -> GradedPairs:
    """In the shares of held-out pairs, and more of each incident: these cost little. Raises DataError."""
    rng = np.random.default_rng(pairs.seed)
    return graded_pairs(data.table, data.ladder, members, pairs, config.head_pairs, rng)


def scores(head: MatchHead, data: Data, vectors: Vectors) -> dict[str, float]:
    """The metrics on validation, as they are of cosines."""
    found = probabilities_of(head, data.table, vectors, data.validation)
    return score(rank_pairs(found, data.validation.grades, data.ladder.positive))


def probabilities_of(head: MatchHead, table: IncidentTable, vectors: Vectors, ends: GradedPairs) -> FloatArray:
    numbers, left, right = ends.distinct()
    items = same_item(table, ends.anchors, ends.others)
    return head.probabilities([table.texts[number] for number in numbers], vectors[numbers], left, right, items)


def _pair_features(reader: Reader, table: IncidentTable, vectors: Vectors, ends: GradedPairs) -> FloatArray:
    numbers, left, right = ends.distinct()
    seen = see(reader, [table.texts[number] for number in numbers], vectors[numbers])
    return features(reader, seen, left, right, same_item(table, ends.anchors, ends.others))


def _fit(config: Head, found: FloatArray, labels: BoolArray, seed: int) -> Any:
    if config.head_balance == "smote":
        few = int(min(labels.sum(), (~labels).sum()))
        found, labels = SMOTE(random_state=seed, k_neighbors=min(NEIGHBOURS, few - 1)).fit_resample(found, labels)
    weight = "balanced" if config.head_balance == "class_weight" else None
    if config.head == "logistic":
        made = LogisticRegression(C=0.1, max_iter=500, class_weight=weight)
    else:
        made = HistGradientBoostingClassifier(
            max_iter=100,
            learning_rate=0.06,
            max_leaf_nodes=6,
            min_samples_leaf=50,
            l2_regularization=1.0,
            early_stopping=False,
            class_weight=weight,
            random_state=seed,
        )
    return make_pipeline(StandardScaler(), made).fit(found, labels)


def _calibration(config: Head, lesson: Lesson, seed: int) -> tuple[float, float]:
    """Slope and offset by Platt's logistic fit, on pairs that the classifier was not fitted on."""
    labels, (left, right) = lesson.labels, lesson.folds
    odds, inside = np.zeros(len(labels)), left == right
    for fold in range(FOLDS):
        apart, within = (left != fold) & (right != fold), inside & (left == fold)
        if within.any():
            classifier = _fit(config, lesson.found[apart], labels[apart], seed)
            odds[within] = classifier.decision_function(lesson.found[within])
    # Linked incidents are in one fold, so inside of folds there are too many positives.
    share, inner = labels.mean(), labels[inside].mean()
    weights = np.where(labels[inside], share / inner, (1 - share) / (1 - inner))
    fitted = LogisticRegression(C=CERTAIN).fit(odds[inside, None], labels[inside], weights)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def save_head(head: MatchHead, folder: Path) -> None:
    from skops.io import dump  # takes a second to load, and every trainer loads this module

    folder.mkdir(parents=True)
    reader = head.reader
    dump([head.classifier, *(getattr(reader, name) for name in LEARNT)], folder / ESTIMATORS)
    np.savez(folder / ARRAYS, **{name: getattr(reader, name) for name in PLAIN})
    facts = {name: getattr(head, name) for name in NUMBERS}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def load_head(folder: Path) -> MatchHead:
    """Raises ModelError for whatever is no head, and for estimators of any type that a head has not."""
    from skops.io import load
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        classifier, *learnt = load(folder / ESTIMATORS, trusted=TRUSTED)
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            plain = {name: arrays[name] for name in PLAIN}
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        reader = Reader(**plain, **dict(zip(LEARNT, learnt, strict=True)))
        return MatchHead(reader, classifier, *(float(facts[name]) for name in NUMBERS))
    except UntrustedTypesFoundException as error:
        raise ModelError(f"{folder / ESTIMATORS}: holds what no match head does ({error}); train it again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, BadZipFile) as error:
        raise ModelError(f"{folder}: no match head that can be read ({type(error).__name__}); train it again") from None

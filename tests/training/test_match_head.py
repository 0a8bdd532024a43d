"""The match head: calibrated, the same whichever incident comes first, and saved without a word of any ticket."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score
from sklearn.preprocessing import FunctionTransformer

from objectives.config import Head, Pairs, TrialConfig
from objectives.data import Data, load_data
from objectives.evaluation import FloatArray
from objectives.match_head import (
    ESTIMATORS,
    MatchHead,
    Practice,
    fit_head,
    load_head,
    probabilities_of,
    save_head,
    scores,
    training_pairs,
    unseen_incidents,
)
from objectives.model_files import ModelError
from objectives.models import encode, load_encoder
from objectives.pair_features import Vectors
from objectives.pairs import GradedPairs, held_out_pairs
from objectives.reading import DataError

CANARY = "kanarienvogel"
PAIRS = Pairs(held_out=1000)


@pytest.fixture(scope="module")
def data(config: TrialConfig) -> Data:
    return load_data(config)


@pytest.fixture(scope="module")
def vectors(config: TrialConfig, data: Data) -> Vectors:
    """Of the untrained model, which knows no incident's label."""
    encoder = load_encoder(config.model, config.max_seq_tokens, data.table.texts)
    return encode(encoder, np.arange(len(data.table)))


@pytest.fixture(scope="module")
def boosting(data: Data, vectors: Vectors) -> MatchHead:
    return fitted(Head(head="boosting"), data, vectors)


def fitted(config: Head, data: Data, vectors: Vectors) -> MatchHead:
    return fit_head(config, data, vectors, Practice(vectors, unseen_incidents(data, 0)), PAIRS, 0)


def on_validation(head: MatchHead, data: Data, vectors: Vectors) -> FloatArray:
    return probabilities_of(head, data.table, vectors, data.validation)


def test_head_ranks_validation_pairs_better_than_the_cosine(boosting: MatchHead, data: Data, vectors: Vectors) -> None:
    pairs = data.validation
    cosines = (vectors[pairs.anchors] * vectors[pairs.others]).sum(axis=1)
    alone = roc_auc_score(pairs.grades >= data.ladder.positive, cosines)
    assert scores(boosting, data, vectors)["roc_auc"] > alone + 0.02


@pytest.mark.parametrize("kind", ["logistic", "boosting"])
def test_saved_head_reloads_to_equal_probabilities(kind: str, data: Data, vectors: Vectors, tmp_path: Path) -> None:
    head = fitted(Head.model_validate({"head": kind}), data, vectors)
    save_head(head, tmp_path / "head")
    again = load_head(tmp_path / "head")
    assert np.array_equal(on_validation(again, data, vectors), on_validation(head, data, vectors))
    assert again.threshold == head.threshold


def test_equal_configurations_give_equal_heads(boosting: MatchHead, data: Data, vectors: Vectors) -> None:
    again = fitted(Head(head="boosting"), data, vectors)
    assert np.array_equal(on_validation(again, data, vectors), on_validation(boosting, data, vectors))


def test_probabilities_are_the_same_whichever_incident_comes_first(
    boosting: MatchHead, data: Data, vectors: Vectors
) -> None:
    pairs = data.validation
    turned = probabilities_of(boosting, data.table, vectors, GradedPairs(pairs.others, pairs.anchors, pairs.grades))
    assert np.array_equal(turned, on_validation(boosting, data, vectors))


def test_threshold_is_that_of_the_best_f1_on_validation(boosting: MatchHead, data: Data, vectors: Vectors) -> None:
    found, labels = on_validation(boosting, data, vectors), data.validation.grades >= data.ladder.positive
    precision, recall, _ = precision_recall_curve(labels, found)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()
    assert f1_score(labels, found >= boosting.threshold) == pytest.approx(best)


def test_labels_of_held_out_incidents_decide_nothing_but_the_threshold(
    boosting: MatchHead, data: Data, vectors: Vectors
) -> None:
    subcategory, held_out = data.table.subcategory.copy(), data.splits["validation"]
    subcategory[held_out] = np.random.default_rng(0).permutation(subcategory[held_out])
    other = fitted(Head(head="boosting"), replace(data, table=replace(data.table, subcategory=subcategory)), vectors)
    assert np.array_equal(on_validation(other, data, vectors), on_validation(boosting, data, vectors))


def test_training_pairs_are_of_incidents_that_the_practising_model_has_not_seen(data: Data) -> None:
    unseen = unseen_incidents(data, 0)
    pairs = training_pairs(Head(), data, unseen, PAIRS)
    assert set(unseen) < set(data.splits["train"])
    assert set(pairs.anchors) | set(pairs.others) <= set(unseen)
    assert not set(data.table.group[unseen]) & set(data.table.group[np.setdiff1d(data.splits["train"], unseen)])


def test_too_few_incidents_for_a_head_are_said_to_be(data: Data, vectors: Vectors) -> None:
    one_class = data.table.subcategory == data.table.subcategory[data.splits["train"][0]]
    few = np.concatenate([data.splits["train"][:1], np.flatnonzero(~one_class)[:3]])
    twin = np.flatnonzero(one_class)[1:2]
    with pytest.raises(DataError, match="5 incidents are too few to fit a match head"):
        fit_head(Head(head="logistic"), data, vectors, Practice(vectors, np.concatenate([few, twin])), PAIRS, 0)


@pytest.mark.parametrize("balance", ["off", "class_weight", "smote"])
def test_balanced_heads_stay_calibrated(balance: str, data: Data, vectors: Vectors) -> None:
    head = fitted(Head.model_validate({"head": "logistic", "head_balance": balance}), data, vectors)
    pairs = held_out_pairs(data.table, data.ladder, data.splits["test"], PAIRS)
    found = probabilities_of(head, data.table, vectors, pairs)
    assert found.mean() == pytest.approx((pairs.grades >= data.ladder.positive).mean(), abs=0.05)


def test_no_word_of_a_ticket_is_in_the_folder(data: Data, vectors: Vectors, tmp_path: Path) -> None:
    texts = [f"{text} {CANARY}{number % 5}" for number, text in enumerate(data.table.texts)]
    save_head(
        fitted(Head(head="boosting"), replace(data, table=replace(data.table, texts=texts)), vectors), tmp_path / "x"
    )
    files = [(tmp_path / "x" / "head.json").read_bytes()]
    for path in (tmp_path / "x").iterdir():
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                files += [archive.read(name) for name in archive.namelist()]
    content = b"".join(files)
    assert b"threshold" in content
    assert b"TruncatedSVD" in content
    assert CANARY.encode() not in content
    assert not [name for name in data.table.category_names if name.encode() in content]


def test_estimators_of_any_other_type_are_refused(boosting: MatchHead, tmp_path: Path) -> None:
    save_head(boosting, tmp_path / "head")
    skops.io.dump([FunctionTransformer(os.getcwd)] * 5, tmp_path / "head" / ESTIMATORS)
    with pytest.raises(ModelError, match=r"estimators.skops: holds what no match head does") as refused:
        load_head(tmp_path / "head")
    assert refused.value.exit_code == 78


@pytest.mark.parametrize("name", [ESTIMATORS, "arrays.npz", "head.json"])
def test_broken_file_of_a_head_is_one_sentence(name: str, boosting: MatchHead, tmp_path: Path) -> None:
    save_head(boosting, tmp_path / "head")
    (tmp_path / "head" / name).write_bytes(b"\x80\x04broken")
    with pytest.raises(ModelError, match="no match head that can be read"):
        load_head(tmp_path / "head")

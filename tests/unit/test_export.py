"""best.yaml: what is written is read back to the very configuration that the trial trained with."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from hpo.config import StudyFile, baselines, fingerprint, searched, trial_config
from hpo.errors import InputError
from hpo.export import export, read_best_file
from hpo.study import BASELINE, VERSIONS, installed_versions
from hpo.study_file import read_study_file
from objectives.config import Job, Memory, Splits, Training
from objectives.evaluation import METRICS
from search_spaces.space import suggest

FOUND: dict[str, Any] = {
    **dict.fromkeys(METRICS, 0.75),
    "intervals": dict.fromkeys(METRICS, (0.7, 0.8)),
    "ceilings": dict.fromkeys(METRICS, 1.0),
    "threshold": 1e-05,
    "stop_reason": "completed",
    "stop_epoch": 2.0,
    "best_epoch": 1.5,
    "train_pairs": 400,
    "device": "cpu",
    "deterministic": True,
    "precision": "float32",
    "micro_batch": 16,
    "gradient_checkpointing": True,
    BASELINE: "v4",
}


@pytest.fixture
def file(study_yaml: Path) -> StudyFile:
    """With a value of its own wherever a trial has one."""
    training = Training(batch_size=48, warmup_ratio=0.2, schedule="cosine", weight_decay=0.01, max_grad_norm=0.5)
    training = training.model_copy(update={"scale": 7.0, "patience": 3, "min_epochs": 0.5, "eval_every_examples": 90})
    change = {"training": training, "max_seq_tokens": 64, "seed": 5, "threads": 2, "splits": Splits(seed=6)}
    return read_study_file(study_yaml).model_copy(update=change)


@pytest.fixture
def study(file: StudyFile) -> optuna.Study:
    """In memory; trial 1 is the best of three, trial 3 still runs."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    study._storage.set_study_system_attr(study._study_id, VERSIONS, installed_versions())
    for value in (0.5, 0.7, 0.6, None):
        trial = study.ask()
        suggest(searched(file), trial)
        for key, found in FOUND.items():
            trial.set_user_attr(key, found)
        if value:
            study.tell(trial, value)
    return study


def test_the_best_trial_is_read_back_as_it_was_trained(tmp_path: Path, study: optuna.Study, file: StudyFile) -> None:
    paths = export(study, file, tmp_path / "best.yaml")
    best, job = read_best_file(tmp_path / "best.yaml")
    assert paths == [tmp_path / "best.yaml"]
    trained = trial_config(file, study.trials[1].params | {"precision": "float32"}, 1)
    assert job == Job(config=trained, memory=Memory(micro_batch=16, gradient_checkpointing=True))
    assert (best.threshold, best.metrics["f1"].interval) == (1e-5, (0.7, 0.8))


def test_it_says_where_it_came_from(tmp_path: Path, study: optuna.Study, file: StudyFile) -> None:
    export(study, file, tmp_path / "best.yaml")
    came_from = yaml.safe_load((tmp_path / "best.yaml").read_text())["provenance"]
    assert (came_from["study"], came_from["trial"], came_from["baseline"]) == ("small", 1, "v4")
    assert (came_from["stop_reason"], came_from["stop_epoch"], came_from["best_epoch"]) == ("completed", 2.0, 1.5)
    assert came_from["study_fingerprint"] == fingerprint(file)
    assert came_from["versions"] == installed_versions()


def test_the_next_best_stand_beside_it_with_their_rank(tmp_path: Path, study: optuna.Study, file: StudyFile) -> None:
    paths = export(study, file, tmp_path / "best.yaml", top=9)
    assert [path.name for path in paths] == ["best.yaml", "best-2.yaml", "best-3.yaml"]
    assert [read_best_file(path)[0].provenance["trial"] for path in paths] == [1, 2, 0]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("schema_version: 1", "schema_version: 2", "2: schema_version"),
        ("  num_train_epochs:", "  num_epochs:", "missing or unknown: num_epochs, num_train_epochs"),
        ("  weight_decay: 0.01", "  weight_decay: -1.0", "weight_decay"),
        ("threshold:", "treshold:", "unknown key 'treshold'"),
        ("bf16: false", "bf16: no", "bf16: expected true or false, found 'no'"),
        ("  name: Cached", "  name: ", "does not go with MultipleNegativesRankingLoss"),
    ],
    ids=["schema", "renamed", "out of range", "misspelt", "no truth value", "loss"],
)
def test_a_best_file_that_was_edited_wrongly_is_refused(
    tmp_path: Path, study: optuna.Study, file: StudyFile, old: str, new: str, complaint: str
) -> None:
    path = export(study, file, tmp_path / "best.yaml")[0]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=f"^{path}:.*{complaint}"):
        read_best_file(path)


def test_a_trial_of_an_earlier_release_is_exported_as_it_was_computed(
    tmp_path: Path, study: optuna.Study, file: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trial in study._storage._studies[study._study_id].trials:  # type: ignore[attr-defined]
        for key in ("deterministic", "precision", "micro_batch", "gradient_checkpointing"):
            trial.user_attrs.pop(key)
    job = read_best_file(export(study, file, tmp_path / "best.yaml")[0])[1]
    assert (job.memory, job.config.training.precision) == (Memory(), "float32")


def test_a_best_file_is_a_baseline_of_another_study_with_all_that_it_trained_with(
    tmp_path: Path, study: optuna.Study, file: StudyFile, study_yaml: Path
) -> None:
    export(study, file, tmp_path / "best.yaml")
    study_yaml.write_text(study_yaml.read_text().replace("{learning_rate: 1e-5, epochs: 8}", "best.yaml"))
    values = baselines(read_study_file(study_yaml))["v4"]
    trained, here = trial_config(file, study.trials[1].params), trial_config(read_study_file(study_yaml), values)
    assert (here.training, here.mining) == (trained.training, trained.mining)
    assert "precision" not in values  # that of the box where it was found


def test_a_study_without_a_completed_trial_exports_nothing(tmp_path: Path, file: StudyFile) -> None:
    with pytest.raises(InputError, match="no completed trial yet"):
        export(optuna.create_study(), file, tmp_path / "best.yaml")
    assert not list(tmp_path.glob("*best*"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, study: optuna.Study, file: StudyFile) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"best\.yaml: cannot be written"):
        export(study, file, tmp_path / "taken" / "best.yaml")

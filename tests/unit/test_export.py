"""`hpo export`: which trials, in which order, to the very configuration that each trained with."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from hpo.best_file import read_best_file
from hpo.config import StudyFile, baselines, fingerprint, searched, trial_config
from hpo.confirmed import CONFIRMED, Confirmation, Runs
from hpo.errors import InputError
from hpo.export import best_yaml, export
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


def trial_of(path: Path) -> int:
    return read_best_file(path)[0].provenance.trial


def test_it_says_where_it_came_from(tmp_path: Path, study: optuna.Study, file: StudyFile) -> None:
    export(study, file, tmp_path / "best.yaml")
    came_from = yaml.safe_load((tmp_path / "best.yaml").read_text())["provenance"]
    assert (came_from["study"], came_from["trial"], came_from["baseline"]) == ("small", 1, "v4")
    assert (came_from["stop_reason"], came_from["stop_epoch"], came_from["best_epoch"]) == ("completed", 2.0, 1.5)
    assert came_from["study_fingerprint"] == fingerprint(file)
    assert came_from["versions"] == installed_versions()


def test_the_next_best_stand_beside_it_with_their_rank(tmp_path: Path, study: optuna.Study, file: StudyFile) -> None:
    paths = export(study, file, tmp_path / "best.yaml", top=9)
    assert sorted(tmp_path.glob("best*")) == sorted([*paths, tmp_path / "best-index.yaml"])
    assert [path.name for path in paths] == ["best.yaml", "best-2.yaml", "best-3.yaml"]
    assert [trial_of(path) for path in paths] == [1, 2, 0]


def test_index_says_which_trial_is_in_which_file_and_how_good_it_is(
    tmp_path: Path, study: optuna.Study, file: StudyFile
) -> None:
    study._storage.set_study_system_attr(study._study_id, CONFIRMED, confirmation(2).model_dump(mode="json"))
    export(study, file, tmp_path / "best.yaml", top=2)
    index = yaml.safe_load((tmp_path / "best-index.yaml").read_text())
    scores = dict.fromkeys(METRICS, 0.75)
    same = {"baseline": "v4", "metrics": scores}
    assert index == {
        "study": "small",
        "files": [
            {"rank": 1, "file": "best.yaml", "trial": 2, "confirmed": True, **same},
            {"rank": 2, "file": "best-2.yaml", "trial": 1, "confirmed": False, **same},
        ],
    }


def test_one_file_has_no_index_but_one_that_is_there_is_not_left_wrong(
    tmp_path: Path, study: optuna.Study, file: StudyFile
) -> None:
    export(study, file, tmp_path / "best.yaml")
    assert not (tmp_path / "best-index.yaml").exists()
    export(study, file, tmp_path / "best.yaml", top=3)
    export(study, file, tmp_path / "best.yaml")
    index = yaml.safe_load((tmp_path / "best-index.yaml").read_text())
    assert [entry["file"] for entry in index["files"]] == ["best.yaml"]


def test_export_that_fails_half_way_leaves_every_file_as_it_was(
    tmp_path: Path, study: optuna.Study, file: StudyFile
) -> None:
    export(study, file, tmp_path / "best.yaml", top=2)
    (tmp_path / "best-3.yaml").mkdir()
    for path in tmp_path.glob("best*.yaml"):
        if path.is_file():
            path.write_text(f"as {path.name} was")
    with pytest.raises(InputError, match=r"best-3\.yaml: cannot be written \(Is a directory\)"):
        export(study, file, tmp_path / "best.yaml", top=3)
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file() and path.name != "study.yaml"}
    assert found == {name: f"as {name} was" for name in ("best.yaml", "best-2.yaml", "best-index.yaml")}


def test_text_for_the_dashboard_is_that_of_the_file(tmp_path: Path, study: optuna.Study, file: StudyFile) -> None:
    export(study, file, tmp_path / "best.yaml")
    assert best_yaml(study, file) == (tmp_path / "best.yaml").read_text()


SCORES = dict.fromkeys(METRICS, 0.6)


def confirmation(*trials: int, winner: int | None = None, baseline: int | None = None) -> Confirmation:
    """Runs of these trials, the best first; without a winner, of the first."""
    runs = [
        Runs(
            trial=number,
            baseline="v4" if number == baseline else None,
            seeds=5,
            mean=SCORES,
            spread=SCORES,
            gain=None if number == baseline else (0.03, 0.01, 0.05),
            test=SCORES if number in (trials[0], baseline) else None,
        )
        for number in trials
    ]
    return Confirmation(
        study="small/confirm",
        runs=tuple(runs),
        winner=trials[0] if winner is None else winner,
        against="v4",
        gain=(0.03, 0.01, 0.05),
        gain_on_test=(0.02, -0.01, 0.05),
        verdict="indistinguishable",
        why_stopped="all had run",
        challenger=None if winner != baseline else next(number for number in trials if number != baseline),
        judged_seeds=4,
    )


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (confirmation(2, 0), [2, 0, 1]),
        (confirmation(0, 1, 2, baseline=1), [0, 2, 1]),  # a baseline that did not win is one trial like any other
        (confirmation(0, 2, winner=0, baseline=0), [0, 2, 1]),
        (confirmation(99, 2), [2, 1, 0]),  # of a trial that is gone
    ],
    ids=["two", "baseline between", "baseline won", "deleted"],
)
def test_what_was_confirmed_is_exported_first(
    tmp_path: Path, study: optuna.Study, file: StudyFile, found: Confirmation, order: list[int]
) -> None:
    study._storage.set_study_system_attr(study._study_id, CONFIRMED, found.model_dump(mode="json"))
    assert [trial_of(path) for path in export(study, file, tmp_path / "best.yaml", top=3)] == order


def test_confirmed_file_says_what_was_found_beside_the_metrics_of_its_trial(
    tmp_path: Path, study: optuna.Study, file: StudyFile
) -> None:
    found = confirmation(2, 1, 0, baseline=0)
    study._storage.set_study_system_attr(study._study_id, CONFIRMED, found.model_dump(mode="json"))
    paths = export(study, file, tmp_path / "best.yaml", top=3)
    winner, other, baseline = (yaml.safe_load(path.read_text())["confirmed"] for path in paths)
    assert winner == {
        "study": "small/confirm",
        "seeds": 5,
        "mean": SCORES,
        "spread": SCORES,
        "against": "v4",
        "gain": {"value": 0.03, "interval": [0.01, 0.05]},
        "dropped": None,
        "test": SCORES,
        "test_seeds": 4,
        "test_gain": {"value": 0.02, "interval": [-0.01, 0.05]},
        "verdict": "indistinguishable",
    }
    not_judged = {"test": None, "test_seeds": None, "test_gain": None, "verdict": None}
    assert other == winner | not_judged
    assert baseline == winner | {"gain": None, "test_gain": None, "verdict": None}
    assert read_best_file(paths[0])[0].metrics["spearman"].value == FOUND["spearman"]


def test_trial_that_its_pruner_stopped_is_to_be_stopped_there_again(
    tmp_path: Path, study: optuna.Study, file: StudyFile
) -> None:
    best = read_best_file(export(study, file, tmp_path / "best.yaml")[0])[0]
    assert best.early_stopping.stop_epoch is None
    study._storage._studies[study._study_id].trials[1].user_attrs["stop_reason"] = "overtaken"  # type: ignore[attr-defined]
    best = read_best_file(export(study, file, tmp_path / "best.yaml")[0])[0]
    assert best.early_stopping.stop_epoch == FOUND["stop_epoch"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("schema_version: 1", "schema_version: 2", "2: schema_version"),
        ("  num_train_epochs:", "  num_epochs:", "unknown key 'training_arguments.num_epochs'"),
        ("  weight_decay: 0.01", "  weight_decay: -1.0", "weight_decay"),
        ("threshold:", "treshold:", "unknown key 'treshold'"),
        ("bf16: false", "bf16: no", "bf16: Input should be a valid boolean, found 'no'"),
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


def test_trial_that_no_worker_recorded_is_refused_with_a_sentence(
    tmp_path: Path, study: optuna.Study, file: StudyFile
) -> None:
    best = next(trial for trial in study.get_trials() if trial.number == 1)
    bare: dict[str, Any] = {name: best.user_attrs[name] for name in METRICS}
    study.add_trial(optuna.trial.create_trial(value=0.99, user_attrs=bare))
    with pytest.raises(InputError, match=r"has no stop_reason, .*no worker recorded it"):
        export(study, file, tmp_path / "best.yaml")
    assert not (tmp_path / "best.yaml").exists()

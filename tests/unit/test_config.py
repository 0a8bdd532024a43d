"""The study file: read whole, refused with file and line, and identified by what decides its trials."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hpo.config import MAY_CHANGE
from hpo.config import StudyFile
from hpo.config import fingerprint
from hpo.config import searched
from hpo.config import trial_config
from hpo.errors import InputError
from hpo.study_file import read_study_file
from hpo.yamlfile import read_yaml
from objectives.config import Mining
from objectives.config import Training
from objectives.incidents import file_sha256
from objectives.reading import DataError
from search_spaces.space import Preset
from search_spaces.space import edges
from search_spaces.space import preset_names
from search_spaces.space import preset_path

SMALL = "name: small\nincidents: {path: data/incidents.csv}\nbudget: {trials: 9}\n"
RATE = "space:\n  parameters:\n    learning_rate: {type: float, low: 1e-5, high: 0.1, log: true}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the incidents that SMALL names. Only their bytes matter here."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "incidents.csv").write_text("number\n1\n")
    return tmp_path


def read(folder: Path, text: str) -> StudyFile:
    path = folder / "study.yaml"
    path.write_text(text)
    return read_study_file(path)


def test_paths_are_relative_to_the_file_and_the_data_are_pinned(folder: Path) -> None:
    (folder / "encoder").mkdir()
    file = read(folder, SMALL + "model: static:encoder\n")
    assert file.incidents.path == str(folder / "data" / "incidents.csv")
    assert file.incidents.sha256 == file_sha256(folder / "data" / "incidents.csv")
    assert file.model == f"static:{folder / 'encoder'}"


def test_a_model_that_is_no_folder_keeps_its_name(folder: Path) -> None:
    assert read(folder, SMALL + "model: sentence-transformers/all-mpnet-base-v2\n").model.startswith("sentence-")


@pytest.mark.parametrize(("model", "kind"), [("static:x", "static"), ("x", "transformer")])
def test_the_preset_is_written_out_for_the_kind_of_model(folder: Path, model: str, kind: str) -> None:
    file = read(folder, SMALL + f"model: {model}\nspace: quick_wins\n")
    assert file.space == getattr(read_yaml(preset_path("quick_wins"), Preset), kind)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("space: no_such\n", "no space 'no_such'; the presets are .*quick_wins"),
        ("training: {scale: 20}\n", "scale: both searched .space. and fixed .training."),
        (RATE.replace("learning_rate", "learning_rte"), "space: no such parameter of training or mining: learning_rte"),
        ("space: 3\n", r"4: space"),
        (RATE.replace("low: 1e-5", "low: 1"), r"6: space.parameters.learning_rate.*low 1.0 must be below high 0.1"),
        (RATE.replace("low: 1e-5", "low: 0"), r"6: space.parameters.learning_rate.*must start above 0"),
        (RATE.replace("float", "real"), r"6: space.parameters.learning_rate"),
        (RATE + "  baselines:\n    v4: {epochs: 3}\n", "4: space.*baseline 'v4' must give exactly the parameters"),
        (RATE.replace("high: 0.1", "high: 1.0").replace("learning_rate", "epochs"), "space: epochs cannot be 1e-05"),
        (RATE + "  baselines: {v4: {learning_rate: 0}}\n", "space: learning_rate cannot be 0"),
        ("targets: {recall: 0.8}\n", "4: targets.recall"),
        ("splits: {validation: 0.6, test: 0.4}\n", "4: splits.* leave nothing to train on"),
        ("pairs: {positive_share: 0.8, same_category_share: 0.3}\n", "4: pairs.*at most 1"),
        ("training:\n  patience: never\n", "5: training.patience"),
        ("training: {learning_rate: .inf}\n", "4: training.learning_rate"),
        ("mining: {hard_negatives: bm25}\n", "4: mining.hard_negatives"),
        ("mining: {train_pairs: 500001}\n", "4: mining.train_pairs"),
        ("mining: {min_similarity: 0.9, max_similarity: 0.1}\n", "4: mining.*0.9 is not below max_similarity 0.1"),
        ("labels: {small_classes: hide}\n", "4: labels.small_classes"),
        ("labels: {near_text: 1.5}\n", "4: labels.near_text"),
    ],
    ids=lambda value: str(value).replace("\n", "|")[:32],
)
def test_a_study_that_cannot_be_is_refused_with_file_and_place(folder: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=f"^{folder / 'study.yaml'}:(.*{complaint})"):
        read(folder, SMALL + text)


def test_a_budget_smaller_than_the_baselines_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="a budget of 1 trials is too small for the baselines"):
        read(folder, SMALL.replace("trials: 9", "trials: 1"))


def test_incidents_that_are_not_there_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=f"{folder / 'data' / 'none.csv'}: cannot be read"):
        read(folder, SMALL.replace("incidents.csv", "none.csv"))


@pytest.mark.parametrize(
    "changed",
    [
        SMALL.replace("trials: 9", "trials: 99"),
        SMALL + "targets: {f1: 0.5}\n",
        SMALL.replace("data/", "moved/"),
        SMALL + "lease_s: 5\npatience_s: 60\n",
    ],
    ids=["budget", "targets", "place of the data", "lease and patience"],
)
def test_what_does_not_decide_a_result_may_change_while_a_study_lives(folder: Path, changed: str) -> None:
    shutil.copytree(folder / "data", folder / "moved")
    assert fingerprint(read(folder, SMALL)) == fingerprint(read(folder, changed))


CHANGES: dict[str, Any] = {
    "name": "other",
    "incidents": {"path": "incidents.csv", "columns": {"category": "kind"}},
    "labels": {"near": 0.8},
    "splits": {"seed": 1},
    "pairs": {"seed": 1},
    "mining": {"false_negatives": "mask"},
    "model": "other",
    "model_revision": "other",
    "max_seq_tokens": 64,
    "training": {"weight_decay": 0.01},
    "space": {"parameters": {"epochs": {"type": "int", "low": 1, "high": 2}}},
    "pruner": {"startup_trials": 9},
    "seed": 1,
    "threads": 2,
}


@pytest.mark.parametrize("key", sorted(StudyFile.model_fields.keys() - set(MAY_CHANGE)))
def test_anything_else_changes_the_fingerprint(key: str) -> None:
    start = {"name": "small", "incidents": {"path": "incidents.csv"}, "budget": {"trials": 9}}
    changed = StudyFile.model_validate(start | {key: CHANGES[key]})
    assert fingerprint(StudyFile.model_validate(start)) != fingerprint(changed)


def test_the_fingerprint_follows_the_bytes_of_the_incidents(folder: Path) -> None:
    before = fingerprint(read(folder, SMALL))
    (folder / "data" / "incidents.csv").write_text("number\n2\n")
    assert before != fingerprint(read(folder, SMALL))


def test_a_trial_trains_with_its_parameters_over_the_files(folder: Path) -> None:
    file = read(folder, SMALL + RATE + "training: {batch_size: 64}\nseed: 5\n")
    config = trial_config(file, {"learning_rate": 0.01}, number=3)
    assert config.training == Training(learning_rate=0.01, batch_size=64)
    assert (config.seed, config.incidents, config.model) == (8, file.incidents, file.model)


@pytest.mark.parametrize("kind", ["static", "transformer"])
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_holds_values_that_a_trial_accepts(folder: Path, name: str, kind: str) -> None:
    file = read(folder, SMALL + f"model: {kind}:x\nspace: {name}\n")
    for values in [*edges(searched(file).parameters), *searched(file).baselines.values()]:
        config = trial_config(file, values)
        assert (config.training.model_dump() | config.mining.model_dump()).items() >= values.items()


def test_no_name_is_both_of_training_and_of_mining() -> None:
    """A space tells them apart by their names alone."""
    assert not Training.model_fields.keys() & Mining.model_fields.keys()

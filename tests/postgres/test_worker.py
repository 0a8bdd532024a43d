"""Real workers and their trainers: what they record, and what is left of a trial that was cut short."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from hpo.study import create_study
from hpo.study_file import read_study_file
from storage.native import PostgresStorage
from tests.canaries import TICKET

Start = Callable[..., subprocess.Popen[str]]
SECRETS = {"PGPASSWORD": "canary", "PGAPPNAME": "canary", "AWS_SECRET_ACCESS_KEY": "canary"}
METRICS = {"spearman", "spearman_binary", "roc_auc", "pr_auc", "f1"}
V4 = {"learning_rate": 1e-5, "epochs": 8}  # outside of the bounds of the space


@dataclass(frozen=True)
class Ended:
    code: int
    log: str
    seconds: float


@dataclass(frozen=True)
class Scenes:
    """Studies that workers have worked on, and how those ended."""

    studies: dict[str, optuna.Study]
    finished: Ended
    trainer_environment: dict[str, str]
    terminated: Ended
    cut_short: FrozenTrial  # as the terminated worker left it
    killed: Ended  # the next worker on that study, whose trainer was killed before
    orphan: psutil.Process  # its second trainer
    third: Ended  # the worker after that
    without_incidents: Ended


@pytest.fixture(scope="module")
def scenes(module_database: URL, canary_study: Path, start: Start) -> Scenes:
    """All at once, as most of the time goes into loading torch."""
    paths = {name: copy_study(canary_study, name) for name in ("finished", "interrupted", "robbed")}
    studies = {name: create(module_database, path) for name, path in paths.items()}
    paths["robbed"].with_name("incidents.csv").unlink()

    def start_worker(name: str) -> subprocess.Popen[str]:
        home = {"HPO_HOME": str(paths[name].parent)} if name == "robbed" else {}  # the others' keeps the incidents
        return start(module_database, "-m", "hpo", "worker", name, **SECRETS, **home)

    workers = {name: start_worker(name) for name in studies}
    log_of_finished = read_until(workers["finished"], "trial 0 started")
    environment = trainer_of(workers["finished"]).environ()
    begun = read_until(workers["interrupted"], "trial 0 report")
    workers["interrupted"].terminate()
    terminated = end(workers["interrupted"], begun)
    cut_short = studies["interrupted"].get_trials()[0]
    killed = start_worker("interrupted")
    log = read_until(killed, "trial 0 started")
    trainer_of(killed).kill()
    log += read_until(killed, "trial 0 report")
    orphan = trainer_of(killed)
    killed.kill()
    return Scenes(
        studies=studies,
        finished=end(workers["finished"], log_of_finished),
        trainer_environment=environment,
        terminated=terminated,
        cut_short=cut_short,
        killed=end(killed, log),
        orphan=orphan,
        third=end(start_worker("interrupted"), ""),
        without_incidents=end(workers["robbed"], ""),
    )


def copy_study(path: Path, name: str) -> Path:
    folder = path.parent / name
    folder.mkdir()
    (folder / "incidents.csv").write_bytes(path.with_name("incidents.csv").read_bytes())
    (folder / "study.yaml").write_text(path.read_text().replace("name: small", f"name: {name}"))
    return folder / "study.yaml"


def create(database: URL, path: Path) -> optuna.Study:
    return create_study(database, PostgresStorage(database), read_study_file(path))


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The lines of its log up to the first with these words."""
    assert process.stdout
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    pytest.fail(f"no {words!r} in the log:\n{''.join(lines)}")


def end(process: subprocess.Popen[str], begun: str) -> Ended:
    started = time.monotonic()
    rest = process.communicate(timeout=120)[0]
    return Ended(process.returncode, begun + rest, time.monotonic() - started)


def trainer_of(worker: subprocess.Popen[str]) -> psutil.Process:
    while worker.poll() is None:  # it starts at any moment
        for child in psutil.Process(worker.pid).children():
            if "objectives.trainer" in child.cmdline():
                return child
    pytest.fail("the worker has ended")


def summary(study: optuna.Study) -> list[tuple[int, TrialState]]:
    return [(trial.number, trial.state) for trial in study.get_trials()]


ALL_COMPLETE = [(number, TrialState.COMPLETE) for number in range(3)]


def test_worker_finishes_a_study_with_exactly_its_budget(scenes: Scenes) -> None:
    assert scenes.finished.code == 0, scenes.finished.log
    assert summary(scenes.studies["finished"]) == ALL_COMPLETE


def test_baseline_outside_the_bounds_is_recorded_as_given_under_the_distribution_of_the_study(scenes: Scenes) -> None:
    baseline, *searched = scenes.studies["finished"].get_trials()
    assert baseline.params == V4
    assert baseline.user_attrs["baseline"] == "v4"
    assert baseline.distributions == searched[0].distributions == searched[1].distributions
    assert baseline.distributions["epochs"] == optuna.distributions.IntDistribution(1, 2)


def test_every_outcome_says_how_good_it_is_and_why_it_stopped(scenes: Scenes) -> None:
    for trial in scenes.studies["finished"].get_trials():
        found = trial.user_attrs
        assert found.keys() >= METRICS | {"threshold", "device", "train_pairs", "best_epoch"}
        assert found["intervals"].keys() == found["ceilings"].keys() == METRICS
        assert found["untrained"].keys() == METRICS | {"threshold"}
        assert all(math.isfinite(found[metric]) and found[metric] <= found["ceilings"][metric] for metric in METRICS)
        assert (found["stop_reason"], found["stop_epoch"]) == ("completed", trial.params["epochs"])
        assert trial.value == found["spearman"] == max(trial.intermediate_values.values())


def test_reports_come_at_fixed_numbers_of_examples(scenes: Scenes) -> None:
    for trial in scenes.studies["finished"].get_trials():
        pairs = trial.user_attrs["train_pairs"]
        *steps, last = sorted(trial.intermediate_values)
        assert steps == list(range(200, last, 200))
        assert last == pairs * trial.params["epochs"]


def test_environment_of_the_trainer_holds_no_database_and_no_secret(scenes: Scenes) -> None:
    found = scenes.trainer_environment
    assert "PATH" in found
    assert not [name for name in found if name.startswith(("HPO_", "PG"))]
    assert not [name for name, value in found.items() if "canary" in value or "postgresql" in value]


def test_text_of_tickets_is_in_no_log_and_no_row(
    scenes: Scenes, module_database: URL, canary_study: Path, rows: Callable[[URL], dict[str, list[str]]]
) -> None:
    assert canary_study.with_name("incidents.csv").read_text().count(f"{TICKET} ") >= 600
    workers = (scenes.finished, scenes.terminated, scenes.killed, scenes.third, scenes.without_incidents)
    assert not [worker.log for worker in workers if TICKET in worker.log]
    dump = rows(module_database)
    assert len(dump["trials"]) >= 7
    assert not [row for table in dump.values() for row in table if TICKET in row]


def test_terminated_worker_gives_its_trial_back_in_time(scenes: Scenes) -> None:
    assert scenes.terminated.code == 75, scenes.terminated.log
    assert scenes.terminated.seconds < 15
    assert (scenes.cut_short.state, scenes.cut_short.params) == (TrialState.WAITING, V4)


def test_trial_survives_two_workers_and_a_trainer_and_completes(scenes: Scenes) -> None:
    assert scenes.third.code == 0, scenes.third.log
    study = scenes.studies["interrupted"]
    assert summary(study) == ALL_COMPLETE
    assert study.get_trials()[0].params == V4


def test_trial_that_was_cut_short_again_and_again_ends_with_the_bits_of_one_that_was_not(scenes: Scenes) -> None:
    undisturbed, trial = (scenes.studies[name].get_trials()[0] for name in ("finished", "interrupted"))
    assert (trial.value, trial.intermediate_values) == (undisturbed.value, undisturbed.intermediate_values)
    assert {key: trial.user_attrs[key] for key in METRICS} == {key: undisturbed.user_attrs[key] for key in METRICS}
    assert "already reported" not in scenes.third.log


def test_next_worker_goes_on_from_the_checkpoint_of_the_one_that_was_terminated(scenes: Scenes) -> None:
    found = re.search(r"trial 0 resumed: from (\d+) examples", scenes.killed.log)
    assert found, scenes.killed.log
    assert int(found[1]) >= 200


def test_checkpoints_of_a_recorded_trial_are_gone(scenes: Scenes, checkpoints: Path) -> None:
    assert not [path for path in checkpoints.rglob("*") if path.is_file()]


def test_termination_of_a_worker_does_not_count_as_an_attempt(scenes: Scenes) -> None:
    assert "trial 0 is WAITING: the trainer process ended with code -9 (attempt 1)\n" in scenes.killed.log


def test_trainer_goes_when_its_worker_is_killed(scenes: Scenes) -> None:
    assert scenes.killed.code == -9
    deadline = time.monotonic() + 10
    with contextlib.suppress(psutil.NoSuchProcess):
        while scenes.orphan.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline


def test_worker_without_the_incidents_stops_with_a_sentence_before_it_claims_a_trial(scenes: Scenes) -> None:
    assert scenes.without_incidents.code == 78, scenes.without_incidents.log
    last = scenes.without_incidents.log.splitlines()[-1]
    assert last.startswith("hpo: /")
    assert last.endswith("robbed/incidents.csv: cannot be read (No such file or directory)")
    assert "Traceback" not in scenes.without_incidents.log
    (trial,) = scenes.studies["robbed"].get_trials()
    assert (trial.state, trial.params) == (TrialState.WAITING, {})  # it was not claimed


def test_trial_whose_trainer_dies_three_times_fails(database: URL, study_yaml: Path, start: Start) -> None:
    study = create(database, study_yaml)
    worker = start(database, "-m", "hpo", "worker", "small")
    for _ in range(3):
        read_until(worker, "trial 0 started")
        trainer_of(worker).kill()
    read_until(worker, "trial 0 is FAIL: the trainer process ended with code -9 (attempt 3)")
    trial = study.get_trials()[0]
    assert (trial.number, trial.state, trial.params) == (0, TrialState.FAIL, V4)
    assert trial.user_attrs["trace"] == "the trainer process ended with code -9, three times"


def test_parameters_that_contradict_each_other_are_infeasible(database: URL, study_yaml: Path, start: Start) -> None:
    before, _, after = study_yaml.read_text().partition("space:\n")
    crossing = """space:
  parameters:
    min_similarity: {type: float, low: 0.7, high: 0.9}
    max_similarity: {type: float, low: 0.1, high: 0.3}
"""
    study_yaml.write_text(before + crossing + after[after.index("lease_s") :])
    study = create(database, study_yaml)
    ended = end(start(database, "-m", "hpo", "worker", "small"), "")
    assert ended.code == 0, ended.log
    assert [trial.state for trial in study.get_trials()] == [TrialState.PRUNED] * 3
    assert all(trial.user_attrs["reason"] == "Contradictory" for trial in study.get_trials())

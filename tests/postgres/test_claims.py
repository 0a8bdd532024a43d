"""Claims: a budget is kept exactly, and what a dead worker held is taken up again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from collections.abc import Iterator

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from storage.claims import TRIAL_LOCK
from storage.claims import Claims
from storage.engine import open_engine
from storage.engine import open_storage

Query = Callable[..., list[tuple[object, ...]]]
Start = Callable[..., subprocess.Popen[str]]
BUDGET = 20
OPEN = """
import json, optuna
from hpo.connect import storage_url
from storage.claims import Claims
from storage.engine import open_storage
def open_claims():
    sampler = optuna.samplers.RandomSampler()
    study = optuna.load_study(study_name="study", storage=open_storage(storage_url()), sampler=sampler)
    return study, Claims(storage_url(), study)
"""
CLAIM_ALL = f"""{OPEN}
go()
study, claims = open_claims()
told = []
with claims:
    while (trial := claims.claim({BUDGET})) is not None:
        study.tell(trial, trial.suggest_float("x", 0, 1))
        claims.release(trial)
        told.append(trial.number)
print(json.dumps(told))
"""
CLAIM_AND_WAIT = f"""{OPEN}
study, claims = open_claims()
trial = claims.claim({BUDGET})
x = trial.suggest_float("x", 0, 1)
trial.report(x, 1)
print(json.dumps([trial.number, x]), flush=True)
input()
"""


@pytest.fixture
def study(database: URL) -> optuna.Study:
    return optuna.create_study(study_name="study", storage=open_storage(database), direction="maximize")


@pytest.fixture
def claims(database: URL, study: optuna.Study) -> Iterator[Claims]:
    with Claims(database, study) as held:
        yield held


@pytest.fixture
def claimer(database: URL, study: optuna.Study, start: Start) -> subprocess.Popen[str]:
    """A process that is about to print number and `x` of the trial that it holds and has reported on."""
    return start(database, "-c", CLAIM_AND_WAIT)


def held_by(claimer: subprocess.Popen[str]) -> tuple[int, float]:
    assert claimer.stdout
    number, x = json.loads(claimer.stdout.readline())
    return number, x


def kill(claimer: subprocess.Popen[str], query: Query, database: URL) -> None:
    """Returns when the server has noticed: the lock on the trial (number 1 in the table) can be had again."""
    claimer.kill()
    claimer.wait()
    query(database, "SELECT pg_advisory_lock(%s, 1)", TRIAL_LOCK)


def test_eight_processes_end_with_exactly_the_budget(
    database: URL, study: optuna.Study, at_once: Callable[..., list[str]]
) -> None:
    study.enqueue_trial({"x": 0.5})
    told = sorted(number for output in at_once(database, CLAIM_ALL) for number in json.loads(output))
    assert told == list(range(BUDGET))
    assert [trial.number for trial in study.get_trials()] == told
    assert {trial.state for trial in study.get_trials()} == {TrialState.COMPLETE}


def test_waiting_trials_come_first_and_count_towards_the_budget(study: optuna.Study, claims: Claims) -> None:
    for x in (0.25, 0.75):
        study.enqueue_trial({"x": x})
    found = []
    while (trial := claims.claim(3)) is not None:
        found.append((trial.number, trial.suggest_float("x", 0, 1)))
        study.tell(trial, 0.0)
        claims.release(trial)
    assert found[:2] == [(0, 0.25), (1, 0.75)]
    assert [number for number, _ in found] == [0, 1, 2]


def test_trial_of_a_killed_claimer_comes_next_without_its_reports(
    database: URL, study: optuna.Study, claims: Claims, claimer: subprocess.Popen[str], query: Query
) -> None:
    number, x = held_by(claimer)
    kill(claimer, query, database)
    trial = claims.claim(BUDGET)
    assert trial is not None
    assert (trial.number, trial.params) == (number, {"x": x})
    assert trial.suggest_float("x", 0, 1) == x
    trial.report(0.125, 1)
    study.tell(trial, 1.0)
    assert [(t.number, t.intermediate_values) for t in study.get_trials()] == [(0, {1: 0.125})]


def test_fault_in_the_middle_of_a_claim_leaves_no_old_reports(
    database: URL, study: optuna.Study, claims: Claims, claimer: subprocess.Popen[str], query: Query
) -> None:
    held_by(claimer)
    kill(claimer, query, database)
    query(database, "CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''fault''; END'")
    query(
        database,
        "CREATE TRIGGER fault BEFORE UPDATE ON trials FOR EACH ROW"
        " WHEN (OLD.state = 'WAITING' AND NEW.state = 'RUNNING') EXECUTE FUNCTION fault()",
    )
    with pytest.raises(optuna.exceptions.StorageInternalError):
        claims.claim(BUDGET)
    query(database, "DROP TRIGGER fault ON trials")
    assert claims.claim(BUDGET) is not None
    assert [(t.number, t.state, t.intermediate_values) for t in study.get_trials()] == [(0, TrialState.RUNNING, {})]


def test_trial_of_a_live_claimer_is_never_swept(
    study: optuna.Study, claims: Claims, claimer: subprocess.Popen[str]
) -> None:
    number, x = held_by(claimer)
    for _ in range(3):
        trial = claims.claim(BUDGET)
        assert trial is not None
        assert trial.number != number
        study.tell(trial, 0.0)
        claims.release(trial)
    held = study.get_trials()[number]
    assert (held.state, held.intermediate_values) == (TrialState.RUNNING, {1: x})


def test_trial_that_ends_in_the_middle_of_a_sweep_stays_ended(
    database: URL, study: optuna.Study, claims: Claims, claimer: subprocess.Popen[str], start: Start, query: Query
) -> None:
    held_by(claimer)
    trial = claims.claim(BUDGET)
    assert trial is not None
    kill(claimer, query, database)
    with open_engine(database).begin() as connection:  # the sweep has read both trials and waits at the first
        connection.execute(text("SELECT FROM trials WHERE number = 0 FOR UPDATE"))
        sweeper = start(database, "-c", CLAIM_AND_WAIT)
        while not query(database, "SELECT pid FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"):
            assert sweeper.poll() is None
        study.tell(trial, 1.0)
        claims.release(trial)
    assert held_by(sweeper)[0] == 0
    assert [t.state for t in study.get_trials()] == [TrialState.RUNNING, TrialState.COMPLETE]


def test_claimer_never_sweeps_its_own_trial(study: optuna.Study, claims: Claims) -> None:
    first, second = claims.claim(BUDGET), claims.claim(BUDGET)
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (0, 1)


def test_running_trial_of_another_counts_towards_the_budget(claims: Claims, claimer: subprocess.Popen[str]) -> None:
    held_by(claimer)
    assert claims.claim(1) is None
    assert claims.counts() == {"finished": 0, "running": 1}


def test_trial_given_back_keeps_number_and_parameters(study: optuna.Study, claims: Claims) -> None:
    trial = claims.claim(BUDGET)
    assert trial is not None
    x = trial.suggest_float("x", 0, 1)
    trial.report(0.5, 1)
    claims.give_back(trial)
    waiting = study.get_trials()[0]
    assert (waiting.state, waiting.params, waiting.intermediate_values) == (TrialState.WAITING, {"x": x}, {})
    again = claims.claim(BUDGET)
    assert again is not None
    assert (again.number, again.suggest_float("x", 0, 1)) == (trial.number, x)


def test_claimer_that_lost_its_connection_is_told_so(database: URL, claims: Claims, query: Query) -> None:
    claims.claim(BUDGET)
    of_here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    query(database, f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE classid = {TRIAL_LOCK} AND {of_here}")
    with pytest.raises(DBAPIError):
        claims.claim(BUDGET)

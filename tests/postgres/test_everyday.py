"""What users of Optuna and PostgreSQL do besides: threads, roles, several hosts, deletions by hand, odd attributes."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo.study import create_study
from hpo.study_file import read_study_file
from storage.connection import Connection
from storage.engine import StorageError, open_rdb_storage
from storage.leases import LeaseLost
from storage.native import PostgresStorage

Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def study(database: URL) -> optuna.Study:
    return optuna.create_study(study_name="study", storage=PostgresStorage(database), direction="maximize")


def test_threads_share_one_storage(study: optuna.Study) -> None:
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=60, n_jobs=4)
    assert [(t.number, t.state) for t in study.get_trials()] == [(n, TrialState.COMPLETE) for n in range(60)]


@pytest.mark.parametrize("role", ["hpo", "optuna", "Service Desk"])
def test_any_role_may_own_the_database_and_use_plain_optuna_beside(server_url: URL, query: Query, role: str) -> None:
    name = f"of_{role.lower().replace(' ', '_')}"
    query(server_url, f'CREATE ROLE "{role}" LOGIN')
    query(server_url, f'CREATE DATABASE {name} OWNER "{role}" TEMPLATE template0')
    url = server_url.set(database=name, username=role)
    try:
        study = optuna.create_study(study_name="study", storage=PostgresStorage(url))
        plain = optuna.load_study(study_name="study", storage=open_rdb_storage(url))
        plain.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        assert len(study.get_trials()) == 2
    finally:
        query(server_url, f"DROP DATABASE {name} WITH (FORCE)")
        query(server_url, f'DROP ROLE "{role}"')


def test_claim_that_had_to_reconnect_sweeps_nobody(database: URL, study: optuna.Study, query: Query) -> None:
    one, other = PostgresStorage(database), PostgresStorage(database)
    one.manage(study._study_id, 9, lease_s=0.5)
    one.get_all_trials(study._study_id)
    held = other.claim(study._study_id, "other").trial_id
    time.sleep(0.6)  # the lease itself
    here = "datname = current_database() AND pid <> pg_backend_pid()"
    query(database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {here}")
    assert one.claim(study._study_id, "one").trial_id != held
    assert held is not None
    other.set_trial_state_values(held, TrialState.COMPLETE, [1.0])


def test_host_that_hangs_is_passed_over(server_url: URL, database: URL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        url = database.set(query={"host": f"127.0.0.1,{server_url.query['host']}", "port": f"{port},5432"})
        assert Connection(url).run("SELECT 1", timeout_s=2) == [(1,)]


def test_host_without_a_name_is_passed_over_and_alone_refused_at_once(server_url: URL, database: URL) -> None:
    hosts = {"host": f"nowhere.invalid,{server_url.query['host']}", "port": "5432,5432"}
    assert Connection(database.set(query=hosts)).run("SELECT 1") == [(1,)]
    alone = URL.create("postgresql+psycopg2", "u", host="nowhere.invalid", database="d")
    with pytest.raises(StorageError, match="cannot be reached: could not translate host name"):
        Connection(alone).persist("SELECT 1", patience_s=600)


def test_trials_deleted_by_hand_hide_no_others(database: URL, study: optuna.Study, query: Query) -> None:
    storage = PostgresStorage(database)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=6)
    gone = study.get_trials()[2]._trial_id
    for table in ("trial_values", "trial_params", "trials"):
        query(database, f"DELETE FROM {table} WHERE trial_id = %s", gone)
    storage.manage(study._study_id, 99, lease_s=60)
    claim = storage.claim(study._study_id, "worker")
    assert claim.trial_id is not None
    storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE, [1.0])
    for reader in (PostgresStorage(database), storage, open_rdb_storage(database)):
        assert [trial.number for trial in reader.get_all_trials(study._study_id)] == [0, 1, 3, 4, 5, 6]


BAD_ATTRIBUTES = [
    ("tags", {"a", "b"}),
    ("count", np.int64(3)),
    ("raw", b"x"),
    ("a\0b", 1),
    ("n" * 513, 1),
    ("\ud800", 1),
]


@pytest.mark.parametrize(("key", "value"), BAD_ATTRIBUTES, ids=[repr(key)[:9] for key, _ in BAD_ATTRIBUTES])
def test_attribute_that_cannot_be_stored_is_refused_when_it_is_set(
    database: URL, study: optuna.Study, key: str, value: object
) -> None:
    storage = PostgresStorage(database)
    storage.manage(study._study_id, 9, lease_s=60)
    trial_id = storage.claim(study._study_id, "worker").trial_id
    assert trial_id is not None
    with pytest.raises((TypeError, ValueError)):
        storage.set_trial_user_attr(trial_id, key, value)
    assert storage.get_trial(trial_id).user_attrs == {}
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])


def test_waiting_trial_has_not_begun(database: URL, study: optuna.Study) -> None:
    study.enqueue_trial({"x": 0.5})
    optuna.load_study(study_name="study", storage=open_rdb_storage(database)).enqueue_trial({"x": 0.25})
    assert [trial.datetime_start for trial in study.get_trials()] == [None, None]


def test_study_deleted_under_a_claim_is_a_lost_trial_or_a_missing_one(database: URL, study: optuna.Study) -> None:
    storage = PostgresStorage(database)
    storage.manage(study._study_id, 9, lease_s=60)
    trial_id = storage.claim(study._study_id, "worker").trial_id
    assert trial_id is not None
    optuna.delete_study(study_name="study", storage=open_rdb_storage(database))
    with pytest.raises((LeaseLost, KeyError)):
        storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    with pytest.raises(KeyError):
        storage.claim(study._study_id, "worker")


def test_worker_whose_study_is_deleted_ends_with_a_sentence(
    database: URL, study_yaml: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    create_study(database, PostgresStorage(database), read_study_file(study_yaml))
    worker = start(database, "-m", "hpo", "worker", "small")
    assert worker.stdout
    log = ""
    while "trial 0 started" not in log:
        log += worker.stdout.readline()
    optuna.delete_study(study_name="small", storage=open_rdb_storage(database))
    log += worker.communicate(timeout=60)[0]
    assert worker.returncode == 2, log
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "hpo: study 'small' was deleted while this worker ran; its trial is gone with it"


def test_role_that_may_not_create_is_told_what_to_grant(server_url: URL, query: Query) -> None:
    query(server_url, "CREATE ROLE poor LOGIN")
    query(server_url, "CREATE DATABASE of_another TEMPLATE template0")
    try:
        with pytest.raises(Exception, match="GRANT CREATE ON DATABASE"):
            PostgresStorage(server_url.set(database="of_another", username="poor"))
        tables = query(
            server_url.set(database="of_another"), "SELECT count(*) FROM pg_tables WHERE tablename = 'trials'"
        )
        assert tables == [(0,)]
    finally:
        query(server_url, "DROP DATABASE of_another WITH (FORCE)")
        query(server_url, "DROP ROLE poor")

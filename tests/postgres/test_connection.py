"""One connection: deadlines, retries, and processes that fork."""

from __future__ import annotations

import pickle
import socket
import subprocess
import time
from collections.abc import Callable

import optuna
import psycopg2.errors
import pytest
from sqlalchemy import URL

from storage.connection import Connection, Unavailable
from storage.engine import StorageError
from storage.native import PostgresStorage

Query = Callable[..., list[tuple[int]]]
FORK = """
import os, optuna
from hpo.connect import storage_url
from storage.native import PostgresStorage
storage = PostgresStorage(storage_url())
study = optuna.create_study(study_name="study", storage=storage)
study.enqueue_trial({"x": 0.5})
child = os.fork()
study.enqueue_trial({"x": 0.25})
if not child:
    os._exit(0 if len(study.get_trials()) >= 2 else 1)
assert os.waitpid(child, 0)[1] == 0
print(len(study.get_trials()), storage._connection._process == os.getpid())
"""


def test_peer_that_accepts_and_never_answers_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = URL.create("postgresql+psycopg2", "u", host="127.0.0.1", port=server.getsockname()[1], database="d")
        started = time.monotonic()
        with pytest.raises(StorageError, match="cannot be reached: no answer in time"):
            Connection(url).run("SELECT 1", timeout_s=0.3)
        assert time.monotonic() - started < 2


def test_answer_that_came_too_late_is_not_taken_for_the_next_one(database: URL) -> None:
    connection = Connection(database)
    assert connection.run("SELECT 0") == [(0,)]
    with pytest.raises(Unavailable):
        connection.run("SELECT 1, pg_sleep(0.3)", timeout_s=0.1)
    assert connection.run("SELECT 2") == [(2,)]
    connection.close()


def test_call_is_tried_again_when_its_connection_was_cut(database: URL, query: Query) -> None:
    connection = Connection(database)
    [(pid,)] = connection.run("SELECT pg_backend_pid()")
    query(database, "SELECT pg_terminate_backend(%s)", pid)
    assert connection.persist("SELECT pg_backend_pid() <> %s", (pid,), patience_s=5) == [(True,)]
    connection.close()


def test_call_of_an_interrupted_process_is_not_tried_again(database: URL, query: Query) -> None:
    connection = Connection(database, interrupted=lambda: True)
    [(pid,)] = connection.run("SELECT pg_backend_pid()")
    query(database, "SELECT pg_terminate_backend(%s)", pid)
    with pytest.raises(Unavailable):
        connection.persist("SELECT 1", patience_s=60)


def test_mistake_in_a_statement_is_not_tried_again(database: URL) -> None:
    connection = Connection(database)
    with pytest.raises(psycopg2.errors.UndefinedTable):
        connection.persist("SELECT FROM nowhere", patience_s=60)
    assert connection.run("SELECT 1") == [(1,)]
    connection.close()


def test_connection_depends_on_no_setting_of_the_session(database: URL) -> None:
    odd = database.update_query_dict({"options": "-c search_path=nowhere -c timezone=Asia/Tokyo -c datestyle=German"})
    study = optuna.create_study(storage=PostgresStorage(odd))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert PostgresStorage(database).get_all_trials(study._study_id) == study.get_trials()


def test_forked_child_opens_a_connection_of_its_own(database: URL, start: Callable[..., subprocess.Popen[str]]) -> None:
    assert start(database, "-c", FORK).communicate(timeout=60)[0] == "3 True\n"


def test_storage_sent_to_another_process_works_there(database: URL) -> None:
    storage = PostgresStorage(database)
    study = optuna.create_study(storage=storage)
    sent = pickle.dumps(study._storage)
    assert pickle.loads(sent).get_all_trials(study._study_id) == []


def test_one_storage_holds_one_connection(database: URL, query: Query) -> None:
    mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    storage = PostgresStorage(database)
    study = optuna.create_study(storage=storage)
    study.tell(trial := study.ask(), trial.suggest_float("x", 0, 1))
    assert query(database, mine) == [(1,)]
    storage.remove_session()

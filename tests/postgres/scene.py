"""A study of its own for tests of what happens at once: sessions, and calls watched until they wait for another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import count
from typing import Any

import optuna
import psycopg2
from psycopg2.extensions import connection as Session
from sqlalchemy import URL

from storage.engine import open_rdb_storage
from storage.native import PostgresStorage

REQUESTS = count()
TIMEOUT_S = 60
IS_BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"


class Scene:
    """A study of its own with a long lease, and sessions of whoever works on it."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.storage = PostgresStorage(url)
        self.study_id = optuna.create_study(storage=self.storage)._study_id
        self.storage.manage(self.study_id, 100, lease_s=3600)

    @contextmanager
    def session(self) -> Iterator[Session]:
        session = psycopg2.connect(host=self.url.query["host"], user="postgres", dbname=self.url.database)
        try:
            yield session
        finally:
            session.close()

    def ask(self, statement: str, *values: object) -> Any:
        """The first row, of a transaction of its own; a row of one column as that column."""
        with self.session() as session:
            session.autocommit = True
            return ask(session, statement, *values)

    def during(self, first: Session, second: Callable[[], Any], then: Callable[[], object] = lambda: None) -> Any:
        """`second`, begun in a transaction of `first`, which does `then` and ends once `second` waits or is done."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(second)
            self.see_waiting(future, first.info.backend_pid)
            try:
                then()
            finally:
                first.commit()
            return future.result(TIMEOUT_S)

    def see_waiting(self, future: Future[Any], blocker: int) -> None:
        """Returns when the call waits for that backend, or is done."""
        with self.session() as watch:
            watch.autocommit = True
            while not wait([future], timeout=0.01).done and not ask(watch, IS_BLOCKED, blocker):
                pass

    def create(self, request: str) -> int:
        return int(self.ask(*self.creation(request)))

    def creation(self, request: str) -> tuple[Any, ...]:
        return "SELECT incident_hpo.create_v1(%s, %s, 'RUNNING', now()::timestamp, NULL, '{}')", *self.keyed(request)

    def keyed(self, request: str) -> tuple[int, str]:
        return self.study_id, f"{self.study_id} {request}"  # keys are distinct across studies

    def claim(self, request: str | None = None) -> Any:
        return self.ask(*self.claiming(request or f"request {next(REQUESTS)}"))

    def claiming(self, request: str) -> tuple[Any, ...]:
        return "SELECT * FROM incident_hpo.claim_v1(%s, %s, 'worker', 1e10)", *self.keyed(request)

    def claimed(self) -> tuple[int, int]:
        """A trial and its token."""
        verdict, trial_id, token, _ = self.claim()
        assert verdict == "claimed"
        return trial_id, token

    def save(self, trial_id: int, token: int | None, state: str | None = None, contents: str = "{}") -> Any:
        return self.ask("SELECT verdict FROM incident_hpo.save_v1(%s, %s, %s, %s)", trial_id, token, contents, state)

    def state(self, trial_id: int) -> str:
        return str(self.ask("SELECT state::text FROM trials WHERE trial_id = %s", trial_id))

    def numbers(self) -> list[int]:
        return [trial.number for trial in open_rdb_storage(self.url).get_all_trials(self.study_id)]

    def lost(self) -> tuple[int, int]:
        """A trial and its token, after a sweep has taken it back."""
        claimed = self.claimed()
        self.expire()
        assert self.sweep() == 1
        return claimed

    def renew(self, trial_id: int, token: int) -> bool:
        return bool(self.ask("SELECT incident_hpo.renew_v1(%s, %s)", trial_id, token))

    def release(self, trial_id: int, token: int) -> bool:
        return bool(self.ask("SELECT incident_hpo.release_v1(%s, %s, NULL)", trial_id, token))

    def expire(self) -> None:
        """All leases of the study have run out, and are swept for they are short."""
        self.ask("UPDATE incident_hpo.leases SET expires = '-infinity' WHERE study_id = %s", self.study_id)
        self.storage.manage(self.study_id, 100, lease_s=1e-3)

    def sweep(self, connected_s: float = 1e10) -> int:
        return int(self.ask("SELECT incident_hpo.sweep_v1(%s, %s)", self.study_id, connected_s))


def ask(session: Session, statement: str, *values: object) -> Any:
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row and len(row) == 1 else row

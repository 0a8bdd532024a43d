"""What the state machine knows of a trial, what it foretells of it, and the connections that its examples share."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg2
from sqlalchemy import URL

from storage.engine import open_rdb_storage
from storage.native import PostgresStorage

LEASE_S = 1.0  # the server must have run for so long before anything is swept
KEEP_TIME = "UPDATE incident_hpo.leases SET expires = 'infinity' WHERE study_id = %s AND isfinite(expires)"
LOOK = """SELECT t.trial_id, t.number, t.state::text, coalesce(l.held, false), coalesce(l.expires < now(), false),
    l.token IS NULL AND l.last_report IS DISTINCT FROM
        (SELECT max(i.trial_intermediate_value_id) FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id),
    l.token, l.told, coalesce(l.attempts, 0), l.request, l.params_hash,
    ROW(c.outcome, c.names, c.internals, c.reports, c.system_attrs, c.user_attrs, c.datetime_complete)::text
FROM trials t JOIN incident_hpo.contents_v1 c USING (trial_id) LEFT JOIN incident_hpo.leases l USING (trial_id)
WHERE t.study_id = %s ORDER BY t.number"""
WAIT_FOR_AGE = "SELECT pg_sleep_until(pg_postmaster_start_time() + make_interval(secs => %s))"


class Row(NamedTuple):
    trial_id: int
    number: int
    state: str
    held: bool
    expired: bool
    reported: bool  # of a holder without a token: since the last sweep
    token: int | None
    told: int | None  # the token that recorded the state
    attempts: int
    request: str | None
    params_hash: str | None
    contents: str

    @classmethod
    def new(cls, trial_id: int, number: int) -> Row:
        return cls(trial_id, number, "RUNNING", True, False, False, None, None, 0, None, None, "")

    @property
    def finished(self) -> bool:
        return self.state not in ("WAITING", "RUNNING")

    def requeued(self) -> Row:
        state = ("WAITING" if self.attempts < 3 else "FAIL") if self.state == "RUNNING" else self.state
        return self._replace(held=False, state=state)

    def swept(self) -> Row:
        """What a sweep makes of it; the trace of a third failure is not foretold."""
        if self.held and self.expired:
            return self._replace(expired=False, reported=False) if self.reported else self.requeued()
        if self.state == "RUNNING" and not self.held:
            return self._replace(held=True, expired=False, token=None, attempts=self.attempts + 1)
        return self

    def record(self) -> tuple[str, str]:
        return self.state, self.contents

    def facts(self) -> tuple[object, ...]:
        return self.trial_id, self.number, self.state, self.held, self.token, self.attempts


class Run(NamedTuple):
    """A trial in the eyes of a process that claimed it, long ago perhaps."""

    storage: PostgresStorage
    trial_id: int


class Server:
    """What examples share, for it is slow to make: connections."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.plain = open_rdb_storage(url)
        self.observer = psycopg2.connect(host=url.query["host"], user="postgres", dbname=url.database)
        self.observer.autocommit = True
        self.ask(WAIT_FOR_AGE, LEASE_S)
        self.workers = [self.worker() for _ in range(3)]
        self.steps = 0

    def worker(self) -> PostgresStorage:
        storage = PostgresStorage(self.url)
        storage.connected_s = lambda: 1e6  # type: ignore[method-assign]
        return storage

    def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self.observer.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self.observer.close()
        for storage in (self.plain, *self.workers):
            storage.remove_session()

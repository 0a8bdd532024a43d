"""One connection to PostgreSQL: every call is one round trip, one transaction, and ends by its deadline.

libpq's own waits have no end against a peer that accepts and never answers, and TCP's keepalives do not help where a
middlebox acknowledges them. So the socket is asynchronous and waited for here.
"""

from __future__ import annotations

import os
import random
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg2
from psycopg2 import extensions
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.psycopg2 import dialect
from sqlalchemy.exc import ArgumentError

from storage.engine import StorageError, label

CALL_TIMEOUT_S = 10.0
SHORTEST_S = 1.0  # of a call by somebody without patience
FIRST_DELAY_S, LONGEST_DELAY_S = 0.05, 2.0
# Conditions that pass by themselves: lost connection, rollback, resources, locks, shutdown, failed over to a replica.
TRANSIENT = ("08", "40", "53", "55P03", "57", "25006")
PASSING = ["starting up", "shutting down", "recovery", "too many", "connection slots", "accepting connections"]
PASSING += ["Temporary failure in name resolution"]  # a box that has just started
Row = tuple[Any, ...]
Values = Sequence[object] | dict[str, object] | Callable[[], Sequence[object]]


class Unavailable(Exception):
    """The database does not answer; what was sent may or may not have been done, and may be sent again."""

    exit_code = 75


class Connection:
    """Opened when first used, and again whenever it was lost. Threads take turns; a forked child opens its own."""

    def __init__(self, url: URL, interrupted: Callable[[], bool] = lambda: False) -> None:
        """While `interrupted()`, no call is tried a second time."""
        self._options = _options(url)
        self._label = label(url)
        self._interrupted = interrupted
        self._delays = random.Random(f"{os.getpid()} {id(self)}")  # distinct: workers must not come back in step
        self._psycopg: extensions.connection | None = None
        self._process = 0
        self.before = ""  # said in each message before its statement
        self.connects = 0  # how often: a server that crashed in between may lack what need not wait for its disk
        self._forget()

    def run(self, statement: str, values: Values = (), *, timeout_s: float = CALL_TIMEOUT_S) -> list[Row]:
        """One attempt. `values` may be a function, which is called once the connection stands.

        Raises Unavailable, StorageError, or the statement's own psycopg2.Error.
        """
        if self._process != os.getpid():
            self._forget()  # the parent's socket is the parent's
        with self._lock:
            try:
                return self._run(statement, values, time.monotonic() + timeout_s)
            except psycopg2.Error as error:
                if not _is_transient(error):
                    raise
                self.close()
                raise Unavailable(f"PostgreSQL at {self._label} does not serve: {_reason(error)}") from None

    def persist(self, statement: str, values: Values = (), *, patience_s: float) -> list[Row]:
        """Tries until `patience_s` is over, so the statement must be one that may be done twice. Raises as run()."""
        give_up, delay_s = time.monotonic() + patience_s, FIRST_DELAY_S
        timeout_s = min(CALL_TIMEOUT_S, max(patience_s, SHORTEST_S))
        while True:
            try:
                return self.run(statement, values, timeout_s=timeout_s)
            except Unavailable as error:
                if self._interrupted() or time.monotonic() + delay_s > give_up:
                    raise Unavailable(f"{error}. Start again when it does") from None
            time.sleep(self._delays.uniform(FIRST_DELAY_S, delay_s))
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    def connected_s(self) -> float:
        """How long the connection has held; 0 while there is none."""
        return time.monotonic() - self._since if self._psycopg else 0.0

    def close(self) -> None:
        """When no call of another thread is under way."""
        with self._lock:
            if self._psycopg is not None and self._process == os.getpid():
                self._psycopg.close()
            self._psycopg = None

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._psycopg = None
        self._since = 0.0
        self._process = os.getpid()

    def _run(self, statement: str, values: Values, deadline: float) -> list[Row]:
        if self._psycopg is None:
            self._connect(deadline)
        assert self._psycopg is not None
        cursor = self._psycopg.cursor()
        try:
            cursor.execute(self.before + statement, (values() if callable(values) else values) or None)
            self._wait(deadline)
            return cursor.fetchall() if cursor.description else []
        except BaseException as error:  # Ctrl-C too: its answer would be taken for the next one's
            if not isinstance(error, psycopg2.Error) or isinstance(error, psycopg2.InterfaceError):
                self.close()
            raise

    def _connect(self, deadline: float) -> None:
        """To the first host that lets us in, each in its share of the time: libpq would wait for one without end."""
        hosts = _hosts(self._options)
        for left, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
            now = time.monotonic()
            try:
                self._psycopg = psycopg2.connect(**self._options | host, async_=True)
                self._wait(now + (deadline - now) / left)
            except psycopg2.Error as error:
                self.close()
                if left > 1:
                    continue
                if self._since or any(words in str(error) for words in PASSING):
                    raise
                # Never connected yet: more likely a wrong URL than an outage.
                raise StorageError(f"PostgreSQL at {self._label} cannot be reached: {_reason(error)}") from None
            self._since, self.connects = time.monotonic(), self.connects + 1
            return

    def _wait(self, deadline: float) -> None:
        assert self._psycopg is not None
        while (state := self._psycopg.poll()) != extensions.POLL_OK:
            poll = select.poll()
            poll.register(self._psycopg.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                self.close()
                raise psycopg2.OperationalError("no answer in time")


def _options(url: URL) -> dict[str, Any]:
    """The URL as libpq's keywords, by the rules of SQLAlchemy's dialect: several hosts, for one."""
    sqlalchemys: Any = dialect
    try:
        options: dict[str, Any] = sqlalchemys().create_connect_args(url)[1]
    except (ArgumentError, ValueError) as error:
        raise StorageError(f"the storage URL cannot be: {str(error).splitlines()[0]}") from None
    return options | {"client_encoding": "UTF8"}


def _hosts(options: dict[str, Any]) -> list[dict[str, str]]:
    """One set of keywords for each host of a URL that names several."""
    hosts, ports = str(options.get("host", "")).split(","), str(options.get("port", "")).split(",")
    if len(hosts) == 1:
        return [{}]
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return [{"host": host} | ({"port": port} if port else {}) for host, port in zip(hosts, ports, strict=True)]


def _is_transient(error: psycopg2.Error) -> bool:
    if error.pgcode is None:  # not an answer of the server: a connection lost, or a value that cannot be sent
        return type(error) in (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.DatabaseError)
    return error.pgcode.startswith(TRANSIENT)


def _reason(error: psycopg2.Error) -> str:
    return (str(error).strip().splitlines() or ["lost"])[0]

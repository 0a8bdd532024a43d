"""Keeps a worker's lease alive while it trains, takes back what dead workers left, and hears when it is to leave."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg2
from sqlalchemy import URL

from storage.connection import CALL_TIMEOUT_S, SHORTEST_S, Connection, Unavailable
from storage.engine import StorageError
from storage.leases import Claim
from storage.native import PostgresStorage
from storage.statements import KEEP

logger = logging.getLogger(__name__)

RENEWALS = 3  # in one lease, so that two may fail
RETRY_S = 1.0


class Keeper:
    """A thread with a connection of its own: the storage's may be waiting for an answer."""

    def __init__(
        self,
        storage: PostgresStorage,
        url: URL,
        study_id: int,
        lease_s: float,
        worker: str = "",
        on_drain: Callable[[bool], None] = lambda is_known: None,
    ) -> None:
        """`worker` as it is registered, if it is. `on_drain` is called from the thread, once, when it is to leave:
        as it was told to, or as nobody knows it any more.
        """
        self._storage = storage
        self._worker, self._on_drain = worker, on_drain
        self._is_drained = False
        self._connection = Connection(url)
        storage.connections.append(self._connection)
        self._study_id = study_id
        self._interval_s = lease_s / RENEWALS
        # One that is answered later is of no use: TCP sends what was lost again after ever longer pauses.
        self._timeout_s = min(max(self._interval_s, SHORTEST_S), CALL_TIMEOUT_S)
        self._claim: Claim | None = None
        self._on_lost: Callable[[], None] = lambda: None
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns at once; a call that is waiting ends by its deadline."""
        self._ended.set()

    def hold(self, claim: Claim, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called from the thread, once, if the lease is gone."""
        with self._mutex:
            self._claim, self._on_lost = claim, on_lost

    def drop(self) -> None:
        """After this `on_lost` is not called."""
        with self._mutex:
            self._claim = None

    def _run(self) -> None:
        wait_s = 0.0
        while not self._ended.wait(wait_s):
            try:
                self._keep()
                wait_s = self._interval_s
            except (Unavailable, StorageError, psycopg2.Error) as error:
                logger.warning("lease not renewed: %s", error)
                wait_s = min(RETRY_S, self._interval_s)

    def _keep(self) -> None:
        claim = self._claim
        trial = (None, None) if claim is None else (claim.trial_id, claim.token)
        values = (*trial, self._study_id, self._worker, self._storage.connected_s(), self._worker)
        is_held, swept, drain = self._connection.run(KEEP, values, timeout_s=self._timeout_s)[0]
        if swept:
            logger.info("%d trials taken back from workers that are gone", swept)
        with self._mutex:
            if claim is not None and not is_held and self._claim is claim:
                self._claim = None
                self._on_lost()
        if drain is not False and self._worker and not self._is_drained:
            self._is_drained = True
            self._on_drain(drain is not None)

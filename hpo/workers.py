"""`hpo workers`: who works where, on any box, and sending the workers of one box away."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from rich.table import Table

from hpo.cells import clean
from hpo.connect import LOOK_PATIENCE_S, storage_url
from hpo.display import make_console
from hpo.errors import HpoError, InputError
from hpo.launcher import STOP_TIMEOUT_S
from hpo.worker_view import in_short, place_of, state_of
from storage import workers
from storage.native import PostgresStorage
from storage.workers import WorkerRow

POLL_S = 0.5
OTHER_S = 5.0  # for a worker's end to be written down


def print_workers(*, as_json: bool) -> None:
    found = workers.list_workers(_storage().ask)
    if as_json:
        print(json.dumps([asdict(row) | {"state": state_of(row)} for row in found], allow_nan=False))
        return
    make_console().print(_table(found) if found else "no worker was heard of within a day")


def drain(host: str) -> None:
    """Returns once all workers of the host have left. Raises InputError, HpoError."""
    storage = _storage()
    here = _alive_on(storage, host)
    if not here:
        others = {row.host for row in workers.list_workers(storage.ask) if row.ended is None and not row.is_silent}
        raise InputError(f"no worker runs on {host!r}; hosts with workers: {', '.join(sorted(others)) or 'none'}")
    workers.drain(storage.ask, host)
    # They hear of it when they next show themselves.
    give_up = time.monotonic() + max(row.lease_s for row in here) / 3 + STOP_TIMEOUT_S + OTHER_S
    while left := _alive_on(storage, host):
        if time.monotonic() > give_up:
            raise HpoError(f"still there: {', '.join(row.worker for row in left)}; see: hpo workers")
        time.sleep(POLL_S)
    print(f"all workers of {host} have left ({len(here)}); their trials wait for others")


def _storage() -> PostgresStorage:
    return PostgresStorage(storage_url(), patience_s=LOOK_PATIENCE_S)


def _alive_on(storage: PostgresStorage, host: str) -> list[WorkerRow]:
    found = workers.list_workers(storage.ask)
    return [row for row in found if row.host == host and row.ended is None and not row.is_silent]


def _table(found: list[WorkerRow]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("host", "device", "study"):
        table.add_column(name, overflow="fold")  # whole: somebody may copy it
    table.add_column("now", no_wrap=True, min_width=max(len(state_of(row)) for row in found))
    for name in ("seen", "done", "failed", "starts"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for row in found:
        counts = (str(row.done), str(row.failed), str(row.starts))
        place = place_of(row.slot, row.device)
        words = (row.host, place, row.study, state_of(row))
        table.add_row(*map(clean, words), in_short(row.seen_s), *counts)
    return table

"""What one PostgreSQL carries: many workers at once, real but for their trainers, which only wait and report.

Run: python -m bench.crowd [--workers 64] [--trials 1000] [--pause 1.0]. Ten reports a trial, so many seconds apart.
Prints what a trial and a worker cost; docs/scaling.md reasons from it. Fails if a worker or a trial does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sqlalchemy import URL

from bench.coordination import server
from storage.connection import Connection
from tests.chaos.crew import Crew, make_crew

REPORTS = 10
LEASE_S = 30.0
LOOK_S = 0.5
SIZES = """SELECT pg_database_size(current_database()), pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"""
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
STATES = "SELECT state::text, count(*) FROM public.trials GROUP BY 1"


@dataclass
class Meter:
    """Looks at the server while it works; ends of its processes count with what they had spent by then."""

    url: URL
    sessions: int = 0
    server_mib: float = 0.0
    worker_mib: float = 0.0
    spent: dict[int, float] = field(default_factory=dict)  # CPU s by process

    def run(self, crew: Crew, ended: threading.Event) -> None:
        connection = Connection(self.url)
        while not ended.wait(LOOK_S):
            self.sessions = max(self.sessions, connection.run(SESSIONS)[0][0])
            servers = [process for process in psutil.process_iter() if process.name() == "postgres"]
            self.server_mib = max(self.server_mib, sum(map(_own_mib, servers)))
            for process in servers:
                self.spent[process.pid] = _cpu_s(process)
            alive = [psutil.Process(process.pid) for process in crew.alive() if process.pid]
            self.worker_mib = max(self.worker_mib, sum(map(_own_mib, alive)) / max(len(alive), 1))
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two reports")
    given = parser.parse_args()
    with server() as url, tempfile.TemporaryDirectory() as folder:
        found = measure(url, Path(folder), given.workers, given.trials, given.pause)
    print(json.dumps(found, indent=1))


def measure(url: URL, folder: Path, workers: int, trials: int, pause_s: float) -> dict[str, Any]:
    crew = make_crew(url, folder, trials=trials, lease_s=LEASE_S, step_s=pause_s, steps=REPORTS)
    connection = Connection(url)
    before, meter, ended = connection.run(SIZES)[0], Meter(url), threading.Event()
    watcher = threading.Thread(target=meter.run, args=(crew, ended))
    load, started = os.getloadavg()[0], time.monotonic()
    crew.start(workers)
    watcher.start()
    codes = crew.join(3600)
    seconds = time.monotonic() - started
    ended.set()
    watcher.join()
    states = {str(state): int(number) for state, number in connection.run(STATES)}
    after = connection.run(SIZES)[0]
    connection.close()
    if set(codes) != {0} or states != {"COMPLETE": trials}:
        raise SystemExit(f"workers ended with {sorted(set(map(str, codes)))}, trials are {states}")
    ledger = crew.ledger()
    calls = defaultdict(list)
    for entry in ledger:
        if "call" in entry:
            calls[entry["call"]].append(1000 * entry["s"])
    count = sum(map(len, calls.values()))
    return {
        "workers": workers,
        "trials": trials,
        "seconds": round(seconds, 1),
        "trials_per_s": round(trials / seconds, 2),
        "load_before": round(load, 2),
        "sessions": meter.sessions,
        "server_cpu_ms_per_trial": round(1000 * sum(meter.spent.values()) / trials, 1),
        "worker_cpu_ms_per_trial": round(1000 * sum(entry.get("cpu_s", 0.0) for entry in ledger) / trials, 1),
        "server_mib": round(meter.server_mib),
        "worker_mib": round(meter.worker_mib),
        "calls_per_trial": round(count / trials, 1),
        "database_kib_per_trial": round((after[0] - before[0]) / 1024 / trials, 1),
        "wal_kib_per_trial": round((after[1] - before[1]) / 1024 / trials, 1),
        "call_ms": {name: _latencies(values) for name, values in sorted(calls.items())},
    }


def _latencies(values: list[float]) -> dict[str, float]:
    found = np.percentile(values, [50, 95, 99, 100])
    return {"count": len(values)} | dict(zip(("median", "p95", "p99", "max"), found.round(1).tolist(), strict=True))


def _own_mib(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.Error:  # it has ended
        return 0.0


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


if __name__ == "__main__":
    main()

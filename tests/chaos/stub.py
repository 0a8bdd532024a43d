"""A worker as it is, with a trainer that only waits and reports: what the fault tests kill, stop and cut off.

Every run of a trial reports one number of its own, so that a record mixed from two runs shows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hpo.worker
from hpo.errors import HpoError
from hpo.study import installed_versions
from hpo.trainer_process import TrainerDied
from storage import statements
from storage.connection import Connection, Row, Unavailable, Values
from storage.engine import parse_url

STEPS = 3
PART_S = 0.2
VERSIONS = installed_versions()


@dataclass(frozen=True)
class Orders:
    """What a stub worker is to do; `die_at`: a call's name, 'before', 'sent' or 'answered', and which time."""

    url: str
    study: str
    ledger: Path
    step_s: float = 0.05
    die_at: tuple[str, str, int] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    clock_off_s: float = 0.0
    box: str = "box"
    has_bug: bool = False
    steps: int = STEPS


class StubTrainer:
    """Waits `step_s` before each report; ends at once when interrupted."""

    def __init__(self, step_s: float, has_bug: bool = False, steps: int = STEPS) -> None:
        self._has_bug, self._steps = has_bug, steps
        self.stopped = False
        self.deadlines: object = None
        self.limits: object = None
        self._interrupted = threading.Event()
        self._step_s = step_s

    def run(
        self, job: Any, on_start: Any, on_report: Callable[[int, float, dict[str, float]], str], on_checkpoint: Any
    ) -> dict[str, Any]:
        if self._has_bug:
            return {"event": "bug", "trace": f"/home/{os.getpid()}/training.py:9 step\nKeyError: {time.monotonic()}"}
        self._interrupted.clear()
        run = random.SystemRandom().random()
        for step in range(1, self._steps + 1):
            if self._is_cut_short():
                raise TrainerDied("the stub was interrupted")
            on_report(step, step / self._steps, {"spearman": run})
        scores = {"spearman": run}
        return {"event": "result", "scores": scores, "stop_reason": "completed", "stop_epoch": 1.0, "run": run}

    def _is_cut_short(self) -> bool:
        """In parts: stop() is called from a signal handler, which may set no Event that is waited for."""
        deadline = time.monotonic() + self._step_s
        while not self.stopped and (left_s := deadline - time.monotonic()) > 0:
            if self._interrupted.wait(min(left_s, PART_S)):
                return True
        return self.stopped

    def interrupt(self) -> None:
        self._interrupted.set()

    def stop(self) -> None:
        self.stopped = True

    def discard(self) -> None:
        pass

    def close(self) -> None:
        pass


def work(orders: Orders) -> int:
    """The process's whole life; its exit code is the worker's."""
    os.environ.update(orders.environment)
    time.tzset()
    real_time = time.time
    time.time = lambda: real_time() + orders.clock_off_s
    vars(hpo.worker)["TrainerProcess"] = lambda: StubTrainer(orders.step_s, orders.has_bug, orders.steps)
    vars(hpo.worker)["_own_name"] = lambda: f"{orders.box}:{os.getpid()}"
    vars(hpo.study)["installed_versions"] = lambda: VERSIONS  # reading them takes longer than a trial
    _watch_calls(orders)
    try:
        raise SystemExit(hpo.worker.work(parse_url(orders.url), orders.study))
    except (Unavailable, HpoError) as error:  # as the command line does
        raise SystemExit(error.exit_code) from None
    finally:
        _note(orders.ledger, {"cpu_s": time.process_time()})


def name_of(statement: str, values: Any) -> str:
    """What a call is for, as the failpoints are named."""
    if statement != statements.SAVE_LEASED:
        names = {statements.CLAIM: "claim", statements.KEEP: "keep", statements.RELEASE: "release"}
        return names.get(statement, "read" if statement == statements.READ_CHANGES else "other")
    contents, state = json.loads(values[2]), values[3]
    return "tell" if state else "flush" if "params" in contents else "report"


def _watch_calls(orders: Orders) -> None:
    """Dies at the point ordered; notes in the ledger how long each call took and which tells were acknowledged."""
    wait, run = Connection._wait, Connection._run
    came = 0
    here = threading.local()

    def die(name: str, phase: str) -> None:
        nonlocal came
        if orders.die_at is None or orders.die_at[:2] != (name, phase):
            return
        came += 1
        if came == orders.die_at[2]:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched_wait(self: Connection, deadline: float) -> None:
        die(here.name, "sent")
        wait(self, deadline)

    def watched_run(self: Connection, statement: str, values: Values, deadline: float) -> list[Row]:
        named = values() if callable(values) else values
        here.name, started = name_of(statement, named), time.monotonic()
        die(here.name, "before")
        try:
            rows = run(self, statement, values, deadline)
        finally:
            _note(orders.ledger, {"call": here.name, "s": time.monotonic() - started, "at": time.monotonic()})
        die(here.name, "answered")
        if here.name == "tell" and rows[0][0] == "ok" and isinstance(named, tuple):
            _note(orders.ledger, {"told": named[0], "at": time.monotonic()})
        return rows

    Connection._wait = watched_wait  # type: ignore[method-assign]
    Connection._run = watched_run  # type: ignore[method-assign]


def _note(ledger: Path, entry: dict[str, Any]) -> None:
    with ledger.open("a") as file:  # one write below 4 KiB: whole, whoever else appends
        file.write(json.dumps(entry) + "\n")

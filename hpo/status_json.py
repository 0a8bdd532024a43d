"""`hpo status --json`: a study as one object. docs/status.md says what each key holds."""

from __future__ import annotations

import math
from typing import Any

from hpo.status import Failure, Run, Snapshot
from hpo.worker_view import state_of
from storage.attempts import Attempt
from storage.workers import WorkerRow


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """Numbers are finite."""
    best = snapshot.best_spearman
    return {
        "study": snapshot.study,
        "budget": snapshot.budget,
        **snapshot.counts,
        "infeasible": snapshot.infeasible,
        "best_trial": snapshot.best_trial,
        "best_baseline": snapshot.best_baseline,
        "best_spearman": best if best is not None and math.isfinite(best) else None,
        "time_left_s": snapshot.time_left_s,
        "paused": snapshot.paused,
        "ended": snapshot.ended,
        "workers": [_worker(row) for row in snapshot.workers],
        "running_trials": [_run(run) for run in snapshot.runs],
        "given_back": [_attempt(one) for one in snapshot.given_back],
        "failures": [_failure(failure) for failure in snapshot.failures],
    }


def _worker(row: WorkerRow) -> dict[str, Any]:
    keys = ("worker", "host", "slot", "device", "trial", "seen_s", "done", "failed", "starts")
    return {key: getattr(row, key) for key in keys} | {"state": state_of(row)}


def _run(run: Run) -> dict[str, Any]:
    return {
        "trial": run.trial,
        "baseline": run.baseline,
        "worker": run.worker,
        "attempt": run.attempt,
        "planned_examples": run.planned,
        "examples": run.examples,
        "spearman": run.curve[-1][1] if run.curve else None,
        "curve": run.curve,
    }


def _attempt(one: Attempt) -> dict[str, Any]:
    return {"trial": one.trial, "worker": one.worker, "attempts": one.attempt}


def _failure(failure: Failure) -> dict[str, Any]:
    return {"trial": failure.trial, "kind": failure.kind, "reason": failure.reason, "worker": failure.worker}

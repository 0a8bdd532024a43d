"""What a study has done so far, read from the database: for `hpo status`, the live view and the table at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import nlargest

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config import StudyFile
from hpo.feasible import best_trials, complete
from hpo.pause import pause_reason
from hpo.pruning import PLANNED
from hpo.study import BASELINE, is_baseline, is_copied, ours
from objectives.evaluation import METRICS
from storage import terms
from storage.attempts import Attempt, list_attempts
from storage.workers import WorkerRow, list_workers

RECENT = 50  # trials, whose mean duration the next ones are expected to take
HOUR_S = 3600
# Infeasible trials say why by these words; any other by its own.
REASONS = {
    "Collapsed": "its vectors became all alike",
    "Contradictory": "its parameters contradict each other",
    "Diverged": "loss or gradients were not finite",
    "OutOfMemory": "out of memory",
    "TimeLimit": "it took too long",
}


@dataclass(frozen=True)
class Run:
    """A trial that is running."""

    trial: int
    baseline: str | None
    worker: str | None  # None: another program's, a notebook's say
    attempt: int
    planned: int | None  # examples
    curve: tuple[tuple[int, float], ...]  # examples seen and spearman, ascending; finite
    elapsed_s: float

    @property
    def examples(self) -> int:
        return self.curve[-1][0] if self.curve else 0


@dataclass(frozen=True)
class Failure:
    """A trial that could not be trained to its end."""

    trial: int
    kind: str  # failed, infeasible
    reason: str
    worker: str | None
    at: datetime | None


@dataclass(frozen=True)
class Snapshot:
    study: str
    budget: int
    counts: dict[str, int]  # complete, pruned, failed, running, waiting
    best_trial: int | None
    best_spearman: float | None
    time_left_s: float | None  # None before the first outcome and while nothing runs
    trials: tuple[FrozenTrial, ...]
    paused: str | None  # why
    ended: str | None  # why, before its trials were used up
    best_baseline: str | None = None  # its name, where the best trial is one
    runs: tuple[Run, ...] = ()
    failures: tuple[Failure, ...] = ()  # in the order recorded
    given_back: tuple[Attempt, ...] = ()  # trials that were cut short and wait
    workers: tuple[WorkerRow, ...] = ()

    @property
    def finished(self) -> int:
        return self.counts["complete"] + self.counts["pruned"] + self.counts["failed"]

    @property
    def is_over(self) -> bool:
        return self.finished >= self.budget or self.ended is not None

    @property
    def infeasible(self) -> int:
        """Of those that count as pruned."""
        return sum(failure.kind == "infeasible" for failure in self.failures)


@dataclass(frozen=True)
class Comparison:
    """One row of the table: a metric of the untrained model, each baseline and the best trial."""

    metric: str
    untrained: float
    baselines: dict[str, float]
    best: float
    interval: tuple[float, float]
    ceiling: float
    target: float | None
    head: float | None = None  # of the best trial's match head


def take_snapshot(study: optuna.Study, file: StudyFile) -> Snapshot:
    """Raises Unavailable, and KeyError when the study was deleted."""
    ask, study_id = ours(study).ask, study._study_id
    trials = tuple(trial for trial in study.get_trials(deepcopy=False) if not is_copied(trial))
    found, workers = terms.read(ask, study_id), tuple(list_workers(ask, study_id))
    attempts = {attempt.trial: attempt for attempt in list_attempts(ask, study_id)}
    states = [trial.state for trial in trials]
    best = best_trials(trials, file, 1)
    runs = tuple(_run_of(t, attempts.get(t.number)) for t in trials if t.state == TrialState.RUNNING)
    counts = {
        "complete": states.count(TrialState.COMPLETE),
        "pruned": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "running": len(runs),
        "waiting": states.count(TrialState.WAITING),
    }
    return Snapshot(
        study=study.study_name,
        budget=file.budget.trials,
        counts=counts,
        best_trial=best[0].number if best else None,
        best_spearman=best[0].value if best else None,
        best_baseline=best[0].user_attrs.get(BASELINE) if best else None,
        time_left_s=_time_left_s(file, trials, runs, workers, found),
        trials=trials,
        runs=runs,
        failures=_failures(trials),
        given_back=tuple(attempt for attempt in attempts.values() if attempt.state == "WAITING"),
        workers=workers,
        paused=why_paused(study, found),
        ended=found.ended if found else None,
    )


def compare(snapshot: Snapshot, file: StudyFile) -> list[Comparison]:
    """Empty before the first completed trial."""
    best = best_trials(snapshot.trials, file, 1)
    if not best:
        return []
    done = {t.user_attrs[BASELINE]: t.user_attrs for t in complete(snapshot.trials) if is_baseline(t)}
    found = best[0].user_attrs
    return [
        Comparison(
            metric=metric,
            untrained=found["untrained"][metric],
            baselines={name: attributes[metric] for name, attributes in done.items()},
            best=found[metric],
            interval=tuple(found["intervals"][metric]),
            ceiling=found["ceilings"][metric],
            target=file.targets.get(metric),
            head=found.get("head", {}).get(metric),
        )
        for metric in METRICS
    ]


def why_paused(study: optuna.Study, found: terms.Terms | None) -> str | None:
    """By a bug, or by hand; None: it is not."""
    name = study.study_name
    by_hand = f"study {name} is paused; let it go on: hpo study resume {name}" if found and found.paused else None
    return pause_reason(study) or by_hand


def _run_of(trial: FrozenTrial, attempt: Attempt | None) -> Run:
    curve = sorted((step, value) for step, value in trial.intermediate_values.items() if math.isfinite(value))
    began, planned = trial.datetime_start, trial.user_attrs.get(PLANNED)
    return Run(
        trial=trial.number,
        baseline=trial.user_attrs.get(BASELINE),
        worker=attempt.worker if attempt else None,
        attempt=attempt.attempt if attempt else 1,
        planned=planned if isinstance(planned, int) and planned > 0 else None,
        curve=tuple(curve),
        elapsed_s=max((datetime.now() - began).total_seconds(), 0.0) if began else 0.0,
    )


def failure_of(trial: FrozenTrial) -> Failure | None:
    found = trial.user_attrs
    if trial.state == TrialState.FAIL:
        trace = str(found.get("trace", "")).strip().splitlines()
        kind, reason = "failed", trace[-1] if trace else "by hand, or by another program"
    elif trial.state == TrialState.PRUNED and "reason" in found:
        name, more = str(found["reason"]), found.get("message")
        kind, reason = "infeasible", REASONS.get(name, name) + (f": {more}" if more else "")
    else:
        return None
    return Failure(trial.number, kind, reason, found.get("worker"), trial.datetime_complete)


def _failures(trials: Sequence[FrozenTrial]) -> tuple[Failure, ...]:
    found = [failure for trial in trials if (failure := failure_of(trial)) is not None]
    return tuple(sorted(found, key=lambda failure: (failure.at or datetime.min, failure.trial)))


def _time_left_s(
    file: StudyFile,
    trials: Sequence[FrozenTrial],
    runs: Sequence[Run],
    workers: Sequence[WorkerRow],
    found: terms.Terms | None,
) -> float | None:
    """The smaller of what its trials, as long as the last ones, and its hours allow; None while nothing runs.

    Workers that hold no trial at this moment count too: they just began, or are between two trials.
    """
    if not runs or (found and (found.paused or found.ended)):
        return None
    at_work = max(sum(row.ended is None and not row.is_silent and not row.drain for row in workers), len(runs))
    allowed = []
    if found and file.budget.hours is not None:
        allowed.append(file.budget.hours * HOUR_S - found.elapsed_s)
    if found and file.budget.gpu_hours is not None:
        allowed.append((file.budget.gpu_hours * HOUR_S - found.device_s) / len(runs))
    finished = [trial for trial in trials if trial.state.is_finished()]
    if mean := _mean_s(finished):
        rests = [_rest_s(run, mean) for run in runs]
        to_begin = max(file.budget.trials - len(finished) - len(runs), 0)
        allowed.append(max((to_begin * mean + sum(rests)) / at_work, *rests))
    return max(min(allowed), 0.0) if allowed else None


def _rest_s(run: Run, mean_s: float) -> float:
    """Of its plan, for a baseline, which is never pruned, and for whatever was neither pruned nor stopped so far."""
    if run.examples and run.planned and (run.baseline or run.elapsed_s > mean_s):
        return run.elapsed_s * max(run.planned / run.examples - 1, 0.0)
    return max(mean_s - run.elapsed_s, 0.0)


def _mean_s(finished: Sequence[FrozenTrial]) -> float | None:
    """Of the trials that ended last."""
    timed = [(t.datetime_complete, t.datetime_start) for t in finished if t.datetime_complete and t.datetime_start]
    last = nlargest(RECENT, timed)
    return sum((end - start).total_seconds() for end, start in last) / len(last) if last else None

"""What a study has done so far, read from the database: for `hpo status`, the live view and the table at the end."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config import StudyFile
from hpo.feasible import best_trials
from hpo.pause import pause_reason
from hpo.study import BASELINE, is_baseline, is_copied, ours
from objectives.evaluation import METRICS
from storage import terms


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

    @property
    def finished(self) -> int:
        return self.counts["complete"] + self.counts["pruned"] + self.counts["failed"]

    @property
    def is_over(self) -> bool:
        return self.finished >= self.budget or self.ended is not None


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
    trials = tuple(trial for trial in study.get_trials(deepcopy=False) if not is_copied(trial))
    found = terms.read(ours(study).ask, study._study_id)
    states = [trial.state for trial in trials]
    best = best_trials(trials, file, 1)
    counts = {
        "complete": states.count(TrialState.COMPLETE),
        "pruned": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "running": states.count(TrialState.RUNNING),
        "waiting": states.count(TrialState.WAITING),
    }
    return Snapshot(
        study=study.study_name,
        budget=file.budget.trials,
        counts=counts,
        best_trial=best[0].number if best else None,
        best_spearman=best[0].value if best else None,
        time_left_s=_time_left_s(trials, file.budget.trials),
        trials=trials,
        paused=why_paused(study, found),
        ended=found.ended if found else None,
    )


def compare(snapshot: Snapshot, file: StudyFile) -> list[Comparison]:
    """Empty before the first completed trial."""
    best = best_trials(snapshot.trials, file, 1)
    if not best:
        return []
    done = {
        trial.user_attrs[BASELINE]: trial.user_attrs
        for trial in snapshot.trials
        if is_baseline(trial) and trial.state == TrialState.COMPLETE
    }
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


def _time_left_s(trials: tuple[FrozenTrial, ...], budget: int) -> float | None:
    """Trials to come, at the mean duration so far, spread over the trials that run now."""
    durations = [trial.duration.total_seconds() for trial in trials if trial.state.is_finished() and trial.duration]
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    if not durations or not running:
        return None
    return sum(durations) / len(durations) * max(budget - len(durations), 0) / running

"""Trials as plots show them: each with one score, the best first, and never more than a browser draws at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.config import StudyFile
from hpo.feasible import best_trials, floors_of, reaches

# Not eligible to be the best: below a floor, beyond a limit.
COMPLETE, OTHERS, PRUNED, RUNNING, FAILED = "complete", "not eligible", "pruned", "running", "failed"
KINDS = {TrialState.PRUNED: PRUNED, TrialState.RUNNING: RUNNING, TrialState.FAIL: FAILED}


@dataclass(frozen=True)
class Scored:
    trial: FrozenTrial
    score: float  # Spearman; of a trial that is not complete, the best that it reported
    kind: str
    is_best: bool  # of its study

    @property
    def number(self) -> int:
        return self.trial.number


def scored_trials(trials: Sequence[FrozenTrial], file: StudyFile) -> list[Scored]:
    """Those with a score: the best of the study first, then by score."""
    ranked, floors = best_trials(trials, file, len(trials)), floors_of(trials, file)
    candidates = {trial.number for trial in ranked if reaches(trial, floors) == reaches(ranked[0], floors)}

    def kind(trial: FrozenTrial) -> str:
        return KINDS.get(trial.state) or (COMPLETE if trial.number in candidates else OTHERS)

    best = ranked[0].number if ranked else None
    found = [
        Scored(trial, score, kind(trial), trial.number == best)
        for trial in trials
        if (score := score_of(trial)) is not None
    ]
    return sorted(found, key=lambda one: (not one.is_best, -one.score, one.number))


def some(scored: Sequence[Scored], best: int, others: int) -> list[Scored]:
    """The best, and evenly many of the others at most."""
    rest = scored[best:]
    return [*scored[:best], *rest[:: max(math.ceil(len(rest) / others), 1)]]


def lowest_of_most(scored: Sequence[Scored]) -> float:
    """What lies farther below most trials than these reach, as an untuned baseline may, would flatten the rest."""
    scores = sorted(one.score for one in scored)
    tenth = scores[len(scores) // 10] if scores else 0.0
    return tenth - (scores[-1] - tenth) if scores else 0.0


def shown_of(shown: Sequence[Scored], every: Sequence[Scored]) -> str:
    return f"{len(shown):,} of {len(every):,} trials shown"


def score_of(trial: FrozenTrial) -> float | None:
    """Its Spearman; of one that is not complete, the best that it reported."""
    reports = [value for value in trial.intermediate_values.values() if math.isfinite(value)]
    score = trial.value if trial.state == TrialState.COMPLETE else max(reports, default=None)
    return score if score is not None and math.isfinite(score) else None

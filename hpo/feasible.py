"""What a trial must keep to be the best: the study's limits on cost, and no metric below a baseline's.

Spearman alone can be raised at the expense of the others: pairs graded by category gained 0.09 of it on real tickets
and lost 0.07 of PR AUC. A model that is worse than a hand-set one in what people look at is no find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.config import StudyFile
from hpo.study import is_baseline, is_copied
from objectives.evaluation import METRICS

COSTS = ("model_mib", "texts_per_s", "train_s")
MORE_IS_BETTER = ("texts_per_s", *METRICS)
Floors = Mapping[str, float]


def floors_of(trials: Sequence[FrozenTrial], file: StudyFile) -> Floors:
    """Of the study file, or the best that baselines have reached so far; Spearman is what is searched for anyway."""
    given = file.constraints.floors
    if isinstance(given, dict):
        return {str(name): floor for name, floor in given.items()}
    if given == "off":
        return {}
    done = [trial.user_attrs for trial in complete(trials) if is_baseline(trial)]
    reached = {metric: [found[metric] for found in done if metric in found] for metric in METRICS[1:]}
    return {metric: max(values) for metric, values in reached.items() if values}


def excesses(file: StudyFile, found: Mapping[str, Any], floors: Floors) -> dict[str, float]:
    """By how much each limit is exceeded, below zero where it is kept; none for a trial without results."""
    limits = {name: limit for name in COSTS if (limit := getattr(file.constraints, name)) is not None}
    return {name: sign(name) * (found[name] - limit) for name, limit in {**limits, **floors}.items() if name in found}


def complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Of this study, with scores; a notebook may have told others."""
    scored = (trial for trial in trials if trial.state == TrialState.COMPLETE and trial.user_attrs.keys() >= {*METRICS})
    return [trial for trial in scored if not is_copied(trial)]


def best_trials(trials: Sequence[FrozenTrial], file: StudyFile, top: int) -> list[FrozenTrial]:
    """Completed trials within the study's costs, those that reach every floor first; then the highest Spearman."""
    floors = floors_of(trials, file)
    within = [t for t in complete(trials) if max(excesses(file, t.user_attrs, {}).values(), default=0) <= 0]
    return sorted(within, key=lambda t: (not reaches(t, floors), -(t.value or 0.0), t.number))[:top]


def reaches(trial: FrozenTrial, floors: Floors) -> bool:
    return all(trial.user_attrs[name] >= floor for name, floor in floors.items() if name in trial.user_attrs)


def sign(name: str) -> int:
    return -1 if name in MORE_IS_BETTER else 1

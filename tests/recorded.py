"""A study as it is after a search: forty trials recorded on real tickets, and some of them made to end otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL

from hpo.config import StudyFile
from hpo.study import create_study
from objectives.evaluation import METRICS
from storage.native import PostgresStorage

CURVES = json.loads((Path(__file__).parent / "unit" / "recorded_curves.json").read_text())["seed 0"]
SPACE = {
    "learning_rate": {"type": "float", "low": 1e-5, "high": 0.3, "log": True},
    "batch_size": {"type": "int", "low": 16, "high": 512},
    "epochs": {"type": "int", "low": 1, "high": 20},
}
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-5, 0.3, log=True),
    "batch_size": IntDistribution(16, 512),
    "epochs": IntDistribution(1, 20),
}
PRUNED, EARLY, INFEASIBLE, FAILED, OVERTAKEN = 4, 5, 8, 9, 10  # numbers of trials that ended so
WHY = (
    "percentile: 0.4123 at 20,000 examples would be 0.4523 (and 0.0020 for noise) at 40,000, where 12 trials had "
    "0.4900 in the middle, 0.5100 at most"
)
TRACE = "/opt/objectives/training.py:48 step\n/opt/objectives/losses.py:9 <lambda>\nRuntimeError: a_b * <c> `d`"
ENDINGS: dict[int, dict[str, Any]] = {
    PRUNED: {"stop_reason": "pruned", "stop_epoch": 1.25, "best_epoch": 1.0, "why_pruned": WHY},
    EARLY: {"stop_reason": "early_stopping", "stop_epoch": 0.93, "best_epoch": 0.62},
    INFEASIBLE: {"reason": "Diverged", "message": "the loss is nan"},
    FAILED: {"trace": TRACE},
    OVERTAKEN: {"stop_reason": "overtaken", "stop_epoch": 2.5, "best_epoch": 1.5, "why_pruned": WHY},
}
STATES = {PRUNED: TrialState.PRUNED, INFEASIBLE: TrialState.PRUNED, FAILED: TrialState.FAIL}


def make_recorded_study(url: URL, name: str = "servicedesk") -> tuple[optuna.Study, StudyFile]:
    """Nobody works on it."""
    file = StudyFile.model_validate(
        {
            "name": name,
            "incidents": {"path": "/none.csv", "sha256": "0" * 64},
            "budget": {"trials": len(CURVES)},
            "space": {"parameters": SPACE},
        }
    )
    study = create_study(url, PostgresStorage(url), file, dataset=b"none: nobody trains")
    for row in CURVES:
        study._storage.create_new_trial(study._study_id, recorded_trial(row))
    return study, file


def recorded_trial(row: dict[str, Any]) -> FrozenTrial:
    number, metrics = row["number"], row["metrics"]
    state = STATES.get(number, TrialState.COMPLETE)
    completed = {"stop_reason": "completed", "stop_epoch": float(row["params"]["epochs"]), "best_epoch": 1.0}
    found = {"worker": "box:1", "planned_examples": row["planned"]} | ENDINGS.get(number, completed)
    if row["baseline"]:
        found["baseline"] = row["baseline"]
    if state == TrialState.COMPLETE:
        found |= metrics | {
            "untrained": dict.fromkeys(METRICS, row["untrained"]),
            "ceilings": dict.fromkeys(METRICS, 0.9),
        }
        found["intervals"] = {metric: [metrics[metric] - 0.04, metrics[metric] + 0.04] for metric in METRICS}
    trial = create_trial(
        state=state,
        value=metrics["spearman"] if state == TrialState.COMPLETE else None,
        params={parameter: row["params"][parameter] for parameter in DISTRIBUTIONS},
        distributions=DISTRIBUTIONS,
        user_attrs=found,
        intermediate_values=dict(map(tuple, row["curve"])),
    )
    if number == INFEASIBLE:
        trial.set_constraint("Diverged", 1.0)
    return trial

"""Trials of three searches on real tickets, with all that they searched, as plots and pages show them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.config import StudyFile
from objectives.diagnosis import Diagnosis, diagnose
from objectives.evaluation import METRICS, rank_pairs, score

RECORDED = json.loads((Path(__file__).parent / "unit" / "recorded_curves.json").read_text())
SPACE: dict[str, Any] = {
    "learning_rate": {"type": "float", "low": 3e-4, "high": 0.3, "log": True},
    "batch_size": {"type": "int", "low": 16, "high": 512, "log": True},
    "epochs": {"type": "int", "low": 1, "high": 20, "log": True},
    "warmup_ratio": {"type": "float", "low": 0.0, "high": 0.3},
    "schedule": {"type": "categorical", "choices": ["linear", "cosine", "constant_with_warmup"]},
    "patience": {"type": "categorical", "choices": ["off", 2, 3, 5]},
    "min_epochs": {"type": "float", "low": 0.0, "high": 2.0, "when": {"patience": [2, 3, 5]}},
    "scale": {"type": "float", "low": 2.0, "high": 40.0, "log": True},
}
IMPORTANCES = dict(zip(SPACE, (0.61, 0.13, 0.06, 0.015, 0.04, 0.03, 0.005, 0.11), strict=True))
PRUNED_BELOW = 0.53  # spearman


def study_file(**parameters: Any) -> StudyFile:
    """parameters: of the space, beside those that were recorded."""
    return StudyFile.model_validate(
        {
            "name": "servicedesk",
            "incidents": {"path": "/none.csv", "sha256": "0" * 64},
            "budget": {"trials": 40},
            "space": {"parameters": SPACE | parameters},
        }
    )


def recorded_trials(study: str = "seed 0") -> list[FrozenTrial]:
    """Weak ones as a pruner would have left them; the best with a diagnosis."""
    return list(_trials(RECORDED[study]))


def _trials(rows: list[dict[str, Any]]) -> Iterator[FrozenTrial]:
    best = max(rows, key=lambda row: row["metrics"]["spearman"])
    for row in rows:
        score = row["metrics"]["spearman"]
        is_pruned = not row["baseline"] and score < PRUNED_BELOW
        found = {
            **row["metrics"],
            "ceilings": dict.fromkeys(METRICS, 0.83),
            "untrained": {"spearman": row["untrained"]},
        }
        found |= {"baseline": row["baseline"]} if row["baseline"] else {}
        found |= made_up_diagnosis() if row is best else {}
        curve = row["curve"][: max(len(row["curve"]) // 3, 2)] if is_pruned else row["curve"]
        yield trial(row["number"], None if is_pruned else score, row["params"], dict(map(tuple, curve)), found)


def trial(
    number: int,
    score: float | None,
    parameters: dict[str, Any],
    reports: dict[int, float] | None = None,
    attributes: dict[str, Any] | None = None,
) -> FrozenTrial:
    """Without a score, pruned."""
    made = create_trial(
        state=TrialState.PRUNED if score is None else TrialState.COMPLETE,
        value=score,
        params=parameters,
        distributions={name: _distribution(name, value) for name, value in parameters.items()},
        user_attrs=attributes or {},
        intermediate_values=reports or {},
    )
    made.number = number
    return made


def _distribution(name: str, value: Any) -> BaseDistribution:
    """That of the space; a baseline's value may lie beyond its bounds."""
    if name not in SPACE or SPACE[name]["type"] == "categorical":
        choices = SPACE.get(name, {}).get("choices", [])
        return CategoricalDistribution([*choices, value] if value not in choices else choices)
    parameter = SPACE[name]
    low, high = min(parameter["low"], value), max(parameter["high"], value)
    kind = FloatDistribution if parameter["type"] == "float" else IntDistribution
    return kind(low, high, log=parameter.get("log", False))


def made_up_diagnosis(*, with_head: bool = False) -> dict[str, Diagnosis | float]:
    """Of four thousand pairs whose cosines rise with their grade."""
    rng, grades = np.random.default_rng(0), np.repeat([0.0, 0.25, 0.5, 0.75, 1.0], [2400, 1060, 300, 140, 100])
    ranking = rank_pairs(np.clip(rng.normal(0.1 + 0.5 * grades, 0.2), -1, 1), grades, 0.5)
    threshold = score(ranking)["threshold"]
    odds = 1 / (1 + np.exp(-10 * (ranking.similarities[ranking.similarity_index] - threshold)))
    return {"threshold": threshold, "diagnosis": diagnose(ranking, threshold, odds if with_head else None)}

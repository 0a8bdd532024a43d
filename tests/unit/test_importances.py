"""Shares of parameters: conditional ones, those of one kind of model, constants, and values that are no numbers."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from hpo.config import StudyFile
from hpo.importances import CHANCE, chances, importances
from tests.unit.test_findings import study_file

SPACE = {
    "model": {"type": "categorical", "choices": ["static:a", "b"]},
    "learning_rate@static": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True, "when": {"model": ["static:a"]}},
    "learning_rate@transformer": {"type": "float", "low": 1e-6, "high": 1e-4, "log": True, "when": {"model": ["b"]}},
    "patience": {"type": "categorical", "choices": ["off", 3]},
    "min_epochs": {"type": "float", "low": 0.0, "high": 2.0, "when": {"patience": [3]}},
    "epochs": 4,
}
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "model": CategoricalDistribution(["static:a", "b"]),
    "learning_rate@static": FloatDistribution(1e-3, 1e-1, log=True),
    "learning_rate@transformer": FloatDistribution(1e-6, 1e-4, log=True),
    "patience": CategoricalDistribution(["off", 3]),
    "min_epochs": FloatDistribution(0.0, 2.0),
    "epochs": IntDistribution(4, 4),
}


def conditional() -> StudyFile:
    return study_file(space={"parameters": SPACE})


def trials(count: int = 120) -> list[FrozenTrial]:
    """The static model is better, and the more so the higher its learning rate."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        values: dict[str, object] = {"model": str(rng.choice(["static:a", "b"])), "epochs": 4}
        is_static = values["model"] == "static:a"
        place = float(rng.random())
        values[f"learning_rate@{'static' if is_static else 'transformer'}"] = (1e-3 if is_static else 1e-6) * 100**place
        values["patience"] = "off" if rng.random() < 0.5 else 3
        if values["patience"] == 3:
            values["min_epochs"] = float(rng.uniform(0, 2))
        score = (0.5 + 0.1 * place if is_static else 0.4) + 0.001 * rng.standard_normal()
        trial = create_trial(value=score, params=values, distributions={name: DISTRIBUTIONS[name] for name in values})
        trial.number = number
        found.append(trial)
    return found


def test_parameters_that_are_not_always_there_have_their_share() -> None:
    found = importances(trials(), conditional())
    assert {*list(found)[:2]} == {"model", "learning_rate@static"}
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_constants_have_none() -> None:
    assert "epochs" not in importances(trials(), conditional())


def test_of_two_kinds_the_rate_that_decides_matters_and_the_other_does_not() -> None:
    found = chances(trials(), conditional())
    assert found["learning_rate@static"] <= CHANCE < found["learning_rate@transformer"]
    assert found["min_epochs"] > CHANCE


def test_values_that_are_no_numbers_count_for_nothing() -> None:
    scored, broken = trials(), trials(60)
    for trial in broken:
        trial.values = [math.nan]
    assert importances([*scored, *broken], conditional()) == importances(scored, conditional())
    assert importances(broken, conditional()) == {}


def test_equal_trials_give_equal_answers() -> None:
    assert importances(trials(), conditional()) == importances(trials(), conditional())
    assert chances(trials(), conditional()) == chances(trials(), conditional())


def test_a_study_says_what_optuna_says_of_its_complete_trials() -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials())
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.2)
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    for name, share in importances(trials(), conditional()).items():
        assert share == pytest.approx(expected[name])

"""What the best trial must keep: no metric below a recipe's where there is such a trial, and the study's costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.audit import replay
from hpo.config import Pruner, StudyFile, searched
from hpo.errors import InputError
from hpo.export import export
from hpo.feasible import best_trials, floors_of
from hpo.proposals import make_sampler
from hpo.study import BASELINE, COPIED
from hpo.trial_run import record
from objectives.evaluation import METRICS
from search_spaces.space import FloatRange, IntRange, suggest

COSTS = {"model_mib": 40.0, "texts_per_s": 1000.0, "train_s": 60.0}
OTHERS = METRICS[1:]  # all but Spearman


def file_with(constraints: dict[str, Any] | None = None) -> StudyFile:
    parameters = {"epochs": {"type": "int", "low": 1, "high": 20}}
    return StudyFile.model_validate(
        {
            "name": "study",
            "incidents": {"path": "/none.csv"},
            "budget": {"trials": 40},
            "space": {"parameters": parameters},
            "constraints": constraints or {},
        }
    )


def add(
    study: optuna.Study,
    file: StudyFile,
    spearman: float | None,
    state: TrialState = TrialState.COMPLETE,
    attributes: dict[str, Any] | None = None,
    constraints: dict[str, float] | None = None,
    **parameters: float,
) -> None:
    """A trial as a worker records it: every metric as its Spearman, unless `attributes` say otherwise."""
    kinds: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, kind in searched(file).items():
        if isinstance(kind, FloatRange):
            kinds[name] = FloatDistribution(kind.low, kind.high, log=kind.log)
        elif isinstance(kind, IntRange):
            kinds[name] = IntDistribution(kind.low, kind.high, log=kind.log)
    found: dict[str, Any] = {"worker": "box:1", "untrained": dict.fromkeys(METRICS, 0.2), **COSTS}
    if spearman is not None:
        found |= dict.fromkeys(METRICS, spearman) | {"ceilings": dict.fromkeys(METRICS, 1.0)}
        found |= {"intervals": {metric: [spearman - 0.1, spearman + 0.1] for metric in METRICS}}
    study.add_trial(
        create_trial(
            state=state,
            value=spearman,
            params=parameters,
            distributions=kinds,
            user_attrs=found | (attributes or {}),
            intermediate_values={200: 0.1, 400: spearman or 0.1},
            constraints=constraints or {"f1": -0.1},
        )
    )


@pytest.fixture
def study() -> optuna.Study:
    """In memory; two recipes, of which either is better in one thing."""
    study, file = optuna.create_study(direction="maximize"), file_with()
    add(study, file, 0.3, attributes={BASELINE: "v4", "roc_auc": 0.8, "f1": 0.4}, epochs=8)
    add(study, file, 0.4, attributes={BASELINE: "hand_set", "roc_auc": 0.7, "f1": 0.5}, epochs=3)
    return study


def best(study: optuna.Study, file: StudyFile, top: int = 9) -> list[int]:
    return [trial.number for trial in best_trials(study.get_trials(), file, top)]


REACHED = {"spearman_binary": 0.4, "roc_auc": 0.8, "pr_auc": 0.4, "f1": 0.5}


def test_floors_are_the_best_that_recipes_have_reached_in_each_metric(study: optuna.Study) -> None:
    add(study, file_with(), 0.9, epochs=5)
    add(study, file_with(), 0.9, TrialState.PRUNED, {BASELINE: "cannot_work"}, epochs=5)
    assert floors_of(study.get_trials(), file_with()) == REACHED


def test_before_a_recipe_has_ended_there_are_no_floors() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, file_with(), 0.9, epochs=5)
    assert floors_of(study.get_trials(), file_with()) == {}
    assert best(study, file_with()) == [0]


@pytest.mark.parametrize(("given", "floors"), [({"pr_auc": 0.6}, {"pr_auc": 0.6}), ("off", {})])
def test_floors_of_the_file_take_the_place_of_the_recipes(study: optuna.Study, given: Any, floors: Any) -> None:
    assert floors_of(study.get_trials(), file_with({"floors": given})) == floors


def test_best_is_the_highest_spearman_of_those_that_reach_every_floor(study: optuna.Study) -> None:
    add(study, file_with(), 0.7, attributes={"f1": 0.49}, epochs=5)
    add(study, file_with(), 0.5, attributes={"roc_auc": 0.8}, epochs=5)
    add(study, file_with(), 0.6, attributes={"roc_auc": 0.8}, epochs=5)
    assert best(study, file_with()) == [4, 3, 2, 1, 0]
    assert best(study, file_with({"floors": "off"})) == [2, 4, 3, 1, 0]
    assert best(study, file_with({"floors": {"f1": 0.55}})) == [4, 2, 3, 1, 0]


def test_where_none_reaches_every_floor_the_highest_spearman_is_the_best(study: optuna.Study) -> None:
    add(study, file_with(), 0.6, attributes={"f1": 0.1}, epochs=5)
    add(study, file_with(), 0.7, attributes={"f1": 0.1}, epochs=5)
    assert best(study, file_with(), top=2) == [3, 2]


def test_audit_measures_by_the_highest_spearman_where_none_reaches_every_floor(study: optuna.Study) -> None:
    """The last trial rises when it has been given up; one that was pruned, too, is none that could be the best."""
    add(study, file_with(), 0.85, TrialState.PRUNED, epochs=5)
    add(study, file_with(), 0.9, attributes={"f1": 0.1, "planned_examples": 400}, epochs=5)
    trials, pruner = study.get_trials(), Pruner(kind="median", startup_trials=1, warmup_examples=1)
    replayed = replay(pruner, trials, 400, floors_of(trials, file_with()))
    assert replayed.pruned == 2
    assert replayed.missed == pytest.approx(0.5)


def test_only_complete_trials_of_the_study_itself_are_the_best(study: optuna.Study) -> None:
    add(study, file_with(), 0.9, TrialState.PRUNED, epochs=5)
    add(study, file_with(), 0.9, attributes={COPIED: "other#0"}, epochs=5)
    add(study, file_with(), None, TrialState.FAIL, epochs=5)
    assert best(study, file_with({"floors": "off"})) == [1, 0]


@pytest.mark.parametrize(("cost", "beyond"), [("model_mib", 40.1), ("texts_per_s", 999.0), ("train_s", 60.1)])
def test_trial_beyond_a_cost_is_never_the_best(study: optuna.Study, cost: str, beyond: float) -> None:
    add(study, file_with(), 0.9, attributes={cost: beyond}, epochs=5)
    assert best(study, file_with())[0] == 2
    assert best(study, file_with({cost: COSTS[cost]})) == [1, 0]  # at the limit is within
    tighter = {"model_mib": 39.0, "texts_per_s": 1001.0, "train_s": 59.0}[cost]
    assert best(study, file_with({cost: tighter})) == []


def test_export_where_every_trial_is_beyond_a_cost_says_so(study: optuna.Study, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        export(study, file_with({"model_mib": 30.0}), tmp_path / "best.yaml")
    assert "no completed trial" not in str(refused.value)
    assert "model_mib" in str(refused.value)


# What is told to the sampler


def tell(study: optuna.Study, file: StudyFile, spearman: float, **changed: Any) -> FrozenTrial:
    """As a worker does, of a trial that the study's sampler has drawn."""
    trial = study.ask()
    suggest(searched(file), trial)
    if recipe := changed.pop(BASELINE, None):
        trial.set_user_attr(BASELINE, recipe)
    scores = {metric: changed.pop(metric, spearman) for metric in METRICS}
    message = {"event": "result", "stop_reason": "completed", "scores": scores, **COSTS}
    record(study, file, trial._trial_id, message | changed)
    return study.get_trials()[trial.number]


def test_trial_is_told_with_how_far_it_is_from_each_limit(study: optuna.Study) -> None:
    trial = tell(study, file_with({"train_s": 50.0, "texts_per_s": 900.0}), 0.45, roc_auc=0.9)
    expected = {"train_s": 10.0, "texts_per_s": -100.0, "spearman_binary": -0.05, "roc_auc": -0.1} | {
        "pr_auc": -0.05,
        "f1": 0.05,
    }
    assert trial.state == TrialState.COMPLETE
    assert trial.constraints == pytest.approx(expected)


def test_recipe_is_told_without_the_floors_of_others(study: optuna.Study) -> None:
    assert tell(study, file_with(), 0.1, baseline="weak").constraints == {}
    assert tell(study, file_with({"model_mib": 50.0}), 0.1, baseline="weak").constraints == {"model_mib": -10.0}


def test_pruned_trial_is_told_without_constraints(study: optuna.Study) -> None:
    trial = tell(study, file_with({"train_s": 50.0}), 0.45, stop_reason="pruned")
    assert (trial.state, trial.constraints) == (TrialState.PRUNED, {})


@pytest.mark.parametrize("seed", range(3))
def test_sampler_stays_away_from_what_costs_too_much(seed: int) -> None:
    """Long plans score higher here, and those beyond twelve epochs take too long."""

    def share_beyond(file: StudyFile) -> float:
        study, drawn = optuna.create_study(direction="maximize"), []
        for number in range(30):
            study.sampler = make_sampler(file, number)[0]
            trial = study.ask()
            epochs = int(suggest(searched(file), trial)["epochs"])
            scores = dict.fromkeys(METRICS, epochs / 20)
            message = {"event": "result", "stop_reason": "completed", "scores": scores, "train_s": epochs}
            record(study, file, trial._trial_id, message)
            drawn.append(epochs > 12)
        return sum(drawn[12:]) / len(drawn[12:])

    limited, free = (file_with(limits).model_copy(update={"seed": seed}) for limits in ({"train_s": 12.0}, {}))
    assert share_beyond(free) > 0.7
    assert share_beyond(limited) < 0.4

"""Each finding: a study in which it holds, and one beside it in which it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.config import StudyFile
from hpo.confirmed import Confirmation, Runs
from hpo.evidence import evidence_of
from hpo.findings import findings
from hpo.importances import CHANCE, chances, importances
from objectives.evaluation import METRICS

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": {"type": "int", "low": 8, "high": 512, "log": True},
    "epochs": {"type": "int", "low": 1, "high": 20},
    "train_pairs": {"type": "int", "low": 1000, "high": 50_000},
}
DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "batch_size": IntDistribution(8, 512, log=True),
    "epochs": IntDistribution(1, 20),
    "train_pairs": IntDistribution(1000, 50_000),
}
Values = dict[str, Any]
Score = Callable[[Values, np.random.Generator], float]


def study_file(**changes: Any) -> StudyFile:
    content = {
        "name": "small",
        "incidents": {"path": "x.csv"},
        "budget": {"trials": 40},
        "space": {"parameters": SPACE},
    }
    return StudyFile.model_validate(content | changes)


def made(number: int, values: Values, score: float, curve: Iterable[float] = (), **attributes: Any) -> FrozenTrial:
    state = attributes.pop("state", TrialState.COMPLETE)
    found: Values = dict.fromkeys(METRICS, score)
    found |= {"ceilings": dict.fromkeys(METRICS, 0.9), "planned_examples": 40_000, "train_s": 36.0}
    found |= {"stop_reason": "completed", "stop_epoch": 4.0, "best_epoch": 4.0}
    reports = list(curve) or [score - 0.1, score - 0.001, score]
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=score if state == TrialState.COMPLETE else None,
        datetime_start=None,
        datetime_complete=None,
        params=values,
        distributions={name: DISTRIBUTIONS[name] for name in values},
        user_attrs=found | attributes,
        system_attrs={},
        intermediate_values={10_000 * (place + 1): value for place, value in enumerate(reports)},
    )


def drawn(score: Score, count: int = 60, seed: int = 0, **attributes: Any) -> list[FrozenTrial]:
    rng, trials = np.random.default_rng(seed), []
    for number in range(count):
        values = {
            "learning_rate": float(10 ** rng.uniform(-5, -2)),
            "batch_size": int(2 ** rng.uniform(3, 9)),
            "epochs": int(rng.integers(1, 21)),
            "train_pairs": int(rng.integers(1000, 50_001)),
        }
        trials.append(made(number, values, score(values, rng), **attributes))
    return trials


def noise(values: Values, rng: np.random.Generator) -> float:
    return float(0.5 + 0.02 * rng.standard_normal())


def by_rate(at: float) -> Score:
    """Best where the logarithm of the learning rate is `at`."""
    return lambda values, rng: float(0.6 - 0.05 * abs(np.log10(values["learning_rate"]) - at)) + 1e-3 * rng.random()


def titles(trials: list[FrozenTrial], file: StudyFile | None = None, **more: Any) -> str:
    file = file or study_file()
    found = findings(evidence_of(trials, file, more.get("data", {}), more.get("confirmation")))
    return "\n".join(f"{one.title} | {one.evidence} | {one.next_step}" for one in found)


def test_a_study_whose_early_stopping_ends_trials_before_one_epoch_is_told_so_with_the_epoch() -> None:
    early: Values = {"stop_reason": "early_stopping", "stop_epoch": 0.93, "best_epoch": 0.31}
    file = study_file(training={"patience": 3, "epochs": 8, "eval_every_examples": 4_000}, space={"parameters": {}})
    said = titles([made(n, {}, 0.497, **early) for n in range(3)], file)
    assert "3 trials before one epoch: trial 0 at epoch 0.93 of 8" in said
    assert "patience of 3" in said
    assert "4,000 examples" in said
    assert "before one epoch" not in titles([made(n, {}, 0.497, **early | {"stop_epoch": 3.0}) for n in range(3)], file)


def test_of_those_a_baseline_is_named_first() -> None:
    early: Values = {"stop_reason": "early_stopping", "stop_epoch": 0.93}
    trials = [made(0, {}, 0.5, **early | {"stop_epoch": 0.5}), made(1, {}, 0.5, **early, baseline="v4")]
    assert "the baseline v4 at epoch 0.93" in titles(trials)


def test_trials_that_still_rise_at_their_end_ask_for_more_epochs() -> None:
    rising = drawn(noise, curve=[0.3, 0.4, 0.5])
    assert "while they still rose" in titles(rising)
    assert "while they still rose" not in titles(drawn(noise, curve=[0.3, 0.5, 0.5]))


@pytest.mark.parametrize(("at", "bound"), [(-2.0, "high"), (-5.0, "low")])
def test_an_optimum_at_a_bound_is_told_with_the_key_to_change(at: float, bound: str) -> None:
    assert f"space.parameters.learning_rate.{bound}" in titles(drawn(by_rate(at)))


def test_an_optimum_inside_is_at_no_bound() -> None:
    said = titles(drawn(by_rate(-3.5)))
    assert "learning_rate decides much of the result" in said
    assert "edge of its range" not in said


def test_epochs_that_the_best_never_use_are_at_no_bound() -> None:
    """Their many epochs make the learning rate fall more slowly; more of them would be no longer training."""
    trials = drawn(lambda values, rng: 0.4 + values["epochs"] / 100)
    assert "space.parameters.epochs.high" not in titles(trials)
    for trial in trials:
        trial.user_attrs["best_epoch"] = 0.9 * trial.params["epochs"]
    assert "space.parameters.epochs.high" in titles(trials)


def test_a_parameter_that_the_best_do_not_have_is_not_said_to_decide() -> None:
    """`learning_rate` is there for every second trial, matters among those, and none of them is good."""
    trials = drawn(lambda values, rng: by_rate(-2.0)(values, rng) - 0.3, 120)
    for trial in trials[::2]:
        trial.values = [0.6 + trial.value] if trial.value else None
        del trial.params["learning_rate"], trial.distributions["learning_rate"]
    assert chances(trials, study_file())["learning_rate"] <= CHANCE
    assert "learning_rate decides" not in titles(trials)


def test_the_best_are_those_that_keep_what_the_baselines_reach() -> None:
    """A trial with the highest Spearman that falls below a baseline in F1 is not the study's best."""
    trials = drawn(noise, 20, f1=0.6, intervals={"spearman": [0.3, 0.9]})
    trials[0].user_attrs |= {"baseline": "v4", "f1": 0.5}
    trials[1].values, trials[1].user_attrs["f1"] = [0.8], 0.4
    assert "to 0.8000" not in titles(trials)
    trials[1].user_attrs["f1"] = 0.5
    assert "to 0.8000" in titles(trials)


def test_a_score_that_is_no_number_counts_for_nothing() -> None:
    trials = drawn(by_rate(-2.0), intervals={"spearman": [0.3, 0.9]})
    for trial in trials[::3]:
        trial.values = [float("nan")]
    said = titles(trials)
    assert "learning_rate decides" in said
    assert "nan" not in said


def test_in_studies_of_noise_no_parameter_matters() -> None:
    """At most the share of false alarms that four tests at CHANCE each allow, and three standard errors."""
    file, studies = study_file(), 60
    alarms = sum(any(p <= CHANCE for p in chances(drawn(noise, 40, seed), file).values()) for seed in range(studies))
    expected = 4 * CHANCE * studies
    assert alarms <= expected + 3 * expected**0.5


def test_a_sampler_that_settles_somewhere_for_no_reason_makes_nothing_matter() -> None:
    """Later trials are alike and, for all that, no better."""
    rng = np.random.default_rng(0)
    trials = [
        made(n, {"learning_rate": 1e-3 * (1 + n / 1e3) if n > 30 else float(10 ** rng.uniform(-5, -2))}, noise({}, rng))
        for n in range(80)
    ]
    assert chances(trials, study_file())["learning_rate"] > CHANCE


def test_importances_name_the_parameter_that_matters_first_and_sum_to_one() -> None:
    found = importances(drawn(by_rate(-3.0)), study_file())
    assert next(iter(found)) == "learning_rate"
    assert sum(found.values()) == pytest.approx(1)


def test_few_trials_have_no_importances_and_no_findings_on_parameters() -> None:
    few = drawn(by_rate(-2.0), 6)
    assert importances(few, study_file()) == {}
    assert "learning_rate" not in titles(few)


def test_pruned_trials_count_with_their_best_report() -> None:
    trials = drawn(by_rate(-2.0))
    for trial in trials[::2]:
        trial.state, trial.values = TrialState.PRUNED, None
    assert next(iter(importances(trials, study_file()))) == "learning_rate"


def test_learning_rates_that_rise_with_the_batch_are_told_together() -> None:
    def on_a_ridge(values: Values, rng: np.random.Generator) -> float:
        return float(0.6 - 0.1 * abs(np.log10(values["learning_rate"]) + 5 - 1.5 * np.log10(values["batch_size"] / 8)))

    assert "learning_rate that suits depends on batch_size" in titles(drawn(on_a_ridge, 80))
    assert "depends on batch_size" not in titles(drawn(by_rate(-3.0), 80))


def test_a_sampler_that_settles_on_two_places_makes_no_parameters_depend_on_each_other() -> None:
    """Most of its trials, good and bad, have both low or both high."""
    trials = drawn(noise, 120)
    for trial in trials[30:]:
        wide = (np.random.default_rng(trial.number).random(2) + 1) / 2
        low, high = {"learning_rate": 1e-5, "batch_size": 16}, {"learning_rate": 5e-3, "batch_size": 400}
        place = low if trial.number % 2 else high
        trial.params |= {
            "learning_rate": place["learning_rate"] * wide[0],
            "batch_size": int(place["batch_size"] * wide[1]),
        }
    assert "depends on batch_size" not in titles(trials)


def test_rates_and_batches_of_one_kind_of_model_are_held_together() -> None:
    def on_a_ridge(values: Values, rng: np.random.Generator) -> float:
        return float(0.6 - 0.1 * abs(np.log10(values["learning_rate"]) + 5 - 1.5 * np.log10(values["batch_size"] / 8)))

    trials = drawn(on_a_ridge, 80)
    for trial in trials:
        trial.params = {f"{name}@static": value for name, value in trial.params.items()}
        trial.distributions = {f"{name}@static": found for name, found in trial.distributions.items()}
    file = study_file(space={"parameters": {f"{name}@static": parameter for name, parameter in SPACE.items()}})
    assert "learning_rate@static that suits depends on batch_size@static" in titles(trials, file)


def test_scores_that_rise_with_the_number_of_pairs_ask_for_more() -> None:
    assert "too few training pairs" in titles(drawn(lambda values, rng: 0.4 + values["train_pairs"] / 5e5))
    assert "too few training pairs" not in titles(drawn(noise))


def test_a_pruner_that_gives_up_what_ends_best_prunes_too_early() -> None:
    slow = [made(n, {}, 0.7, [0.1, 0.1, 0.1, 0.7], planned_examples=40_000) for n in range(3)]
    quick = [made(n + 3, {}, 0.5 + n / 1e3, [0.45, 0.48, 0.5, 0.5 + n / 1e3]) for n in range(20)]
    one_pruned = made(30, {}, 0.1, [0.1], state=TrialState.PRUNED)
    file = study_file(pruner={"warmup_examples": 10_000, "startup_trials": 4})
    assert "pruned too early" in titles([*quick, *slow, one_pruned], file)
    assert "pruned too early" not in titles([*quick, one_pruned], file)


def test_label_noise_below_a_target_is_told() -> None:
    data = {"noise_ceilings": {"f1": 0.71, "pr_auc": 0.9}, "agreement": {"subcategory": 0.6}}
    said = titles(drawn(noise), data=data)
    assert "Label noise holds down f1 to about 0.71" in said
    assert "60 %" in said
    assert "Label noise" not in titles(drawn(noise), data=data | {"noise_ceilings": {"f1": 0.9}})


def test_a_gap_between_training_and_validation_is_told() -> None:
    assert "know their training incidents" in titles(drawn(noise, train_spearman=0.8))
    assert "know their training incidents" not in titles(drawn(noise, train_spearman=0.55))


def test_curves_that_fall_after_their_best_are_told() -> None:
    assert "fall after their best" in titles(drawn(noise, curve=[0.4, 0.55, 0.5]))
    assert "fall after their best" not in titles(drawn(noise, curve=[0.4, 0.5, 0.5]))


def test_the_best_that_lie_close_ask_for_several_seeds_where_there_is_a_baseline() -> None:
    close = drawn(noise, intervals={"spearman": [0.4, 0.7]})
    assert "within the interval of the best" in titles(close)
    assert "hpo confirm" not in titles(close)  # which would refuse
    assert "hpo confirm small" in titles([*close, made(99, {}, 0.5, baseline="v4")])
    assert "within the interval" not in titles(drawn(noise, intervals={"spearman": [0.9, 0.95]}))


def test_more_pairs_are_not_to_be_narrowed_where_more_are_better() -> None:
    said = titles(drawn(lambda values, rng: 0.4 + values["train_pairs"] / 5e5))
    assert "train_pairs decides much" in said
    assert "Narrow its range" not in said


def test_the_spread_of_seeds_is_that_of_searched_trials_alone() -> None:
    def runs(trial: int, spread: float, baseline: str | None = None) -> Runs:
        return Runs(trial=trial, baseline=baseline, seeds=5, mean={"spearman": 0.6}, spread={"spearman": spread})

    found = Confirmation(
        study="small/confirm",
        runs=(runs(1, 0.01), runs(2, 0.01), runs(0, 0.0001, "v4")),
        winner=1,
        against="v4",
        gain=(0.0, -0.1, 0.1),
        gain_on_test=(0.0, -0.1, 0.1),
        verdict="indistinguishable",
        why_stopped="all had run",
    )
    said = titles(drawn(noise), confirmation=found)
    assert "varies by 0.0100" in said
    assert "below 0.0280" in said


def test_a_confirmation_takes_the_place_of_that_advice() -> None:
    runs = Runs(trial=1, seeds=5, mean={"spearman": 0.6}, spread={"spearman": 0.0123})
    found = Confirmation(
        study="small/confirm",
        runs=(runs,),
        winner=1,
        against="v4",
        gain=(0.0, -0.1, 0.1),
        gain_on_test=(0.0, -0.1, 0.1),
        verdict="indistinguishable",
        why_stopped="all had run",
    )
    said = titles(drawn(noise, intervals={"spearman": [0.4, 0.7]}), confirmation=found)
    assert "indistinguishable from the baseline v4" in said
    assert "0.0123" in said
    assert "hpo confirm" not in said


def test_what_cannot_work_is_told_with_its_region() -> None:
    trials = drawn(noise)
    for trial in trials:
        if trial.params["batch_size"] >= 128:
            trial.state, trial.values = TrialState.PRUNED, None
            trial.user_attrs = {"reason": "OutOfMemory"}
    said = titles(trials)
    assert "could not work: OutOfMemory" in said
    assert "all with batch_size from 1" in said


def test_failures_are_counted_by_kind_without_their_messages() -> None:
    failed = [made(n, {}, 0.0, state=TrialState.FAIL, trace="a.py:1 f\nKeyError: secret words") for n in range(3)]
    said = titles(failed)
    assert "3 trials failed" in said
    assert "KeyError 3" in said
    assert "secret" not in said


def test_a_study_of_pruned_trials_alone_is_told_what_to_change() -> None:
    pruned = [made(n, {}, 0.1, [0.1], state=TrialState.PRUNED) for n in range(5)]
    assert "pruner.startup_trials" in titles(pruned)


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL, TrialState.PRUNED])
def test_trials_of_other_programs_without_attributes_break_nothing(state: TrialState) -> None:
    bare = made(0, {}, 0.5, [float("nan")], state=state)
    bare.user_attrs = {}
    titles([bare])
    titles([])

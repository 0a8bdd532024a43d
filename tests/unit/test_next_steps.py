"""What is proposed next: in which order, with which numbers, and where those come from."""

from __future__ import annotations

import math
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from hpo.evidence import evidence_of
from hpo.next_steps import Step, next_steps
from tests.unit.test_findings import SPACE, by_rate, drawn, noise, study_file


def steps_of(trials: list[FrozenTrial], device_s: float | None = 3600.0, **changes: Any) -> list[Step]:
    return next_steps(evidence_of(trials, study_file(**changes), {}, None), lambda count: 0.01, device_s, 20)


def whats(trials: list[FrozenTrial]) -> list[str]:
    return [step.what for step in steps_of(trials)]


def step_with(words: str, steps: list[Step]) -> Step:
    return next(step for step in steps if words in step.what)


def test_an_impossible_target_is_mended_in_the_labels_before_anything_is_searched() -> None:
    trials = drawn(noise)
    for trial in trials:
        trial.user_attrs["ceilings"] = {"spearman": 0.87, "spearman_binary": 0.592}
    first, second, *_ = steps_of(trials)
    assert "targets.spearman_binary: 0.80 is impossible" in first.what
    assert first.gpu_hours == 0
    assert "0.592" in first.basis
    assert "impossible" not in second.what
    assert "impossible" not in steps_of(trials, targets={"spearman_binary": 0.5})[0].what


def test_a_bound_at_which_the_best_lie_is_worth_looking_beyond() -> None:
    """It rises by 0.15 over the range, so by 0.015 over a tenth of it."""
    step = step_with("space.parameters.learning_rate.high", steps_of(drawn(by_rate(-2.0))))
    assert step.gain == pytest.approx(0.015, rel=0.1)
    assert not any("Look beyond" in step.what for step in steps_of(drawn(by_rate(-3.5))))


def test_data_are_proposed_after_a_first_search_and_advanced_after_that() -> None:
    """Their gains cost PR AUC: they are expected where no floor holds that."""
    trials, free = drawn(noise), {"floors": "off"}
    data = step_with("space data", steps_of(trials, constraints=free))
    assert data.gain == pytest.approx(0.084)
    assert step_with("space data", steps_of(trials)).gain is None
    searched = {"positives": {"type": "categorical", "choices": ["same_subcategory", "graded"]}}
    after = steps_of(trials, constraints=free, space={"parameters": SPACE | searched})
    assert step_with("space advanced", after).gain == pytest.approx(0.034)
    assert not any("space data" in step.what for step in after)


def test_what_was_measured_elsewhere_says_so() -> None:
    steps = steps_of(drawn(noise))
    assert all("elsewhere" in step_with(words, steps).basis for words in ("space data", "hpo ensemble", "match head"))
    assert "elsewhere" not in step_with("more trials", steps).basis


def test_without_times_no_step_has_hours() -> None:
    trials = drawn(noise)
    for place, trial in enumerate(trials):
        trial.user_attrs["train_s"] = math.nan if place else None
    assert all(step.gpu_hours is None for step in steps_of(trials, device_s=None))


def test_times_of_the_trials_count_where_the_device_time_is_not_known() -> None:
    assert step_with("more trials", steps_of(drawn(noise), device_s=None)).gpu_hours == pytest.approx(20 * 36 / 3600)


def test_next_steps_come_in_the_order_of_gain_per_hour_and_those_without_an_estimate_last() -> None:
    steps = steps_of(drawn(noise))
    known = [step.gain / step.gpu_hours for step in steps if step.gain is not None and step.gpu_hours]
    assert known == sorted(known, reverse=True)
    assert [step.gain is None for step in steps] == sorted(step.gain is None for step in steps)
    assert next(step for step in steps if "20 more trials" in step.what).gpu_hours == pytest.approx(20)


def test_longer_training_is_proposed_where_the_best_still_rises_alone() -> None:
    assert any("epochs" in what for what in whats(drawn(noise, curve=[0.3, 0.4, 0.5])))
    assert not any("epochs" in what for what in whats(drawn(noise, curve=[0.5, 0.5, 0.5])))


def test_confirming_is_proposed_once_there_is_a_baseline_to_beat() -> None:
    trials = drawn(noise)
    assert not any("hpo confirm" in what for what in whats(trials))
    trials[0].user_attrs["baseline"] = "v4"
    assert any("hpo confirm small" in what for what in whats(trials))


def test_a_study_without_a_best_has_no_next_steps_but_its_findings() -> None:
    assert steps_of([]) == []

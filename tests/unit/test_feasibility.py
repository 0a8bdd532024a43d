"""What the report says of each target, on version 4's numbers among others."""

from __future__ import annotations

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.config import StudyFile
from hpo.feasibility import (
    binary_ceiling,
    class_of,
    enough_positives,
    feasibility,
    graded_ceiling,
    impossible,
    in_words,
    odds,
    outlook,
)
from objectives.evaluation import METRICS

TWO_CLASSES = {0.0: 0.865, 1.0: 0.135}


def made(number: int, score: float, *, state: TrialState = TrialState.COMPLETE, **attributes: object) -> FrozenTrial:
    found: dict[str, object] = dict.fromkeys(METRICS, score)
    found |= {
        "ceilings": dict.fromkeys(METRICS, 0.87),
        "intervals": dict.fromkeys(METRICS, (score - 0.02, score + 0.02)),
    }
    trial = create_trial(
        state=state, value=score if state == TrialState.COMPLETE else None, user_attrs=found | attributes
    )
    trial.number = number
    return trial


def study_file(**changes: object) -> StudyFile:
    content = {"name": "small", "incidents": {"path": "x.csv"}, "budget": {"trials": 40}, "targets": {"spearman": 0.8}}
    return StudyFile.model_validate(content | changes)


def of_spearman(trials: list[FrozenTrial], **changes: object) -> tuple[str, str]:
    row = feasibility(trials, study_file(**changes))[0]
    return row.state, in_words(row, {}, 0.5)


def test_version_4_could_not_reach_its_target_and_was_at_84_percent_of_what_its_labels_allow() -> None:
    ceiling = binary_ceiling(0.135)
    assert ceiling == pytest.approx(0.592, abs=0.0005)
    said = impossible("spearman_binary", 0.497, ceiling, 0.8, TWO_CLASSES, 1.0)
    for part in ("impossible", "13.5 %", "0.592", "84 %", "graded labels would allow 0.87", "31 % positives"):
        assert part in said.replace("Graded", "graded")


def test_no_share_of_positives_lets_two_classes_reach_nine_tenths() -> None:
    assert enough_positives(0.9) is None
    share = enough_positives(0.8)
    assert share is not None
    assert binary_ceiling(share) == pytest.approx(0.8)


def test_graded_labels_of_the_default_pairs_allow_what_their_ceiling_says() -> None:
    assert graded_ceiling(0.135) == pytest.approx(0.8747, abs=1e-4)


@pytest.mark.parametrize(
    ("chance", "said"), [(0.81, "high"), (0.8, "moderate"), (0.5, "low"), (0.3, "very low"), (0.0, "very low")]
)
def test_classes_of_odds_end_where_they_say(chance: float, said: str) -> None:
    assert class_of(chance) == said


def test_odds_claim_no_certainty() -> None:
    assert odds(0.9999) == "high chance (over 99 %)"
    assert odds(0.0001) == "very low chance (under 1 %)"


def test_a_target_is_met_by_the_best() -> None:
    assert of_spearman([made(0, 0.81)]) == ("met", "target 0.80 met (0.810)")


def test_a_target_above_the_ceiling_is_impossible_whatever_the_trials() -> None:
    assert of_spearman([made(0, 0.7)], targets={"spearman": 0.9})[0] == "impossible"


def test_a_target_that_another_trial_meets_is_told_of_it() -> None:
    """Of a metric that is not searched for."""
    trials = [made(0, 0.7), made(1, 0.6, pr_auc=0.85)]
    row = next(row for row in feasibility(trials, study_file(targets={"pr_auc": 0.8})) if row.metric == "pr_auc")
    assert (row.state, row.elsewhere) == ("met elsewhere", 1)


def test_few_trials_give_no_odds_and_many_do() -> None:
    assert of_spearman([made(n, 0.5 + n / 100) for n in range(5)])[0] == "unknown"
    state, said = of_spearman([made(n, 0.5 + (n % 7) / 100) for n in range(30)])
    assert state == "open"
    assert "chance" in said
    assert "10 more trials" in said


def test_baselines_tell_nothing_of_what_the_search_will_find() -> None:
    searched = [made(n, 0.5 + (n % 7) / 100) for n in range(20)]
    with_baselines = [made(n, 0.79, baseline=f"b{n}") for n in range(100, 110)]
    plain, beside = (
        feasibility(trials, study_file(budget={"trials": 60})) for trials in (searched, searched + with_baselines)
    )
    assert beside[0].baseline == ("b100", 0.79)
    assert beside[0].best == 0.79
    assert plain[0].chance is not None
    assert beside[0].chance is not None
    assert beside[0].chance <= plain[0].chance + 0.05


def test_a_study_without_complete_trials_has_no_rows() -> None:
    assert feasibility([], study_file()) == []
    assert feasibility([made(0, 0.3, state=TrialState.PRUNED), made(1, 0.3, state=TrialState.FAIL)], study_file()) == []


def test_labels_of_two_classes_are_told_which_columns_would_grade_them() -> None:
    said = impossible("spearman", 0.55, binary_ceiling(0.135), 0.8, {0.0: 0.865, 0.25: 0.135}, 0.25)
    for part in ("2 grades, 13.5 %", "would allow 0.87", "incidents.columns", "31 % positives"):
        assert part in said


def test_where_labels_are_graded_the_cut_metric_is_not_told_to_grade_them() -> None:
    said = impossible("spearman_binary", 0.5, 0.592, 0.8, {0.0: 0.6, 0.25: 0.265, 0.5: 0.1, 1.0: 0.035}, 0.5)
    assert "go by spearman" in said
    assert "graded labels would" not in said


def test_trials_that_another_program_told_do_not_lower_the_odds() -> None:
    own = [made(n, 0.5 + (n % 7) / 100) for n in range(20)]
    foreign = [create_trial(state=TrialState.COMPLETE, value=0.5) for _ in range(60)]
    for number, trial in enumerate(foreign):
        trial.number = 100 + number
    file = study_file(budget={"trials": 200})
    assert outlook([*own, *foreign], "spearman", 0.87) == outlook(own, "spearman", 0.87)
    assert feasibility([*own, *foreign], file)[0].best == feasibility(own, file)[0].best

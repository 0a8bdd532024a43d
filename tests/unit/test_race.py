"""The race over seeds and what may be claimed of its winner: pure functions on scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import stats

from bench.confirmation import NOISES, TIES, tied
from hpo.race import FREEDOM, LEVEL, Duel, Race, duel_of, gain, gain_on_test, run_race, verdict_of
from hpo.standing import CONFIRMS, JUDGES, WAIT, Standing, standing_of, why_skipped
from hpo.study import BASELINE, OVERRIDES

SEEDS = range(5)
LEADER, CLOSE, FAR, BASE = 7, 9, 4, 0  # numbers of trials
MEANS = {LEADER: 0.6, CLOSE: 0.597, FAR: 0.5, BASE: 0.55}
Rows = dict[int, dict[int, float | None]]


def rows(means: dict[int, float], spread: float = 0.004, shared: float = 0.0, seed: int = 0) -> Rows:
    """Scores of configurations on SEEDS; `shared`: by how much a seed moves all of them alike."""
    rng = np.random.default_rng(seed)
    of_seed = shared * rng.standard_normal(len(SEEDS))
    return {
        one: {s: float(mean + of_seed[s] + spread * rng.standard_normal()) for s in SEEDS}
        for one, mean in means.items()
    }


def until(found: Rows, seeds: int) -> Rows:
    return {one: {seed: score for seed, score in row.items() if seed < seeds} for one, row in found.items()}


def test_what_is_plainly_worse_is_dropped_at_the_third_seed_baselines_too() -> None:
    race = run_race(until(rows(MEANS), 3), SEEDS)
    assert set(race.dropped) == {FAR, BASE}
    assert not race.is_over
    assert race.dropped[FAR].startswith(f"worse than trial {LEADER} on 3 seeds: -0.")


def test_nothing_is_dropped_before_all_that_race_have_run_on_three_seeds() -> None:
    assert not run_race(until(rows(MEANS), 2), SEEDS).dropped
    found = until(rows(MEANS), 3)
    del found[CLOSE][2]
    assert not run_race(found, SEEDS).dropped


def test_race_is_over_when_one_is_left_whatever_has_not_run() -> None:
    race = run_race(until(rows({LEADER: 0.6, BASE: 0.5}), 3), SEEDS)
    assert race.is_over
    assert duel_of(race, {BASE}) == Duel(LEADER, LEADER, BASE)
    assert {one: len(scores) for one, scores in race.scores.items()} == {LEADER: 3, BASE: 3}


def test_race_that_nobody_leaves_is_over_after_the_last_seed() -> None:
    found = rows({LEADER: 0.6, CLOSE: 0.6})
    assert not run_race(until(found, 4), SEEDS).is_over
    race = run_race(found, SEEDS)
    assert race.is_over
    assert not race.dropped


@pytest.mark.parametrize("order", range(20))
def test_decisions_are_the_same_in_whatever_order_runs_end_and_never_taken_back(order: int) -> None:
    found = rows(MEANS, spread=0.02, seed=order)
    ended = [(one, seed) for one in found for seed in SEEDS]
    np.random.default_rng(order).shuffle(ended)
    so_far: Rows = {one: {} for one in found}
    race = run_race(so_far, SEEDS)
    for one, seed in ended:
        so_far[one][seed] = found[one][seed]
        later = run_race(so_far, SEEDS)
        assert race.dropped.items() <= later.dropped.items()
        assert not race.is_over or later == race
        race = later
    assert race == run_race(found, SEEDS)


def test_what_a_seed_does_to_all_hides_no_difference() -> None:
    found = rows({LEADER: 0.6, CLOSE: 0.58}, spread=0.001, shared=0.1)
    scores = np.array([found[LEADER][seed] for seed in SEEDS], dtype=np.float64)
    assert scores.std() > 0.02  # more than the difference: unpaired, nothing would be seen
    assert set(run_race(found, SEEDS).dropped) == {CLOSE}


def test_level_is_divided_by_the_number_of_looks() -> None:
    found = {LEADER: {0: 0.6, 1: 0.61, 2: 0.62}, CLOSE: {0: 0.59, 1: 0.594, 2: 0.596}}
    differences = np.array([0.01, 0.016, 0.024])
    chance = stats.ttest_1samp(differences, 0, alternative="greater").pvalue
    assert LEVEL / 3 < chance < LEVEL  # enough for one look, too little for three
    assert set(run_race(found, range(3)).dropped) == {CLOSE}
    assert not run_race(found, range(5)).dropped


def test_equal_scores_drop_nobody_and_a_gain_without_any_spread_does() -> None:
    same = dict.fromkeys(SEEDS, 0.5)
    assert not run_race({LEADER: same, CLOSE: {**same}}, SEEDS).dropped
    assert set(run_race({LEADER: dict.fromkeys(SEEDS, 0.625), CLOSE: same}, SEEDS).dropped) == {CLOSE}


def test_configuration_that_completes_no_run_drops_out_and_one_with_too_few_does_in_the_end() -> None:
    found = rows({LEADER: 0.6, CLOSE: 0.6})
    found[FAR] = dict.fromkeys(SEEDS, None)
    found[BASE] = {**dict.fromkeys(SEEDS, None), 0: 0.9, 1: 0.9}
    race = run_race(until(found, 3), SEEDS)
    assert race.dropped == {FAR: "none of its runs was completed"}
    race = run_race(found, SEEDS)
    assert race.dropped[BASE] == "fewer than 3 of its runs were completed"
    assert duel_of(race, {BASE}) is None


def test_runs_that_failed_leave_the_seeds_that_others_have_in_common() -> None:
    found = rows({LEADER: 0.6, CLOSE: 0.58}, spread=0.001, shared=0.05)
    found[CLOSE][1] = None
    race = run_race(found, SEEDS)
    assert race.dropped[CLOSE].startswith(f"worse than trial {LEADER} on 3 seeds")  # of four


def test_baseline_that_leads_is_compared_with_the_best_of_the_others() -> None:
    race = run_race(rows({LEADER: 0.56, CLOSE: 0.57, BASE: 0.6, 1: 0.58}), SEEDS)
    assert duel_of(race, {BASE, 1}) == Duel(winner=BASE, challenger=CLOSE, baseline=BASE)


def test_winner_is_compared_with_the_best_baseline() -> None:
    race = run_race(rows({LEADER: 0.6, BASE: 0.55, 1: 0.56}), SEEDS)
    assert duel_of(race, {BASE, 1}) == Duel(LEADER, LEADER, 1)


def test_nothing_to_compare_is_no_duel() -> None:
    assert duel_of(run_race(rows({BASE: 0.6, 1: 0.5}), SEEDS), {BASE, 1}) is None
    assert duel_of(Race({LEADER: {}}, {LEADER: "none"}, is_over=True), ()) is None


def test_gain_on_validation_is_a_paired_t_interval() -> None:
    differences = np.array([0.01, 0.02, 0.015, 0.03])
    point, low, high = gain(differences)
    expected = stats.ttest_1samp(differences, 0).confidence_interval()
    assert (point, low, high) == pytest.approx((differences.mean(), expected.low, expected.high))


def test_gain_on_one_seed_claims_nothing() -> None:
    assert verdict_of(gain(np.array([0.3]))) == "indistinguishable"


def test_variances_of_seeds_and_incidents_add_up() -> None:
    differences = np.array([0.01, 0.02, 0.015, 0.03])
    replicates = np.random.default_rng(0).normal(0.018, 0.01, 200)
    replicates[3] = np.nan  # could not be scored
    point, low, high = gain_on_test(differences, replicates)
    parts = differences.var(ddof=1) / 4, np.nanvar(replicates, ddof=1)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / FREEDOM)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    assert (point, high - low) == pytest.approx((differences.mean(), 2 * half))
    assert high - low > max(np.ptp(gain(differences)[1:]), 2 * 1.96 * np.sqrt(parts[1]))


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 0.01, 0.2), "better"),
        ((0.1, 0.0, 0.2), "indistinguishable"),
        ((0.0, 0.0, 0.0), "indistinguishable"),
        ((-0.1, -0.2, -0.01), "worse"),
    ],
)
def test_verdict_is_where_the_interval_lies(interval: tuple[float, float, float], verdict: str) -> None:
    assert verdict_of(interval) == verdict


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("noise", NOISES)
def test_tie_is_called_a_win_no_more_often_than_chance_allows(noise: str, tie: str) -> None:
    studies = 400
    found = [tied(NOISES[noise], *TIES[tie], rng) for rng in np.random.default_rng(1).spawn(studies)]
    wins = sum(one.wins for one in found)
    assert wins <= stats.binom.ppf(0.999, studies, 0.025)
    assert sum(one.holds for one in found) >= stats.binom.ppf(0.001, studies, 0.95)


# Read from trials


def run(one: int, seed: int, value: float | None = None, *, judges: bool = False) -> FrozenTrial:
    """A run that is complete with a value, and waits without one."""
    attributes: dict[str, Any] = {CONFIRMS: one, JUDGES: judges, OVERRIDES: {"seed": seed}}
    attributes |= {BASELINE: "v4"} if one == BASE else {}
    state = TrialState.WAITING if value is None else TrialState.COMPLETE
    trial = create_trial(state=state, value=value, user_attrs=attributes)
    trial.number = 100 * one + seed
    return trial


def raced(means: dict[int, float], seeds: int) -> list[FrozenTrial]:
    """Runs on SEEDS, of which so many have ended, and on as many that judge."""
    found = rows(means)
    race = [run(one, seed, found[one][seed] if seed < seeds else None) for one in means for seed in SEEDS]
    return race + [run(one, seed + len(SEEDS), judges=True) for one in means for seed in SEEDS]


def reasons(standing: Standing, trials: list[FrozenTrial], *, judges: bool) -> dict[int, set[str | None]]:
    found: dict[int, set[str | None]] = {}
    for trial in trials:
        if not trial.state.is_finished() and trial.user_attrs[JUDGES] == judges:
            found.setdefault(trial.user_attrs[CONFIRMS], set()).add(why_skipped(standing, trial))
    return found


def test_runs_of_what_was_dropped_are_skipped_and_judging_waits_for_the_race() -> None:
    trials = raced(MEANS, 3)
    standing = standing_of(trials)
    assert standing.ended is None
    racing = reasons(standing, trials, judges=False)
    assert racing[LEADER] == racing[CLOSE] == {None}
    assert racing[FAR] == {standing.race.dropped[FAR]}
    assert reasons(standing, trials, judges=True) == {one: {WAIT} for one in MEANS}


def test_after_the_race_the_winner_and_the_best_baseline_are_judged_and_nobody_else() -> None:
    trials = raced({LEADER: 0.6, CLOSE: 0.597, BASE: 0.5}, 5)
    standing = standing_of(trials)
    found = reasons(standing, trials, judges=True)
    assert found == {LEADER: {None}, BASE: {None}, CLOSE: {"neither the winner nor its baseline"}}
    assert standing.ended is None
    judged = [run(t.user_attrs[CONFIRMS], t.number % 100, 0.5, judges=True) for t in standing.judging]
    others = [trial for trial in trials if trial.number not in {one.number for one in judged}]
    ended = standing_of([*others, *judged])
    assert ended.ended == "2 of 3 configurations were left after 5 of 5 seeds"
    assert ended.race == standing.race


def test_one_that_is_left_need_not_run_on_the_other_seeds() -> None:
    trials = raced({LEADER: 0.6, BASE: 0.5}, 3)
    assert reasons(standing_of(trials), trials, judges=False)[LEADER] == {"one configuration is left"}


def test_trials_that_somebody_adds_by_hand_take_no_part() -> None:
    trials = raced(MEANS, 5)
    assert standing_of([*trials, create_trial(value=0.99)]) == standing_of(trials)

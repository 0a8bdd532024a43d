"""Odds from a study's own scores: bounded, monotone, wide where little is known, and held to what comes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpo.outlook import LEAST, Outlook


def drawn(count: int, seed: int = 0) -> tuple[float, ...]:
    return tuple(np.random.default_rng(seed).normal(0.5, 0.02, count).tolist())


def test_a_target_that_was_reached_is_certain_and_one_above_the_ceiling_impossible() -> None:
    ahead = Outlook(drawn(30), ceiling=0.6)
    assert ahead.chance(ahead.best, 10) == 1.0
    assert ahead.chance(0.61, 1_000_000) == 0.0


def test_the_chance_falls_with_the_target_and_rises_with_the_trials() -> None:
    ahead = Outlook(drawn(30))
    by_target = [ahead.chance(ahead.best + step, 40) for step in (0.001, 0.005, 0.01, 0.03, 0.1)]
    by_trials = [ahead.chance(ahead.best + 0.01, more) for more in (0, 1, 10, 40, 400)]
    assert by_target == sorted(by_target, reverse=True)
    assert by_trials == sorted(by_trials)
    assert 0 <= by_target[-1] < by_target[0] <= 1


def test_few_scores_give_no_odds() -> None:
    assert not Outlook(drawn(LEAST - 1)).is_open
    assert not Outlook((math.nan,) * 50).is_open
    assert not Outlook((0.5,) * 50).is_open
    assert Outlook(drawn(LEAST)).is_open


def test_a_trial_that_was_given_up_counts_as_one_that_came_to_nothing() -> None:
    scores = drawn(20)
    thinned = tuple(score for kept in scores for score in (kept, math.nan, math.nan))
    target = max(scores) + 0.005
    assert Outlook(thinned).chance(target, 30) < Outlook(scores).chance(target, 30)


def test_the_range_holds_four_times_in_five_for_draws_that_learn_nothing() -> None:
    held = []
    for seed in range(150):
        scores = drawn(80, seed)
        ahead, came = Outlook(scores[:30]), max(scores)
        held.append(ahead.quantile(0.1, 50) <= came <= ahead.quantile(0.9, 50))
    assert np.mean(held) == pytest.approx(0.8, abs=0.12)


def test_a_rise_that_goes_on_is_seen() -> None:
    noise = np.random.default_rng(0).normal(0, 0.004, 40)
    rising = 0.4 + 0.004 * np.arange(40)
    target = float(rising[-1]) + 0.03
    assert Outlook(tuple(rising + noise)).chance(target, 30) > 0.7
    assert Outlook(tuple(np.random.default_rng(0).permutation(rising + noise))).chance(target, 30) < 0.5


def test_the_expected_gain_is_the_mean_of_what_comes() -> None:
    gains, told = [], []
    for seed in range(150):
        scores = drawn(80, seed)
        ahead = Outlook(scores[:30])
        told.append(ahead.expected_gain(50))
        gains.append(max(scores) - ahead.best)
    assert np.mean(told) == pytest.approx(np.mean(gains), abs=0.006)

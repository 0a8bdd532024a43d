"""Which trials are given up: alike for long plans and short ones, whatever their batches, and seldom the best."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.audit import Replay, replay
from hpo.config import Budget, Pruner, PrunerKind, StudyFile
from hpo.feasible import floors_of
from hpo.pruning import Curve, Decision, curve_of, decide, is_peer, longest_plan, margin_of
from objectives.config import Incidents, Mining

EPOCH, EVERY = 20_000, 5_000
LONGEST = 20 * EPOCH
DEFAULT = Pruner()
STATE = TrialState.COMPLETE
RECORDED = json.loads(Path(__file__).with_name("recorded_curves.json").read_text())
KINDS: tuple[PrunerKind, ...] = ("median", "percentile", "successive_halving", "hyperband")


def plan(epochs: int, best: float, number: int = 0, *, power: float = 0.5, start: float = 0.2) -> Curve:
    """Learns by the share of its plan, as a learning rate that decays over it makes it."""
    planned = epochs * EPOCH
    steps = range(0, planned + 1, EVERY)
    spearman = tuple(start + (best - start) * (step / planned) ** power for step in steps)
    return Curve(number, planned, tuple(steps), spearman, TrialState.COMPLETE)


def fast(best: float, number: int = 0, *, examples: int = 60_000, pace: float = 10_000) -> Curve:
    """Learns by examples seen, whatever is planned."""
    steps = range(0, examples + 1, EVERY)
    return Curve(
        number,
        examples,
        tuple(steps),
        tuple(best - (best - 0.2) * math.exp(-step / pace) for step in steps),
        TrialState.COMPLETE,
    )


def decisions(curve: Curve, peers: list[Curve], pruner: Pruner = DEFAULT, margin: float = 0.0) -> list[Decision | None]:
    """At each of its reports but the last, of which nobody asks."""
    return [decide(pruner, curve.until(step), peers, margin, LONGEST) for step in curve.steps[1:-1]]


def at_equal_examples(curve: Curve, peers: list[Curve]) -> list[bool]:
    """What Optuna's median pruner says that compares nothing but examples seen."""
    return [
        curve.at(step) < sorted(peer.at(step) for peer in peers)[len(peers) // 2]
        for step in curve.steps[2:-1]
        if all(not math.isnan(peer.at(step)) for peer in peers)
    ]


def test_good_plan_of_twenty_epochs_is_not_pruned_by_plans_of_two() -> None:
    long, short = plan(20, 0.7, 9), [plan(2, 0.6 + i / 100, i) for i in range(6)]
    assert any(at_equal_examples(long, short))
    for kind in KINDS:
        assert not any(decisions(long, short, Pruner(kind=kind))), kind


def test_good_plan_of_two_epochs_is_not_pruned_by_plans_of_twenty() -> None:
    short, long = plan(2, 0.7, 9), [plan(20, 0.72 + i / 100, i) for i in range(6)]
    for kind in KINDS:
        assert not any(decisions(short, long, Pruner(kind=kind))), kind


def test_good_plan_of_two_epochs_is_not_pruned_by_long_ones_that_learn_by_examples() -> None:
    """At the same share of their plans these have seen ten times as much."""
    short, long = fast(0.7, 9, examples=2 * EPOCH), [fast(0.7 - i / 1000, i, examples=20 * EPOCH) for i in range(6)]
    assert not any(decisions(short, long, margin=0.002))


@pytest.mark.parametrize("epochs", [2, 6, 20])
@pytest.mark.parametrize("peers", [1, 3, 20], ids=lambda epochs: f"beside plans of {epochs} epochs")
def test_trial_that_learns_nothing_is_pruned_beside_plans_of_any_length(epochs: int, peers: int) -> None:
    bad = plan(epochs, 0.22, 9)
    pruned = decisions(bad, [plan(peers, 0.6, i) for i in range(4)])
    assert pruned[-1] is not None
    assert pruned[-1].verdict == "prune"


def test_trial_is_pruned_whatever_the_steps_at_which_its_peers_reported() -> None:
    """Evaluations that fall elsewhere, as in a study that somebody else feeds."""
    elsewhere = [
        Curve(i, 60_000, tuple(range(0, 60_001, 7_000)), tuple(0.2 + i / 20 for i in range(9)), TrialState.COMPLETE)
        for i in range(4)
    ]
    assert any(decisions(plan(3, 0.21, 9), elsewhere))


def test_slow_trial_that_still_climbs_is_kept_and_one_that_has_stopped_climbing_is_not() -> None:
    """The best of a recorded study had 0.38 where others had 0.55, and overtook them after 30,000 examples."""
    peers = [fast(0.57 + i / 1000, i, pace=3_000) for i in range(6)]
    slow = Curve(
        9, LONGEST, tuple(range(0, 45_000, EVERY)), (0.155, 0.277, 0.384, 0.477, 0.532, 0.557, 0.578, 0.591, 0.6), STATE
    )
    assert not any(decisions(slow, peers))
    flat = Curve(9, LONGEST, slow.steps, (0.155, 0.277, 0.384, *[0.4] * 6), STATE)
    assert [bool(decision) for decision in decisions(flat, peers)] == [False, False, *[True] * 5]


def test_trial_past_its_best_is_stopped_and_keeps_it_if_that_was_good() -> None:
    peers = [fast(0.5 + i / 100, i) for i in range(6)]
    steps = tuple(range(0, 45_000, EVERY))
    good = Curve(9, 60_000, steps, (0.2, 0.5, 0.59, 0.58, 0.55, 0.52, 0.5, 0.48, 0.46), STATE)
    poor = Curve(9, 60_000, steps, (0.2, 0.4, 0.41, 0.4, 0.39, 0.38, 0.37, 0.36, 0.35), STATE)
    assert [found.verdict for found in decisions(good, peers) if found][:1] == ["overtaken"]
    assert {found.verdict for found in decisions(poor, peers) if found} == {"prune"}


def test_nothing_is_pruned_before_the_warm_up_nor_beside_too_few_complete_trials() -> None:
    peers, bad = [fast(0.6, i) for i in range(4)], plan(3, 0.21, 9)
    assert [found is not None for found in decisions(bad, peers, Pruner(warmup_examples=20_000))][:4] == [
        *[False] * 3,
        True,
    ]
    assert not any(decisions(bad, peers[:3]))
    assert any(decisions(bad, peers))
    running = [Curve(p.number, p.planned, p.steps, p.spearman, TrialState.RUNNING) for p in peers]
    assert not any(decisions(bad, running))


def test_trial_behind_by_less_than_the_noise_goes_on() -> None:
    peers, near = [fast(0.6, i) for i in range(6)], fast(0.595, 9)
    assert any(decisions(near, peers, margin=0.0))
    assert not any(decisions(near, peers, margin=0.01))


def test_margin_is_a_share_of_the_half_width_of_intervals() -> None:
    trials = [recorded(row) for row in RECORDED["seed 0"]]
    assert margin_of(trials, Pruner(noise_margin=0.5)) == pytest.approx(0.5 * 0.039, abs=0.002)
    assert margin_of([], DEFAULT) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_reports_that_are_no_numbers_prune_nothing_and_count_for_nothing(kind: PrunerKind) -> None:
    values = {5_000: 0.4, 10_000: math.nan, 15_000: 0.6, 20_000: math.inf}
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=values)
    expected = Curve(-1, 15_000, (0, 5_000, 15_000), (0.2, 0.4, 0.6), TrialState.RUNNING)
    assert curve_of(trial, {(None, None): 0.2}) == expected
    unknown = curve_of(create_trial(state=TrialState.RUNNING, intermediate_values={5_000: math.nan}), {})
    pruner = Pruner(kind=kind)
    assert decide(pruner, unknown, [fast(0.6, i) for i in range(6)], 0.0, LONGEST) is None
    assert decide(pruner, plan(2, 0.7).until(20_000), [unknown] * 6, 0.0, LONGEST) is None or kind != "percentile"


def test_off_prunes_nothing() -> None:
    assert not any(decisions(plan(3, 0.2, 9), [fast(0.6, i) for i in range(6)], Pruner(kind="off")))


def test_halving_lets_one_in_three_go_on() -> None:
    pruner = Pruner(kind="successive_halving", warmup_examples=10_000, reduction_factor=3)
    peers = [flat(0.4 + i / 50, i) for i in range(9)]
    kept = [best for best in range(9) if not decisions(flat(0.405 + best / 50, 99), peers, pruner)[1]]
    assert kept == [6, 7, 8]


def flat(best: float, number: int) -> Curve:
    steps = tuple(range(EVERY, 3 * EPOCH + 1, EVERY))
    return Curve(number, 3 * EPOCH, (0, *steps), (0.2, *[best] * len(steps)), STATE)


def test_hyperband_begins_trials_at_different_rungs_as_its_paper_shares_them() -> None:
    pruner = Pruner(kind="hyperband", warmup_examples=10_000, reduction_factor=3)
    bad, peers = plan(20, 0.21), [fast(0.6, i, examples=LONGEST) for i in range(200)]

    def pruned_at(number: int) -> int:
        named = Curve(number, bad.planned, bad.steps, bad.spearman, bad.state)
        found = (step for step in bad.steps[1:-1] if decide(pruner, named.until(step), peers, 0.0, LONGEST))
        return next(found, 0)

    first = Counter(map(pruned_at, range(100)))
    assert set(first) == {10_000, 30_000, 90_000, 270_000}
    assert first[10_000] > first[30_000] > first[90_000]


def test_longest_plan_is_the_most_epochs_over_the_most_pairs() -> None:
    base = StudyFile(name="any", incidents=Incidents(path="any"), budget=Budget(trials=1), mining=Mining(train_pairs=7))
    space = {"epochs": {"type": "int", "low": 1, "high": 20}, "train_pairs": {"type": "categorical", "choices": [5, 9]}}
    searched = StudyFile.model_validate(base.model_dump(exclude={"space"}) | {"space": {"parameters": space}})
    alone = StudyFile.model_validate(
        base.model_dump(exclude={"space"}) | {"space": {"parameters": {"epochs": space["epochs"]}}}
    )
    assert (longest_plan(searched), longest_plan(alone)) == (180, 140)


def test_trials_that_are_good_at_spearman_alone_set_no_bar() -> None:
    attributes = {"spearman": 0.64, "roc_auc": 0.84}
    trial = create_trial(value=0.64, user_attrs=attributes, intermediate_values={5_000: 0.64})
    assert not is_peer(trial, {"roc_auc": 0.87})
    assert is_peer(trial, {"roc_auc": 0.8})
    baseline = create_trial(value=0.3, user_attrs={**attributes, "baseline": "v4"}, intermediate_values={5_000: 0.3})
    assert is_peer(baseline, {"roc_auc": 0.87})


# Forty trials on real tickets (helpdesk_5k, static model, TPE), none pruned, of each of three seeds


def recorded(row: dict[str, object]) -> FrozenTrial:
    curve, metrics = dict(map(tuple, row["curve"])), row["metrics"]  # type: ignore[call-overload]
    attributes = {
        "planned_examples": row["planned"],
        "intervals": {"spearman": row["interval"]},
        "untrained": {"spearman": row["untrained"]},
        **metrics,  # type: ignore[dict-item]
        **({"baseline": row["baseline"]} if row["baseline"] else {}),
    }
    trial = create_trial(
        params={"epochs": row["params"]["epochs"]},  # type: ignore[index]
        distributions={"epochs": IntDistribution(1, 20)},
        value=max(curve.values()),
        intermediate_values=curve,
        user_attrs=attributes,
    )
    trial.number = int(str(row["number"]))
    return trial


def played(seed: str, pruner: Pruner) -> Replay:
    trials = [recorded(row) for row in RECORDED[seed]]
    file = StudyFile(name="any", incidents=Incidents(path="any"), budget=Budget(trials=40))
    return replay(pruner, trials, LONGEST, floors_of(trials, file))


@pytest.mark.parametrize("seed", RECORDED)
def test_default_pruner_saves_half_of_the_examples_and_misses_nothing_that_counts(seed: str) -> None:
    found = played(seed, DEFAULT)
    assert found.saved >= 0.5
    assert found.missed <= 0.005


def test_default_pruner_is_the_one_that_saves_most_in_the_recorded_studies() -> None:
    saved = {kind: sum(played(seed, Pruner(kind=kind)).saved for seed in RECORDED) for kind in KINDS}
    assert max(saved, key=lambda kind: saved[kind]) == DEFAULT.kind


def test_replay_without_a_pruner_saves_and_misses_nothing() -> None:
    assert played("seed 0", Pruner(kind="off")) == Replay(pruned=0, saved=0.0, missed=0.0)


def test_replay_counts_what_a_bad_trial_would_have_been_spared() -> None:
    rows = [dict(row) for row in RECORDED["seed 0"][:8]]
    trials = [recorded(row) for row in rows]
    bad = create_trial(value=0.2, intermediate_values={step: 0.2 for step in range(EVERY, 100_001, EVERY)})
    bad.number = 8
    total = sum(max(trial.intermediate_values) for trial in [*trials, bad])
    before, after = (replay(DEFAULT, some, LONGEST, {}) for some in (trials, [*trials, bad]))
    spent = (1 - after.saved) * total - (1 - before.saved) * (total - 100_000)
    assert (after.pruned - before.pruned, round(spent)) == (1, 10_000)

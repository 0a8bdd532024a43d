"""Which trials to give up: Optuna's pruners, asked whether a trial will keep up when it has seen as much again.

Two clocks say how far a trial is: examples seen, and the share of its plan, which shapes the learning rate. By the
first alone, a long plan that is still warming up loses to a short one that has decayed; by the second alone, a short
plan loses to a long one that has seen ten times as much. So a peer counts with what it had at the earlier of the two.

Static models with a high learning rate peak at once, those with a low one overtake them later: what a trial has says
little, where it is going says more. So it counts with what it will have after as many examples again at the pace of its
last report, beside what its peers had then. One that falls behind after its best is stopped, and keeps that best.

Decisions follow from the curves alone, so that `hpo prune-audit` can replay them.
"""

from __future__ import annotations

import math
from binascii import crc32
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.config import OF_THE_FILE, Pruner, StudyFile, searched
from hpo.feasible import Floors, floors_of, reaches
from hpo.study import is_baseline, parameters_of
from search_spaces.space import Choice, IntRange, Value

Base = tuple[Value | None, ...]

PLANNED, WHY_PRUNED = "planned_examples", "why_pruned"  # a trial's user attributes


@dataclass(frozen=True)
class Curve:
    """Reports of one trial; `planned`: examples that it will have seen in the end, unless it stops early."""

    number: int
    planned: int
    steps: tuple[int, ...]  # examples seen, ascending; 0 first if it is known what the untrained model has
    spearman: tuple[float, ...]
    state: TrialState

    @property
    def best(self) -> float:
        return max(self.spearman)

    def at(self, examples: float) -> float:
        """The best by then, in a line between reports; NaN before the first, and beyond what is known."""
        if not self.steps or (examples > self.steps[-1] and self.state != TrialState.COMPLETE):
            return math.nan
        return float(np.interp(examples, self.steps, np.maximum.accumulate(self.spearman), left=math.nan))

    def horizon(self, examples: int) -> int:
        """As many again as it had seen then, or all of its plan."""
        return max(min(2 * examples, self.planned), examples)

    def projected(self) -> float:
        """What it will have at the horizon, if it goes on as between its last two reports."""
        slope = np.diff(self.spearman[-2:]) / np.diff(self.steps[-2:])
        return self.spearman[-1] + max(float(slope[0]), 0.0) * (self.horizon(self.steps[-1]) - self.steps[-1])

    def until(self, step: int) -> Curve:
        """As it was when it reported at `step`."""
        reports = sum(one <= step for one in self.steps)
        return Curve(self.number, self.planned, self.steps[:reports], self.spearman[:reports], TrialState.RUNNING)


@dataclass(frozen=True)
class Decision:
    verdict: Literal["prune", "overtaken"]  # what it had keeps up, where it is going does not
    why: str


@dataclass(frozen=True)
class View:
    """What a pruner of Optuna reads of a study."""

    trials: list[FrozenTrial]
    direction: StudyDirection = StudyDirection.MAXIMIZE

    def get_trials(self, deepcopy: bool = True, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        return [trial for trial in self.trials if states is None or trial.state in states]

    @property
    def _storage(self) -> View:
        return self

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Rungs follow from the curves."""


def decide_of(study: optuna.Study, file: StudyFile, number: int) -> Decision | None:
    """Of a trial that has just reported; None: it goes on."""
    trials = study.get_trials(deepcopy=False)
    floors = floors_of(trials, file)  # those below would set a bar that no good trial need pass
    untrained = untrained_of(trials)
    curves = {trial.number: curve_of(trial, untrained) for trial in trials if is_peer(trial, floors)}
    own = curves.pop(number)
    return decide(file.pruner, own, list(curves.values()), margin_of(trials, file.pruner), longest_plan(file))


def is_peer(trial: FrozenTrial, floors: Floors) -> bool:
    """Whether others are measured by it: not where it is good at Spearman alone."""
    is_sound = trial.state != TrialState.COMPLETE or is_baseline(trial) or reaches(trial, floors)
    return bool(trial.intermediate_values) and is_sound


def decide(pruner: Pruner, own: Curve, peers: Sequence[Curve], margin: float, longest: int) -> Decision | None:
    """`longest`: examples of the longest plan, the most that Hyperband gives to a trial."""
    if pruner.kind == "off" or len(own.steps) < 2:
        return None
    bracket = _bracket(pruner, own.number, longest)
    peers = [peer for peer in peers if _bracket(pruner, peer.number, longest) == bracket]
    rungs = _rungs(pruner, bracket, longest)
    seen = [_seen(peer, own, rungs) for peer in peers]

    def gives_up(value: float) -> bool:
        passed = own.steps[-2]
        trial = _shown(own, own.steps[-1], value, [(i, own.at(rung)) for i, rung in enumerate(rungs) if rung <= passed])
        return _make(pruner, bracket).prune(cast(optuna.Study, View([*seen, trial])), trial)

    if not gives_up(own.projected() + margin):
        return None
    had = [trial.intermediate_values[own.steps[-1]] for trial in seen if trial.intermediate_values]
    theirs = f"{len(had)} trials had {np.median(had):.4f} in the middle, {max(had):.4f} at most" if had else "none has"
    why = (
        f"{pruner.kind}: {own.spearman[-1]:.4f} at {own.steps[-1]:,} examples would be {own.projected():.4f} (and "
        f"{margin:.4f} for noise) at {own.horizon(own.steps[-1]):,}, where {theirs}"
    )
    return Decision("prune" if gives_up(own.best + margin) else "overtaken", why)


def curve_of(trial: FrozenTrial, untrained: Mapping[Base, float]) -> Curve:
    """From its untrained model on, where that is known. Reports that are no numbers count for nothing."""
    reports = sorted((step, value) for step, value in trial.intermediate_values.items() if math.isfinite(value))
    planned = trial.user_attrs.get(PLANNED, reports[-1][0] if reports else 0)
    before = untrained.get(_base(trial))
    points = [(0, before), *reports] if before is not None else reports
    steps, spearman = tuple(step for step, _ in points), tuple(float(value) for _, value in points)
    return Curve(trial.number, planned, steps, spearman, trial.state)


def untrained_of(trials: Sequence[FrozenTrial]) -> dict[Base, float]:
    """The Spearman that trials with this base model begin with."""
    return {_base(t): t.user_attrs["untrained"]["spearman"] for t in trials if "untrained" in t.user_attrs}


def _base(trial: FrozenTrial) -> Base:
    """What of its parameters decides how it begins; the rest is equal for all trials of a study."""
    values = parameters_of(trial)
    return tuple(values.get(name) for name in OF_THE_FILE)


def margin_of(trials: Sequence[FrozenTrial], pruner: Pruner) -> float:
    """By how much a trial must be behind: a share of the median half-width of the intervals so far."""
    intervals = [trial.user_attrs["intervals"]["spearman"] for trial in trials if trial.user_attrs.get("intervals")]
    return pruner.noise_margin * float(np.median([(high - low) / 2 for low, high in intervals])) if intervals else 0.0


def longest_plan(file: StudyFile) -> int:
    """Examples: of the most epochs over the most pairs that a trial may have."""
    space = searched(file)

    def most(name: str, otherwise: int) -> int:
        match space.get(name):
            case IntRange(high=high):
                return high
            case Choice(choices=choices):
                return max(int(value) for value in choices)
        return otherwise

    return most("epochs", file.training.epochs) * most("train_pairs", file.mining.train_pairs)


def _seen(peer: Curve, own: Curve, rungs: Sequence[int]) -> FrozenTrial:
    """What a peer had when it was where this trial will be, now and at the rungs, by the earlier of its two clocks."""
    pace = min(1.0, peer.planned / own.planned) if own.planned else 1.0
    now, *at_rungs = (peer.at(own.horizon(step) * pace) for step in (own.steps[-1], *rungs))
    return _shown(peer, own.steps[-1], now, list(enumerate(at_rungs)))


def _shown(curve: Curve, step: int, value: float, rungs: Sequence[tuple[int, float]]) -> FrozenTrial:
    return FrozenTrial(
        number=curve.number,
        trial_id=curve.number,
        state=curve.state,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={f"completed_rung_{i}": found for i, found in rungs if not math.isnan(found)},
        intermediate_values={} if math.isnan(value) else {step: value},
    )


def _make(pruner: Pruner, bracket: int) -> optuna.pruners.BasePruner:
    if pruner.kind in ("median", "percentile"):
        return optuna.pruners.PercentilePruner(
            50.0 if pruner.kind == "median" else pruner.percentile,
            n_startup_trials=pruner.startup_trials,
            n_warmup_steps=pruner.warmup_examples,
        )
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=pruner.warmup_examples,
        reduction_factor=pruner.reduction_factor,
        min_early_stopping_rate=bracket,
    )


def _rungs(pruner: Pruner, bracket: int, longest: int) -> list[int]:
    """Examples at which halving decides."""
    if pruner.kind not in ("successive_halving", "hyperband"):
        return []
    steps = (pruner.warmup_examples * pruner.reduction_factor ** (bracket + i) for i in count())
    return list(takewhile(lambda step: step <= longest, steps))


def _bracket(pruner: Pruner, number: int, longest: int) -> int:
    """Hyperband's: which rung a trial begins at, by its number, in the shares of its paper."""
    if pruner.kind != "hyperband":
        return 0
    eta = pruner.reduction_factor
    brackets = max(math.floor(math.log(max(longest / pruner.warmup_examples, 1), eta)), 0) + 1
    shares = [math.ceil(brackets * eta**s / (s + 1)) for s in reversed(range(brackets))]
    place = crc32(str(number).encode()) % sum(shares)
    return next(bracket for bracket in range(brackets) if place < sum(shares[: bracket + 1]))

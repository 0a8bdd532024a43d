"""Which of several configurations is best over seeds, when that is plain enough, and what may be claimed of it.

Scores are paired: every configuration runs on the same seeds, so what a seed does to all of them cancels out. The race
is replayed seed by seed from the outcomes, and a look counts once all that still race have ended their runs up to it:
whoever replays it, whenever, comes to the same decisions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from objectives.evaluation import FloatArray

LEAST = 3  # seeds in common, before anything is compared
LEVEL = 0.05  # of dropping a configuration that is no worse, over all looks together
TAIL = 0.025  # on either side of a 95 % interval
FREEDOM = 30  # of a bootstrap's variance: from split to split of 300 to 900 incidents, its root scatters by an eighth
WIDEST = 2.0  # by how much two Spearman can differ: all that is known without two seeds in common

Outcomes = Mapping[int, Mapping[int, float | None]]  # by configuration and seed; None: ended without a score
Interval = tuple[float, float, float]  # point, and 95 % from and to
Verdict = Literal["better", "indistinguishable", "worse"]


@dataclass(frozen=True)
class Race:
    scores: Mapping[int, Mapping[int, float]]  # that decided it, by configuration and seed
    dropped: Mapping[int, str]  # why
    is_over: bool

    def best_of(self, among: Iterable[int]) -> int | None:
        """The one with the highest mean; the first of equal ones."""
        return max((one for one in among if len(self.scores[one]) >= LEAST), key=self.mean, default=None)

    def mean(self, one: int) -> float:
        return float(np.mean(list(self.scores[one].values())))

    def differences(self, one: int, other: int) -> FloatArray:
        """On the seeds that they have in common."""
        return _differences(self.scores[one], self.scores[other])


@dataclass(frozen=True)
class Duel:
    """Who is judged. `challenger` is the winner, or where that is a baseline the best that is none."""

    winner: int
    challenger: int
    baseline: int


def run_race(outcomes: Outcomes, seeds: Sequence[int]) -> Race:
    """A look after each seed from the third on drops what is worse than the leader; it is over when one is left."""
    racing, race = list(outcomes), Race({one: {} for one in outcomes}, {}, is_over=False)
    level = LEVEL / max(len(seeds) - LEAST + 1, 1)
    for looked in range(LEAST, len(seeds) + 1):
        if any(seed not in outcomes[one] for one in racing for seed in seeds[:looked]):
            return race
        found = {one: _completed(outcomes[one], seeds[:looked]) for one in racing}
        race = Race({**race.scores, **found}, race.dropped, is_over=looked == len(seeds))
        leader = race.best_of(racing)
        out = {one: why for one in racing if (why := _why_dropped(race, one, leader, level))}
        racing = [one for one in racing if one not in out]
        race = Race(race.scores, {**race.dropped, **out}, is_over=race.is_over or racing in ([], [leader]))
        if race.is_over:
            break
    few = {one: f"fewer than {LEAST} of its runs were completed" for one in racing if len(race.scores[one]) < LEAST}
    return Race(race.scores, {**race.dropped, **few}, race.is_over)


def duel_of(race: Race, baselines: Collection[int]) -> Duel | None:
    """None where too few runs were completed for either side."""
    winner = race.best_of(one for one in race.scores if one not in race.dropped)
    baseline = winner if winner in baselines else race.best_of(baselines)
    others = (one for one in race.scores if one not in baselines)
    challenger = race.best_of(others) if winner in baselines else winner
    if winner is None or baseline is None or challenger is None:
        return None
    return Duel(winner, challenger, baseline)


def gain(differences: FloatArray) -> Interval:
    """Mean over seeds, and its t interval: what other seeds would give on the same pairs."""
    if len(differences) < 2:
        return float(differences.sum()), -WIDEST, WIDEST
    return _interval(float(differences.mean()), [differences.var(ddof=1) / len(differences)], [len(differences) - 1])


def gain_on_test(differences: FloatArray, replicates: FloatArray) -> Interval:
    """What other seeds and other incidents would give. replicates: (resamples,) of the mean difference.

    The variances of both add up; degrees of freedom are Satterthwaite's.
    """
    known = replicates[np.isfinite(replicates)]  # else a class went without weight
    variances = [differences.var(ddof=1) / len(differences), known.var(ddof=1)]
    return _interval(float(differences.mean()), variances, [len(differences) - 1, FREEDOM])


def verdict_of(interval: Interval) -> Verdict:
    _, low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "indistinguishable"


def _why_dropped(race: Race, one: int, leader: int | None, level: float) -> str | None:
    if not race.scores[one]:
        return "none of its runs was completed"
    if leader is None or one == leader:
        return None
    behind = race.differences(leader, one)
    if len(behind) < LEAST or (chance := _chance(behind)) >= level:
        return None
    return f"worse than trial {leader} on {len(behind)} seeds: {-behind.mean():+.4f} (p {chance:.1g})"


def _chance(differences: FloatArray) -> float:
    """Of a mean as high as this where there is no difference; by a paired t-test, one-sided."""
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))
    if error == 0:
        return 0.0 if mean > 0 else 1.0
    from scipy.special import stdtr  # takes a while to load, and every worker loads this module

    return float(stdtr(len(differences) - 1, -mean / error))


def _completed(outcomes: Mapping[int, float | None], seeds: Iterable[int]) -> dict[int, float]:
    return {seed: score for seed in seeds if (score := outcomes[seed]) is not None}


def _differences(one: Mapping[int, float], other: Mapping[int, float]) -> FloatArray:
    return np.array([one[seed] - other[seed] for seed in one if seed in other], dtype=np.float64)


def _interval(mean: float, variances: Sequence[float], freedoms: Sequence[int]) -> Interval:
    total = sum(variances)
    if total == 0:
        return mean, mean, mean
    from scipy.special import stdtrit

    freedom = total**2 / sum(part**2 / free for part, free in zip(variances, freedoms, strict=True))
    half = float(stdtrit(freedom, 1 - TAIL) * np.sqrt(total))
    return mean, mean - half, mean + half

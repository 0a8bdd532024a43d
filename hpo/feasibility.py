"""Which targets can be met: each metric with its ceiling, its gap, and the odds of reaching it with more trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from hpo.config import StudyFile
from hpo.feasible import best_trials, complete
from hpo.outlook import LEAST, Outlook
from hpo.study import BASELINE, is_baseline, is_copied
from objectives.config import Pairs
from objectives.evaluation import METRICS, MetricName

Class = Literal["high", "moderate", "low", "very low"]
CLASSES: dict[Class, float] = {"high": 0.8, "moderate": 0.5, "low": 0.3, "very low": 0.0}  # each above its number
RANGE = (0.1, 0.9)  # 80 %
FURTHER = (10, 100)  # trials that are asked about when the budget is used up: as many again, within these
POSITIVE_GRADES = 3  # same subcategory, near, duplicate: objectives.config.Labels


@dataclass(frozen=True)
class Feasibility:
    """One metric: where it stands, and what is to be had."""

    metric: MetricName
    baseline: tuple[str, float] | None  # the best one
    best: float  # of the best trial
    highest: float  # of any trial
    interval: tuple[float, float] | None  # 95 %
    ceiling: float
    target: float | None
    state: Literal["met", "met elsewhere", "impossible", "open", "unknown", "no target"]
    chance: float | None = None  # of reaching the target with `more` trials
    more: int = 0
    range: tuple[float, float] | None = None  # 80 % of the best after them
    elsewhere: int | None = None  # the trial that meets it, where the best does not

    @property
    def gap(self) -> float | None:
        return None if self.target is None else max(self.target - self.best, 0.0)

    @property
    def share_of_ceiling(self) -> float:
        return self.best / self.ceiling


def class_of(chance: float) -> Class:
    return next(name for name, least in CLASSES.items() if chance > least or least == 0)


def feasibility(trials: Sequence[FrozenTrial], file: StudyFile) -> list[Feasibility]:
    """A row for each metric; none before the first completed trial."""
    if not (found := best_trials(trials, file, 1) or complete(trials)[:1]):
        return []
    more, done = further(trials, file), complete(trials)
    return [_of_metric(metric, found[0], trials, done, file, more) for metric in METRICS]


def further(trials: Sequence[FrozenTrial], file: StudyFile) -> int:
    """How many more trials are asked about: what is left of the budget, else as many again as there were."""
    ended = sum(trial.state.is_finished() and not is_copied(trial) for trial in trials)
    left = file.budget.trials - ended
    return left if left > 0 else int(np.clip(ended, *FURTHER))


def outlook(trials: Sequence[FrozenTrial], metric: MetricName, ceiling: float) -> Outlook:
    """Of what the search itself has tried, in order; a trial that was given up passes no threshold."""
    tried = [*complete(trials), *(trial for trial in trials if trial.state == TrialState.PRUNED)]
    own = sorted((t for t in tried if not is_baseline(t) and not is_copied(t)), key=lambda trial: trial.number)
    return Outlook(tuple(_score(trial, metric) for trial in own), ceiling)


def _score(trial: FrozenTrial, metric: MetricName) -> float:
    score = trial.user_attrs.get(metric) if trial.state == TrialState.COMPLETE else None
    return float(score) if isinstance(score, int | float) else math.nan


def _of_metric(
    metric: MetricName,
    best: FrozenTrial,
    trials: Sequence[FrozenTrial],
    done: Sequence[FrozenTrial],
    file: StudyFile,
    more: int,
) -> Feasibility:
    score, target = _score(best, metric), file.targets.get(metric)
    ceiling = float(best.user_attrs.get("ceilings", {}).get(metric, 1.0))
    ahead = outlook(trials, metric, ceiling)
    highest = max(_score(trial, metric) for trial in done)
    reached = [trial for trial in done if target is not None and _score(trial, metric) >= target]
    shared: dict[str, Any] = {
        "metric": metric,
        "baseline": _best_baseline(done, metric),
        "best": score,
        "highest": highest,
        "interval": best.user_attrs.get("intervals", {}).get(metric),
        "ceiling": ceiling,
        "target": target,
        "more": more,
        "range": tuple(max(ahead.quantile(share, more), highest) for share in RANGE) if ahead.is_open else None,
    }
    if target is None:
        return Feasibility(**shared, state="no target")
    if score >= target:
        return Feasibility(**shared, state="met")
    if target > ceiling:
        return Feasibility(**shared, state="impossible")
    if reached:
        first = max(reached, key=lambda trial: _score(trial, metric))
        return Feasibility(**shared, state="met elsewhere", elsewhere=first.number)
    if not ahead.is_open:
        return Feasibility(**shared, state="unknown")
    return Feasibility(**shared, state="open", chance=ahead.chance(target, more))


def _best_baseline(done: Sequence[FrozenTrial], metric: MetricName) -> tuple[str, float] | None:
    scores = [(str(trial.user_attrs[BASELINE]), _score(trial, metric)) for trial in done if is_baseline(trial)]
    return max(scores, key=lambda pair: pair[1], default=None)


def in_words(row: Feasibility, shares: Mapping[float, float], positive: float) -> str:
    """`shares`: of the held-out pairs by grade; `positive`: the grade from which on a pair is one. May be empty."""
    goal = f"target {row.target:.2f}" if row.target is not None else ""
    match row.state:
        case "no target":
            return f"{row.best:.3f}, no target"
        case "met":
            return f"{goal} met ({row.best:.3f})"
        case "met elsewhere":
            return f"{goal} met by trial {row.elsewhere}, not by the best ({row.best:.3f})"
        case "impossible":
            assert row.target is not None
            return impossible(row.metric, row.best, row.ceiling, row.target, shares, positive)
        case "unknown":
            return f"{goal} not met ({row.best:.3f}); odds need {LEAST} searched trials that were completed"
        case "open":
            assert row.chance is not None
            return f"{goal} not met ({row.best:.3f}): {odds(row.chance)} with {row.more} more trials of this kind"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def odds(chance: float) -> str:
    """The class, and its number without false precision."""
    number = "under 1 %" if chance < 0.01 else "over 99 %" if chance > 0.99 else percent(chance)
    return f"{class_of(chance)} chance ({number})"


def impossible(
    metric: MetricName, best: float, ceiling: float, target: float, shares: Mapping[float, float], positive: float
) -> str:
    """Why no model can reach it, and what would."""
    share = sum(part for grade, part in shares.items() if grade >= positive)
    if not share and metric == "spearman_binary":
        share = positives_at(ceiling)
    is_cut = metric == "spearman_binary" and len(shares) > 2
    grades = 2 if metric == "spearman_binary" else len(shares)
    labels = f" ({grades} grades, {percent(share, 1)} of the pairs positive)" if share else ""
    why = (
        f"target {target:.2f} is impossible with these labels{labels}: even a perfect ranking ties with none of theirs "
        f"and reaches {ceiling:.3f}. {best:.3f} is {percent(best / ceiling)} of that"
    )
    ways = [*_mends(target, share, grades, is_cut=is_cut), "lower the target"]
    return f"{why}. To mend it: {'; or '.join(ways)}"


def _mends(target: float, share: float, grades: int, *, is_cut: bool) -> list[str]:
    """`is_cut`: the labels are graded, and this metric looks at two classes of them alone."""
    if not share:
        return []
    if grades > 2:
        return ["more positives, or a grade more (pairs.positive_share, labels)"]
    ways = []
    if is_cut:
        ways.append("go by spearman, which knows all grades")
    elif graded_ceiling(share) > target:
        columns = "incidents.columns: subcategory, configuration_item, duplicate_of"
        ways.append(f"graded labels would allow {graded_ceiling(share):.2f} with as many positives ({columns})")
    if (enough := enough_positives(target)) is not None:
        ways.append(f"two classes would need {percent(enough)} positives (pairs.positive_share)")
    return ways


def binary_ceiling(positive_share: float) -> float:
    """Of Spearman against two classes."""
    return math.sqrt(3 * positive_share * (1 - positive_share))


def graded_ceiling(positive_share: float) -> float:
    """Of Spearman, where the positives are of three grades alike and a part of the others is of the same category."""
    same_category = min(Pairs().same_category_share, 1 - positive_share)
    parts = [1 - positive_share - same_category, same_category, *[positive_share / POSITIVE_GRADES] * POSITIVE_GRADES]
    return math.sqrt(1 - sum(part**3 for part in parts))


def enough_positives(target: float) -> float | None:
    """The least share of positives at which Spearman against two classes may reach the target; None: it never does."""
    return positives_at(target) if target <= binary_ceiling(0.5) else None


def positives_at(ceiling: float) -> float:
    """The share of positives, of the fewer class, at which Spearman against two classes has that ceiling."""
    return (1 - math.sqrt(max(1 - 4 * ceiling**2 / 3, 0.0))) / 2

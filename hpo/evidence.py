"""What the findings of a report look at, and how they say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial

from hpo.config import StudyFile
from hpo.confirmed import Confirmation
from hpo.feasible import best_trials, complete
from hpo.importances import CHANCE, chances, importances
from hpo.scored import score_of
from hpo.study import BASELINE, is_baseline, is_copied

FEW = 12  # searched trials, below which nothing is said of parameters
TOP = 5  # trials that count as the best


@dataclass(frozen=True)
class Finding:
    title: str  # a sentence without its full stop, as are the others
    evidence: str
    next_step: str


@dataclass(frozen=True)
class Evidence:
    """What every finding looks at."""

    trials: Sequence[FrozenTrial]  # of this study
    file: StudyFile
    importances: Mapping[str, float]
    chances: Mapping[str, float]
    data: Mapping[str, Any]  # hpo.study.DATA
    confirmation: Confirmation | None

    @cached_property
    def done(self) -> list[FrozenTrial]:
        return [trial for trial in complete(self.trials) if score_of(trial) is not None]

    @cached_property
    def searched(self) -> list[FrozenTrial]:
        return [trial for trial in self.done if not is_baseline(trial)]

    @cached_property
    def best(self) -> list[FrozenTrial]:
        """Of those searched, those that keep what the baselines reach first."""
        ranked = best_trials(self.done, self.file, len(self.done))
        return [trial for trial in ranked if not is_baseline(trial)][:TOP]

    def matters(self, name: str) -> bool:
        return self.chances.get(name, 1.0) <= CHANCE


def evidence_of(
    trials: Sequence[FrozenTrial], file: StudyFile, data: Mapping[str, Any], confirmation: Confirmation | None
) -> Evidence:
    own = [trial for trial in trials if not is_copied(trial)]
    return Evidence(own, file, importances(own, file), chances(own, file), data, confirmation)


def name_of(trial: FrozenTrial) -> str:
    baseline = trial.user_attrs.get(BASELINE)
    return f"the baseline {baseline}" if baseline else f"trial {trial.number}"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def span(values: Sequence[Any]) -> str:
    if not all(isinstance(value, int | float) for value in values):
        return ", ".join(f"{value} ({count})" for value, count in Counter(map(str, values)).most_common())
    return f"{short(min(values))} to {short(max(values))}" if min(values) < max(values) else short(values[0])


def short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

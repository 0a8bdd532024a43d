"""What a process knows of a study: every trial once, finished ones for good, and which changes it still lacks."""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass
from dataclasses import field

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from storage.connection import Row
from storage.trials import UNLEASED
from storage.trials import to_trial
from storage.trials import version_of

FRESH_S = 0.5  # a worker's own write brought the changes; reads that follow it (prune, suggest) need no others
Known = tuple[int, int, list[int], list[int]]


@dataclass
class StudyCache:
    study_id: int
    name: str | None = None
    directions: list[StudyDirection] = field(default_factory=list)  # empty: not read yet
    trials: list[FrozenTrial] = field(default_factory=list)  # by number: rows come in its order, without gaps
    versions: dict[int, int] = field(default_factory=dict)  # of unfinished trials, by trial id
    numbers: dict[int, int] = field(default_factory=dict)  # of all trials, by trial id
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)  # first seen of each parameter
    read_at: float = float("-inf")

    def known(self, *, without: Container[int]) -> Known:
        """Arguments of hpo.changes_v1; `without`: trials whose newest contents are here."""
        ids = [trial_id for trial_id in self.versions if trial_id not in without]
        return self.study_id, len(self.trials), ids, [self.versions[trial_id] for trial_id in ids]

    def take(self, rows: list[Row], limit: int) -> bool:
        """Enters a reply of hpo.changes_v1, a row of NULLs if nothing changed; whether it held all that there was."""
        for row in rows:
            if row[0] is not None:
                self._enter(row, to_trial(row))
        is_all = len(rows) < limit
        self.read_at = time.monotonic() if is_all else float("-inf")
        return is_all

    def is_fresh(self) -> bool:
        return time.monotonic() - self.read_at < FRESH_S

    def make_do(self) -> None:
        """There is no news to be had: the reads that follow take what is known."""
        self.read_at = time.monotonic()

    def expect(self, trial_id: int) -> None:
        """The next reply is to bring this trial whatever it holds."""
        self.versions[trial_id] = UNLEASED

    def put(self, trial: FrozenTrial) -> None:
        """In place of what was known of the same trial; readers keep the object that they have."""
        self.trials[self.numbers[trial._trial_id]] = trial

    def get(self, trial_id: int) -> FrozenTrial:
        return self.trials[self.numbers[trial_id]]

    def _enter(self, row: Row, trial: FrozenTrial) -> None:
        if trial._trial_id in self.numbers:
            self.put(trial)
        elif trial.number == len(self.trials):
            self.numbers[trial._trial_id] = trial.number
            self.trials.append(trial)
        else:  # beyond the end of a reply that was cut off: comes again
            return
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)
        version = version_of(row)
        if version is None:
            self.versions.pop(trial._trial_id, None)
        else:
            self.versions[trial._trial_id] = version

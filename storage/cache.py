"""What a process knows of a study: every trial once, finished ones for good, and which changes it still lacks."""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from storage.connection import Row
from storage.trials import UNLEASED, to_trial, version_of

FRESH_S = 0.5  # a worker's own write brought the changes; reads that follow it (prune, suggest) need no others
Known = tuple[int, int, list[int], list[int]]


@dataclass
class StudyCache:
    study_id: int
    name: str | None = None
    directions: list[StudyDirection] = field(default_factory=list)  # empty: not read yet
    trials: list[FrozenTrial] = field(default_factory=list)  # by number: new rows come in its order
    versions: dict[int, int] = field(default_factory=dict)  # of unfinished trials, by trial id
    places: dict[int, int] = field(default_factory=dict)  # in `trials`, by trial id; somebody may have deleted a number
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)  # first seen of each parameter
    read_at: float = float("-inf")

    def known(self, *, without: Container[int]) -> Known:
        """Arguments of incident_hpo.changes_v1; `without`: trials whose newest contents are here."""
        ids = [trial_id for trial_id in self.versions if trial_id not in without]
        next_number = self.trials[-1].number + 1 if self.trials else 0
        return self.study_id, next_number, ids, [self.versions[trial_id] for trial_id in ids]

    def take(self, rows: list[Row], limit: int) -> bool:
        """Enters a reply of changes_v1, a row of NULLs if nothing changed; whether it held all that there was."""
        for row in rows:
            if row[0] is not None:
                self._enter(row, to_trial(row))
        is_all = len(rows) < limit
        self.read_at = time.monotonic() if is_all else float("-inf")
        return is_all

    def is_fresh(self, seconds: float) -> bool:
        return time.monotonic() - self.read_at < seconds

    def make_do(self) -> None:
        """There is no news to be had: the reads that follow take what is known."""
        self.read_at = time.monotonic()

    def expect(self, trial_id: int) -> None:
        """The next reply is to bring this trial whatever it holds."""
        self.versions[trial_id] = UNLEASED

    def put(self, trial: FrozenTrial) -> None:
        """In place of what was known of the same trial; readers keep the object that they have."""
        self.trials[self.places[trial._trial_id]] = trial

    def get(self, trial_id: int) -> FrozenTrial:
        return self.trials[self.places[trial_id]]

    def _enter(self, row: Row, trial: FrozenTrial) -> None:
        if trial._trial_id in self.places:
            self.put(trial)
        else:
            self.places[trial._trial_id] = len(self.trials)
            self.trials.append(trial)
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)
        version = version_of(row)
        if version is None:
            self.versions.pop(trial._trial_id, None)
        else:
            self.versions[trial._trial_id] = version

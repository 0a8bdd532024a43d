"""A process's hold on the trials that it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from storage.trials import Contents


class LeaseLost(Exception):
    """Another worker may run the trial now: nothing more of it is written here."""


@dataclass(frozen=True)
class Claim:
    """`verdict`: 'claimed', 'wait' (others run the last trials), 'paused', 'done'; the rest is None unless claimed."""

    verdict: str
    trial_id: int | None
    token: int | None
    attempt: int | None


@dataclass
class Lease:
    study_id: int
    token: int
    trial: FrozenTrial  # with all that was written here, sent or pending
    claimed: FrozenTrial  # as it was then
    pending: Contents = field(default_factory=Contents)
    connects: int = 0  # of the connection, when something was last sent

    def unsent(self, connects: int) -> str:
        """What is pending, as JSON. Over a new connection all reports again: a server that crashed may lack some."""
        if self.connects != connects:
            self.pending.reports = self.trial.intermediate_values | self.pending.reports
            self.connects = connects
        return self.pending.as_json()


def refuse(verdict: str, trial_id: int) -> None:
    """Raises for a verdict of save_v1 that means that nothing was written and nothing can be."""
    if verdict == "lost":
        raise LeaseLost(f"trial {trial_id} is run by another worker, or waits for one")
    if verdict == "finished":
        raise UpdateFinishedTrialError(f"trial {trial_id} has finished and cannot be changed")
    if verdict == "missing":
        raise KeyError(f"no trial {trial_id}")

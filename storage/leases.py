"""A process's hold on the trials that it runs."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field

from optuna.trial import FrozenTrial

from storage.trials import Contents


class LeaseLost(Exception):
    """Another worker may run the trial now: nothing more of it is written here."""


@dataclass(frozen=True)
class Claim:
    """`verdict`: 'claimed', 'wait' (others run the last trials) or 'done'; the rest is None unless claimed."""

    verdict: str
    trial_id: int | None
    token: int | None
    attempt: int | None


@dataclass
class Lease:
    study_id: int
    token: int
    trial: FrozenTrial  # with all that was written here, sent or pending
    pending: Contents = field(default_factory=Contents)

"""Who runs which trial: claims under a lock, so that a budget is exact and a dead worker's trial is taken up again.

A claimed trial is held by a session-level advisory lock on the worker's own connection: PostgreSQL lets it go when
the worker dies, however it dies. Leases with fencing tokens take this module's place for workers that outlive their
connection.
"""

from __future__ import annotations

from types import TracebackType

import optuna
from optuna.trial import TrialState
from sqlalchemy import URL
from sqlalchemy import Connection
from sqlalchemy import text

from storage.engine import open_engine

CLAIM_LOCK = 0x68706F01  # with the study id: one claim at a time
TRIAL_LOCK = 0x68706F02  # with the trial id: held while the trial runs


class Claims:
    """One worker's claims on a study, through one connection of its own."""

    def __init__(self, url: URL, study: optuna.Study) -> None:
        self._study = study
        self._engine = open_engine(url)
        self._connection = self._engine.connect()
        self._held: set[int] = set()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._connection.close()
        self._engine.dispose()

    def claim(self, budget: int) -> optuna.Trial | None:
        """The next trial of the study: a waiting one first, else a new one while `budget` lasts, else None."""
        with self._connection.begin():
            _lock(self._connection, CLAIM_LOCK, self._study._study_id)
            self._requeue_orphans()
            counts = self.counts()
            if counts["finished"] + counts["running"] >= budget:
                return None
            trial = self._study.ask()
            # Taken before the claim lock goes, so that no sweep sees the trial without its owner.
            self._connection.execute(
                text("SELECT pg_advisory_lock(:kind, :trial)"), {"kind": TRIAL_LOCK, "trial": trial._trial_id}
            )
            self._held.add(trial._trial_id)
            return trial

    def release(self, trial: optuna.Trial) -> None:
        """After the trial was told or given back."""
        self._held.discard(trial._trial_id)
        with self._connection.begin():
            self._connection.execute(
                text("SELECT pg_advisory_unlock(:kind, :trial)"), {"kind": TRIAL_LOCK, "trial": trial._trial_id}
            )

    def give_back(self, trial: optuna.Trial) -> None:
        """The trial waits again in its own row, with its number and parameters; the next claim takes it first."""
        self._make_wait(trial._trial_id)
        self.release(trial)

    def counts(self) -> dict[str, int]:
        states = [trial.state for trial in self._study.get_trials(deepcopy=False)]
        return {
            "finished": sum(state.is_finished() for state in states),
            "running": states.count(TrialState.RUNNING),
        }

    def _requeue_orphans(self) -> None:
        """Running trials that nobody holds: their worker is gone."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial._trial_id not in self._held and self._is_orphan(trial._trial_id):
                self._make_wait(trial._trial_id)

    def _is_orphan(self, trial_id: int) -> bool:
        """Nobody holds its lock, and now that we do it still runs: it may have ended since its state was read."""
        lock = text("SELECT pg_try_advisory_xact_lock(:kind, :trial)")
        state = text("SELECT state FROM trials WHERE trial_id = :trial")
        free = self._connection.execute(lock, {"kind": TRIAL_LOCK, "trial": trial_id}).scalar()
        return bool(free) and self._connection.execute(state, {"trial": trial_id}).scalar() == TrialState.RUNNING.name

    def _make_wait(self, trial_id: int) -> None:
        """Its reports are gone for good first: Optuna ignores a second report of a step, so the old would stay."""
        query = text("DELETE FROM trial_intermediate_values WHERE trial_id = :trial")
        with self._engine.begin() as connection:
            connection.execute(query, {"trial": trial_id})
        self._study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


def _lock(connection: Connection, kind: int, key: int) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:kind, :key)"), {"kind": kind, "key": key})

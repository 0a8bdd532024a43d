"""How long a study may go on, and what it has spent."""

from __future__ import annotations

from dataclasses import dataclass

from storage.studies import Ask

MANAGE = """INSERT INTO incident_hpo.studies (study_id, budget, lease, hours, gpu_hours)
VALUES (%s, %s, make_interval(secs => %s), %s, %s)
ON CONFLICT (study_id) DO UPDATE SET budget = excluded.budget, lease = excluded.lease, hours = excluded.hours,
    gpu_hours = excluded.gpu_hours"""
REOPEN = """UPDATE incident_hpo.studies
SET begun = begun + (clock_timestamp() - ended_at), ended = NULL, ended_at = NULL
WHERE study_id = %s AND ended IS NOT NULL"""
READ = "SELECT * FROM incident_hpo.terms_v1(%s)"
END = "SELECT incident_hpo.end_v1(%s, %s)"
PAUSE = "UPDATE incident_hpo.studies SET paused = clock_timestamp() WHERE study_id = %s AND paused IS NULL"
RESUME = """UPDATE incident_hpo.studies SET begun = begun + (clock_timestamp() - paused), paused = NULL
WHERE study_id = %s AND paused IS NOT NULL"""


@dataclass(frozen=True)
class Terms:
    budget: int  # trials
    lease_s: float
    paused: bool
    ended: str | None  # why, before all trials were recorded
    elapsed_s: float  # from its beginning to its end, without pauses
    device_s: float  # of all workers together


def manage(
    ask: Ask, study_id: int, budget: int, lease_s: float, hours: float | None, gpu_hours: float | None, *, reopen: bool
) -> None:
    """With `reopen`, a study that had ended goes on."""
    ask(MANAGE, (study_id, budget, lease_s, hours, gpu_hours))
    if reopen:
        ask(REOPEN, (study_id,))


def read(ask: Ask, study_id: int) -> Terms | None:
    """None for a study that is not managed."""
    rows = ask(READ, (study_id,))
    return Terms(*rows[0]) if rows else None


def end(ask: Ask, study_id: int, reason: str) -> None:
    """No trial is started any more; the first reason stays."""
    ask(END, (study_id, reason))


def pause(ask: Ask, study_id: int) -> None:
    ask(PAUSE, (study_id,))


def resume(ask: Ask, study_id: int) -> None:
    ask(RESUME, (study_id,))

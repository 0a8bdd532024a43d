"""Which worker runs which trial for the how manieth time, and where workers run, for people to see."""

from __future__ import annotations

from dataclasses import dataclass

from storage.studies import Ask

# Of trials that were claimed and are not recorded yet; another program's are not ours.
UNFINISHED = """SELECT t.number, t.state::text, l.worker, l.attempts
FROM public.trials t JOIN incident_hpo.leases l ON l.trial_id = t.trial_id
WHERE t.study_id = %s AND t.state IN ('WAITING', 'RUNNING') AND l.is_ours ORDER BY t.number"""
PLACES = "SELECT worker, slot, device FROM incident_hpo.workers WHERE study_id = %s"


@dataclass(frozen=True)
class Attempt:
    """The latest of a trial; it is RUNNING, or was cut short and is WAITING."""

    trial: int
    state: str
    worker: str
    attempt: int


def list_attempts(ask: Ask, study_id: int) -> list[Attempt]:
    return [Attempt(*row) for row in ask(UNFINISHED, (study_id,))]


def list_places(ask: Ask, study_id: int) -> dict[str, tuple[str, str]]:
    """Slot and device of each worker that was there within a month."""
    return {worker: (slot, device) for worker, slot, device in ask(PLACES, (study_id,))}

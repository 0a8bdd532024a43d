"""What was told of a study to a webhook: each event once, by whichever worker comes first."""

from __future__ import annotations

from storage.studies import Ask

# Sent again when its answer was lost, it finds the event claimed, and somebody tells it after the retry time.
CLAIM = """INSERT INTO incident_hpo.notices AS n (study_id, event) VALUES (%s, %s)
ON CONFLICT (study_id, event) DO UPDATE SET tried = clock_timestamp()
WHERE n.sent IS NULL AND n.tried < clock_timestamp() - make_interval(secs => %s) RETURNING event"""
MARK = "UPDATE incident_hpo.notices SET sent = clock_timestamp() WHERE study_id = %s AND event = %s"
PAUSED = "SELECT extract(epoch FROM paused)::text FROM incident_hpo.studies WHERE study_id = %s"


def claim(ask: Ask, study_id: int, event: str, retry_s: float) -> bool:
    """Whether it is the caller's to tell: nobody has, and nobody has tried for so long."""
    return bool(ask(CLAIM, (study_id, event, retry_s)))


def mark_sent(ask: Ask, study_id: int, event: str) -> None:
    ask(MARK, (study_id, event))


def paused_at(ask: Ask, study_id: int) -> str | None:
    """A name for the present pause; None while there is none."""
    rows = ask(PAUSED, (study_id,))
    return str(rows[0][0]) if rows and rows[0][0] else None

"""Who works on the studies of a database, for people to see and to drain."""

from __future__ import annotations

from dataclasses import dataclass

from storage.studies import Ask

# Each may be sent again: the second time it changes nothing more.
REGISTER = "SELECT incident_hpo.register_v1(%s, %s, %s, %s, %s, %s)"
SIGN = "SELECT incident_hpo.sign_v1(%s)"
LEAVE = "SELECT incident_hpo.leave_v1(%s, %s)"
LIST = "SELECT * FROM incident_hpo.workers_v1(%s)"
DRAIN = "SELECT incident_hpo.drain_v1(%s)"


@dataclass(frozen=True)
class Place:
    """Where a worker runs; `launch` names the supervisor that starts it again, if any."""

    host: str
    slot: str
    device: str
    launch: str | None


@dataclass(frozen=True)
class WorkerRow:
    """The latest worker of a place on a box; counts are of all that worked in that place within a day."""

    study: str
    worker: str
    host: str
    slot: str
    device: str
    trial: int | None  # its number
    seen_s: float  # since its last sign of life, or its end
    lease_s: float
    drain: bool
    ended: int | None  # exit code
    done: int  # recorded outcomes
    failed: int  # of these
    starts: int

    @property
    def is_silent(self) -> bool:
        """It shows itself three times in a lease."""
        return self.ended is None and self.seen_s > self.lease_s


def register(ask: Ask, worker: str, study_id: int, place: Place) -> bool:
    """Whether it is to leave at once."""
    rows = ask(REGISTER, (worker, study_id, place.host, place.slot, place.device, place.launch))
    return bool(rows[0][0])


def is_known(ask: Ask, worker: str) -> bool:
    """Not after the database was restored and fenced."""
    return ask(SIGN, (worker,))[0][0] is not None


def leave(ask: Ask, worker: str, code: int) -> None:
    ask(LEAVE, (worker, code))


def list_workers(ask: Ask, study_id: int | None = None) -> list[WorkerRow]:
    """Of one study, or of all; by host, study and place."""
    return [WorkerRow(*row) for row in ask(LIST, (study_id,))]


def drain(ask: Ask, host: str) -> int:
    """How many workers were told to leave."""
    return int(ask(DRAIN, (host,))[0][0])

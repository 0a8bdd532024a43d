"""What a worker does, in a few words: for the live view and for `hpo workers`."""

from __future__ import annotations

from hpo.errors import HpoError, InputError, Interrupted, SetupError
from hpo.log import DEFECT
from storage.workers import WorkerRow

ENDED = {
    0: "has left",
    HpoError.exit_code: "ended: failed",
    InputError.exit_code: "ended: bad input",
    DEFECT: "ended: crashed",
    Interrupted.exit_code: "interrupted",
    SetupError.exit_code: "ended: broken set-up",
}


def state_of(row: WorkerRow) -> str:
    """At most 25 characters."""
    if row.ended is not None:
        return f"{ENDED.get(row.ended, 'killed or crashed')} ({row.ended})" if row.ended else ENDED[0]
    if row.is_silent:
        return f"silent for {in_short(row.seen_s)}"
    if row.drain:
        return "leaving"
    return "idle" if row.trial is None else f"trial {row.trial}"


def place_of(slot: str, device: str) -> str:
    """The device of a worker; where several share it, which of them."""
    return slot if slot.startswith(device) else device


def in_short(seconds: float) -> str:
    """In one unit, rounded down."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds)} s"

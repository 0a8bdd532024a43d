"""`hpo launch`: a worker for each GPU of this box, in view, until the study is finished or somebody stops it."""

from __future__ import annotations

import socket
from pathlib import Path

from hpo.connect import storage_url
from hpo.devices import chosen_gpus
from hpo.errors import InputError, Interrupted
from hpo.files import make_folder
from hpo.launcher import CPU_WORKERS, Slot, slots_on, supervise
from hpo.live import work_in_view
from hpo.log import LogFormat
from hpo.run import open_by_name


def launch(
    name: str,
    gpus: str | None,
    per_gpu: int | None,
    workers: int | None,
    out: Path | None,
    *,
    share_gpu: bool,
    log_format: LogFormat,
) -> None:
    """Returns when the study is finished or the box drained, and when told to stop. Raises HpoError and its kin."""
    slots = choose_slots(gpus, per_gpu, workers)
    study, file = open_by_name(name)
    logs = (out or Path("runs") / file.name) / "logs" / socket.gethostname()  # the folder may be of several boxes
    make_folder(logs)
    options = [f"--log-format={log_format}", *(["--share-gpu"] if share_gpu else [])]
    url = storage_url()
    print(f"workers on {', '.join(slot.name for slot in slots)}; logs: {logs}", flush=True)
    try:
        work_in_view(
            study,
            file,
            lambda look: supervise(file.name, url, slots, logs, look, options),
            here=list(dict.fromkeys(slot.gpu for slot in slots if slot.gpu)),
        )
    except Interrupted:
        print("stopped; trials in hand are given back, for others to go on with")


def choose_slots(gpus: str | None, per_gpu: int | None, workers: int | None) -> list[Slot]:
    """Raises InputError."""
    if workers is not None and per_gpu is not None:
        raise InputError("--workers says how many in all, --per-gpu how many for each GPU; give one of them")
    chosen = chosen_gpus(gpus)
    if per_gpu is not None and not chosen:
        raise InputError("--per-gpu needs a GPU, and none was found; --workers N works on the CPU")
    return slots_on(chosen, workers or (per_gpu or 1) * len(chosen) or CPU_WORKERS)

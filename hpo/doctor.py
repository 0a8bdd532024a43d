"""`hpo doctor`: what a box needs, looked at one thing after another; each a line, and how to mend it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import optuna
import psutil
import pynvml

from hpo.config import StudyFile, models, revisions
from hpo.connect import LOOK_PATIENCE_S, storage_url
from hpo.datasets import fetch as fetch_incidents
from hpo.devices import VISIBLE, visible_gpus
from hpo.errors import HpoError, SetupError, in_words
from hpo.study import open_study, refuse_other_versions
from objectives.model_files import fetch
from storage import schema
from storage.embedded import default_home
from storage.engine import label
from storage.native import PostgresStorage

OK, WARNING, BROKEN = "ok", "look", "BROKEN"
LEAST_DISK_GIB, LEAST_MEMORY_GIB, CLOCK_OFF_S, FREE_CONNECTIONS = 5.0, 3.0, 2.0, 6
SERVER = """SELECT current_setting('server_version'), current_user, extract(epoch FROM clock_timestamp())::float8,
    current_setting('max_connections')::int
        - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
    (SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl), inet_client_addr() IS NULL,
    has_table_privilege('public.trials', 'INSERT'),
    has_function_privilege('incident_hpo.claim_v2(int, text, text, float8)', 'EXECUTE')"""
TORCH = """import json, torch
found = torch.cuda.is_available()
count = torch.cuda.device_count() if found else 0
print(json.dumps([torch.__version__, count, found and torch.cuda.is_bf16_supported()]))"""


@dataclass(frozen=True)
class Finding:
    what: str
    level: str
    words: str
    mend: str = ""


def examine(name: str | None) -> None:
    """Of the box and its database, and of a study if one is named. Raises SetupError if something is broken."""
    findings = [*_database(name), _disk(), _memory(), *_gpus()]
    for found in findings:
        print(f"{found.level:<7} {found.what:<11} {found.words}")
        if found.mend:
            print(f"{'':<7} {'':<11} -> {found.mend}")
    if broken := [found.what for found in findings if found.level == BROKEN]:
        raise SetupError(f"not fit for work yet: {', '.join(broken)}")


def _database(name: str | None) -> list[Finding]:
    try:
        url = storage_url()
        storage = PostgresStorage(url, patience_s=LOOK_PATIENCE_S)
        started = time.monotonic()
        version, role, now, free, tls, is_local, may_write, may_claim = storage.ask(SERVER)[0]
        seconds = time.monotonic() - started
    except Exception as error:
        if (words := in_words(error)) is None:
            raise
        return [Finding("database", BROKEN, words[0], "HPO_STORAGE, PGPASSFILE, HPO_PASSWORD_FILE; README, Many boxes")]
    where = f"PostgreSQL {version} at {label(url)}, {1000 * seconds:.1f} ms a round trip"
    found = [
        Finding("database", OK, where),
        Finding("tables", OK, f"version {schema.VERSION}, Optuna's {schema.OPTUNA_REVISION}"),
        _tls(tls, is_local=is_local, mode=str(url.query.get("sslmode", os.environ.get("PGSSLMODE", "prefer")))),
        _role(role, may_write=may_write, may_claim=may_claim),
        _clock(time.time() - now),
        _connections(free),
        _password(in_url=url.password is not None and "HPO_PASSWORD_FILE" not in os.environ),
    ]
    return found + (_study(storage, name) if name else [])


def _tls(version: str | None, *, is_local: bool, mode: str) -> Finding:
    if is_local:
        return Finding("TLS", OK, "not needed: the server is reached by a socket of this box")
    if version is None:
        return Finding("TLS", WARNING, "the connection is not encrypted", "URL?sslmode=verify-full&sslrootcert=CA.crt")
    if mode != "verify-full":
        mend = "URL?sslmode=verify-full&sslrootcert=CA.crt"
        return Finding("TLS", WARNING, f"{version}, but anybody may pose as the server (sslmode {mode})", mend)
    return Finding("TLS", OK, f"{version}, server verified")


def _role(role: str, *, may_write: bool, may_claim: bool) -> Finding:
    rights = "owner: creates studies and works" if may_write else "works" if may_claim else "reads"
    mend = "" if may_claim or may_write else "workers log in as hpo_worker (hpo db init makes it)"
    return Finding("role", WARNING if mend else OK, f"{role} {rights}", mend)


def _clock(off_s: float) -> Finding:
    if abs(off_s) > CLOCK_OFF_S:
        words = f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} the database's"
        return Finding("clock", WARNING, words, "NTP; leases do not depend on it, times in logs do")
    return Finding("clock", OK, f"within {CLOCK_OFF_S:.0f} s of the database's")


def _connections(free: int) -> Finding:
    level = OK if free >= FREE_CONNECTIONS else WARNING
    mend = "" if level == OK else "max_connections, or PgBouncer: docs/scaling.md"
    return Finding("connections", level, f"{free} free; a worker takes 2, and 3 with a webhook", mend)


def _password(*, in_url: bool) -> Finding:
    if in_url:
        mend = "a file instead: PGPASSFILE (libpq's format) or HPO_PASSWORD_FILE (the password alone)"
        return Finding("password", WARNING, "it stands in HPO_STORAGE", mend)
    return Finding("password", OK, "not in HPO_STORAGE")


def _study(storage: PostgresStorage, name: str) -> list[Finding]:
    try:
        study, file = open_study(storage, name)
    except HpoError as error:
        return [Finding("study", BROKEN, str(error))]
    return [
        _attempt("study", lambda: _versions(study)),
        _attempt("model", lambda: _models(file)),
        _attempt("data set", lambda: _data(storage, file)),
    ]


def _attempt(what: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:
        if (words := in_words(error)) is None:
            raise
        return Finding(what, BROKEN, words[0])


def _versions(study: optuna.Study) -> Finding:
    refuse_other_versions(study)
    return Finding("study", OK, f"{study.study_name}, made with the versions that are installed here")


def _models(file: StudyFile) -> Finding:
    found = [str(fetch(model, revisions(file).get(model))) for model in models(file)]
    return Finding("model", OK, f"here: {', '.join(found)}")


def _data(storage: PostgresStorage, file: StudyFile) -> Finding:
    fetch_incidents(storage, file.incidents)
    return Finding("data set", OK, "on this box, verified")


def _disk() -> Finding:
    home = default_home()
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**30
    if not os.access(there, os.W_OK):
        return Finding("disk", BROKEN, f"{there} cannot be written to", "HPO_HOME: a folder of this user")
    level = OK if free >= LEAST_DISK_GIB else WARNING
    mend = "" if level == OK else "hpo clean, or HPO_HOME on a larger disk"
    return Finding("disk", level, f"{free:.0f} GiB free for {home}", mend)


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    level = OK if free >= LEAST_MEMORY_GIB else WARNING
    mend = "" if level == OK else "fewer workers: a trainer takes 1 to 2 GiB and more"
    return Finding("memory", level, f"{free:.0f} GiB free", mend)


def _gpus() -> list[Finding]:
    gpus = visible_gpus()
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True)
    if done.returncode:
        return [Finding("torch", BROKEN, "cannot be imported", "install this package again")]
    torch, seen, has_bfloat16 = json.loads(done.stdout)
    if not gpus:
        return [Finding("GPU", OK, f"none; torch {torch} trains on the CPU")]
    if seen < len(gpus):
        mend = f"a driver and a torch that go together, or {VISIBLE}= to train on the CPU"
        return [Finding("GPU", BROKEN, f"{len(gpus)} there, {seen} of them seen by torch {torch}", mend)]
    kind = "bfloat16" if has_bfloat16 else "float32 alone"
    return [Finding("GPU", OK, f"{seen}, torch {torch}, {kind}, driver {_driver()}")]


def _driver() -> str:
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return f"not known ({error})"

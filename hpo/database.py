"""`hpo db init`, `upgrade` and `fence`: what the owner of a shared database does."""

from __future__ import annotations

import os
from pathlib import Path

from hpo.connect import LOOK_PATIENCE_S, read_password, storage_url
from hpo.errors import InputError
from storage import roles, schema
from storage.native import PostgresStorage


def init(worker_password: Path | None, reader_password: Path | None) -> None:
    """Tables and roles; what is there stays. Raises InputError, StorageError."""
    if not os.environ.get("HPO_STORAGE"):
        raise InputError("roles are of a shared PostgreSQL; set HPO_STORAGE to its URL, as its owner")
    given = {"hpo_worker": worker_password, "hpo_reader": reader_password}
    passwords = {name: read_password(path) for name, path in given.items() if path is not None}
    url = storage_url()
    PostgresStorage(url, patience_s=LOOK_PATIENCE_S).remove_session()
    made = roles.make_roles(url, passwords)
    print(f"tables: version {schema.VERSION}; roles made: {', '.join(made) or 'none, all there'}")
    if without := [name for name in made if name not in passwords]:
        print(f"{' and '.join(without)} cannot log in by password yet: \\password NAME in psql, or the options here")


def upgrade() -> None:
    before, now = schema.upgrade(storage_url())
    was = "there were none" if before is None else f"they were of version {before}"
    print(f"tables: version {now}" + (f" ({was})" if before != now else ", as before"))


def fence() -> None:
    url = storage_url()
    PostgresStorage(url, patience_s=LOOK_PATIENCE_S).remove_session()
    print(f"no earlier lease counts any more; {roles.fence(url)} trials wait to be run again. Start the workers")

"""Optuna's tables and our own schema: made or brought up to date by one process while others wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version as release
from importlib.resources import files

import psycopg2.errors
from sqlalchemy import URL, text
from sqlalchemy import Connection as Transaction

from storage.connection import Connection, Unavailable
from storage.engine import StorageError, explained, label, open_engine, open_rdb_storage

FILES = ("schema.sql", *(f"schema_{version}.sql" for version in range(2, 9)))  # each leads to the next version
VERSION = len(FILES)
OPTUNA_REVISION = "v3.2.0.a"  # of Optuna's tables, for which they are written
CREATION_LOCK, CREATION_TIMEOUT_S = 0x68706F, 120  # a large data set takes a while
START_PATIENCE_S = 15.0
FOUND = """SELECT version, made_by, (SELECT version_num FROM public.alembic_version),
    current_setting('transaction_isolation') FROM incident_hpo.version"""
WORKER_ROLES = ("hpo_worker", "hpo_reader")
ROLES_THERE = "SELECT count(*) FROM pg_roles WHERE rolname = ANY(:names)"
STAMP = """INSERT INTO incident_hpo.version (version, made_by) VALUES (%s, %s)
ON CONFLICT (only_row) DO UPDATE SET version = excluded.version, made_by = excluded.made_by"""
HELD = "SELECT count(*) FROM incident_hpo.leases WHERE held AND expires > clock_timestamp()"


@dataclass(frozen=True)
class Found:
    version: int
    made_by: str
    optuna_revision: str
    isolation: str


def ensure_schema(url: URL, connection: Connection) -> None:
    """Makes what is missing; what an earlier release made is brought up to date. Raises StorageError."""
    try:
        found = _found(connection)
        if found is None or found.version < VERSION:
            with creation_lock(url) as transaction:
                _bring_up_to_date(url, transaction, _found(connection))
            found = _found(connection)
    except Unavailable as error:
        raise StorageError(str(error)) from None
    except psycopg2.errors.InsufficientPrivilege as error:
        raise StorageError(
            f"PostgreSQL at {label(url)} refuses: {error.diag.message_primary}; its owner makes tables, roles and "
            "rights with `hpo db init`, and brings them up to date with `hpo db upgrade`"
        ) from None
    except psycopg2.Error as error:
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        raise StorageError(
            f"PostgreSQL at {label(url)} refuses: {error.diag.message_primary or error}{detail}"
        ) from None
    assert found is not None
    _refuse_others(found, label(url))


@contextmanager
def creation_lock(url: URL) -> Iterator[Transaction]:
    """Held by the one process that makes tables or a study; the others wait."""
    engine = open_engine(url)
    try:
        with ExitStack() as stack:
            with explained(url):  # the caller's own errors are not the database's
                transaction = stack.enter_context(engine.begin())
                transaction.execute(text(f"SET LOCAL lock_timeout = '{CREATION_TIMEOUT_S}s'"))
                transaction.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CREATION_LOCK})
                transaction.execute(text("SET LOCAL lock_timeout = 0"))
            yield transaction
    finally:
        engine.dispose()


def _found(connection: Connection) -> Found | None:
    """None before there are any tables."""
    try:
        rows = connection.persist(FOUND, patience_s=START_PATIENCE_S)
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName):
        return None
    if not rows:
        raise StorageError("incident_hpo.version, which says which tables there are, is empty; restore a backup")
    return Found(*rows[0])


def _bring_up_to_date(url: URL, transaction: Transaction, found: Found | None) -> None:
    """Ours in one transaction."""
    cursor = transaction.connection.cursor()
    if found is None:
        _make_optunas(url, transaction)
    elif found.version < VERSION:
        _refuse_while_held(url, transaction, found)
    for name in FILES[found.version if found else 0 :]:
        cursor.execute(files("storage").joinpath(name).read_text())
    cursor.execute(STAMP, (VERSION, f"incident-hpo=={release('incident-hpo')} optuna=={release('optuna')}"))
    grant_if_there(transaction)


def _refuse_while_held(url: URL, transaction: Transaction, found: Found | None) -> None:
    if found is not None and (held := transaction.execute(text(HELD)).scalar()):
        raise StorageError(
            f"PostgreSQL at {label(url)} holds tables of an earlier release (schema {found.version}, here "
            f"{VERSION}) while workers run {held} of its trials; stop them, then run this again"
        )


def grant(transaction: Transaction) -> None:
    """Of the roles in storage/roles.py."""
    transaction.connection.cursor().execute(files("storage").joinpath("grants.sql").read_text())


def grant_if_there(transaction: Transaction) -> None:
    if transaction.execute(text(ROLES_THERE), {"names": list(WORKER_ROLES)}).scalar() == len(WORKER_ROLES):
        grant(transaction)


def upgrade(url: URL) -> tuple[int | None, int]:
    """Optuna's tables and ours, by their owner; from which version to which. Raises StorageError."""
    connection = Connection(url)
    try:
        before = _found(connection)
        if before is None or before.optuna_revision != OPTUNA_REVISION:
            with creation_lock(url) as transaction, explained(url):
                _refuse_while_held(url, transaction, before)
                optunas = open_rdb_storage(url, make_tables=True, any_revision=True)
                optunas.upgrade()
                optunas.engine.dispose()
        ensure_schema(url, connection)
    finally:
        connection.close()
    return before.version if before else None, VERSION


def _make_optunas(url: URL, transaction: Transaction) -> None:
    """On Optuna's own connection, whatever an earlier maker left undone."""
    if not transaction.execute(text("SELECT has_database_privilege(current_database(), 'CREATE')")).scalar():
        raise StorageError(
            f"PostgreSQL at {label(url)}: this role may not make its tables; the database's owner does, "
            "with `hpo db init`, or lets it: GRANT CREATE ON DATABASE"
        )
    optunas = open_rdb_storage(url, make_tables=True)
    optunas.remove_session()
    optunas.engine.dispose()
    if transaction.execute(text("SELECT to_regclass('public.trials')")).scalar() is None:
        raise StorageError(
            f"PostgreSQL at {label(url)}: Optuna's tables are not in schema public; use another database"
        )


def _refuse_others(found: Found, where: str) -> None:
    if (found.version, found.optuna_revision) != (VERSION, OPTUNA_REVISION):
        raise StorageError(
            f"PostgreSQL at {where} holds tables of another release (schema {found.version}, Optuna's "
            f"{found.optuna_revision}; here {VERSION}, {OPTUNA_REVISION}): pip install {found.made_by}, "
            "or, if this release is the later one, hpo db upgrade"
        )
    if found.isolation != "read committed":  # a lock that was waited for must be followed by a new snapshot
        raise StorageError(
            f"PostgreSQL at {where} runs transactions as {found.isolation!r}; "
            "ALTER ROLE ... SET default_transaction_isolation = 'read committed'"
        )

"""The roles of a database that several people and boxes share: its owner, `hpo_worker` and `hpo_reader`."""

from __future__ import annotations

from typing import Any

import psycopg2.errors
from psycopg2 import sql
from psycopg2.extensions import encrypt_password
from sqlalchemy import URL, text

from storage.engine import StorageError, explained, label
from storage.schema import WORKER_ROLES, creation_lock, grant, grant_if_there

MAKE = "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION"
THERE = text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:names)")
MIGHTY = text(
    "SELECT rolname FROM pg_roles WHERE rolname = ANY(:names) "
    "AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)"
)


def make_roles(url: URL, passwords: dict[str, str]) -> list[str]:
    """Makes those that are missing and grants what they need, in one transaction; the new ones' names.

    `passwords` by role are set anew; the server sees their hashes alone. Raises StorageError.
    """
    with creation_lock(url) as transaction:
        there = set(transaction.execute(THERE, {"names": list(WORKER_ROLES)}).scalars())
        if mighty := list(transaction.execute(MIGHTY, {"names": list(WORKER_ROLES)}).scalars()):
            raise StorageError(
                f"PostgreSQL at {label(url)}: {' and '.join(mighty)} may do more than workers and "
                "readers do; ALTER ROLE … NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
            )
        missing = [name for name in WORKER_ROLES if name not in there]
        cursor = transaction.connection.cursor()
        try:
            for name in missing:
                cursor.execute(sql.SQL(MAKE).format(sql.Identifier(name)))
            for name, password in passwords.items():
                _set_password(transaction.connection.dbapi_connection, cursor, name, password)
            grant(transaction)
        except psycopg2.errors.InsufficientPrivilege as error:
            raise StorageError(
                f"PostgreSQL at {label(url)}: this role may not do that ({str(error).splitlines()[0]}); "
                "run it as the database's owner, who needs CREATEROLE for it"
            ) from None
    return missing


def fence(url: URL) -> int:
    """After a restore: no lease that was given out before counts any more. How many trials wait again."""
    with creation_lock(url) as transaction, explained(url):
        waiting = int(transaction.execute(text("SELECT incident_hpo.fence_v1()")).scalar_one())
        grant_if_there(transaction)  # a restored database has other rights on itself
    return waiting


def _set_password(connection: Any, cursor: Any, name: str, password: str) -> None:
    verifier = encrypt_password(password, name, connection, "scram-sha-256")
    cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(name), sql.Literal(verifier)))

"""Where the database is: its URL, and Optuna's own storage over it. No message here holds a password."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import psycopg2.errors
from alembic.util.exc import CommandError
from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

DRIVER = "postgresql+psycopg2"
CONNECT_TIMEOUT_S = 10

optuna.logging.set_verbosity(optuna.logging.WARNING)  # at INFO it also reads the study for every line it logs

LOST = (DBAPIError, optuna.exceptions.StorageInternalError)  # what a dead connection raises, directly or by Optuna


class StorageError(Exception):
    """The database cannot be used; the message says which and why, never the password."""

    exit_code = 78


def parse_url(text: str) -> URL:
    """A bare `postgresql://` means psycopg2 (SQLAlchemy would take psycopg 3). Raises StorageError."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StorageError(f"the storage URL is not a URL; expected {DRIVER}://USER@HOST/DATABASE") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername=DRIVER)
    if url.drivername != DRIVER:
        raise StorageError(f"the storage URL is of another database; expected {DRIVER}://USER@HOST/DATABASE")
    if "@" in (url.host or ""):
        raise StorageError("the storage URL holds two @; write the one in the password as %40")
    if "\0" in url.render_as_string(hide_password=False) or "%00" in text:
        raise StorageError(f"the storage URL holds a NUL; expected {DRIVER}://USER@HOST/DATABASE")
    return url


def without_password(url: URL) -> URL:
    """URL.set() takes None for "as it is"."""
    query = {name: value for name, value in url.query.items() if name != "password"}
    return URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query)


def label(url: URL) -> str:
    """Host, port and database alone: a query may hold a password too."""
    port = url.port or url.query.get("port")
    host = url.host or url.query.get("host", "localhost")
    return f"{host if isinstance(host, str) else ','.join(host)}{f':{port}' if port else ''}/{url.database or ''}"


def open_engine(url: URL) -> Engine:
    return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})


def open_rdb_storage(url: URL, *, make_tables: bool = False, any_revision: bool = False) -> optuna.storages.RDBStorage:
    """Optuna's own storage. Raises StorageError."""
    # RDBStorage passes the URL through str.format.
    escaped = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    with explained(url):
        return optuna.storages.RDBStorage(
            escaped,
            engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S}},
            skip_table_creation=not make_tables,
            skip_compatibility_check=any_revision,
        )


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """What SQLAlchemy and Optuna raise, as StorageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except OperationalError as error:
        if isinstance(error.orig, psycopg2.errors.LockNotAvailable):
            raise StorageError(
                f"PostgreSQL at {label(url)}: another process has been making tables or a study there for minutes "
                "(an advisory lock in pg_locks); run this again when it is done"
            ) from None
        reason = str(error.orig).strip().splitlines()[0]
        raise StorageError(f"PostgreSQL at {label(url)} cannot be reached: {reason}") from None
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise StorageError(f"PostgreSQL at {label(url)} refuses: {reason}") from None
    except (RuntimeError, CommandError) as error:  # Optuna's own tables of another version
        raise StorageError(f"PostgreSQL at {label(url)}: {str(error).splitlines()[0]}") from None

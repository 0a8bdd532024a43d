"""Connections to PostgreSQL and Optuna's storage over them. No message here holds a password."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from sqlalchemy import URL
from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import create_engine
from sqlalchemy import make_url
from sqlalchemy import text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import OperationalError

DRIVER = "postgresql+psycopg2"
CONNECT_TIMEOUT_S = 10
CREATION_LOCK = 0x68706F

optuna.logging.set_verbosity(optuna.logging.WARNING)  # at INFO it also reads the study for every line it logs

LOST = (DBAPIError, optuna.exceptions.StorageInternalError)  # what a dead connection raises, directly or by Optuna


class StorageError(Exception):
    """The database cannot be used; the message says which and why, never the password."""

    exit_code = 78


def parse_url(text_: str) -> URL:
    """A bare `postgresql://` means psycopg2 (SQLAlchemy would take psycopg 3). Raises StorageError."""
    try:
        url = make_url(text_)
    except (ArgumentError, ValueError):
        raise StorageError(f"the storage URL is not a URL; expected {DRIVER}://USER@HOST/DATABASE") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername=DRIVER)
    if url.drivername != DRIVER:
        raise StorageError(f"the storage URL begins with {url.drivername!r}; expected {DRIVER}://USER@HOST/DATABASE")
    if "@" in (url.host or ""):
        raise StorageError("the storage URL holds two @; write the one in the password as %40")
    return url


def open_engine(url: URL) -> Engine:
    return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})


def open_storage(url: URL, *, read_only: bool = False) -> optuna.storages.BaseStorage:
    """Optuna's storage, whose tables are made if need be by one process at a time. Raises StorageError."""
    connect_args: dict[str, object] = {"connect_timeout": CONNECT_TIMEOUT_S}
    if read_only:
        connect_args["options"] = "-c default_transaction_read_only=on"
    # RDBStorage passes the URL through str.format.
    escaped = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    with _explained(url):
        _make_tables(url, escaped)
        storage = optuna.storages.RDBStorage(
            escaped,
            engine_kwargs={"pool_pre_ping": True, "connect_args": connect_args},
            skip_table_creation=True,
            skip_compatibility_check=read_only,
        )
    return optuna.storages.get_storage(storage)


@contextmanager
def creation_lock(url: URL) -> Iterator[Connection]:
    """Held by the one process that makes tables or a study; the others wait."""
    engine = open_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CREATION_LOCK})
            yield connection
    finally:
        engine.dispose()


def _make_tables(url: URL, escaped: str) -> None:
    """Without the lock, of eight processes that make tables at once seven fail (CREATE TABLE races)."""
    with creation_lock(url) as connection:
        if connection.execute(text("SELECT to_regclass('version_info')")).scalar() is None:
            optuna.storages.RDBStorage(escaped).engine.dispose()


@contextmanager
def _explained(url: URL) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise StorageError(f"PostgreSQL at {_label(url)} cannot be reached: {reason}") from None
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise StorageError(f"PostgreSQL at {_label(url)} refuses: {reason}") from None
    except RuntimeError as error:  # Optuna's own tables of another version
        raise StorageError(f"PostgreSQL at {_label(url)}: {str(error).splitlines()[0]}") from None


def _label(url: URL) -> str:
    """Host and database alone: a query may hold a password too."""
    return f"{url.host or url.query.get('host', 'localhost')}/{url.database}"

"""optuna-dashboard behind a gate; who only reads does so in transactions that cannot write."""

from __future__ import annotations

import logging
import secrets
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import optuna_dashboard
import waitress
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from optuna_dashboard import _serializer  # type: ignore[attr-defined]
from sqlalchemy import URL
from waitress.utilities import Error

from hpo.access import Access, read_access, refuse_useless
from hpo.answers import ALWAYS, Application
from hpo.connect import storage_url
from hpo.errors import InputError
from hpo.gate import Gate
from hpo.publish import note_of_trial
from storage.artifacts import PostgresArtifacts
from storage.connection import Connection
from storage.engine import open_rdb_storage
from storage.native import PostgresStorage

READ_ONLY = "SET TRANSACTION READ ONLY; "  # in each message, not in the session: a pooler hands sessions around
PATIENCE_S = 3.0  # for the database
SERVER = {
    "ident": None,
    "threads": 8,
    "connection_limit": 500,  # files are often limited to 1,024
    "asyncore_use_poll": True,
    "channel_timeout": 30,  # of a silent connection
    "cleanup_interval": 10,
    "max_request_header_size": 32 << 10,
    "max_request_body_size": 256 << 10,  # a long note
    "outbuf_high_watermark": 256 << 20,  # a thread never waits for a browser that reads slowly
    "clear_untrusted_proxy_headers": False,  # the gate knows whom to trust
}

serialize_trial = _serializer.serialize_frozen_trial
refuse_request = Error.to_response


def serve(port: int, host: str, access_file: Path | None, *, write: bool) -> None:
    """Until Ctrl-C. Raises InputError."""
    access, token = _who_may_enter(host, access_file)
    url = storage_url()
    _change_libraries()
    reader = _app(reading_storage(url), _files(url))
    writer = _app(_writing_storage(url), None) if write else None
    gate = Gate(reader, writer, access, host, port, token)
    try:
        server = waitress.create_server(gate, host=host, port=port, **SERVER)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise InputError(f"cannot serve on {host}:{port} ({reason}); give another --port or --host") from None
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    print(f"{place}{f'?token={token}' if token else ''}  (Ctrl-C ends it)", flush=True)
    server.run()


def _who_may_enter(host: str, access_file: Path | None) -> tuple[Access, str | None]:
    """Without users, whoever sees what this process prints."""
    if access_file is not None:
        access = read_access(access_file)
        refuse_useless(access, access_file)
        return access, None
    if not _is_loopback(host):
        raise InputError(f"{host} can be reached from other machines: say who may log in, with --access FILE")
    return Access(), secrets.token_urlsafe(32)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reading_storage(url: URL) -> PostgresStorage:
    """Reads what has changed; RDBStorage reads every trial again, which takes seconds for thousands."""
    storage = PostgresStorage(url, patience_s=PATIENCE_S)  # makes the tables of a new database
    for connection in storage.connections:
        connection.before = READ_ONLY
    return storage


def _writing_storage(url: URL) -> RDBStorage:
    """RDBStorage may fail a trial that a worker holds; but while workers report it deletes nothing, without a word."""
    storage = open_rdb_storage(url)
    storage.delete_study = PostgresStorage(url, patience_s=PATIENCE_S).delete_study  # type: ignore[method-assign]
    return storage


def _files(url: URL) -> PostgresArtifacts:
    """Over a connection of their own: a large one keeps nobody waiting."""
    connection = Connection(url)
    connection.before = READ_ONLY
    return PostgresArtifacts(partial(connection.persist, patience_s=PATIENCE_S))


def _app(storage: BaseStorage, files: PostgresArtifacts | None) -> Application:
    """Without a store of files a study can be deleted: its files follow by themselves."""
    app: Any = optuna_dashboard.wsgi(storage, files)
    app.catchall = False  # what it does not catch itself, the gate answers
    return cast(Application, app)


def _change_libraries() -> None:
    _serializer.serialize_frozen_trial = _with_its_own_note
    Error.to_response = _with_our_headers
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(_in_one_line)
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


def _with_its_own_note(study_id: int, trial: FrozenTrial, attributes: dict[str, Any]) -> dict[str, Any]:
    """optuna-dashboard looks for each trial's note among all: 24 s for 5,000 trials."""
    shown: dict[str, Any] = serialize_trial(study_id, trial, note_of_trial(attributes, trial._trial_id))
    return shown


def _with_our_headers(error: Error, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
    """To what is no HTTP the server itself answers."""
    status, headers, body = refuse_request(error, ident)
    return status, [*headers, *ALWAYS, ("Cache-Control", "no-store")], body


def _in_one_line(record: logging.LogRecord) -> bool:
    """Traces and statements may hold what no log should."""
    error = record.exc_info[1] if record.exc_info else None
    named = f" ({type(error).__name__})" if error else ""
    record.msg, record.args = record.getMessage().partition("\n")[0] + named, ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True

"""optuna-dashboard on this machine only, over database sessions that cannot write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import optuna_dashboard
import waitress
from optuna.trial import FrozenTrial
from optuna_dashboard import _serializer  # type: ignore[attr-defined]
from sqlalchemy import URL

from hpo.connect import storage_url
from hpo.errors import InputError
from hpo.publish import note_of_trial
from storage.artifacts import PostgresArtifacts
from storage.connection import Connection
from storage.engine import open_rdb_storage
from storage.native import PostgresStorage

HOST = "127.0.0.1"
READ_ONLY = {"options": "-c default_transaction_read_only=on"}
PATIENCE_S = 3.0  # for a file
SAVED = [("Content-Disposition", "attachment"), ("X-Content-Type-Options", "nosniff")]  # whatever it says that it is
SHARED = "Access-Control-Allow-Origin"  # optuna-dashboard lets pages of any origin read files

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
serialize_trial = _serializer.serialize_frozen_trial


def serve(port: int) -> None:
    """optuna-dashboard has no login and can delete studies, so its session is read-only. Raises InputError."""
    url = storage_url()
    PostgresStorage(url).remove_session()  # makes the tables of a new database
    _serializer.serialize_frozen_trial = _with_its_own_note
    app = _with_inert_files(optuna_dashboard.wsgi(open_rdb_storage(url, read_only=True), _artifacts(url)))
    try:
        server = waitress.create_server(app, host=HOST, port=port)
    except OSError as error:
        raise InputError(f"cannot serve on {HOST}:{port} ({error.strerror}); give another --port") from None
    print(f"http://{HOST}:{port}/  (Ctrl-C ends it)", flush=True)
    server.run()  # until Ctrl-C


def _with_its_own_note(study_id: int, trial: FrozenTrial, attributes: dict[str, Any]) -> dict[str, Any]:
    """optuna-dashboard looks for each trial's note among all: 24 s for 5,000 trials."""
    shown: dict[str, Any] = serialize_trial(study_id, trial, note_of_trial(attributes, trial._trial_id))
    return shown


def _artifacts(url: URL) -> PostgresArtifacts:
    return PostgresArtifacts(partial(Connection(url.update_query_dict(READ_ONLY)).persist, patience_s=PATIENCE_S))


def _with_inert_files(app: Application) -> Application:
    def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        def start_file(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start(status, [pair for pair in headers if pair[0] != SHARED] + SAVED, *error)

        return app(environ, start_file if environ["PATH_INFO"].startswith("/artifacts/") else start)

    return serve

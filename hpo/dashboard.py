"""optuna-dashboard on this machine only, over a database session that cannot write."""

from __future__ import annotations

import optuna_dashboard
import waitress

from hpo.connect import storage_url
from hpo.errors import InputError
from storage.engine import open_rdb_storage
from storage.native import PostgresStorage

HOST = "127.0.0.1"


def serve(port: int) -> None:
    """optuna-dashboard has no login and can delete studies, so its session is read-only. Raises InputError."""
    url = storage_url()
    PostgresStorage(url).remove_session()  # makes the tables of a new database
    app = optuna_dashboard.wsgi(open_rdb_storage(url, read_only=True))
    try:
        server = waitress.create_server(app, host=HOST, port=port)
    except OSError as error:
        raise InputError(f"cannot serve on {HOST}:{port} ({error.strerror}); give another --port") from None
    print(f"http://{HOST}:{port}/  (Ctrl-C ends it)", flush=True)
    server.run()  # until Ctrl-C

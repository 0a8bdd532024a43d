"""Which database a command talks to: HPO_STORAGE, else the embedded server."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import URL

from hpo.errors import InputError
from storage import embedded
from storage.engine import parse_url

LOOK_PATIENCE_S = 3.0  # of commands that only look; workers wait longer for their database
PASSWORD_FILE = "HPO_PASSWORD_FILE"  # of a container's secret, say; libpq's own is PGPASSFILE


def storage_url() -> URL:
    """Starts the embedded server when HPO_STORAGE is not set. Raises InputError, StorageError, ServerError."""
    if not (given := os.environ.get("HPO_STORAGE")):
        return parse_url(embedded.start(embedded.default_home()))
    url = parse_url(given)
    if (file := os.environ.get(PASSWORD_FILE)) and url.password is None:
        url = url.set(password=read_password(Path(file)))
    return url


def read_password(path: Path) -> str:
    """The file's only line. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\r\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no password can be read from it ({type(error).__name__})") from None
    if len(lines) != 1 or not lines[0].strip() or "\0" in lines[0]:
        found = f"{len(lines)} lines" if len(lines) > 1 else "none"
        raise InputError(f"{path}: expected a password alone in one line, found {found}")
    return lines[0]

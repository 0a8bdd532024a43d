"""Which database a command talks to: HPO_STORAGE, else the embedded server."""

from __future__ import annotations

import os

from sqlalchemy import URL

from storage import embedded
from storage.engine import parse_url

LOOK_PATIENCE_S = 3.0  # of commands that only look; workers wait longer for their database


def storage_url() -> URL:
    """Starts the embedded server when HPO_STORAGE is not set. Raises StorageError, ServerError."""
    if given := os.environ.get("HPO_STORAGE"):
        return parse_url(given)
    return parse_url(embedded.start(embedded.default_home()))

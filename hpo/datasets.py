"""The incidents of a study on this box: kept as they were read, and fetched by hash where the export does not lie."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from hpo.connect import storage_url
from hpo.errors import SetupError
from objectives.cache import keep, lookup
from objectives.config import Incidents
from objectives.incidents import cache_key, check_sha256, kept_incidents
from storage import datasets
from storage.embedded import default_home
from storage.native import PostgresStorage

TRIES = 3
LARGEST_BYTES = 256 << 20  # a larger one stays where it is: give incidents.path as a URL that all boxes reach


def cache_folder() -> Path:
    return default_home() / "cache"


def models_folder() -> Path:
    """Of the best trials of each study: hpo/ensemble.py."""
    return default_home() / "models"


def to_store(incidents: Incidents) -> bytes | None:
    """What the database is to hold, so that a worker needs nothing else; None where it is too much."""
    content = kept_incidents(incidents, cache_folder())
    return content if len(content) <= LARGEST_BYTES else None


def fetch(storage: PostgresStorage | None, incidents: Incidents) -> None:
    """Sees that this box has what was read from the export. Raises DataError, SetupError."""
    for _ in range(TRIES):  # somebody may be cleaning
        if is_here(incidents) or incidents.sha256 is None:
            return
        content = datasets.fetch(storage.ask, incidents.dataset) if storage and incidents.dataset else None
        if content is None:
            kept_incidents(incidents, cache_folder())
        else:
            keep(cache_folder(), *cache_key(incidents), content)
    if not is_here(incidents):
        raise SetupError(f"{cache_folder()} cannot be written to, or its disk is full; set HPO_HOME to another folder")


def for_training(incidents: Incidents, storage: PostgresStorage | None = None) -> None:
    """An export that has changed is refused; one that is not there is found by its hash. Raises DataError."""
    if "://" in incidents.path or os.path.exists(incidents.path):
        check_sha256(incidents)
    elif storage is None and os.environ.get("HPO_STORAGE"):
        storage = PostgresStorage(storage_url())
    fetch(storage, incidents)


def is_here(incidents: Incidents) -> bool:
    return lookup(cache_folder(), *cache_key(incidents)) is not None


def clean() -> int:
    """Removes what this box has kept of exports, pairs and models; returns its bytes. It is made anew when needed."""
    size = 0
    for file in [*cache_folder().glob("*"), *models_folder().rglob("*")]:
        with suppress(OSError):
            removed = file.stat().st_size
            file.unlink()
            size += removed
    shutil.rmtree(models_folder(), ignore_errors=True)
    return size
